"""The composition root: Settings in, a running server out. The only place that builds objects."""

import asyncio
import os
import signal
from collections.abc import AsyncIterator, Callable, Mapping, Sequence
from contextlib import AbstractAsyncContextManager, AsyncExitStack, asynccontextmanager, suppress
from functools import partial
from importlib.metadata import version
from pathlib import Path
from typing import TYPE_CHECKING, Any

import structlog

from bookstore_grpc.calls.call import Gate
from bookstore_grpc.calls.rate_limit import RateLimit
from bookstore_grpc.dal import migrations
from bookstore_grpc.dal import sqlite_backup as backup
from bookstore_grpc.dal.books import BookDAL, microseconds_now
from bookstore_grpc.dal.database import Database
from bookstore_grpc.dal.driver_errors import startup_errors
from bookstore_grpc.dal.engines import parse_database_url
from bookstore_grpc.errors import StartupError
from bookstore_grpc.net.address import Address
from bookstore_grpc.net.connection_limit import Room, Shortage
from bookstore_grpc.net.file_descriptors import raise_descriptor_limit
from bookstore_grpc.net.listening import bound_socket, warn_of_plaintext
from bookstore_grpc.net.periodic import repeated
from bookstore_grpc.rpc.idle_connections import LOOK_SECONDS, Crowding
from bookstore_grpc.rpc.server import Server
from bookstore_grpc.server.channel_args import server_options
from bookstore_grpc.server.connection_bounds import ConnectionBounds, connection_bounds
from bookstore_grpc.server.memory import SpareMemory
from bookstore_grpc.server.security import Doors, doors
from bookstore_grpc.server.settings import Settings
from bookstore_grpc.server.signals import ignore_hangup
from bookstore_grpc.server.verification import plaintext_addresses
from bookstore_grpc.service.servicer import BOOK_SERVICE, BookServicer
from bookstore_grpc.telemetry.call_log import CallLog
from bookstore_grpc.telemetry.logs import flush_logs

if TYPE_CHECKING:
    from bookstore_grpc.telemetry.metrics import Metrics
    from bookstore_grpc.telemetry.tracing import Traces

_log = structlog.stdlib.get_logger("bookstore_grpc.server.app")

_CLOSE_SECONDS = 5
# Of a start that is broken off: nothing that was answered depends on it.
_CLOSE_SECONDS_WHEN_BROKEN_OFF = 0.5
_HANGING_SECONDS = 0.5
_STATEMENT_MARGIN_SECONDS = 1
_SAMPLE_SECONDS = 1
_REPORT_SECONDS = 1
_SPARE_MEMORY_SECONDS = 10

Tell = Callable[[dict[str, Any]], None]


async def serve(settings: Settings) -> None:
    """Serve until SIGTERM or SIGINT, then drain. A second signal ends the process at once.

    A signal that comes before it serves ends the start. Raises `StartupError` where the service cannot start as it is
    set up.
    """
    ignore_hangup()
    if await _served_until(_set_by_signals(), settings, log_drain=partial(_log.info, "draining")):
        _log.info("stopped")
    else:
        _log.info("stopped before it served")
    await _end_now_if_anything_hangs()


async def serve_as_worker(settings: Settings, stop: asyncio.Event, *, tell_supervisor: Tell) -> None:
    """Serve on ports that a supervisor holds until `stop`, then drain. Raises `StartupError`."""
    log_drain = partial(_log.debug, "worker draining")
    await _served_until(stop, settings, log_drain=log_drain, tell_supervisor=tell_supervisor)
    _log.debug("worker stopped")
    await _end_now_if_anything_hangs()


def _set_by_signals() -> asyncio.Event:
    """Answer an event that SIGTERM or SIGINT sets; a second signal then has its default action."""
    stop = asyncio.Event()
    loop = asyncio.get_running_loop()

    def begin_to_stop() -> None:
        for signal_number in (signal.SIGTERM, signal.SIGINT):
            loop.remove_signal_handler(signal_number)
            signal.signal(signal_number, signal.SIG_DFL)
        stop.set()

    for signal_number in (signal.SIGTERM, signal.SIGINT):
        loop.add_signal_handler(signal_number, begin_to_stop)
    return stop


async def _served_until(
    stop: asyncio.Event, settings: Settings, *, log_drain: Callable[..., object], tell_supervisor: Tell | None = None
) -> bool:
    """Start, serve until `stop` and drain. Answer whether it came to serve: a start that is stopped is broken off."""
    has_served = False

    async def serve_and_drain() -> None:
        nonlocal has_served
        async with running_server(settings, tell_supervisor=tell_supervisor):
            has_served = True
            await stop.wait()
            log_drain(grace_seconds=settings.drain_seconds)

    serving = asyncio.create_task(serve_and_drain())
    if not await _ends_before(stop, serving) and not has_served:
        await _break_off(serving)
        return False
    await serving
    return True


async def _ends_before(stop: asyncio.Event, work: asyncio.Task[Any]) -> bool:
    stopping = asyncio.create_task(stop.wait())
    await asyncio.wait((work, stopping), return_when=asyncio.FIRST_COMPLETED)
    stopping.cancel()
    return work.done()


async def _break_off(work: asyncio.Task[Any]) -> None:
    work.cancel()
    await asyncio.wait((work,))
    if not work.cancelled():
        work.exception()  # what kept it from going on does not matter any more; unseen it would be logged


async def _end_now_if_anything_hangs(status: int = 0) -> None:
    """End the process where its event loop would wait for a thread of SQLite's that waits for another's lock."""
    left = asyncio.all_tasks() - {asyncio.current_task()}
    for task in left:
        task.cancel()
    _, hanging = await asyncio.wait(left, timeout=_HANGING_SECONDS) if left else (left, left)
    if hanging:
        flush_logs()
        os._exit(status)


@asynccontextmanager
async def running_server(
    settings: Settings,
    *,
    clock: Callable[[], int] = microseconds_now,
    housekeeping_interval_seconds: float = 3_600,
    tell_supervisor: Tell | None = None,
) -> AsyncIterator[Server]:
    """Start a server and, at the end, drain it. `clock` answers microseconds since 1970-01-01T00:00:00Z.

    A supervisor has checked the addresses, shares them among its workers, and is told what is otherwise logged.
    Raises `StartupError` where the service cannot start as it is set up.
    """
    is_worker = tell_supervisor is not None
    if not is_worker:
        settings.verify()
        warn_of_plaintext(plaintext_addresses(settings))
    bounds = connection_bounds(settings, raise_descriptor_limit())
    async with AsyncExitStack() as stack:
        way_in = await stack.enter_async_context(doors(settings))
        database = await stack.enter_async_context(_database(settings))
        traces = await stack.enter_async_context(_traces(settings, database))
        metrics = _metrics(settings)
        books = BookDAL(
            database, clock=clock, on_group_written=metrics.group_written if metrics else None, observer=traces
        )
        servicer = BookServicer(books)
        crowding = Crowding(bounds.grpc)
        server = _server(
            settings,
            servicer,
            database,
            way_in,
            traces=traces,
            metrics=metrics,
            crowding=crowding,
            options=server_options(settings, shares_ports=is_worker, max_connections=bounds.grpc),
        )
        serving: dict[str, Any] = {}
        rooms = _rooms(settings, bounds, has_probes=not is_worker)
        if metrics:
            shortages = {"grpc": crowding.shortage} | {name: room.shortage for name, room in rooms.items()}
            sample = partial(_sample, metrics, server, database, way_in, shortages)
            await stack.enter_async_context(repeated(sample, every_seconds=_SAMPLE_SECONDS, what="metrics"))
            if not is_worker:
                serving["metrics"] = await stack.enter_async_context(
                    _probes(settings, server, metrics, rooms["metrics"])
                )
        if settings.channelz_listen:
            serving["channelz"] = await stack.enter_async_context(_channelz(settings))
            if is_worker:
                _log.info("serving channelz", address=serving.pop("channelz"))
        await _prepare_tables(database, books, migrate=settings.migrate)
        if settings.http_listen:
            http = _http(settings, servicer, server, way_in, rooms["http"], shares_port=is_worker)
            server.http_address = serving["http"] = await stack.enter_async_context(http)
        await server.start(settings.listen)  # what fails after it would leave it listening
        if tell_supervisor:
            report = partial(_report, tell_supervisor, server)
            stack.callback(report)  # the last says that it drains, and not only that it is silent
            await stack.enter_async_context(repeated(report, every_seconds=_REPORT_SECONDS, what="reports"))
        try:
            if metrics:
                sample()  # whoever is told that it serves may ask at once whether it is ready
            serving |= {
                "addresses": server.addresses,
                "database": database.description,
                "tls": settings.is_encrypted,
                "mutual_tls": bool(settings.tls_client_ca),
                "tokens": way_in.key_set is not None,
                "version": version("bookstore-grpc"),
                "pid": os.getpid(),
            }
            if tell_supervisor is None:
                _log.info("serving", **serving)
            else:
                tell_supervisor(serving)
            async with (
                repeated(partial(_relieve, crowding, server), every_seconds=LOOK_SECONDS, what="connections"),
                repeated(SpareMemory().give_back, every_seconds=_SPARE_MEMORY_SECONDS, what="spare memory"),
                repeated(partial(_forget, books), every_seconds=housekeeping_interval_seconds, what="old request ids"),
            ):
                yield server
        finally:
            await server.drain(delay_seconds=settings.drain_delay_seconds, grace_seconds=settings.drain_seconds)


async def migrate(settings: Settings) -> str:
    """Bring the tables to the newest migration and answer its revision.

    Raises `StartupError`, and `SystemExit` where SIGTERM or SIGINT comes first.
    """

    async def bring_to_newest() -> str:
        async with _database(settings) as database:
            with startup_errors(database.description):
                return await database.migrate()

    migrating = asyncio.create_task(bring_to_newest())
    if await _ends_before(_set_by_signals(), migrating):
        return await migrating
    await _break_off(migrating)
    _log.warning("stopped before the tables were migrated")
    await _end_now_if_anything_hangs(status=1)
    raise SystemExit(1)  # whoever waits for the tables has to know that they are not there


def migration_sql(settings: Settings) -> str:
    """Answer the SQL that builds the newest tables from nothing. Raises `StartupError`."""
    return migrations.upgrade_sql(parse_database_url(settings.database_url))


def back_up(settings: Settings, path: Path, *, force: bool, on_progress: backup.Progress) -> int:
    """Copy a SQLite database to a file while it is served, and answer how many books that holds.

    Raises `StartupError`.
    """
    return backup.copy_database(
        parse_database_url(settings.database_url),
        path,
        force=force,
        timeout_seconds=settings.database_timeout_seconds,
        on_progress=on_progress,
    )


def _server(
    settings: Settings,
    servicer: BookServicer,
    database: Database,
    way_in: Doors,
    *,
    traces: "Traces | None",
    metrics: "Metrics | None",
    crowding: Crowding,
    options: Sequence[tuple[str, int]],
) -> Server:
    call_log = CallLog(slow_call_seconds=settings.slow_call_seconds)
    return Server(
        servicer,
        probe=database.ping,
        probe_interval_seconds=settings.health_interval_seconds,
        # A call passes the gates in this order.
        gates=(*way_in.gates, *_rate_limit(settings)),
        observers=[observer for observer in (traces, call_log, metrics, crowding) if observer],
        credentials=way_in.certificates.server_credentials if way_in.certificates else None,
        has_reflection=settings.reflection == "on",
        max_concurrent_calls=settings.max_concurrent_calls,
        max_call_seconds=settings.max_call_seconds,
        max_request_bytes=settings.max_message_bytes,
        counts_arrivals=metrics is not None,
        options=options,
    )


def _rate_limit(settings: Settings) -> Sequence[Gate]:
    if not settings.rate_limit_per_second:
        return ()
    return (RateLimit(per_second=settings.rate_limit_per_second, burst=settings.rate_limit_burst),)


def _metrics(settings: Settings) -> "Metrics | None":
    if not settings.metrics_listen:
        return None
    from bookstore_grpc.telemetry.metrics import Metrics

    return Metrics()


@asynccontextmanager
async def _traces(settings: Settings, database: Database) -> AsyncIterator["Traces | None"]:
    if not settings.trace_endpoint:
        yield None
        return
    try:
        from bookstore_grpc.telemetry.otlp import exporting_spans
        from bookstore_grpc.telemetry.tracing import Traces, database_attributes, server_attributes
    except ModuleNotFoundError as error:
        raise StartupError(
            f"Traces need more than the server (no module {error.name!r}): pip install 'bookstore-grpc[otel]'."
        ) from error
    # A file's path says more of the machine than of the database.
    name = None if database.is_embedded else database.url.database
    async with exporting_spans(settings.trace_endpoint) as tracer:
        yield Traces(
            tracer,
            ratio=settings.trace_ratio,
            server=server_attributes(Address.parse(settings.listen[0])),
            database=database_attributes(database.dialect, name=name, host=database.url.host, port=database.url.port),
        )


def _rooms(settings: Settings, bounds: ConnectionBounds, *, has_probes: bool) -> Mapping[str, Room]:
    """Answer the room for connections of what listens besides gRPC, by its name."""
    wanted = {"http": bounds.http if settings.http_listen else 0, "metrics": bounds.probes if has_probes else 0}
    return {name: Room(most, name=name) for name, most in wanted.items() if most}


def _sample(
    metrics: "Metrics", server: Server, database: Database, way_in: Doors, shortages: Mapping[str, Shortage]
) -> None:
    metrics.sample(
        is_ready=not server.why_not_ready,
        calls_not_taken=server.calls_not_taken(),
        connections=database.connections_in_use(),
        certificate_expires_at=way_in.certificates.expires_at if way_in.certificates else None,
        refresh_failures=way_in.refresh_failures(),
        connections_closed={listener: shortage.closed_count for listener, shortage in shortages.items()},
    )


def _report(tell_supervisor: Tell, server: Server) -> None:
    tell_supervisor({"why_not_ready": server.why_not_ready})


@asynccontextmanager
async def _probes(settings: Settings, server: Server, metrics: "Metrics", room: Room) -> AsyncIterator[str]:
    from bookstore_grpc.telemetry.endpoints import Probes, serving_probes

    probes = Probes(metrics=metrics.text, why_not_ready=lambda: server.why_not_ready)
    async with serving_probes(settings.metrics_listen, probes, room=room) as address:
        yield address


@asynccontextmanager
async def _http(
    settings: Settings, servicer: BookServicer, server: Server, way_in: Doors, room: Room, *, shares_port: bool
) -> AsyncIterator[str]:
    try:
        from bookstore_grpc.net.http_server import serving_http
        from bookstore_grpc.web.application import http_application
    except ModuleNotFoundError as error:
        raise StartupError(
            f"HTTP needs more than the server (no module {error.name!r}): pip install 'bookstore-grpc[http]'."
        ) from error
    # Only by its name does a browser know this machine's loopback from a stranger's host that has become it.
    address = Address.parse(settings.http_listen)
    is_private = address.is_local or bool(settings.http_hosts)
    application = http_application(
        servicer,
        BOOK_SERVICE,
        guard=server.guard,
        max_request_bytes=settings.max_message_bytes,
        origins=settings.http_origins,
        hosts=settings.http_hosts if is_private else None,
        needs_token=way_in.key_set is not None,
    )
    bound = bound_socket(address, shares_port=shares_port)
    tls = way_in.certificates.tls_context() if way_in.certificates else None
    async with serving_http(application, bound, room=room, tls=tls):
        yield str(address.with_port(bound.getsockname()[1]))


def _channelz(settings: Settings) -> AbstractAsyncContextManager[str]:
    from bookstore_grpc.rpc.channelz import serving_channelz

    return serving_channelz(settings.channelz_listen)


@asynccontextmanager
async def _database(settings: Settings) -> AsyncIterator[Database]:
    database = Database(
        settings.database_url,
        pool_size=settings.pool_size,
        timeout_seconds=settings.database_timeout_seconds,
        searches_at_once=settings.max_concurrent_searches,
        # The call's own end comes first and says more.
        statement_seconds=settings.max_call_seconds + _STATEMENT_MARGIN_SECONDS,
    )
    close_seconds: float = _CLOSE_SECONDS
    try:
        yield database
    except asyncio.CancelledError:
        close_seconds = _CLOSE_SECONDS_WHEN_BROKEN_OFF
        raise
    finally:
        # A database that is away does not hold up the end.
        with suppress(TimeoutError):
            async with asyncio.timeout(close_seconds):
                await database.close()


async def _prepare_tables(database: Database, books: BookDAL, *, migrate: bool) -> None:
    with startup_errors(database.description):
        if database.is_embedded or migrate:
            await database.migrate()
        elif await database.is_behind():
            raise StartupError(
                f"The tables of {database.description} are behind this version. "
                "Run `bookstore migrate`, or serve with --migrate."
            )
        # Better to find out now that nothing can be written than with the first create.
        await books.forget_old_create_requests()


async def _relieve(crowding: Crowding, server: Server) -> None:
    await crowding.relieve(server.addresses, has_backlog=server.has_backlog)


async def _forget(books: BookDAL) -> None:
    while forgotten := await books.forget_old_create_requests():
        _log.debug("forgot old request ids", count=forgotten)
