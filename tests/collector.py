"""A collector of traces, as OpenTelemetry's exporter meets one, on a free port of the loopback."""

import threading
from collections.abc import Callable, Iterable, Iterator
from concurrent.futures import ThreadPoolExecutor
from contextlib import contextmanager
from dataclasses import dataclass, field

import grpc
from opentelemetry.proto.collector.trace.v1 import trace_service_pb2, trace_service_pb2_grpc
from opentelemetry.proto.common.v1.common_pb2 import KeyValue
from opentelemetry.proto.trace.v1.trace_pb2 import Span as SpanMessage

from tests.executable import wait_until

SERVER, CLIENT = SpanMessage.SPAN_KIND_SERVER, SpanMessage.SPAN_KIND_CLIENT


@dataclass(frozen=True)
class Span:
    """A span as it has arrived. Ids are hexadecimal; no parent is "". Links are the ids of their traces and spans."""

    name: str
    kind: "SpanMessage.SpanKind.ValueType"
    trace_id: str
    span_id: str
    parent_id: str
    trace_state: str
    links: frozenset[tuple[str, str]]
    is_error: bool
    attributes: dict[str, object]
    resource: dict[str, object] = field(repr=False)
    started_ns: int
    ended_ns: int


class Collector:
    """Keeps what is sent to it."""

    def __init__(self, port: int = 0, credentials: grpc.ServerCredentials | None = None) -> None:
        self._lock = threading.Lock()
        self._spans: list[Span] = []
        self.headers: dict[str, str | bytes] = {}
        self.text = ""
        self._server = grpc.server(ThreadPoolExecutor(2))
        trace_service_pb2_grpc.add_TraceServiceServicer_to_server(self, self._server)  # type: ignore[no-untyped-call]  # not in its stubs
        address = f"127.0.0.1:{port}"
        if credentials:
            self.port = self._server.add_secure_port(address, credentials)
        else:
            self.port = self._server.add_insecure_port(address)
        self.endpoint = f"{'https' if credentials else 'http'}://127.0.0.1:{self.port}"
        self._server.start()

    def Export(  # noqa: N802
        self, request: trace_service_pb2.ExportTraceServiceRequest, context: grpc.ServicerContext
    ) -> trace_service_pb2.ExportTraceServiceResponse:
        with self._lock:
            self.headers = dict(context.invocation_metadata())
            self.text += str(request)
            for of_resource in request.resource_spans:
                resource = _plain(of_resource.resource.attributes)
                for of_scope in of_resource.scope_spans:
                    self._spans += (_span(message, resource) for message in of_scope.spans)
        return trace_service_pb2.ExportTraceServiceResponse()

    def spans(self) -> list[Span]:
        """What has arrived, by the times at which it began."""
        with self._lock:
            return list(self._spans)

    def wait_for(self, wanted: Callable[[list[Span]], object], what: str) -> list[Span]:
        """Wait until what has arrived is what is wanted."""
        wait_until(lambda: wanted(self.spans()), what)
        return self.spans()

    def stop(self) -> None:
        self._server.stop(0).wait()


@contextmanager
def collecting(port: int = 0, credentials: grpc.ServerCredentials | None = None) -> Iterator[Collector]:
    collector = Collector(port, credentials)
    try:
        yield collector
    finally:
        collector.stop()


def _span(message: SpanMessage, resource: dict[str, object]) -> Span:
    return Span(
        message.name,
        message.kind,
        message.trace_id.hex(),
        message.span_id.hex(),
        message.parent_span_id.hex(),
        message.trace_state,
        frozenset((link.trace_id.hex(), link.span_id.hex()) for link in message.links),
        message.status.code == 2,
        _plain(message.attributes),
        resource,
        message.start_time_unix_nano,
        message.end_time_unix_nano,
    )


def _plain(attributes: Iterable[KeyValue]) -> dict[str, object]:
    return {each.key: getattr(each.value, str(each.value.WhichOneof("value"))) for each in attributes}
