"""Where spans go: to a collector, by OpenTelemetry's SDK and its exporter over gRPC, in a thread of theirs.

Imported only where traces are wanted. Headers, certificates, compression, sizes and times are OpenTelemetry's own
variables (OTEL_EXPORTER_OTLP_…, OTEL_BSP_…), and so is what describes this process (OTEL_SERVICE_NAME,
OTEL_RESOURCE_ATTRIBUTES).
"""

import asyncio
import logging
import os
from collections.abc import AsyncIterator, Callable, Iterator, Sequence
from contextlib import ExitStack, asynccontextmanager, contextmanager
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
# Where OpenTelemetry tells of variables that it cannot read and of a collector that is away, the latter again and
# again; of spans for which there was no room; and of what callers have sent, which has no place in a log.
_EXPORT_LOGGERS = ("opentelemetry.exporter.otlp.proto.grpc.exporter", "opentelemetry.sdk.trace.export")
_QUEUE_LOGGER = "opentelemetry.sdk._shared_internal"
# It repeats the headers that it cannot read.
_HEADERS_LOGGER = "opentelemetry.util.re"
_PARSER_LOGGERS = ("opentelemetry.trace.span", "opentelemetry.trace.propagation.tracecontext")


@asynccontextmanager
async def exporting_spans(endpoint: str) -> AsyncIterator[Tracer]:
    """Answer what makes spans, and send them to a collector; at the end those that wait, if that does not take long.

    All of them: whoever makes a span has decided that it is wanted. Raises `StartupError` for a variable that cannot
    be used.
    """
    exporter = _Exporter(endpoint)
    with ExitStack() as stack:
        for name in _EXPORT_LOGGERS:
            stack.enter_context(_filtered(name, exporter.hear))
        stack.enter_context(_filtered(_HEADERS_LOGGER, exporter.hear_of_headers))
        for name in _PARSER_LOGGERS:
            stack.enter_context(_filtered(name, lambda _record: False))
        stack.enter_context(_filtered(_QUEUE_LOGGER, lambda _record: not exporter.fails))
        provider = _provider(exporter)
        try:
            yield provider.get_tracer("bookstore_grpc", version("bookstore-grpc"))
        finally:
            await _close(provider, exporter)


@contextmanager
def _filtered(name: str, passes: Callable[[logging.LogRecord], bool]) -> Iterator[None]:
    logger = logging.getLogger(name)
    logger.addFilter(passes)
    try:
        yield
    finally:
        logger.removeFilter(passes)


class _Exporter(SpanExporter):
    """Sends spans, and says in the log when that begins to fail and when it works again. Works in a thread.

    What OpenTelemetry would say goes to `hear`, and no further; until `is_begun` it is about the set-up.
    """

    def __init__(self, endpoint: str) -> None:
        self._endpoint = endpoint
        self.heard = ""
        self.is_begun = False
        self.fails = False
        self._has_ended = False
        self._exporter: SpanExporter | None = None

    def hear(self, record: logging.LogRecord) -> bool:
        """Take what is to be logged, and let none of it through."""
        self.heard = record.getMessage()
        if self.is_begun:
            self._begin_to_fail()
        return False

    def hear_of_headers(self, _record: logging.LogRecord) -> bool:
        """Take what is to be logged of headers, which may be secret."""
        self.heard = "OTEL_EXPORTER_OTLP_HEADERS is not of the form NAME=VALUE,NAME=VALUE."
        return False

    def open(self) -> None:
        """Read OpenTelemetry's variables; connect with the first spans. Raises whatever that raises."""
        # What stays on this machine gRPC would send through a proxy all the same.
        is_direct = is_loopback(urlsplit(self._endpoint).hostname or "")
        options: Any = (("grpc.enable_http_proxy", 0),) if is_direct else None
        self._exporter = OTLPSpanExporter(self._endpoint, channel_options=options)

    def export(self, spans: Sequence[ReadableSpan]) -> SpanExportResult:
        """Send spans, or give them up."""
        assert self._exporter is not None  # noqa: S101  it was opened
        try:
            result = self._exporter.export(spans)
        except Exception as error:  # a channel that is closed meanwhile, or a defect; the calls do not depend on it
            self.heard = repr(error)
            result = SpanExportResult.FAILURE
        if result is not SpanExportResult.SUCCESS:
            self._begin_to_fail()
        elif self.fails:
            self.fails = False
            _log.info("traces sent again", endpoint=self._endpoint)
        return result

    def shutdown(self) -> None:
        """Give up what is under way, and take no more."""
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
    # What the variables say goes before.
    return Resource.create({**ours, **OTELResourceDetector().detect().attributes})


async def _close(provider: TracerProvider, exporter: SpanExporter) -> None:
    closing = asyncio.create_task(asyncio.to_thread(provider.shutdown))
    await asyncio.wait([closing], timeout=_FLUSH_SECONDS)
    # A collector that is away would be tried for ten seconds, and waited for even longer.
    exporter.shutdown()
    await closing
