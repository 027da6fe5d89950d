"""HTTP connections: uvicorn in the loop that is there, with bounds on what a stranger can hold."""

import asyncio
import ssl
from collections.abc import AsyncIterator, Generator
from contextlib import asynccontextmanager, contextmanager
from socket import socket
from typing import Any

import uvicorn
from uvicorn.protocols.http.httptools_impl import STATUS_LINE, HttpToolsProtocol

from bookstore_grpc.http.asgi import Application
from bookstore_grpc.limits import HTTP_CONNECTIONS_MAX, HTTP_HEAD_MAX_BYTES

# Where the scope's state has the certificate that a client has shown, as `ssl` describes it.
PEER_CERTIFICATE = "peer_certificate"

_HEAD_SECONDS = 10
_UNREAD_SECONDS = 60
_STOP_SECONDS = 1
_HEAD_TOO_LARGE = STATUS_LINE[431] + b"content-length: 0\r\nconnection: close\r\n\r\n"


@asynccontextmanager
async def serving_http(
    application: Application, bound: socket, *, tls: ssl.SSLContext | None = None
) -> AsyncIterator[None]:
    """Answer on a bound socket while the block runs, then close connections as they have been answered."""
    config = uvicorn.Config(
        application,
        log_config=None,
        access_log=False,
        lifespan="off",
        loop="none",
        http=_Connection,
        ws="none",
        server_header=False,
        proxy_headers=False,
        ssl_context_factory=(lambda *_: tls) if tls else None,
        timeout_graceful_shutdown=_STOP_SECONDS,
    )
    server = _Server(config)
    task = asyncio.create_task(server.serve(sockets=[bound]))
    try:
        yield
    finally:
        server.should_exit = True
        await task


class _Server(uvicorn.Server):
    @contextmanager
    def capture_signals(self) -> Generator[None, None, None]:
        """Leave signals to the service."""
        yield


class _Connection(HttpToolsProtocol):
    """A connection on which requests begin soon, with heads of a bounded size, and answers are read in the end."""

    def connection_made(self, transport: Any) -> None:
        super().connection_made(transport)
        self._is_in_head = False
        self._head_bytes = 0
        self._head_timer: asyncio.TimerHandle | None = None
        if len(self.connections) > HTTP_CONNECTIONS_MAX:
            transport.abort()
            return
        if certificate := transport.get_extra_info("peercert"):
            self.app_state = {**self.app_state, PEER_CERTIFICATE: certificate}
        self._bound_wait()

    def connection_lost(self, exc: Exception | None) -> None:
        self._end_wait()
        super().connection_lost(exc)

    def data_received(self, data: bytes) -> None:
        super().data_received(data)
        if self._is_in_head:
            self._head_bytes += len(data)
            if self._head_bytes > HTTP_HEAD_MAX_BYTES:
                self.transport.write(_HEAD_TOO_LARGE)
                self.transport.close()
        has_request = self.cycle is not None and not self.cycle.response_complete  # type: ignore[redundant-expr]  # None at first
        if not has_request and self.timeout_keep_alive_task is None:
            self._bound_wait()

    def on_message_begin(self) -> None:
        super().on_message_begin()
        self._is_in_head = True
        self._head_bytes = 0

    def on_headers_complete(self) -> None:
        self._is_in_head = False
        self._end_wait()
        super().on_headers_complete()

    def timeout_keep_alive_handler(self) -> None:
        super().timeout_keep_alive_handler()
        # It closes when all is sent, which the other side can put off for ever by reading nothing.
        self.loop.call_later(_UNREAD_SECONDS, self.transport.abort)

    def _bound_wait(self) -> None:
        """Close the connection unless the head of a request is there in time."""
        if self._head_timer is None:
            self._head_timer = self.loop.call_later(_HEAD_SECONDS, self.transport.close)

    def _end_wait(self) -> None:
        if self._head_timer is not None:
            self._head_timer.cancel()
            self._head_timer = None
