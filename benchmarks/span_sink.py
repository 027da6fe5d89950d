"""A receiver of spans for measuring traces, which only counts them."""

from collections.abc import Iterator
from concurrent.futures import ThreadPoolExecutor
from contextlib import contextmanager

import grpc
from opentelemetry.proto.collector.trace.v1 import trace_service_pb2

_SERVICE = "opentelemetry.proto.collector.trace.v1.TraceService"


class SpanSink:
    """A collector on a free port of the loopback."""

    def __init__(self) -> None:
        self.spans = 0
        self._server = grpc.server(ThreadPoolExecutor(1))
        export = grpc.unary_unary_rpc_method_handler(
            self._export,
            request_deserializer=trace_service_pb2.ExportTraceServiceRequest.FromString,
            response_serializer=trace_service_pb2.ExportTraceServiceResponse.SerializeToString,
        )
        handler = grpc.method_handlers_generic_handler(_SERVICE, {"Export": export})
        self._server.add_generic_rpc_handlers([handler])
        self.endpoint = f"http://127.0.0.1:{self._server.add_insecure_port('127.0.0.1:0')}"
        self._server.start()

    def stop(self) -> None:
        """Stop receiving."""
        self._server.stop(0).wait()

    def _export(
        self, request: trace_service_pb2.ExportTraceServiceRequest, _context: grpc.ServicerContext
    ) -> trace_service_pb2.ExportTraceServiceResponse:
        for of_resource in request.resource_spans:
            self.spans += sum(len(of_scope.spans) for of_scope in of_resource.scope_spans)
        return trace_service_pb2.ExportTraceServiceResponse()


@contextmanager
def sinking_spans() -> Iterator[SpanSink]:
    """Receive spans while a block runs."""
    sink = SpanSink()
    try:
        yield sink
    finally:
        sink.stop()
