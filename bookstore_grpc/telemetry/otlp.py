"""Export of spans to a collector (OTLP over gRPC), by OpenTelemetry's SDK, in one of its threads.

Imported only if tracing is enabled. Headers, certificates, compression, sizes and times are configured by
OpenTelemetry's own variables (OTEL_EXPORTER_OTLP_…, OTEL_BSP_…), and so are the attributes of this process
(OTEL_SERVICE_NAME, OTEL_RESOURCE_ATTRIBUTES).
"""

import asyncio
import logging
import os
from collections.abc import Callable, Iterator, Sequence
from contextlib import ExitStack, contextmanager
from importlib.metadata import version
from typing import Any
from urllib.parse import urlsplit

import structlog
from opentelemetry.exporter.otlp.proto.grpc.trace_exporter import OTLPSpanExporter
from opentelemetry.sdk.resources import OTELResourceDetector, Resource
from opentelemetry.sdk.trace import ReadableSpan, TracerProvider
from opentelemetry.sdk.trace.export import BatchSpanProcessor, SpanExporter, SpanExportResult
from opentelemetry.sdk.trace.sampling import ALWAYS_ON
from opentelemetry.trace import Tracer
from opentelemetry.util.types import AttributeValue

from bookstore_grpc.errors import StartupError
from bookstore_grpc.net.address import is_loopback

_log = structlog.stdlib.get_logger("bookstore_grpc.telemetry.otlp")

_FLUSH_SECONDS = 3
_VARIABLES = "OpenTelemetry's variables cannot be used"
# OpenTelemetry's loggers: of invalid variables and, repeatedly, of an unavailable collector; of spans that did not fit
# into the queue; of headers, which may be secret; and of what callers have sent, which must not be logged.
_EXPORT_LOGGERS = ("opentelemetry.exporter.otlp.proto.grpc.exporter", "opentelemetry.sdk.trace.export")
_QUEUE_LOGGER = "opentelemetry.sdk._shared_internal"
_HEADERS_LOGGER = "opentelemetry.util.re"
_PARSER_LOGGERS = ("opentelemetry.trace.span", "opentelemetry.trace.propagation.tracecontext")


class SpanExport:
    """Sends all spans of its `tracer` to a collector, between start and stop.

    Sampling is decided before a span is created.
    """

    tracer: Tracer

    def __init__(self, endpoint: str) -> None:
        self._endpoint = endpoint
        self._filters = ExitStack()

    async def start(self) -> None:
        """Read OpenTelemetry's variables. Raises `StartupError` for invalid ones."""
        self._exporter = exporter = _Exporter(self._endpoint)
        with ExitStack() as filters:
            for name in _EXPORT_LOGGERS:
                filters.enter_context(_filtered(name, exporter.capture))
            filters.enter_context(_filtered(_HEADERS_LOGGER, exporter.capture_headers))
            for name in _PARSER_LOGGERS:
                filters.enter_context(_filtered(name, lambda _record: False))
            filters.enter_context(_filtered(_QUEUE_LOGGER, lambda _record: not exporter.is_failing))
            self._provider = _provider(exporter)
            self._filters = filters.pop_all()
        self.tracer = self._provider.get_tracer("bookstore_grpc", version("bookstore-grpc"))

    async def stop(self) -> None:
        """Send the queued spans, for at most three seconds."""
        with self._filters:
            await _close(self._provider, self._exporter)


@contextmanager
def _filtered(name: str, passes: Callable[[logging.LogRecord], bool]) -> Iterator[None]:
    logger = logging.getLogger(name)
    logger.addFilter(passes)
    try:
        yield
    finally:
        logger.removeFilter(passes)


class _Exporter(SpanExporter):
    """Sends spans, and logs the first failure and the recovery. Runs in a thread.

    `capture` receives what OpenTelemetry would log. Before `has_started` is set, that is about the configuration.
    """

    def __init__(self, endpoint: str) -> None:
        self._endpoint = endpoint
        self.captured = ""
        self.has_started = False
        self.is_failing = False
        self._has_ended = False
        self._exporter: SpanExporter | None = None

    def capture(self, record: logging.LogRecord) -> bool:
        """Remember a log record, and suppress it."""
        self.captured = record.getMessage()
        if self.has_started:
            self._log_failure()
        return False

    def capture_headers(self, _record: logging.LogRecord) -> bool:
        """Suppress a record about headers, which may be secret."""
        self.captured = "OTEL_EXPORTER_OTLP_HEADERS is not of the form NAME=VALUE,NAME=VALUE."
        return False

    def open(self) -> None:
        """Read OpenTelemetry's variables; raises whatever OpenTelemetry raises. Connects with the first spans."""
        # gRPC would use an HTTP proxy even for the loopback.
        is_direct = is_loopback(urlsplit(self._endpoint).hostname or "")
        options: Any = (("grpc.enable_http_proxy", 0),) if is_direct else None
        self._exporter = OTLPSpanExporter(self._endpoint, channel_options=options)

    def export(self, spans: Sequence[ReadableSpan]) -> SpanExportResult:
        """Send spans, or drop them."""
        assert self._exporter is not None  # noqa: S101  it was opened
        try:
            result = self._exporter.export(spans)
        except Exception as error:  # a channel that was closed meanwhile, or a defect; neither must affect calls
            self.captured = repr(error)
            result = SpanExportResult.FAILURE
        if result is not SpanExportResult.SUCCESS:
            self._log_failure()
        elif self.is_failing:
            self.is_failing = False
            _log.info("traces sent again", endpoint=self._endpoint)
        return result

    def shutdown(self) -> None:
        """Drop the spans that are being sent, and accept no more."""
        if self._exporter and not self._has_ended:
            self._has_ended = True
            self._exporter.shutdown()

    def _log_failure(self) -> None:
        if not self.is_failing:
            self.is_failing = True
            _log.warning("traces not sent", endpoint=self._endpoint, cause=self.captured)


def _provider(exporter: _Exporter) -> TracerProvider:
    try:
        exporter.open()
        provider = TracerProvider(ALWAYS_ON, _resource(), shutdown_on_exit=False)
        provider.add_span_processor(BatchSpanProcessor(exporter))
    except Exception as error:
        raise StartupError(f"{_VARIABLES}: {error}.") from error
    if exporter.captured:
        provider.shutdown()
        raise StartupError(f"{_VARIABLES}: {exporter.captured}")
    exporter.has_started = True
    return provider


def _resource() -> Resource:
    defaults: dict[str, AttributeValue] = {
        "service.name": "bookstore",
        "service.version": version("bookstore-grpc"),
        "process.pid": os.getpid(),
    }
    # The variables take precedence.
    return Resource.create({**defaults, **OTELResourceDetector().detect().attributes})


async def _close(provider: TracerProvider, exporter: SpanExporter) -> None:
    closing = asyncio.create_task(asyncio.to_thread(provider.shutdown))
    await asyncio.wait([closing], timeout=_FLUSH_SECONDS)
    # Otherwise an unavailable collector would be retried for ten seconds, and the shutdown would take even longer.
    exporter.shutdown()
    await closing
