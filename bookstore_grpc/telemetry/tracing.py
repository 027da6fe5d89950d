"""Tracing: one span for each call, and one for each read or transaction in the database.

Imported only if tracing is enabled. Names and attributes are those of OpenTelemetry's conventions for gRPC
(https://opentelemetry.io/docs/specs/semconv/rpc/grpc/) and for SQL (https://opentelemetry.io/docs/specs/semconv/db/sql/).
They never include contents, parameters or tokens.
"""

import random
from collections.abc import Mapping, Sequence
from contextvars import Context as Variables
from typing import TYPE_CHECKING
from urllib.parse import unquote

from opentelemetry.context import Context, attach
from opentelemetry.sdk.trace import ReadableSpan
from opentelemetry.trace import (
    Link,
    Span,
    SpanKind,
    StatusCode,
    format_trace_id,
    get_current_span,
    set_span_in_context,
)
from opentelemetry.trace.propagation.tracecontext import TraceContextTextMapPropagator
from opentelemetry.util.types import AttributeValue

from bookstore_grpc.calls.call import HEALTH_PREFIX, UNKNOWN_METHOD, Call, Outcome
from bookstore_grpc.dal.driver_errors import driver_error
from bookstore_grpc.metadata import TRACEPARENT_KEY, TRACESTATE_KEY
from bookstore_grpc.net.address import Address

if TYPE_CHECKING:
    from bookstore_grpc.telemetry.otlp import SpanExport

_PROPAGATOR = TraceContextTextMapPropagator()
# By the convention every other status is the caller's fault.
_ERRORS = {"UNKNOWN", "DEADLINE_EXCEEDED", "UNIMPLEMENTED", "INTERNAL", "UNAVAILABLE", "DATA_LOSS"}


class Traces:
    """Creates the spans; an observer of calls and of the database.

    The span of a call belongs to the trace in its `traceparent`, and is the current span while the call runs. A span of
    database work for one call is its child. One for several traced calls (group commit) has its own trace, with links
    in both directions.

    The caller's `traceparent` decides whether a call is sampled. Without one, the share `ratio` of calls is.
    """

    def __init__(
        self,
        export: "SpanExport",
        *,
        ratio: float,
        server: Mapping[str, AttributeValue],
        database: Mapping[str, AttributeValue],
    ) -> None:
        self._export = export
        self._ratio = ratio
        self._server = server
        self._database = database
        self._by_method: dict[str, Mapping[str, AttributeValue]] = {}

    def call_began(self, call: Call) -> None:
        """Start the span of a call if it is sampled. Health checks have none."""
        if call.method.startswith(HEALTH_PREFIX):
            return
        # The SDK's samplers decide the same, but only after most of the work.
        context = _PROPAGATOR.extract(_carrier(call), Context()) if call.trace_id else Context()
        if call.trace_id:
            is_wanted = get_current_span(context).get_span_context().trace_flags.sampled
        else:
            is_wanted = random.random() < self._ratio  # noqa: S311  not used for security
        if not is_wanted:
            return
        attributes = self._by_method.get(call.method)
        if attributes is None:
            method = "_OTHER" if call.method == UNKNOWN_METHOD else call.method.lstrip("/")
            attributes = self._by_method[call.method] = {
                "rpc.system.name": "grpc",
                "rpc.method": method,
                **self._server,
            }
        # By the convention all unknown methods have the same name.
        name = "grpc" if call.method == UNKNOWN_METHOD else str(attributes["rpc.method"])
        span = self._export.tracer.start_span(name, context, SpanKind.SERVER, attributes)
        # Never detached, because the context ends with the task of the call.
        attach(set_span_in_context(span, context))
        call.span = span
        trace_id = span.get_span_context().trace_id  # 0 if a variable disables OpenTelemetry
        call.trace_id = format_trace_id(trace_id) if trace_id else ""

    def call_ended(self, call: Call, outcome: Outcome) -> None:
        """End the span of a call. Only server errors mark it as an error."""
        span: Span | None = call.span
        if span is None:
            return
        attributes = {
            "bookstore.request_id": call.request_id,
            "rpc.response.status_code": outcome.status,
            **_peer(call.context.peer()),
        }
        if outcome.reason:
            attributes["bookstore.reason"] = outcome.reason
        if outcome.status in _ERRORS:
            attributes["error.type"] = outcome.status
            span.set_status(StatusCode.ERROR)
        span.set_attributes(attributes)
        span.end()

    def read_ended(self, summary: str, started_ns: int, error: BaseException | None) -> None:
        """Create the span of a read, a child of the call's span."""
        span = get_current_span()
        if span.get_span_context().trace_flags.sampled:
            self._database_span(summary, [span], started_ns, error, {})

    def batch_ended(
        self, summary: str, callers: Sequence[Variables], started_ns: int, error: BaseException | None
    ) -> None:
        """Create the span of a write transaction, which may serve several calls (group commit)."""
        spans = (variables.run(get_current_span) for variables in callers)
        traced = [span for span in spans if span.get_span_context().trace_flags.sampled]
        if traced:
            size = {"db.operation.batch.size": len(callers)} if len(callers) > 1 else {}
            self._database_span(summary, traced, started_ns, error, size)

    def _database_span(
        self,
        summary: str,
        callers: Sequence[Span],
        started_ns: int,
        error: BaseException | None,
        attributes: Mapping[str, AttributeValue],
    ) -> None:
        is_shared = len(callers) > 1
        if not is_shared and isinstance(callers[0], ReadableSpan):
            # The transaction may have started before the call that it serves.
            started_ns = max(started_ns, callers[0].start_time or 0)
        span = self._export.tracer.start_span(
            summary,
            Context() if is_shared else set_span_in_context(callers[0], Context()),
            SpanKind.CLIENT,
            {"db.query.summary": summary, **self._database, **attributes},
            [Link(caller.get_span_context()) for caller in callers] if is_shared else (),
            started_ns,
        )
        if error is not None:
            span.set_attribute("error.type", type(driver_error(error)).__name__)
            span.set_status(StatusCode.ERROR)
        span.end()
        if is_shared:
            for caller in callers:
                if caller.is_recording():
                    caller.add_link(span.get_span_context())


def server_attributes(address: Address) -> Mapping[str, AttributeValue]:
    """Return the attributes that identify the server, from an address that it listens on."""
    if address.is_unix:
        return {"server.address": address.path}
    return {"server.address": address.host} | ({"server.port": address.port} if address.port else {})


def database_attributes(
    system: str, *, name: str | None, host: str | None, port: int | None
) -> Mapping[str, AttributeValue]:
    """Return the attributes that identify the database."""
    given = {"db.system.name": system, "db.namespace": name, "server.address": host, "server.port": port}
    return {key: value for key, value in given.items() if value is not None}


def _carrier(call: Call) -> dict[str, str]:
    keys = (TRACEPARENT_KEY, TRACESTATE_KEY)
    return {key: value for key, value in call.metadata if key in keys and isinstance(value, str)}


def _peer(peer: str) -> dict[str, AttributeValue]:
    kind, _, where = peer.partition(":")
    host, _, port = unquote(where).rpartition(":")
    if kind not in ("ipv4", "ipv6") or not port.isdigit():
        return {}
    return {"network.peer.address": host.strip("[]"), "network.peer.port": int(port)}
