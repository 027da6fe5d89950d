"""Real HTTP servers: of the service, or around a servicer of the test's own."""

from collections.abc import AsyncIterator
from contextlib import asynccontextmanager
from pathlib import Path
from typing import Any

from google.protobuf.descriptor import ServiceDescriptor

from bookstore_grpc.gateway.event_stream import KEEP_ALIVE_SECONDS
from bookstore_grpc.limits import HTTP_CONNECTIONS_MAX, MESSAGE_MAX_BYTES
from bookstore_grpc.net.address import Address
from bookstore_grpc.net.connection_limit import ConnectionLimit
from bookstore_grpc.net.http_server import HttpServer
from bookstore_grpc.rpc.server import Server
from bookstore_grpc.server.app import running_server
from bookstore_grpc.service.servicer import BOOK_SERVICE
from bookstore_grpc.web.application import http_application
from tests.conftest import settings_for
from tests.rpc.servers import server_with

FREE_PORT = "127.0.0.1:0"


@asynccontextmanager
async def http_server(folder: Path, **settings: Any) -> AsyncIterator[Server]:
    """Serve over HTTP, on SQLite."""
    values = {"http_listen": FREE_PORT, **settings}
    async with running_server(settings_for(f"sqlite+aiosqlite:///{folder}/bookstore.db", **values)) as server:
        yield server


@asynccontextmanager
async def http_server_with(
    servicer: Any,
    service: ServiceDescriptor = BOOK_SERVICE,
    *,
    max_request_bytes: int = MESSAGE_MAX_BYTES,
    limit: ConnectionLimit | None = None,
    keep_alive_seconds: float = KEEP_ALIVE_SECONDS,
    **options: Any,
) -> AsyncIterator[Server]:
    """Serve with any servicer of any service, whose calls run in the pipeline of a server."""
    async with server_with(servicer, **options) as server:
        application = http_application(
            servicer,
            service,
            pipeline=server.pipeline,
            max_request_bytes=max_request_bytes,
            origins=(),
            hosts=None,
            keep_alive_seconds=keep_alive_seconds,
        )
        limit = limit or ConnectionLimit(HTTP_CONNECTIONS_MAX, name="http")
        http = HttpServer(application, Address.parse(FREE_PORT), limit=limit)
        await http.start()
        server.http_address = http.bound_address
        try:
            yield server
        finally:
            await http.stop()
