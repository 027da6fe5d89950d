"""The asyncio server of the measured servicers: gRPC's defaults, and the health service."""

from collections.abc import Awaitable, Callable

import grpc
from bookstore.v1 import books_pb2, books_pb2_grpc
from grpc_health.v1 import health, health_pb2, health_pb2_grpc

# Receives a request and writes responses to the context, as bytes.
Watch = Callable[[bytes, "grpc.aio.ServicerContext[object, object]"], Awaitable[None]]

_SERVICE = books_pb2.DESCRIPTOR.services_by_name["BookService"].full_name


async def serve(servicer: books_pb2_grpc.BookServiceServicer, listen: str, *, watch: Watch | None = None) -> None:
    """Serve on HOST:PORT until the process ends. With `watch`, WatchBooks is not the servicer's."""
    server = grpc.aio.server()
    books_pb2_grpc.add_BookServiceServicer_to_server(servicer, server)
    if watch:
        handlers: dict[str, grpc.RpcMethodHandler[bytes, bytes]] = {
            "WatchBooks": grpc.unary_stream_rpc_method_handler(watch)
        }
        server.add_registered_method_handlers(_SERVICE, handlers)
    healthy = health.aio.HealthServicer()
    await healthy.set("", health_pb2.HealthCheckResponse.SERVING)
    health_pb2_grpc.add_HealthServicer_to_server(healthy, server)
    server.add_insecure_port(listen)
    await server.start()
    await server.wait_for_termination()
