"""Where spans go: to a collector, by OpenTelemetry's SDK and its exporter over gRPC, in a thread of theirs.

Imported only where traces are wanted. Headers, certificates, compression, sizes and times are OpenTelemetry's own
variables (OTEL_EXPORTER_OTLP_…, OTEL_BSP_…), and so is what describes this process (OTEL_SERVICE_NAME,
OTEL_RESOURCE_ATTRIBUTES).
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
_VARIABLES = "Traces cannot be sent as OpenTelemetry's variables want it"
# Where OpenTelemetry logs variables that it cannot read and, again and again, a collector that is unavailable; spans
# that did not fit into the queue; and what callers have sent, which must not be logged.
_EXPORT_LOGGERS = ("opentelemetry.exporter.otlp.proto.grpc.exporter", "opentelemetry.sdk.trace.export")
_QUEUE_LOGGER = "opentelemetry.sdk._shared_internal"
# It logs the headers that it cannot read.
_HEADERS_LOGGER = "opentelemetry.util.re"
_PARSER_LOGGERS = ("opentelemetry.trace.span", "opentelemetry.trace.propagation.tracecontext")


class SpanExport:
    """Sends the spans of its `tracer` to a collector, from its start to its stop.

    All of them: what makes a span has decided that it is wanted.
    """

    tracer: Tracer

    def __init__(self, endpoint: str) -> None:
        self._endpoint = endpoint
        self._filters = ExitStack()

    async def start(self) -> None:
        """Read OpenTelemetry's variables. Raises `StartupError` for one that cannot be used."""
        self._exporter = exporter = _Exporter(self._endpoint)
        with ExitStack() as filters:
            for name in _EXPORT_LOGGERS:
                filters.enter_context(_filtered(name, exporter.hear))
            filters.enter_context(_filtered(_HEADERS_LOGGER, exporter.hear_of_headers))
            for name in _PARSER_LOGGERS:
                filters.enter_context(_filtered(name, lambda _record: False))
            filters.enter_context(_filtered(_QUEUE_LOGGER, lambda _record: not exporter.fails))
            self._provider = _provider(exporter)
            self._filters = filters.pop_all()
        self.tracer = self._provider.get_tracer("bookstore_grpc", version("bookstore-grpc"))

    async def stop(self) -> None:
        """Send the spans that wait, if that does not take long."""
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
    """Sends spans, and logs when that begins to fail and when it works again. Runs in a thread.

    What OpenTelemetry would log goes to `hear` instead; until `is_begun` it is about the configuration.
    """

    def __init__(self, endpoint: str) -> None:
        self._endpoint = endpoint
        self.heard = ""
        self.is_begun = False
        self.fails = False
        self._has_ended = False
        self._exporter: SpanExporter | None = None

    def hear(self, record: logging.LogRecord) -> bool:
        """Remember a log record, and suppress it."""
        self.heard = record.getMessage()
        if self.is_begun:
            self._begin_to_fail()
        return False

    def hear_of_headers(self, _record: logging.LogRecord) -> bool:
        """Suppress a record about headers, which may be secret."""
        self.heard = "OTEL_EXPORTER_OTLP_HEADERS is not of the form NAME=VALUE,NAME=VALUE."
        return False

    def open(self) -> None:
        """Read OpenTelemetry's variables, and raise what that raises. The first spans open the connection."""
        # gRPC would use a proxy for the loopback too.
        is_direct = is_loopback(urlsplit(self._endpoint).hostname or "")
        options: Any = (("grpc.enable_http_proxy", 0),) if is_direct else None
        self._exporter = OTLPSpanExporter(self._endpoint, channel_options=options)

    def export(self, spans: Sequence[ReadableSpan]) -> SpanExportResult:
        """Send spans, or drop them."""
        assert self._exporter is not None  # noqa: S101  it was opened
        try:
            result = self._exporter.export(spans)
        except Exception as error:  # a channel that is closed meanwhile, or a defect; calls must not depend on it
            self.heard = repr(error)
            result = SpanExportResult.FAILURE
        if result is not SpanExportResult.SUCCESS:
            self._begin_to_fail()
        elif self.fails:
            self.fails = False
            _log.info("traces sent again", endpoint=self._endpoint)
        return result

    def shutdown(self) -> None:
        """Drop the spans under way, and accept no more."""
        if self._exporter and not self._has_ended:
            self._has_ended = True
            self._exporter.shutdown()

    def _begin_to_fail(self) -> None:
        if not self.fails:
            self.fails = True
            _log.warning("traces not sent", endpoint=self._endpoint, cause=self.heard)


def _provider(exporter: _Exporter) -> TracerProvider:
    try:
        exporter.open()
        provider = TracerProvider(ALWAYS_ON, _resource(), shutdown_on_exit=False)
        provider.add_span_processor(BatchSpanProcessor(exporter))
    except Exception as error:
        raise StartupError(f"{_VARIABLES}: {error}.") from error
    if exporter.heard:
        provider.shutdown()
        raise StartupError(f"{_VARIABLES}: {exporter.heard}")
    exporter.is_begun = True
    return provider


def _resource() -> Resource:
    ours: dict[str, AttributeValue] = {
        "service.name": "bookstore",
        "service.version": version("bookstore-grpc"),
        "process.pid": os.getpid(),
    }
    # The variables take precedence.
    return Resource.create({**ours, **OTELResourceDetector().detect().attributes})


async def _close(provider: TracerProvider, exporter: SpanExporter) -> None:
    closing = asyncio.create_task(asyncio.to_thread(provider.shutdown))
    await asyncio.wait([closing], timeout=_FLUSH_SECONDS)
    # An unavailable collector would be retried for ten seconds, and waited for even longer.
    exporter.shutdown()
    await closing
