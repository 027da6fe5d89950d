"""The gRPC server: its ports, its start and its drain."""

import asyncio
from collections.abc import Awaitable, Callable, Sequence
from functools import partial
from typing import TYPE_CHECKING

import grpc
import structlog
from bookstore.v1 import books_pb2_grpc

from bookstore_grpc.calls.admission import Admission
from bookstore_grpc.calls.call import Check, Observer
from bookstore_grpc.calls.pipeline import CallPipeline
from bookstore_grpc.compat.grpc_server import start_with_backpressure
from bookstore_grpc.limits import MESSAGE_MAX_BYTES
from bookstore_grpc.rpc.health import Health
from bookstore_grpc.rpc.health_monitor import HealthMonitor
from bookstore_grpc.rpc.interceptor import CallInterceptor
from bookstore_grpc.rpc.ports import bind
from bookstore_grpc.rpc.reflection import add_reflection
from bookstore_grpc.service.servicer import BOOK_SERVICE

if TYPE_CHECKING:
    from bookstore_grpc.rpc.received_calls import ReceivedCalls

_log = structlog.stdlib.get_logger("bookstore_grpc.server")

_STOP_MARGIN_SECONDS = 2
# For GOAWAY to reach the clients before the responses, after which they send more.
_GOAWAY_SECONDS = 0.05


class Server:
    """Serves a `BookServicer` on its addresses, and reports by the health service whether `probe` succeeds.

    `probe` raises `Unavailable` while the service cannot do its work. Every call passes the `checks`, and the
    `observers` are notified of it. With `credentials` calls travel by TLS, except those through a unix socket, which
    the file system protects. `counts_received_calls` is needed for `backlog`.
    """

    def __init__(
        self,
        servicer: books_pb2_grpc.BookServiceServicer,
        *,
        probe: Callable[[], Awaitable[None]],
        probe_interval_seconds: float,
        checks: Sequence[Check] = (),
        observers: Sequence[Observer] = (),
        credentials: Callable[[], grpc.ServerCredentials] | None = None,
        has_reflection: bool = True,
        max_concurrent_calls: int = 500,
        max_call_seconds: float = 30,
        max_request_bytes: int = MESSAGE_MAX_BYTES,
        counts_received_calls: bool = False,
        options: Sequence[tuple[str, int]] = (),
    ) -> None:
        self.addresses: list[str] = []
        self.http_address = ""  # where the same calls are served over HTTP, if they are
        self._credentials = credentials
        self._admission = Admission(max_concurrent_calls=max_concurrent_calls)
        self.pipeline = CallPipeline(
            checks=checks, observers=observers, admission=self._admission, max_call_seconds=max_call_seconds
        )
        self._interceptor = CallInterceptor(self.pipeline, max_request_bytes=max_request_bytes)
        health = Health(("", BOOK_SERVICE.full_name))
        self._monitor = HealthMonitor(health, probe=probe, interval_seconds=probe_interval_seconds)
        make_server = partial(grpc.aio.server, interceptors=[self._interceptor], options=options)
        self._received_calls: ReceivedCalls | None = None
        if counts_received_calls:
            self._server, self._received_calls = _counted(make_server)
        else:
            self._server = make_server()
        books_pb2_grpc.add_BookServiceServicer_to_server(servicer, self._server)
        self._server.add_generic_rpc_handlers([health.handler()])
        if has_reflection:
            add_reflection(self._server, BOOK_SERVICE.full_name)

    async def start(self, addresses: Sequence[str]) -> None:
        """Listen on `HOST:PORT` or `unix:PATH` addresses; port 0 takes a free one, shown in `addresses`.

        Raises `StartupError` if an address cannot be listened on.
        """
        for address in addresses:
            credentials = self._credentials() if self._credentials else None
            self.addresses.append(bind(self._server, address, credentials))
        await start_with_backpressure(self._server, self._admission)
        await self._monitor.start()

    async def drain(self, *, delay_seconds: float, grace_seconds: float) -> None:
        """Stop without losing a call: report NOT_SERVING, wait for balancers, send GOAWAY, finish the calls under way.

        After `grace_seconds` the calls that are left are cancelled.
        """
        await self._monitor.stop(why_not_ready="draining")
        await asyncio.sleep(delay_seconds)
        # gRPC's core cancels what it receives after its GOAWAY and before the client reads that: docs/decisions/0015.
        async with self._interceptor.held_responses.holding():
            # gRPC cancels calls later than we do, because we send the callers the reason; and it may return before the
            # handlers have (grpc/grpc#37239), so they are waited for too.
            stopped = asyncio.create_task(self._server.stop(grace_seconds + _STOP_MARGIN_SECONDS))
            await asyncio.sleep(_GOAWAY_SECONDS)
        if not await self.pipeline.calls_under_way.drain(grace_seconds=grace_seconds):
            _log.warning("drain cut off", grace_seconds=grace_seconds)
        await stopped

    @property
    def why_not_ready(self) -> str:
        """The reason why the server is not ready for calls, or empty."""
        return self._monitor.why_not_ready

    @property
    def has_backlog(self) -> bool:
        """Whether calls are held back in gRPC until there is room."""
        return self._admission.has_backlog

    def backlog(self) -> int:
        """Return how many calls gRPC has received and not handed over: those that wait, and those it has turned away.

        It is 0 unless received calls are counted.
        """
        return self._received_calls.count() - self._interceptor.received_calls if self._received_calls else 0


def _counted(make_server: Callable[[], grpc.aio.Server]) -> "tuple[grpc.aio.Server, ReceivedCalls]":
    from bookstore_grpc.rpc.received_calls import counted

    return counted(make_server)
