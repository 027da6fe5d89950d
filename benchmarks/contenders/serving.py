"""The asyncio server of the measured servicers: gRPC's defaults, and the health service."""

import grpc
from bookstore.v1 import books_pb2_grpc
from grpc_health.v1 import health, health_pb2, health_pb2_grpc


async def serve(servicer: books_pb2_grpc.BookServiceServicer, listen: str) -> None:
    """Serve on HOST:PORT until the process ends."""
    server = grpc.aio.server()
    books_pb2_grpc.add_BookServiceServicer_to_server(servicer, server)
    healthy = health.aio.HealthServicer()
    await healthy.set("", health_pb2.HealthCheckResponse.SERVING)
    health_pb2_grpc.add_HealthServicer_to_server(healthy, server)
    server.add_insecure_port(listen)
    await server.start()
    await server.wait_for_termination()
