"""Metadata keys, the W3C trace context and the client's defaults: what both sides agree on and no message defines.

The trace context (https://www.w3.org/TR/trace-context/) travels in the metadata `traceparent` and `tracestate`, and in
the environment variables TRACEPARENT and TRACESTATE
(https://opentelemetry.io/docs/specs/otel/context/env-carriers/). No package of OpenTelemetry is needed.
"""

import re
import sys
from collections.abc import Mapping

from bookstore_grpc.limits import REQUEST_ID_MAX_CHARACTERS

DEFAULT_SERVER = "127.0.0.1:50051"
DEFAULT_TIMEOUT_SECONDS = 10.0

ERROR_DOMAIN = "bookstore.v1"
# In the metadata of an ErrorInfo: how many violations or missing books did not fit into the details.
OMITTED_COUNT_KEY = "omitted_count"
AUTHORIZATION_KEY = "authorization"
REQUEST_ID_KEY = "x-request-id"
# What a caller may name its call; the server makes an id of its own for anything else.
REQUEST_ID_PATTERN = re.compile(rf"[A-Za-z0-9._-]{{1,{REQUEST_ID_MAX_CHARACTERS}}}")
TRACEPARENT_KEY = "traceparent"
TRACESTATE_KEY = "tracestate"
STATUS_DETAILS_KEY = "grpc-status-details-bin"

Metadata = tuple[tuple[str, str], ...]

_TRACEPARENT = re.compile(r"(?!ff)([0-9a-f]{2})-(?!0{32})([0-9a-f]{32})-(?!0{16})[0-9a-f]{16}-[0-9a-f]{2}(-.*)?")
_TRACESTATE_MAX_CHARACTERS = 512


def trace_id_from_traceparent(value: str) -> str:
    """Answer the id of the trace, or "" for what is no `traceparent`."""
    found = _TRACEPARENT.fullmatch(value)
    # The first version has nothing behind the flags; later ones may.
    return found[2] if found and not (found[3] and found[1] == "00") else ""


def metadata_from_environment(environment: Mapping[str, str]) -> Metadata:
    """Answer the metadata that lets a call join the trace which TRACEPARENT names; none where that is none."""
    traceparent = environment.get("TRACEPARENT", "")
    if not trace_id_from_traceparent(traceparent) or not _is_sendable(traceparent):
        return ()
    tracestate = environment.get("TRACESTATE", "")
    if not tracestate or len(tracestate) > _TRACESTATE_MAX_CHARACTERS or not _is_sendable(tracestate):
        return ((TRACEPARENT_KEY, traceparent),)
    return ((TRACEPARENT_KEY, traceparent), (TRACESTATE_KEY, tracestate))


def metadata_of_current_span() -> Metadata:
    """Answer the metadata that makes a call part of OpenTelemetry's current span; none where there is none.

    A program that traces has imported OpenTelemetry; for others it is not imported.
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
