"""uvicorn's server and protocol, with bounds on the resources that an untrusted client can hold.

uvicorn has no public hooks for these: the classes here override methods of its server and of its protocol for
httptools, and read their attributes. Tried on uvicorn 0.38 to 0.54; pyproject.toml excludes later versions, and
`check_uvicorn` verifies at the start that everything is present.
"""

import asyncio
import errno
import ssl
from collections.abc import Generator
from contextlib import contextmanager, suppress
from functools import partial
from socket import SHUT_RDWR, socket
from typing import Any

import uvicorn
from uvicorn.protocols.http.httptools_impl import STATUS_LINE, HttpToolsProtocol
from uvicorn.server import ServerState

from bookstore_grpc.errors import StartupError
from bookstore_grpc.limits import HTTP_HEAD_MAX_BYTES, HTTP_HEADERS_MAX
from bookstore_grpc.net.asgi import Application
from bookstore_grpc.net.connection_limit import ConnectionLimit, LimitedConnection
from bookstore_grpc.net.http_peer import CALLER, Caller

STOP_SECONDS = 1

_HEAD_SECONDS = 10
# A client must read this much of a response in this time, or its rest.
_UNREAD_SECONDS = 60
_READ_MIN_BYTES = 1024 * 1024
_BACKLOG = 2_048
# Connections accepted in one step of the event loop; the descriptors that may be open beyond the limit.
_ACCEPT_BATCH = 16
_PAUSE_SECONDS = 1
_NO_DESCRIPTOR = (errno.EMFILE, errno.ENFILE, errno.ENOBUFS, errno.ENOMEM)
_PIPELINED_MAX = 32
_LENGTHS = (b"content-length", b"transfer-encoding")


# The methods of uvicorn's protocol that are overridden or called, and the attributes that are read.
_PROTOCOL_METHODS = (
    "connection_made",
    "connection_lost",
    "data_received",
    "on_message_begin",
    "on_header",
    "on_headers_complete",
    "on_body",
    "on_message_complete",
    "on_response_complete",
    "pause_writing",
    "resume_writing",
    "timeout_keep_alive_handler",
    "send_400_response",
)
_PROTOCOL_ATTRIBUTES = (
    "app_state",
    "cycle",
    "headers",
    "loop",
    "parser",
    "pipeline",
    "timeout_keep_alive_task",
    "transport",
)
_SERVER_METHODS = ("capture_signals", "serve", "shutdown", "startup")


def check_uvicorn() -> None:
    """Raise `StartupError` if uvicorn lacks something that this module uses: the bounds would not be enforced."""
    missing = [name for name in _SERVER_METHODS if not hasattr(uvicorn.Server, name)]
    missing += [name for name in _PROTOCOL_METHODS if not hasattr(HttpToolsProtocol, name)]
    assigned = HttpToolsProtocol.__init__.__code__.co_names
    missing += [name for name in _PROTOCOL_ATTRIBUTES if name not in assigned]
    if missing:
        raise StartupError(
            f"uvicorn {uvicorn.__version__} is not supported, because it lacks {', '.join(missing)}: "
            "pip install 'bookstore-grpc[server]' installs a supported version."
        )


def bounded_server(application: Application, limit: ConnectionLimit, tls: ssl.SSLContext | None) -> uvicorn.Server:
    """Return a server whose `serve(sockets=[...])` serves until `should_exit`. Raises `StartupError`."""
    check_uvicorn()
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
        timeout_graceful_shutdown=STOP_SECONDS,
    )
    return _Server(config, limit, tls)


class _Server(uvicorn.Server):
    """Accepts connections itself, because uvicorn counts a connection only after its TLS handshake."""

    def __init__(self, config: uvicorn.Config, limit: ConnectionLimit, tls: ssl.SSLContext | None) -> None:
        super().__init__(config)
        self._limit = limit
        self._tls = tls
        self._handshaking: dict[socket, asyncio.Task[None]] = {}
        self._is_shut_down = False

    @contextmanager
    def capture_signals(self) -> Generator[None, None, None]:
        """Handle no signals: the process handles them."""
        yield

    async def startup(self, sockets: list[socket] | None = None) -> None:
        """Listen."""
        await super().startup(sockets=[])
        for bound in sockets or ():
            bound.listen(_BACKLOG)
            bound.setblocking(False)
            self._accept_from(bound)

    async def shutdown(self, sockets: list[socket] | None = None) -> None:
        """Accept no more connections, and close the open ones."""
        self._is_shut_down = True
        for bound in sockets or ():
            asyncio.get_running_loop().remove_reader(bound)
        for accepted in self._handshaking:
            _shut_down(accepted)
        await super().shutdown(sockets)

    def _accept_from(self, bound: socket) -> None:
        if not self._is_shut_down:
            asyncio.get_running_loop().add_reader(bound, self._accept, bound)

    def _accept(self, bound: socket) -> None:
        loop = asyncio.get_running_loop()
        for _ in range(_ACCEPT_BATCH):
            try:
                accepted, (host, *_) = bound.accept()
            except (BlockingIOError, InterruptedError, ConnectionAbortedError):
                return
            except OSError as error:
                if error.errno not in _NO_DESCRIPTOR:
                    raise
                loop.remove_reader(bound)  # otherwise the event loop would be busy with it
                loop.call_later(_PAUSE_SECONDS, self._accept_from, bound)
                return
            limited = self._limit.admit(host)
            if limited is None:
                accepted.close()
                continue
            limited.close = partial(_shut_down, accepted)
            self._handshaking[accepted] = loop.create_task(self._start_protocol(accepted, limited))

    async def _start_protocol(self, accepted: socket, limited: LimitedConnection) -> None:
        """Start the protocol on a socket, after the TLS handshake if TLS is on."""
        connection = _Connection(self.config, self.server_state, self._limit, limited)
        try:
            with suppress(OSError):  # a failed handshake is not logged
                await asyncio.get_running_loop().connect_accepted_socket(
                    lambda: connection,
                    accepted,
                    ssl=self._tls,
                    ssl_handshake_timeout=_HEAD_SECONDS if self._tls else None,
                )
        finally:
            del self._handshaking[accepted]
            if not connection.is_made:
                self._limit.release(limited)


def _shut_down(accepted: socket) -> None:
    """Shut down a connection that has no transport yet, which ends the task that waits for its handshake."""
    with suppress(OSError):
        accepted.shutdown(SHUT_RDWR)


class _Connection(HttpToolsProtocol):
    """A connection with bounds: the time until a request, the size of its head, and the time to read a response."""

    def __init__(
        self, config: uvicorn.Config, state: ServerState, limit: ConnectionLimit, limited: LimitedConnection
    ) -> None:
        super().__init__(config, state, {})
        self.is_made = False
        self._limit = limit
        self._limited = limited

    def connection_made(self, transport: Any) -> None:
        super().connection_made(transport)
        self.is_made = True
        self._limited.close = transport.abort
        self._gives_way = False
        certificate = transport.get_extra_info("peercert")
        self._caller = Caller(certificate, abort=transport.abort, give_way=self._give_way)
        self._overhead_bytes = 0
        self._head_timer: asyncio.TimerHandle | None = None
        self._unread_timer: asyncio.TimerHandle | None = None
        if self._limited.is_released:
            transport.abort()  # evicted during the handshake; it may have sent a request since
            return
        self.app_state = {CALLER: self._caller}
        self._bound_wait()

    def connection_lost(self, exc: Exception | None) -> None:
        self._limit.release(self._limited)
        self._end_wait()
        self._end_unread()
        super().connection_lost(exc)
        self._caller.disconnect()

    def data_received(self, data: bytes) -> None:
        self._overhead_bytes += len(data)
        super().data_received(data)
        if self._overhead_bytes > HTTP_HEAD_MAX_BYTES:
            self._reject(431)
        has_request = self.cycle is not None and not self.cycle.response_complete  # type: ignore[redundant-expr]  # None at first
        if not has_request and self.timeout_keep_alive_task is None:
            self._bound_wait()

    def on_message_begin(self) -> None:
        if len(self.pipeline) >= _PIPELINED_MAX:
            raise _RequestRejected
        super().on_message_begin()

    def on_header(self, name: bytes, value: bytes) -> None:
        if len(self.headers) >= HTTP_HEADERS_MAX:  # trailers after a chunked body count too
            raise _RequestRejected
        super().on_header(name, value)

    def on_headers_complete(self) -> None:
        self._overhead_bytes = 0
        self._end_wait()
        # After `Connection: Upgrade` the parser would treat the body of this request as another request.
        if self.parser.should_upgrade() and any(name in _LENGTHS for name, _ in self.headers):
            raise _RequestRejected
        super().on_headers_complete()

    def on_body(self, body: bytes) -> None:
        self._overhead_bytes = 0
        super().on_body(body)

    def on_message_complete(self) -> None:
        super().on_message_complete()
        self._update_limit()

    def on_response_complete(self) -> None:
        super().on_response_complete()
        self._update_limit()
        if self.transport.is_closing():
            self._bound_unread()

    def pause_writing(self) -> None:
        super().pause_writing()
        self._limit.mark_waiting(self._limited)
        self._bound_unread()

    def resume_writing(self) -> None:
        super().resume_writing()
        self._update_limit()
        if not self.transport.is_closing():
            self._end_unread()

    def timeout_keep_alive_handler(self) -> None:
        self._close()

    def send_400_response(self, msg: str) -> None:
        self._reject(400)

    def _reject(self, status: int) -> None:
        """Respond to an invalid request and close; without a response if it could be mistaken for another request's."""
        if self.transport.is_closing():
            return
        cycle = self.cycle
        if cycle is not None and not cycle.response_complete:  # type: ignore[redundant-expr]  # None at first
            if cycle.response_started or not cycle.more_body or self.pipeline:
                self._close()
                return
            # The body of the current request is invalid.
            cycle.disconnected = True
            cycle.message_event.set()
        self.transport.write(STATUS_LINE[status] + b"content-length: 0\r\nconnection: close\r\n\r\n")
        self._close()

    def _close(self) -> None:
        """Close the connection when everything is sent, or after a time limit if the client does not read."""
        self.transport.close()
        self._limit.mark_waiting(self._limited)
        self._bound_unread()

    def _update_limit(self) -> None:
        """Mark the connection as serving if its last request is complete and has no response yet, else as waiting."""
        is_waiting = self.transport.is_closing() or self.cycle.more_body or self.cycle.response_complete
        if is_waiting or self._gives_way:
            self._limit.mark_waiting(self._limited)
        else:
            self._limit.mark_serving(self._limited)

    def _give_way(self) -> None:
        self._gives_way = True
        self._update_limit()

    def _bound_unread(self) -> None:
        if self._unread_timer is None:
            unread_bytes = self.transport.get_write_buffer_size()
            self._unread_timer = self.loop.call_later(_UNREAD_SECONDS, self._abort_unless_read, unread_bytes)

    def _abort_unless_read(self, unread_bytes: int) -> None:
        """Close the connection, unless the client reads: of these bytes, which were unread, enough are not any more."""
        self._unread_timer = None
        if unread_bytes - self.transport.get_write_buffer_size() >= _READ_MIN_BYTES:
            self._bound_unread()
        else:
            self.transport.abort()

    def _end_unread(self) -> None:
        if self._unread_timer is not None:
            self._unread_timer.cancel()
            self._unread_timer = None

    def _bound_wait(self) -> None:
        """Close the connection unless the head of a request arrives in time."""
        if self._head_timer is None:
            self._head_timer = self.loop.call_later(_HEAD_SECONDS, self._close)

    def _end_wait(self) -> None:
        if self._head_timer is not None:
            self._head_timer.cancel()
            self._head_timer = None


class _RequestRejected(Exception):
    """Raised in callbacks of the parser, which then stops and rejects the request."""
