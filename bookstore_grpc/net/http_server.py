"""An HTTP server for an ASGI application, in the running event loop and with bounded connections."""

import asyncio
import ssl

from bookstore_grpc.compat.uvicorn import bounded_server
from bookstore_grpc.net.address import Address
from bookstore_grpc.net.asgi import Application
from bookstore_grpc.net.connection_limit import ConnectionLimit
from bookstore_grpc.net.listening import bound_socket


class HttpServer:
    """Serves an application on a TCP address. Raises `StartupError` if uvicorn's version is not supported."""

    def __init__(
        self,
        application: Application,
        address: Address,
        *,
        limit: ConnectionLimit,
        tls: ssl.SSLContext | None = None,
        shares_port: bool = False,
    ) -> None:
        self.bound_address = ""  # set by `start`, with the actual port
        self._address = address
        self._shares_port = shares_port
        self._server = bounded_server(application, limit, tls)
        self._serving: asyncio.Task[None] | None = None

    async def start(self) -> None:
        """Listen. Raises `StartupError` if the address cannot be bound."""
        bound = bound_socket(self._address, shares_port=self._shares_port)
        self.bound_address = str(self._address.with_port(bound.getsockname()[1]))
        self._serving = asyncio.create_task(self._server.serve(sockets=[bound]))

    async def stop(self) -> None:
        """Close the listener, and each connection after its current response."""
        self._server.should_exit = True
        if self._serving is not None:
            await self._serving
