"""Metadata keys, the W3C trace context, and the client's defaults, shared by server and client.

The trace context (https://www.w3.org/TR/trace-context/) is sent as metadata `traceparent` and `tracestate`, and read
from the environment variables TRACEPARENT and TRACESTATE
(https://opentelemetry.io/docs/specs/otel/context/env-carriers/). OpenTelemetry need not be installed.
"""

import re
import sys
from collections.abc import Mapping

from bookstore_grpc.limits import REQUEST_ID_MAX_CHARACTERS

DEFAULT_SERVER = "127.0.0.1:50051"
DEFAULT_TIMEOUT_SECONDS = 10.0

ERROR_DOMAIN = "bookstore.v1"
# In the metadata of an ErrorInfo: the number of violations or missing books that did not fit into the details.
OMITTED_COUNT_KEY = "omitted_count"
AUTHORIZATION_KEY = "authorization"
REQUEST_ID_KEY = "x-request-id"
# Valid request ids. The server replaces any other by a generated one.
REQUEST_ID_PATTERN = re.compile(rf"[A-Za-z0-9._-]{{1,{REQUEST_ID_MAX_CHARACTERS}}}")
TRACEPARENT_KEY = "traceparent"
TRACESTATE_KEY = "tracestate"
STATUS_DETAILS_KEY = "grpc-status-details-bin"

Metadata = tuple[tuple[str, str], ...]

_TRACEPARENT = re.compile(r"(?!ff)([0-9a-f]{2})-(?!0{32})([0-9a-f]{32})-(?!0{16})[0-9a-f]{16}-[0-9a-f]{2}(-.*)?")
_TRACESTATE_MAX_CHARACTERS = 512


def trace_id_from_traceparent(value: str) -> str:
    """Return the trace id, or "" if `value` is not a valid `traceparent`."""
    found = _TRACEPARENT.fullmatch(value)
    # Version 00 has nothing after the flags; later versions may.
    return found[2] if found and not (found[3] and found[1] == "00") else ""


def metadata_from_environment(environment: Mapping[str, str]) -> Metadata:
    """Return the metadata that makes a call part of the trace in TRACEPARENT; empty if it is absent or invalid."""
    traceparent = environment.get("TRACEPARENT", "")
    if not trace_id_from_traceparent(traceparent) or not _is_sendable(traceparent):
        return ()
    tracestate = environment.get("TRACESTATE", "")
    if not tracestate or len(tracestate) > _TRACESTATE_MAX_CHARACTERS or not _is_sendable(tracestate):
        return ((TRACEPARENT_KEY, traceparent),)
    return ((TRACEPARENT_KEY, traceparent), (TRACESTATE_KEY, tracestate))


def metadata_of_current_span() -> Metadata:
    """Return the metadata that makes a call a child of OpenTelemetry's current span; empty without a valid span.

    OpenTelemetry is used only if the program has imported it.
    """
    trace = sys.modules.get("opentelemetry.trace")
    if trace is None or not trace.get_current_span().get_span_context().is_valid:
        return ()
    from opentelemetry.trace.propagation.tracecontext import TraceContextTextMapPropagator

    carrier: dict[str, str] = {}
    TraceContextTextMapPropagator().inject(carrier)
    return tuple(carrier.items())


def _is_sendable(value: str) -> bool:
    return value.isascii() and value.isprintable()
