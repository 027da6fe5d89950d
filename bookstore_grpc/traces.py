"""Traces by OpenTelemetry: a span for each call, and one for what then goes to the database.

Imported only where traces are wanted. Names and attributes are those of OpenTelemetry's conventions for gRPC
(https://opentelemetry.io/docs/specs/semconv/rpc/grpc/) and for SQL (https://opentelemetry.io/docs/specs/semconv/db/sql/).
Neither contents nor parameters nor tokens are ever among them.
"""

import asyncio
import logging
import os
from collections.abc import AsyncIterator, Callable, Iterator, Mapping, Sequence
from contextlib import ExitStack, asynccontextmanager, contextmanager
from contextvars import Context as Variables
from importlib.metadata import version
from urllib.parse import unquote, urlsplit

import structlog
from opentelemetry.context import Context, attach
from opentelemetry.exporter.otlp.proto.grpc.trace_exporter import OTLPSpanExporter
from opentelemetry.sdk.resources import OTELResourceDetector, Resource
from opentelemetry.sdk.trace import ReadableSpan, TracerProvider
from opentelemetry.sdk.trace.export import BatchSpanProcessor, SpanExporter, SpanExportResult
from opentelemetry.sdk.trace.sampling import ALWAYS_ON, ParentBased, Sampler, SamplingResult, TraceIdRatioBased
from opentelemetry.trace import (
    Link,
    Span,
    SpanKind,
    StatusCode,
    Tracer,
    TraceState,
    format_trace_id,
    get_current_span,
    set_span_in_context,
)
from opentelemetry.trace.propagation.tracecontext import TraceContextTextMapPropagator
from opentelemetry.util.types import Attributes, AttributeValue

from bookstore_grpc.errors import StartupError
from bookstore_grpc.rpc.calls import HEALTH_PREFIX, Call, Outcome
from bookstore_grpc.rpc.interceptors import UNKNOWN_METHOD
from bookstore_grpc.wire import TRACEPARENT_KEY, TRACESTATE_KEY

_log = structlog.stdlib.get_logger("bookstore_grpc.traces")

_PROPAGATOR = TraceContextTextMapPropagator()
# Whatever else a call ends with is its caller's doing, says the convention.
_ERRORS = {"UNKNOWN", "DEADLINE_EXCEEDED", "UNIMPLEMENTED", "INTERNAL", "UNAVAILABLE", "DATA_LOSS"}
_FLUSH_SECONDS = 3
# Where OpenTelemetry tells of a collector that is away, again and again; of spans for which there was no room; and of
# what callers have sent, which has no place in a log.
_EXPORTER_LOGGER = "opentelemetry.exporter.otlp.proto.grpc.exporter"
_QUEUE_LOGGER = "opentelemetry.sdk._shared_internal"
_PARSER_LOGGERS = ("opentelemetry.trace.span", "opentelemetry.trace.propagation.tracecontext")


class Traces:
    """Makes the spans; an observer of calls and of the database.

    A call's span is a part of the trace that its caller names, and is current while the call runs. What is done for one
    call is its child. What is done for several that are traced is in a trace of its own; links lead there and back.
    """

    def __init__(
        self, tracer: Tracer, *, server: Mapping[str, AttributeValue], database: Mapping[str, AttributeValue]
    ) -> None:
        self._tracer = tracer
        self._server = server
        self._database = database
        self._by_method: dict[str, Mapping[str, AttributeValue]] = {}

    def call_began(self, call: Call) -> None:
        """Begin the call's span; health has none."""
        if call.method.startswith(HEALTH_PREFIX):
            return
        attributes = self._by_method.get(call.method)
        if attributes is None:
            method = "_OTHER" if call.method == UNKNOWN_METHOD else call.method.lstrip("/")
            attributes = self._by_method[call.method] = {
                "rpc.system.name": "grpc",
                "rpc.method": method,
                **self._server,
            }
        context = _PROPAGATOR.extract(_carrier(call), Context()) if call.trace_id else Context()
        # The convention has a method that there is not share its name with the others of its kind.
        name = "grpc" if call.method == UNKNOWN_METHOD else str(attributes["rpc.method"])
        span = self._tracer.start_span(name, context, SpanKind.SERVER, attributes)
        # For good: the call's task, and with it what is current, ends with the call.
        attach(set_span_in_context(span, context))
        call.span = span
        call.trace_id = format_trace_id(span.get_span_context().trace_id)

    def call_ended(self, call: Call, outcome: Outcome) -> None:
        """End the call's span. Only what is the server's fault is an error."""
        span: Span | None = call.span
        if span is None or not span.is_recording():
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
        """Make the span of a read, a child of the call's."""
        span = get_current_span()
        if span.get_span_context().trace_flags.sampled:
            self._database_span(summary, [span], started_ns, error, {})

    def group_ended(
        self, summary: str, callers: Sequence[Variables], started_ns: int, error: BaseException | None
    ) -> None:
        """Make the span of a group of writes."""
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
        span = self._tracer.start_span(
            summary,
            Context() if is_shared else set_span_in_context(callers[0], Context()),
            SpanKind.CLIENT,
            {"db.query.summary": summary, **self._database, **attributes},
            [Link(caller.get_span_context()) for caller in callers] if is_shared else (),
            started_ns,
        )
        if error is not None:
            span.set_attribute("error.type", _error_type(error))
            span.set_status(StatusCode.ERROR)
        span.end()
        if is_shared:
            for caller in callers:
                if caller.is_recording():
                    caller.add_link(span.get_span_context())


@asynccontextmanager
async def tracing(
    endpoint: str,
    *,
    ratio: float,
    server: Mapping[str, AttributeValue],
    database: Mapping[str, AttributeValue],
) -> AsyncIterator[Traces]:
    """Answer what makes spans, and send them to a collector; at the end those that wait, if that does not take long.

    Headers, certificates, compression, sizes and times are OpenTelemetry's own variables (OTEL_EXPORTER_OTLP_…,
    OTEL_BSP_…), and so is what describes this process (OTEL_SERVICE_NAME, OTEL_RESOURCE_ATTRIBUTES).

    Raises `StartupError` for a URL or a variable that cannot be used.
    """
    failures = _Failures()
    with ExitStack() as stack:
        stack.enter_context(_filtered(_EXPORTER_LOGGER, failures.filter))
        exporter = _Exporter(_exporter(endpoint, failures), endpoint, failures)
        stack.enter_context(_filtered(_QUEUE_LOGGER, lambda _record: not exporter.fails))
        for name in _PARSER_LOGGERS:
            stack.enter_context(_filtered(name, lambda _record: False))
        provider = TracerProvider(ParentBased(_Roots(ratio)), _resource(), shutdown_on_exit=False)
        provider.add_span_processor(BatchSpanProcessor(exporter))
        try:
            yield Traces(provider.get_tracer("bookstore_grpc", _version()), server=server, database=database)
        finally:
            await _close(provider, exporter)


def server_attributes(address: str) -> Mapping[str, AttributeValue]:
    """Answer what tells which server has answered, from an address that it listens on."""
    if address.startswith("unix:"):
        return {"server.address": address.removeprefix("unix:")}
    host, _, port = address.rpartition(":")
    return {"server.address": host.strip("[]")} | ({"server.port": int(port)} if int(port) else {})


def database_attributes(
    system: str, *, name: str | None, host: str | None, port: int | None
) -> Mapping[str, AttributeValue]:
    """Answer what tells which database it was."""
    given = {"db.system.name": system, "db.namespace": name, "server.address": host, "server.port": port}
    return {key: value for key, value in given.items() if value is not None}


class _Roots(Sampler):
    """Decides where no parent has: by a ratio, but what was done for calls that are traced is always wanted."""

    def __init__(self, ratio: float) -> None:
        self._by_ratio = TraceIdRatioBased(ratio)

    def should_sample(  # noqa: PLR0917  OpenTelemetry's
        self,
        parent_context: Context | None,
        trace_id: int,
        name: str,
        kind: SpanKind | None = None,
        attributes: Attributes = None,
        links: Sequence[Link] | None = None,
        trace_state: TraceState | None = None,
    ) -> SamplingResult:
        """Decide by links, or by ratio."""
        sampler = ALWAYS_ON if links else self._by_ratio
        return sampler.should_sample(parent_context, trace_id, name, kind, attributes, links)

    def get_description(self) -> str:
        """Say by what it decides."""
        return f"links, or {self._by_ratio.get_description()}"


@contextmanager
def _filtered(name: str, passes: Callable[[logging.LogRecord], bool]) -> Iterator[None]:
    logger = logging.getLogger(name)
    logger.addFilter(passes)
    try:
        yield
    finally:
        logger.removeFilter(passes)


class _Failures:
    """Takes what the exporter would have in the log, and keeps the last of it."""

    last = ""

    def filter(self, record: logging.LogRecord) -> bool:
        """Let nothing through."""
        self.last = record.getMessage()
        return False


class _Exporter(SpanExporter):
    """Sends spans, and says in the log when that begins to fail and when it works again. Runs in a thread."""

    def __init__(self, exporter: SpanExporter, endpoint: str, failures: _Failures) -> None:
        self._exporter = exporter
        self._endpoint = endpoint
        self._failures = failures
        self.fails = False
        self._has_ended = False

    def export(self, spans: Sequence[ReadableSpan]) -> SpanExportResult:
        """Send spans, or give them up."""
        result = SpanExportResult.FAILURE
        try:
            result = self._exporter.export(spans)
        except Exception as error:  # a channel that is closed meanwhile, or a defect; the calls do not depend on it
            self._failures.last = repr(error)
        fails = result is not SpanExportResult.SUCCESS
        if fails and not self.fails:
            _log.warning("traces not sent", endpoint=self._endpoint, cause=self._failures.last)
        elif self.fails and not fails:
            _log.info("traces sent again", endpoint=self._endpoint)
        self.fails = fails
        return result

    def shutdown(self) -> None:
        """Give up what is under way, and take no more."""
        if not self._has_ended:
            self._has_ended = True
            self._exporter.shutdown()


def _exporter(endpoint: str, failures: _Failures) -> SpanExporter:
    url = urlsplit(endpoint)
    if url.scheme not in ("http", "https") or not url.netloc:
        raise StartupError(f"--trace-endpoint {endpoint!r} is no URL such as http://127.0.0.1:4317.")
    try:
        exporter = OTLPSpanExporter(endpoint)
    except Exception as error:
        raise StartupError(f"Traces cannot be sent as OpenTelemetry's variables want it: {error}.") from error
    if failures.last:
        raise StartupError(f"Traces cannot be sent as OpenTelemetry's variables want it: {failures.last}")
    return exporter


def _resource() -> Resource:
    ours: dict[str, AttributeValue] = {
        "service.name": "bookstore",
        "service.version": _version(),
        "process.pid": os.getpid(),
    }
    # What the variables say goes before.
    return Resource.create({**ours, **OTELResourceDetector().detect().attributes})


async def _close(provider: TracerProvider, exporter: SpanExporter) -> None:
    closing = asyncio.create_task(asyncio.to_thread(provider.shutdown))
    await asyncio.wait([closing], timeout=_FLUSH_SECONDS)
    # A collector that is away would be tried for ten seconds, and waited for even longer.
    exporter.shutdown()
    await closing


def _version() -> str:
    return version("bookstore-grpc")


def _carrier(call: Call) -> dict[str, str]:
    keys = (TRACEPARENT_KEY, TRACESTATE_KEY)
    return {key: value for key, value in call.metadata if key in keys and isinstance(value, str)}


def _peer(peer: str) -> dict[str, AttributeValue]:
    kind, _, where = peer.partition(":")
    host, _, port = unquote(where).rpartition(":")
    if kind not in ("ipv4", "ipv6") or not port.isdigit():
        return {}
    return {"network.peer.address": host.strip("[]"), "network.peer.port": int(port)}


def _error_type(error: BaseException) -> str:
    """Name what the driver has raised, which says more than what it became."""
    cause = error.__cause__
    return type(getattr(cause, "orig", cause) or error).__name__
