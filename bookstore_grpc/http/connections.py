"""HTTP connections: uvicorn in the loop that is there, with bounds on what a stranger can hold."""

import asyncio
import ssl
from collections.abc import AsyncIterator, Generator, Mapping
from contextlib import asynccontextmanager, contextmanager
from functools import partial
from socket import socket
from typing import Any

import uvicorn
from uvicorn.protocols.http.httptools_impl import STATUS_LINE, HttpToolsProtocol

from bookstore_grpc.http.asgi import Application
from bookstore_grpc.limits import HTTP_CONNECTIONS_MAX, HTTP_HEAD_MAX_BYTES, HTTP_HEADERS_MAX

# Where a request's scope has, in its state, the caller.
CALLER = "caller"

_HEAD_SECONDS = 10
_UNREAD_SECONDS = 60
_STOP_SECONDS = 1
_PIPELINED_MAX = 32
_LENGTHS = (b"content-length", b"transfer-encoding")


class Caller:
    """The other side of a connection: the certificate that it has shown, as `ssl` describes it, and if it has gone.

    The `task` that works for it is cancelled when it goes.
    """

    def __init__(self, certificate: Mapping[str, Any] | None) -> None:
        self.certificate = certificate or {}
        self.has_gone = False
        self.task: asyncio.Task[Any] | None = None

    def go(self) -> None:
        """Take note that it has gone."""
        self.has_gone = True
        if self.task is not None:
            self.task.cancel()


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
        timeout_graceful_shutdown=_STOP_SECONDS,
    )
    server = _Server(config, tls)
    task = asyncio.create_task(server.serve(sockets=[bound]))
    try:
        yield
    finally:
        server.should_exit = True
        await task


class _Server(uvicorn.Server):
    def __init__(self, config: uvicorn.Config, tls: ssl.SSLContext | None) -> None:
        super().__init__(config)
        self._tls = tls

    @contextmanager
    def capture_signals(self) -> Generator[None, None, None]:
        """Leave signals to the service."""
        yield

    async def startup(self, sockets: list[socket] | None = None) -> None:
        """Listen as uvicorn would, which waits a minute for each handshake."""
        await super().startup(sockets=[])
        make_connection = partial(_Connection, self.config, self.server_state, {})
        for bound in sockets or ():
            self.servers.append(
                await asyncio.get_running_loop().create_server(
                    make_connection,
                    sock=bound,
                    backlog=self.config.backlog,
                    ssl=self._tls,
                    ssl_handshake_timeout=_HEAD_SECONDS if self._tls else None,
                )
            )


class _Connection(HttpToolsProtocol):
    """A connection on which requests begin soon, with heads of a bounded size, and answers are read in the end."""

    def connection_made(self, transport: Any) -> None:
        super().connection_made(transport)
        self._caller = Caller(transport.get_extra_info("peercert"))
        self._overhead_bytes = 0
        self._head_timer: asyncio.TimerHandle | None = None
        self._unread_timer: asyncio.TimerHandle | None = None
        if len(self.connections) > HTTP_CONNECTIONS_MAX:
            transport.abort()
            return
        self.app_state = {CALLER: self._caller}
        self._bound_wait()

    def connection_lost(self, exc: Exception | None) -> None:
        self._end_wait()
        self._end_unread()
        super().connection_lost(exc)
        self._caller.go()

    def data_received(self, data: bytes) -> None:
        self._overhead_bytes += len(data)
        super().data_received(data)
        if self._overhead_bytes > HTTP_HEAD_MAX_BYTES:
            self._refuse(431)
        has_request = self.cycle is not None and not self.cycle.response_complete  # type: ignore[redundant-expr]  # None at first
        if not has_request and self.timeout_keep_alive_task is None:
            self._bound_wait()

    def on_message_begin(self) -> None:
        if len(self.pipeline) >= _PIPELINED_MAX:
            raise _Unacceptable
        super().on_message_begin()

    def on_header(self, name: bytes, value: bytes) -> None:
        if len(self.headers) >= HTTP_HEADERS_MAX:  # what comes behind a body in chunks is among them
            raise _Unacceptable
        super().on_header(name, value)

    def on_headers_complete(self) -> None:
        self._overhead_bytes = 0
        self._end_wait()
        # The parser takes what follows a wish to upgrade for another request, and it may be the body of this one.
        if self.parser.should_upgrade() and any(name in _LENGTHS for name, _ in self.headers):
            raise _Unacceptable
        super().on_headers_complete()

    def on_body(self, body: bytes) -> None:
        self._overhead_bytes = 0
        super().on_body(body)

    def on_response_complete(self) -> None:
        super().on_response_complete()
        if self.transport.is_closing():
            self._bound_unread()

    def pause_writing(self) -> None:
        super().pause_writing()
        self._bound_unread()

    def resume_writing(self) -> None:
        super().resume_writing()
        if not self.transport.is_closing():
            self._end_unread()

    def timeout_keep_alive_handler(self) -> None:
        self._hang_up()

    def send_400_response(self, msg: str) -> None:
        self._refuse(400)

    def _refuse(self, status: int) -> None:
        """Answer a request that is none, and hang up; without a word where that would pass for another's answer."""
        if self.transport.is_closing():
            return
        cycle = self.cycle
        if cycle is not None and not cycle.response_complete:  # type: ignore[redundant-expr]  # None at first
            if cycle.response_started or not cycle.more_body or self.pipeline:
                self._hang_up()
                return
            # It is this request's own body that is none.
            cycle.disconnected = True
            cycle.message_event.set()
        self.transport.write(STATUS_LINE[status] + b"content-length: 0\r\nconnection: close\r\n\r\n")
        self._hang_up()

    def _hang_up(self) -> None:
        """Close the connection when all is sent, which the other side could put off for ever by reading nothing."""
        self.transport.close()
        self._bound_unread()

    def _bound_unread(self) -> None:
        if self._unread_timer is None:
            self._unread_timer = self.loop.call_later(_UNREAD_SECONDS, self.transport.abort)

    def _end_unread(self) -> None:
        if self._unread_timer is not None:
            self._unread_timer.cancel()
            self._unread_timer = None

    def _bound_wait(self) -> None:
        """Close the connection unless the head of a request is there in time."""
        if self._head_timer is None:
            self._head_timer = self.loop.call_later(_HEAD_SECONDS, self._hang_up)

    def _end_wait(self) -> None:
        if self._head_timer is not None:
            self._head_timer.cancel()
            self._head_timer = None


class _Unacceptable(Exception):
    """Is raised to the parser, which stops and has it refused."""
