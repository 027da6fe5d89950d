"""What the verbs of the server run: serve until a signal, migrate, back up."""

import asyncio
import os
import signal
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from functools import partial
from pathlib import Path
from typing import Any

import structlog

from bookstore_grpc.dal import migrations
from bookstore_grpc.dal import sqlite_backup as backup
from bookstore_grpc.dal.driver_errors import startup_errors
from bookstore_grpc.dal.engines import parse_database_url
from bookstore_grpc.server.app import SendMessage, build_database, close_database, running_server
from bookstore_grpc.server.settings import Settings
from bookstore_grpc.server.signals import ignore_sighup
from bookstore_grpc.telemetry.logs import flush_logs

_log = structlog.stdlib.get_logger("bookstore_grpc.server.commands")

_HANGING_SECONDS = 0.5
_STOP_SIGNALS = (signal.SIGTERM, signal.SIGINT)


async def serve(settings: Settings) -> None:
    """Serve until SIGTERM or SIGINT, then drain. A second signal ends the process at once.

    A signal before it serves cancels the start. Raises `StartupError` if the service cannot start as it is set up.
    """
    ignore_sighup()
    with _stop_on_signals() as stop:
        if await _serve_until(stop, settings, log_drain=partial(_log.info, "draining")):
            _log.info("stopped")
        else:
            _log.info("stopped before it served")
        await _exit_if_anything_hangs()


async def serve_as_worker(settings: Settings, stop: asyncio.Event, *, send_to_supervisor: SendMessage) -> None:
    """Serve on addresses that a supervisor holds until `stop`, then drain. Raises `StartupError`."""
    log_drain = partial(_log.debug, "worker draining")
    await _serve_until(stop, settings, log_drain=log_drain, send_to_supervisor=send_to_supervisor)
    _log.debug("worker stopped")
    await _exit_if_anything_hangs()


async def migrate(settings: Settings) -> str:
    """Migrate the tables to the newest revision, and return it.

    Raises `StartupError`, and `SystemExit` on SIGTERM or SIGINT.
    """
    migrating = asyncio.create_task(_migrate(settings))
    with _stop_on_signals() as stop:
        if await _ends_before(stop, migrating):
            return await migrating
    await _cancel(migrating)
    _log.warning("stopped before the tables were migrated")
    await _exit_if_anything_hangs(status=1)
    raise SystemExit(1)  # who waits for the tables must not take it for success


def migration_sql(settings: Settings) -> str:
    """Return the SQL that builds the newest tables in an empty database. Raises `StartupError`."""
    return migrations.upgrade_sql(parse_database_url(settings.database_url))


def back_up(settings: Settings, path: Path, *, force: bool, on_progress: backup.Progress) -> int:
    """Copy a SQLite database to a file, also while it is served. Returns the number of books in it.

    Raises `StartupError`.
    """
    return backup.copy_database(
        parse_database_url(settings.database_url),
        path,
        force=force,
        timeout_seconds=settings.database_timeout_seconds,
        on_progress=on_progress,
    )


async def _serve_until(
    stop: asyncio.Event,
    settings: Settings,
    *,
    log_drain: Callable[..., object],
    send_to_supervisor: SendMessage | None = None,
) -> bool:
    """Start, serve until `stop` and drain. Returns False if the stop came first and cancelled the start."""
    has_served = False

    async def serve_and_drain() -> None:
        nonlocal has_served
        async with running_server(settings, send_to_supervisor=send_to_supervisor):
            has_served = True
            await stop.wait()
            log_drain(grace_seconds=settings.drain_seconds)

    serving = asyncio.create_task(serve_and_drain())
    if not await _ends_before(stop, serving) and not has_served:
        await _cancel(serving)
        return False
    await serving
    return True


@contextmanager
def _stop_on_signals() -> Iterator[asyncio.Event]:
    """Yield an event that SIGTERM or SIGINT sets; a second signal then has its default action."""
    stop = asyncio.Event()
    loop = asyncio.get_running_loop()

    def begin_to_stop() -> None:
        for signal_number in _STOP_SIGNALS:
            loop.remove_signal_handler(signal_number)
            signal.signal(signal_number, signal.SIG_DFL)
        stop.set()

    for signal_number in _STOP_SIGNALS:
        loop.add_signal_handler(signal_number, begin_to_stop)
    try:
        yield stop
    finally:
        if not stop.is_set():
            for signal_number in _STOP_SIGNALS:
                loop.remove_signal_handler(signal_number)


async def _migrate(settings: Settings) -> str:
    database = build_database(settings)
    try:
        with startup_errors(database.description):
            return await database.migrate()
    finally:
        await close_database(database)


async def _ends_before(stop: asyncio.Event, work: asyncio.Task[Any]) -> bool:
    stopping = asyncio.create_task(stop.wait())
    await asyncio.wait((work, stopping), return_when=asyncio.FIRST_COMPLETED)
    stopping.cancel()
    return work.done()


async def _cancel(work: asyncio.Task[Any]) -> None:
    work.cancel()
    await asyncio.wait((work,))
    if not work.cancelled():
        work.exception()  # it does not matter any more; if it is not retrieved, asyncio logs it


async def _exit_if_anything_hangs(status: int = 0) -> None:
    """End the process if its event loop would wait for a thread of SQLite's that waits for a lock."""
    left = asyncio.all_tasks() - {asyncio.current_task()}
    for task in left:
        task.cancel()
    _, hanging = await asyncio.wait(left, timeout=_HANGING_SECONDS) if left else (left, left)
    if hanging:
        flush_logs()
        os._exit(status)
