"""HTTP connections: uvicorn in the loop that is there, with bounds on what a stranger can hold."""

import asyncio
import errno
import ssl
from collections.abc import AsyncIterator, Generator, Mapping
from contextlib import asynccontextmanager, contextmanager, suppress
from functools import partial
from socket import SHUT_RDWR, socket
from typing import Any

import uvicorn
from uvicorn.protocols.http.httptools_impl import STATUS_LINE, HttpToolsProtocol
from uvicorn.server import ServerState

from bookstore_grpc.limits import HTTP_HEAD_MAX_BYTES, HTTP_HEADERS_MAX
from bookstore_grpc.net.asgi import Application
from bookstore_grpc.net.connection_limit import Place, Room

# Where a request's scope has, in its state, the caller.
CALLER = "caller"

_HEAD_SECONDS = 10
_UNREAD_SECONDS = 60
_STOP_SECONDS = 1
_BACKLOG = 2_048
# Connections taken in before anything else is done. For so many there may be files open beyond the bound.
_TAKEN_AT_ONCE = 16
_PAUSE_SECONDS = 1
_NO_DESCRIPTOR = (errno.EMFILE, errno.ENFILE, errno.ENOBUFS, errno.ENOMEM)
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
    application: Application, bound: socket, *, room: Room, tls: ssl.SSLContext | None = None
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
    server = _Server(config, room, tls)
    task = asyncio.create_task(server.serve(sockets=[bound]))
    try:
        yield
    finally:
        server.should_exit = True
        await task


class _Server(uvicorn.Server):
    """Accepts connections itself: in uvicorn's way one counts only after the handshake of TLS."""

    def __init__(self, config: uvicorn.Config, room: Room, tls: ssl.SSLContext | None) -> None:
        super().__init__(config)
        self._room = room
        self._tls = tls
        self._beginning: dict[socket, asyncio.Task[None]] = {}
        self._is_over = False

    @contextmanager
    def capture_signals(self) -> Generator[None, None, None]:
        """Leave signals to the service."""
        yield

    async def startup(self, sockets: list[socket] | None = None) -> None:
        """Listen."""
        await super().startup(sockets=[])
        for bound in sockets or ():
            bound.listen(_BACKLOG)
            bound.setblocking(False)
            self._accept_from(bound)

    async def shutdown(self, sockets: list[socket] | None = None) -> None:
        """Take in no more connections, and end those that are there."""
        self._is_over = True
        for bound in sockets or ():
            asyncio.get_running_loop().remove_reader(bound)
        for accepted in self._beginning:
            _cut(accepted)
        await super().shutdown(sockets)

    def _accept_from(self, bound: socket) -> None:
        if not self._is_over:
            asyncio.get_running_loop().add_reader(bound, self._accept, bound)

    def _accept(self, bound: socket) -> None:
        loop = asyncio.get_running_loop()
        for _ in range(_TAKEN_AT_ONCE):
            try:
                accepted, (host, *_) = bound.accept()
            except (BlockingIOError, InterruptedError, ConnectionAbortedError):
                return
            except OSError as error:
                if error.errno not in _NO_DESCRIPTOR:
                    raise
                loop.remove_reader(bound)  # else the loop would turn for this alone
                loop.call_later(_PAUSE_SECONDS, self._accept_from, bound)
                return
            place = self._room.take(host)
            if place is None:
                accepted.close()
                continue
            place.close = partial(_cut, accepted)
            self._beginning[accepted] = loop.create_task(self._begin(accepted, place))

    async def _begin(self, accepted: socket, place: Place) -> None:
        """Make a connection of a socket, after a handshake where TLS is wanted."""
        connection = _Connection(self.config, self.server_state, self._room, place)
        try:
            with suppress(OSError):  # a handshake that fails is nothing to tell
                await asyncio.get_running_loop().connect_accepted_socket(
                    lambda: connection,
                    accepted,
                    ssl=self._tls,
                    ssl_handshake_timeout=_HEAD_SECONDS if self._tls else None,
                )
        finally:
            del self._beginning[accepted]
            if not connection.is_made:
                self._room.leave(place)


def _cut(accepted: socket) -> None:
    """End a connection that has no transport of ours yet: whoever waits for the handshake finds its end."""
    with suppress(OSError):
        accepted.shutdown(SHUT_RDWR)


class _Connection(HttpToolsProtocol):
    """A connection on which requests begin soon, with heads of a bounded size, and answers are read in the end."""

    def __init__(self, config: uvicorn.Config, state: ServerState, room: Room, place: Place) -> None:
        super().__init__(config, state, {})
        self.is_made = False
        self._room = room
        self._place = place

    def connection_made(self, transport: Any) -> None:
        super().connection_made(transport)
        self.is_made = True
        self._place.close = transport.abort
        self._caller = Caller(transport.get_extra_info("peercert"))
        self._overhead_bytes = 0
        self._head_timer: asyncio.TimerHandle | None = None
        self._unread_timer: asyncio.TimerHandle | None = None
        if self._place.is_left:
            transport.abort()  # it had to give way, and may have asked by now
            return
        self.app_state = {CALLER: self._caller}
        self._bound_wait()

    def connection_lost(self, exc: Exception | None) -> None:
        self._room.leave(self._place)
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

    def on_message_complete(self) -> None:
        super().on_message_complete()
        self._note_whose_turn_it_is()

    def on_response_complete(self) -> None:
        super().on_response_complete()
        self._note_whose_turn_it_is()
        if self.transport.is_closing():
            self._bound_unread()

    def pause_writing(self) -> None:
        super().pause_writing()
        self._room.wait(self._place)
        self._bound_unread()

    def resume_writing(self) -> None:
        super().resume_writing()
        self._note_whose_turn_it_is()
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
        self._room.wait(self._place)
        self._bound_unread()

    def _note_whose_turn_it_is(self) -> None:
        """Say that the connection is served if its last request is whole and has no answer yet, else that it waits."""
        if self.transport.is_closing() or self.cycle.more_body or self.cycle.response_complete:
            self._room.wait(self._place)
        else:
            self._room.serve(self._place)

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
