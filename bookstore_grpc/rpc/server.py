"""The gRPC server: its ports, its start and its drain."""

import asyncio
from collections.abc import Callable, Sequence
from functools import partial
from typing import TYPE_CHECKING

import grpc
import structlog
from bookstore.v1 import books_pb2_grpc

from bookstore_grpc.calls.admission import Admission
from bookstore_grpc.calls.call import Check, Observer
from bookstore_grpc.calls.pipeline import CallPipeline
from bookstore_grpc.calls.watch_limit import WatchLimit
from bookstore_grpc.compat import grpc_server
from bookstore_grpc.limits import MESSAGE_MAX_BYTES
from bookstore_grpc.rpc.health import Health
from bookstore_grpc.rpc.health_monitor import HealthMonitor, Probe
from bookstore_grpc.rpc.interceptor import CallInterceptor
from bookstore_grpc.rpc.ports import bind
from bookstore_grpc.rpc.reflection import add_reflection
from bookstore_grpc.service.servicer import BOOK_SERVICE

if TYPE_CHECKING:
    from bookstore_grpc.rpc.received_calls import ReceivedCalls

_log = structlog.stdlib.get_logger("bookstore_grpc.rpc.server")

_STOP_MARGIN_SECONDS = 2
# So that GOAWAY reaches the clients before the held responses, after which they send further calls.
_GOAWAY_SECONDS = 0.05


class Server:
    """Serves a `BookServicer`, health and reflection on gRPC addresses.

    The health service reports SERVING while `probe` succeeds; it raises `Unavailable` while the database is.
    `probe_writes` raises it while the database takes no writes, which counts if `health_requires_writes`. Every call
    passes the `checks`, and the `observers` are notified of it. With `credentials` TLS is on, except for unix sockets,
    which the file system protects. `backlog` needs `counts_received_calls`.
    """

    def __init__(
        self,
        servicer: books_pb2_grpc.BookServiceServicer,
        *,
        probe: Probe,
        probe_writes: Probe,
        probe_interval_seconds: float,
        health_requires_writes: bool = False,
        checks: Sequence[Check] = (),
        observers: Sequence[Observer] = (),
        credentials: Callable[[], grpc.ServerCredentials] | None = None,
        has_reflection: bool = True,
        max_concurrent_calls: int = 500,
        watch_limit: WatchLimit | None = None,
        max_call_seconds: float = 30,
        max_request_bytes: int = MESSAGE_MAX_BYTES,
        counts_received_calls: bool = False,
        options: Sequence[tuple[str, int]] = (),
    ) -> None:
        self.addresses: list[str] = []
        self.http_address = ""  # of the JSON API, if it is enabled
        self._credentials = credentials
        self._admission = Admission(max_concurrent_calls=max_concurrent_calls)
        self.pipeline = CallPipeline(
            checks=checks,
            observers=observers,
            admission=self._admission,
            watch_limit=watch_limit,
            max_call_seconds=max_call_seconds,
        )
        self._interceptor = CallInterceptor(self.pipeline, max_request_bytes=max_request_bytes)
        health = Health(("", BOOK_SERVICE.full_name))
        self._monitor = HealthMonitor(
            health,
            probe=probe,
            probe_writes=probe_writes,
            requires_writes=health_requires_writes,
            interval_seconds=probe_interval_seconds,
        )
        make_server = partial(
            grpc_server.server,
            wrap=self._interceptor.wrapped,
            interceptors=[self._interceptor],
            options=options,
            backpressure=self._admission,
        )
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
        """Listen on `HOST:PORT` or `unix:PATH` addresses. Port 0 chooses a free port; `addresses` has the actual one.

        Raises `StartupError` if an address cannot be bound.
        """
        for address in addresses:
            credentials = self._credentials() if self._credentials else None
            self.addresses.append(bind(self._server, address, credentials))
        await self._server.start()
        await self._monitor.start()

    async def drain(self, *, delay_seconds: float, grace_seconds: float) -> None:
        """Shut down gracefully: report NOT_SERVING, wait for load balancers, send GOAWAY, finish the calls in progress.

        Calls still in progress after `grace_seconds` are cancelled.
        """
        await self._monitor.stop(why_not_ready="draining")
        await asyncio.sleep(delay_seconds)
        # gRPC's core cancels calls that arrive between sending GOAWAY and the client reading it (docs/decisions/0015).
        async with self._interceptor.held_responses.holding():
            # gRPC cancels calls later than this server, which sends callers the reason. `stop` may return before all
            # handlers have ended (grpc/grpc#37239), so the pipeline waits for them too.
            stopped = asyncio.create_task(self._server.stop(grace_seconds + _STOP_MARGIN_SECONDS))
            await asyncio.sleep(_GOAWAY_SECONDS)
        if not await self.pipeline.calls_in_progress.drain(grace_seconds=grace_seconds):
            _log.warning("drain timed out", grace_seconds=grace_seconds)
        await stopped

    @property
    def why_not_ready(self) -> str:
        """The reason why the server is not ready for calls, or empty."""
        return self._monitor.why_not_ready

    @property
    def why_no_writes(self) -> str:
        """The reason why the database took no writes at the last probe, or empty."""
        return self._monitor.why_no_writes

    @property
    def has_backlog(self) -> bool:
        """Whether calls are waiting in gRPC for capacity (backpressure)."""
        return self._admission.has_backlog

    def backlog(self) -> int:
        """Return the number of calls that gRPC has received and not passed on: waiting ones and rejected ones.

        Returns 0 unless `counts_received_calls`.
        """
        return self._received_calls.count() - self._interceptor.received_calls if self._received_calls else 0


def _counted(make_server: Callable[[], grpc.aio.Server]) -> "tuple[grpc.aio.Server, ReceivedCalls]":
    from bookstore_grpc.rpc.received_calls import counted

    return counted(make_server)
