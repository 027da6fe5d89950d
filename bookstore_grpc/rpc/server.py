"""The gRPC server: its ports, health, reflection and drain."""

import asyncio
import os
import socket
from collections.abc import Awaitable, Callable, Sequence
from contextlib import suppress
from functools import partial
from typing import TYPE_CHECKING, Any

import grpc
import structlog
from bookstore.v1 import books_pb2_grpc
from google.protobuf import descriptor_pool
from grpc_health.v1 import health
from grpc_reflection.v1alpha import reflection, reflection_pb2, reflection_pb2_grpc

from bookstore_grpc.calls.admission import Admission
from bookstore_grpc.calls.call import Gate, Observer
from bookstore_grpc.errors import StartupError, Unavailable
from bookstore_grpc.limits import MESSAGE_MAX_BYTES
from bookstore_grpc.net.address import Address
from bookstore_grpc.net.file_descriptors import DescriptorsExhausted
from bookstore_grpc.net.listening import cannot_listen
from bookstore_grpc.rpc.health import Health
from bookstore_grpc.rpc.interceptor import CallInterceptor
from bookstore_grpc.service.servicer import BOOK_SERVICE

if TYPE_CHECKING:
    from bookstore_grpc.rpc.received_calls import Arrivals

_log = structlog.stdlib.get_logger("bookstore_grpc.server")

_REFLECTION_V1 = "grpc.reflection.v1.ServerReflection"

_STOP_MARGIN_SECONDS = 2
# For GOAWAY to reach the clients before the responses, which let them send more.
_GOAWAY_SECONDS = 0.05
# Of an outage, in the log: some causes hold what differs at each try.
_MOST_CAUSES = 10


class Server:
    """Serves a `BookServicer` on its addresses, and tells by the health service whether `probe` succeeds.

    `probe` raises `Unavailable` while the service cannot do its work. Every call passes the `gates` and is told to the
    `observers`. With `credentials` calls travel by TLS, but for those through a unix socket, which the file system
    guards. Servers that all say `shares_ports` may listen on the same addresses, and each gets some of the connections.
    """

    def __init__(
        self,
        servicer: books_pb2_grpc.BookServiceServicer,
        *,
        probe: Callable[[], Awaitable[None]],
        probe_interval_seconds: float,
        gates: Sequence[Gate] = (),
        observers: Sequence[Observer] = (),
        credentials: Callable[[], grpc.ServerCredentials] | None = None,
        has_reflection: bool = True,
        max_concurrent_calls: int = 500,
        max_call_seconds: float = 30,
        max_request_bytes: int = MESSAGE_MAX_BYTES,
        counts_arrivals: bool = False,
        options: Sequence[tuple[str, int]] = (),
    ) -> None:
        self.addresses: list[str] = []
        self.http_address = ""  # where the same calls are answered over HTTP, if they are
        self._credentials = credentials
        self._probe = probe
        self._probe_interval_seconds = probe_interval_seconds
        self._admission = Admission(max_concurrent_calls=max_concurrent_calls)
        self._calls = CallInterceptor(
            gates=gates,
            observers=observers,
            admission=self._admission,
            max_call_seconds=max_call_seconds,
            max_request_bytes=max_request_bytes,
        )
        self.guard = self._calls.guard
        self._health = Health(("", BOOK_SERVICE.full_name))
        make_server = partial(grpc.aio.server, interceptors=[self._calls], options=options)
        self._arrivals: Arrivals | None = None
        if counts_arrivals:
            self._server, self._arrivals = _counted(make_server)
        else:
            self._server = make_server()
        self._monitor: asyncio.Task[None] | None = None
        self.why_not_ready = "starting"
        books_pb2_grpc.add_BookServiceServicer_to_server(servicer, self._server)
        self._server.add_generic_rpc_handlers([self._health.handler()])
        if has_reflection:
            self._register_reflection()

    async def start(self, addresses: Sequence[str]) -> None:
        """Listen on `HOST:PORT` or `unix:PATH` addresses; port 0 takes a free one, told in `addresses`.

        Raises `StartupError` where one cannot be had.
        """
        for address in addresses:
            credentials = self._credentials() if self._credentials else None
            self.addresses.append(bind(self._server, address, credentials))
        self._set_health(why_not_ready="")
        await self._admission.start(self._server)
        self._monitor = asyncio.create_task(self._watch_health())

    async def drain(self, *, delay_seconds: float, grace_seconds: float) -> None:
        """Stop without losing a call: say NOT_SERVING, wait for balancers, send GOAWAY, finish the calls under way.

        After `grace_seconds` the calls that are left are cut off.
        """
        if self._monitor is not None:
            self._monitor.cancel()
        self.why_not_ready = "draining"
        self._health.set(is_serving=False)
        await asyncio.sleep(delay_seconds)
        # What arrives between its GOAWAY and the client's reading that, gRPC's core cancels: docs/decisions/0015.
        async with self._calls.responses_held():
            # gRPC's own cut comes after ours, which tells the callers why; and it may return before the handlers have
            # (grpc/grpc#37239), so they are waited for too.
            stopped = asyncio.create_task(self._server.stop(grace_seconds + _STOP_MARGIN_SECONDS))
            await asyncio.sleep(_GOAWAY_SECONDS)
        if not await self._calls.drain(grace_seconds=grace_seconds):
            _log.warning("drain cut off", grace_seconds=grace_seconds)
        await stopped

    @property
    def has_backlog(self) -> bool:
        """Whether calls that have come are left with gRPC until there is room."""
        return self._admission.has_backlog

    def calls_not_taken(self) -> int:
        """Answer how many calls wait for their handlers or never came to them; 0 where arrivals are not counted."""
        return self._arrivals.count() - self._calls.taken_calls if self._arrivals else 0

    def _register_reflection(self) -> None:
        reflector = _ReflectionServicer((BOOK_SERVICE.full_name, health.SERVICE_NAME, reflection.SERVICE_NAME))
        reflection_pb2_grpc.add_ServerReflectionServicer_to_server(reflector, self._server)  # type: ignore[no-untyped-call]  # not in its stubs
        # The two versions of reflection differ in their package's name and in nothing on the wire.
        v1 = grpc.stream_stream_rpc_method_handler(
            reflector.ServerReflectionInfo,
            request_deserializer=reflection_pb2.ServerReflectionRequest.FromString,
            response_serializer=reflection_pb2.ServerReflectionResponse.SerializeToString,
        )
        self._server.add_generic_rpc_handlers(
            [grpc.method_handlers_generic_handler(_REFLECTION_V1, {"ServerReflectionInfo": v1})]
        )

    async def _watch_health(self) -> None:
        told: set[str] = set()  # what the log has of the causes of an outage; empty while the service serves
        while True:
            await asyncio.sleep(self._probe_interval_seconds)
            try:
                await self._probe()
            except Exception as error:
                cause = repr(error.__cause__ or error)
                # The first may be a symptom, such as a connection that broke, and the next say why.
                if cause not in told and len(told) < _MOST_CAUSES:
                    told.add(cause)
                    if isinstance(error, Unavailable):
                        _log.error(f"not serving: {_why(error)}", cause=cause)
                    else:
                        _log.exception("not serving: the probe failed")
                self._set_health(why_not_ready=_why(error))
            else:
                if told:
                    _log.info("serving again: the database is back")
                told.clear()
                self._set_health(why_not_ready="")

    def _set_health(self, *, why_not_ready: str) -> None:
        self.why_not_ready = why_not_ready
        self._health.set(is_serving=not why_not_ready)


def _why(error: Exception) -> str:
    return (
        "no file descriptors are left" if isinstance(error.__cause__, DescriptorsExhausted) else "the database is away"
    )


def _counted(make_server: Callable[[], grpc.aio.Server]) -> "tuple[grpc.aio.Server, Arrivals]":
    from bookstore_grpc.rpc.received_calls import counted

    return counted(make_server)


def bind(server: grpc.aio.Server, address: str, credentials: grpc.ServerCredentials | None = None) -> str:
    """Let a server listen on an address, and answer it with its real port. Raises `StartupError`."""
    parsed = Address.parse(address)
    _refuse_socket_in_use(parsed)
    try:
        if credentials is None or parsed.is_unix:
            port = server.add_insecure_port(address)
        else:
            port = server.add_secure_port(address, credentials)
    except RuntimeError as error:
        raise cannot_listen(parsed) from error
    return address if parsed.is_unix else str(parsed.with_port(port))


class _ReflectionServicer(reflection.aio.ReflectionServicer):
    """gRPC's own, but it finds methods too, so that they can be described."""

    def _file_containing_symbol(self, request: Any, symbol: str) -> Any:
        with suppress(KeyError):
            symbol = descriptor_pool.Default().FindMethodByName(symbol).containing_service.full_name
        return super()._file_containing_symbol(request, symbol)  # type: ignore[misc]  # not in its stubs


def _refuse_socket_in_use(address: Address) -> None:
    """Raise `StartupError` if a server answers on this unix socket; gRPC would take it over without a word."""
    if not address.is_unix or not os.path.exists(address.path):
        return
    with socket.socket(socket.AF_UNIX) as probe:
        if probe.connect_ex(address.path) == 0:
            raise StartupError(f"Cannot listen on {address}: another server does. Choose another with --listen.")
