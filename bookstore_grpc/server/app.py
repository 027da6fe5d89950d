"""The composition root: builds the objects of a serving process from its settings, and lists its components."""

import asyncio
import math
import os
from collections.abc import AsyncIterator, Callable, Sequence
from contextlib import asynccontextmanager, suppress
from functools import partial
from importlib.metadata import version
from typing import TYPE_CHECKING

import structlog

from bookstore_grpc.calls.call import Check
from bookstore_grpc.calls.rate_limit import RateLimit
from bookstore_grpc.calls.watch_limit import WatchLimit
from bookstore_grpc.dal.books import BookDAL, microseconds_now
from bookstore_grpc.dal.database import Database
from bookstore_grpc.dal.driver_errors import startup_errors
from bookstore_grpc.errors import StartupError
from bookstore_grpc.net.address import Address
from bookstore_grpc.net.connection_limit import ConnectionLimit
from bookstore_grpc.net.file_descriptors import raise_descriptor_limit
from bookstore_grpc.net.listening import warn_of_plaintext
from bookstore_grpc.net.periodic import PeriodicTask
from bookstore_grpc.rpc.idle_connections import CHECK_SECONDS, IdleConnectionEviction
from bookstore_grpc.rpc.server import Server
from bookstore_grpc.server.channel_args import server_options
from bookstore_grpc.server.components import Component, Entered, Step, running
from bookstore_grpc.server.connection_bounds import connection_bounds
from bookstore_grpc.server.memory import MemoryTrimmer
from bookstore_grpc.server.security import build_security
from bookstore_grpc.server.settings import Settings
from bookstore_grpc.server.supervisor_channel import SupervisorChannel
from bookstore_grpc.server.verification import plaintext_addresses
from bookstore_grpc.server.worker_messages import ChangesCommitted, Heartbeat, Serving
from bookstore_grpc.service.messages import entry_from_record, validate_request
from bookstore_grpc.service.servicer import BOOK_SERVICE, BookServicer
from bookstore_grpc.telemetry.call_log import CallLog

if TYPE_CHECKING:
    from bookstore_grpc.net.http_server import HttpServer
    from bookstore_grpc.telemetry.metrics import Metrics
    from bookstore_grpc.telemetry.otlp import SpanExport
    from bookstore_grpc.telemetry.tracing import Traces

_log = structlog.stdlib.get_logger("bookstore_grpc.server.app")

_CLOSE_SECONDS = 5
# Shorter after a cancelled start, because no call waits for the database.
_CLOSE_SECONDS_WHEN_CANCELLED = 0.5
_STATEMENT_MARGIN_SECONDS = 1
_SAMPLE_SECONDS = 1
_HEARTBEAT_SECONDS = 1
# Between two signals to the other workers that books have changed.
_SIGNAL_SECONDS = 0.01
_MEMORY_TRIM_SECONDS = 10
_WAL_CHECK_SECONDS = 5
# Often, so that old changes are deleted in small numbers, and with pauses in which others write.
_CHANGES_CHECK_SECONDS = 300
_CHANGES_PAUSE_SECONDS = 0.1
_ENTRIES_CHECK_SECONDS = 5
# As long as a transaction, so that other writes have the database half of the time.
_ENTRIES_PAUSE_SECONDS = 0.005


@asynccontextmanager
async def running_server(
    settings: Settings,
    *,
    clock: Callable[[], int] = microseconds_now,
    housekeeping_interval_seconds: float = 3_600,
    supervisor: SupervisorChannel | None = None,
) -> AsyncIterator[Server]:
    """Start a server, and drain it at the end. `clock` returns microseconds since 1970-01-01T00:00:00Z.

    With `supervisor`, that process has already verified the settings and reserved the addresses, and it logs
    `serving` for all workers. Raises `StartupError` if the service cannot start with these settings.
    """
    if supervisor is None:
        settings.verify()
        warn_of_plaintext(plaintext_addresses(settings))
    application = Application(
        settings,
        clock=clock,
        housekeeping_interval_seconds=housekeeping_interval_seconds,
        supervisor=supervisor,
    )
    async with running(application.components()):
        yield application.server


class Application:
    """The objects of one serving process, and the components that run them. Raises `StartupError`."""

    def __init__(
        self,
        settings: Settings,
        *,
        clock: Callable[[], int],
        housekeeping_interval_seconds: float,
        supervisor: SupervisorChannel | None,
    ) -> None:
        self._settings = settings
        self._housekeeping_interval_seconds = housekeeping_interval_seconds
        self._supervisor = supervisor
        bounds = connection_bounds(settings, raise_descriptor_limit())
        self._security = build_security(settings)
        self._database = build_database(settings)
        self._span_export, self._traces = _build_tracing(settings, self._database)
        self._metrics = _build_metrics(settings)
        self._oldest_change_time: int | None = None
        self._books = BookDAL(
            self._database,
            encode=entry_from_record,
            clock=clock,
            on_batch_committed=self._metrics.batch_committed if self._metrics else None,
            on_changes_committed=_Throttled(partial(supervisor.send, ChangesCommitted())) if supervisor else None,
            observer=self._traces,
        )
        if supervisor:
            supervisor.on_changes_committed = self._books.changes.others_committed
        servicer = BookServicer(self._books, max_call_seconds=settings.max_call_seconds)
        self._idle_connections = IdleConnectionEviction(bounds.grpc)
        self._closed_counters = {"grpc": self._idle_connections.closed}
        self.server = self._build_server(servicer, max_connections=bounds.grpc)
        self._http = self._build_http(servicer, max_connections=bounds.http)
        self._metrics_endpoint = self._build_metrics_endpoint(max_connections=bounds.endpoints)
        self._channelz = _build_channelz(settings)

    def components(self) -> Sequence[Component]:
        """Return the components in the order in which they start. They stop in reverse order."""
        components: list[Component | None] = [
            *self._security.components(self._settings),
            Step(stop=partial(close_database, self._database)),
            self._span_export,
            PeriodicTask("metrics", self._sample_metrics, every_seconds=_SAMPLE_SECONDS) if self._metrics else None,
            self._metrics_endpoint,
            self._channelz,
            Step(start=self._prepare_tables),
            self._http,
            # Starts before the gRPC server, and so stops after it: heartbeats continue during the drain.
            _Heartbeats(self._supervisor, self.server) if self._supervisor else None,
            Step(start=partial(self.server.start, self._settings.listen), stop=self._drain),
            Step(start=self._announce),
            PeriodicTask("connections", self._close_idle_connections, every_seconds=CHECK_SECONDS),
            PeriodicTask("memory trim", MemoryTrimmer().trim_if_grown, every_seconds=_MEMORY_TRIM_SECONDS),
            PeriodicTask("WAL", self._database.truncate_wal, every_seconds=_WAL_CHECK_SECONDS)
            if self._database.is_embedded
            else None,
            PeriodicTask("entries", self._complete_entries, every_seconds=_ENTRIES_CHECK_SECONDS)
            if self._database.is_embedded
            else None,
            PeriodicTask(
                "old request ids", self._forget_old_request_ids, every_seconds=self._housekeeping_interval_seconds
            ),
            PeriodicTask(
                "old changes",
                self._forget_old_changes,
                every_seconds=min(self._housekeeping_interval_seconds, _CHANGES_CHECK_SECONDS),
                starts_at_once=True,
            ),
            PeriodicTask(
                "search texts",
                self._complete_search_texts,
                every_seconds=self._housekeeping_interval_seconds,
                starts_at_once=True,
            ),
        ]
        return [component for component in components if component]

    def _build_server(self, servicer: BookServicer, *, max_connections: int) -> Server:
        settings, certificates = self._settings, self._security.certificates
        call_log = CallLog(slow_call_seconds=settings.slow_call_seconds)
        observers = (self._traces, call_log, self._metrics, self._idle_connections)
        return Server(
            servicer,
            probe=self._database.ping,
            probe_writes=self._database.check_writes,
            probe_interval_seconds=settings.health_interval_seconds,
            health_requires_writes=settings.health_requires_writes,
            # Checks run in this order.
            checks=(*self._security.checks, *_rate_limit(settings)),
            observers=[observer for observer in observers if observer],
            credentials=certificates.server_credentials if certificates else None,
            has_reflection=settings.reflection == "on",
            max_concurrent_calls=settings.max_concurrent_calls,
            watch_limit=WatchLimit(
                max_watchers=settings.max_watchers, max_watchers_per_caller=settings.max_watchers_per_caller
            ),
            max_call_seconds=settings.max_call_seconds,
            max_request_bytes=settings.max_message_bytes,
            counts_received_calls=self._metrics is not None,
            options=server_options(
                settings, shares_ports=self._supervisor is not None, max_connections=max_connections
            ),
        )

    def _build_http(self, servicer: BookServicer, *, max_connections: int) -> "HttpServer | None":
        settings, security = self._settings, self._security
        if not settings.http_listen:
            return None
        try:
            from bookstore_grpc.net.http_server import HttpServer
            from bookstore_grpc.web.application import http_application
        except ModuleNotFoundError as error:
            raise StartupError(
                f"HTTP needs another extra (no module {error.name!r}): pip install 'bookstore-grpc[http]'."
            ) from error
        address = Address.parse(settings.http_listen)
        # Against DNS rebinding: a browser reaches a loopback address by another host name only in an attack.
        checks_hosts = address.is_local or bool(settings.http_hosts)
        application = http_application(
            servicer,
            BOOK_SERVICE,
            pipeline=self.server.pipeline,
            validate=validate_request,
            max_request_bytes=settings.max_message_bytes,
            origins=settings.http_origins,
            hosts=settings.http_hosts if checks_hosts else None,
            needs_token=security.jwks is not None,
        )
        return HttpServer(
            application,
            address,
            limit=self._connection_limit("http", max_connections),
            tls=security.certificates.tls_context() if security.certificates else None,
            shares_port=self._supervisor is not None,
        )

    def _build_metrics_endpoint(self, *, max_connections: int) -> "HttpServer | None":
        if self._metrics is None or self._supervisor is not None:  # the supervisor serves them for all workers
            return None
        from bookstore_grpc.telemetry.endpoints import Endpoints, endpoints_server

        endpoints = Endpoints(
            metrics=self._metrics.text,
            why_not_ready=lambda: self.server.why_not_ready,
            when_ready=lambda: f"ok, but {reason}" if (reason := self.server.why_no_writes) else "ok",
        )
        limit = self._connection_limit("metrics", max_connections)
        return endpoints_server(self._settings.metrics_listen, endpoints, limit=limit)

    def _connection_limit(self, name: str, max_connections: int) -> ConnectionLimit:
        limit = ConnectionLimit(max_connections, name=name)
        self._closed_counters[name] = limit.closed
        return limit

    async def _prepare_tables(self) -> None:
        database = self._database
        with startup_errors(database.description):
            if database.is_embedded or self._settings.migrate:
                await database.migrate()
            elif await database.is_behind():
                raise StartupError(
                    f"The tables of {database.description} are behind this version. "
                    "Run `bookstore migrate`, or serve with --migrate."
                )
            if await database.is_search_index_missing():
                _log.warning(
                    "searches read the whole table: the extension pg_trgm is missing",
                    action="CREATE EXTENSION pg_trgm as an administrator of the database, then bookstore migrate",
                )
            # A database that cannot be written to must fail the start, not the first create.
            await self._books.forget_old_create_requests()

    async def _announce(self) -> None:
        if self._metrics:
            self._sample_metrics()  # a reader of the log line may immediately check whether the server is ready
        serving = Serving(
            addresses=tuple(self.server.addresses),
            database=self._database.description,
            tls=self._settings.is_encrypted,
            mutual_tls=bool(self._settings.tls_client_ca),
            tokens=self._security.jwks is not None,
            version=version("bookstore-grpc"),
            pid=os.getpid(),
            http=self._http.bound_address if self._http else "",
        )
        self.server.http_address = serving.http
        if self._supervisor:
            if self._channelz:
                _log.info("serving channelz", address=self._channelz.value)
            self._supervisor.send(serving)
            return
        metrics = {"metrics": self._metrics_endpoint.bound_address} if self._metrics_endpoint else {}
        channelz = {"channelz": self._channelz.value} if self._channelz else {}
        _log.info("serving", **metrics, **channelz, **serving.log_fields())

    def _sample_metrics(self) -> None:
        assert self._metrics is not None  # noqa: S101  called only if metrics are enabled
        certificates = self._security.certificates
        self._metrics.sample(
            is_ready=not self.server.why_not_ready,
            is_writable=not self.server.why_no_writes,
            calls_unhandled=self.server.backlog(),
            connections=self._database.connections_in_use(),
            wal_bytes=self._database.wal_bytes(),
            watch_lag_changes=self._books.changes.lag,
            oldest_change_at=(self._oldest_change_time or 0) / 1e6,
            certificate_expires_at=certificates.expires_at if certificates else None,
            refresh_failures=self._security.refresh_failures(),
            connections_closed={listener: closed.count for listener, closed in self._closed_counters.items()},
        )

    async def _drain(self) -> None:
        settings = self._settings
        await self.server.drain(delay_seconds=settings.drain_delay_seconds, grace_seconds=settings.drain_seconds)

    async def _close_idle_connections(self) -> None:
        await self._idle_connections.evict(self.server.addresses, has_backlog=self.server.has_backlog)

    async def _forget_old_request_ids(self) -> None:
        while forgotten := await self._books.forget_old_create_requests():
            _log.debug("expired request ids deleted", count=forgotten)

    async def _forget_old_changes(self) -> None:
        kept_seconds = self._settings.changes_kept_hours * 3_600
        count = 0
        while forgotten := await self._books.forget_old_changes(kept_seconds=kept_seconds):
            count += forgotten
            await asyncio.sleep(_CHANGES_PAUSE_SECONDS)
        if count:
            _log.info("old changes deleted", count=count)
        self._oldest_change_time = await self._books.changes.earliest_time()

    async def _complete_search_texts(self) -> None:
        completed, after = 0, 0
        while (portion := await self._books.complete_search_texts(after=after)) is not None:
            completed += portion.completed
            after = portion.last_id
        if completed:
            _log.info("texts of the previous version indexed", count=completed)

    async def _complete_entries(self) -> None:
        count = 0
        while completed := await self._books.complete_entries():
            count += completed
            await asyncio.sleep(_ENTRIES_PAUSE_SECONDS)
        if count:
            _log.info("entries of books stored", count=count)


class _Throttled:
    """Does something at once, or if it was just done a moment later, once for all calls in the meantime."""

    def __init__(self, act: Callable[[], None]) -> None:
        self._act = act
        self._done_at = -math.inf
        self._timer: asyncio.TimerHandle | None = None

    def __call__(self) -> None:
        if self._timer:
            return
        loop = asyncio.get_running_loop()
        wait_seconds = self._done_at + _SIGNAL_SECONDS - loop.time()
        if wait_seconds <= 0:
            self._do()
        else:
            self._timer = loop.call_later(wait_seconds, self._do)

    def _do(self) -> None:
        self._timer = None
        self._done_at = asyncio.get_running_loop().time()
        self._act()


class _Heartbeats:
    """Sends the supervisor a heartbeat every second, and at the stop a last one, which reports the drain."""

    def __init__(self, supervisor: SupervisorChannel, server: Server) -> None:
        self._send = supervisor.send
        self._server = server
        self._task = PeriodicTask("heartbeats", self._send_one, every_seconds=_HEARTBEAT_SECONDS)
        self.start = self._task.start

    async def stop(self) -> None:
        await self._task.stop()
        self._send_one()

    def _send_one(self) -> None:
        self._send(Heartbeat(self._server.why_not_ready, self._server.why_no_writes))


def build_database(settings: Settings) -> Database:
    """Return the configured database, which connects at its first statement. Raises `StartupError`."""
    return Database(
        settings.database_url,
        pool_size=settings.pool_size,
        timeout_seconds=settings.database_timeout_seconds,
        max_concurrent_searches=settings.max_concurrent_searches,
        # Later than the deadline of the call, whose error is more specific.
        statement_seconds=settings.max_call_seconds + _STATEMENT_MARGIN_SECONDS,
    )


async def close_database(database: Database) -> None:
    """Close the connections. Takes at most five seconds, even if the database does not respond."""
    task = asyncio.current_task()
    is_cancelled = task is not None and task.cancelling() > 0
    with suppress(TimeoutError):
        async with asyncio.timeout(_CLOSE_SECONDS_WHEN_CANCELLED if is_cancelled else _CLOSE_SECONDS):
            await database.close()


def _build_tracing(settings: Settings, database: Database) -> "tuple[SpanExport | None, Traces | None]":
    if not settings.trace_endpoint:
        return None, None
    try:
        from bookstore_grpc.telemetry.otlp import SpanExport
        from bookstore_grpc.telemetry.tracing import Traces, database_attributes, server_attributes
    except ModuleNotFoundError as error:
        raise StartupError(
            f"Traces need another extra (no module {error.name!r}): pip install 'bookstore-grpc[otel]'."
        ) from error
    export = SpanExport(settings.trace_endpoint)
    # The path of a SQLite file describes the machine rather than the database, so it is not exported.
    name = None if database.is_embedded else database.url.database
    traces = Traces(
        export,
        ratio=settings.trace_ratio,
        server=server_attributes(Address.parse(settings.listen[0])),
        database=database_attributes(database.dialect, name=name, host=database.url.host, port=database.url.port),
    )
    return export, traces


def _build_metrics(settings: Settings) -> "Metrics | None":
    if not settings.metrics_listen:
        return None
    from bookstore_grpc.telemetry.metrics import Metrics

    return Metrics()


def _build_channelz(settings: Settings) -> Entered | None:
    if not settings.channelz_listen:
        return None
    from bookstore_grpc.rpc.channelz import serving_channelz

    return Entered(serving_channelz(settings.channelz_listen))


def _rate_limit(settings: Settings) -> Sequence[Check]:
    if not settings.rate_limit_per_second:
        return ()
    return (RateLimit(per_second=settings.rate_limit_per_second, burst=settings.rate_limit_burst),)
