"""The commands of the server: serve until a signal, migrate, back up."""

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
from bookstore_grpc.dal.database_url import parse_database_url
from bookstore_grpc.dal.driver_errors import startup_errors
from bookstore_grpc.server.app import build_database, close_database, running_server
from bookstore_grpc.server.settings import Settings
from bookstore_grpc.server.signals import ignore_sighup
from bookstore_grpc.server.supervisor_channel import SupervisorChannel
from bookstore_grpc.telemetry.logs import flush_logs

_log = structlog.stdlib.get_logger("bookstore_grpc.server.commands")

_HANGING_SECONDS = 0.5
_STOP_SIGNALS = (signal.SIGTERM, signal.SIGINT)


async def serve(settings: Settings) -> None:
    """Serve until SIGTERM or SIGINT, then drain. A second signal ends the process immediately.

    A signal during the start cancels it. Raises `StartupError` if the service cannot start with these settings.
    """
    ignore_sighup()
    with _stop_on_signals() as stop:
        if await _serve_until(stop, settings, log_drain=partial(_log.info, "draining")):
            _log.info("stopped")
        else:
            _log.info("start cancelled")
        await _exit_if_anything_hangs()


async def serve_as_worker(settings: Settings, stop: asyncio.Event, *, supervisor: SupervisorChannel) -> None:
    """Serve on the addresses reserved by a supervisor until `stop` is set, then drain. Raises `StartupError`."""
    log_drain = partial(_log.debug, "worker draining")
    await _serve_until(stop, settings, log_drain=log_drain, supervisor=supervisor)
    _log.debug("worker stopped")
    await _exit_if_anything_hangs()


async def migrate(settings: Settings) -> str:
    """Migrate the tables to the newest revision, and return that revision.

    Raises `StartupError`, and `SystemExit` on SIGTERM or SIGINT.
    """
    migrating = asyncio.create_task(_migrate(settings))
    with _stop_on_signals() as stop:
        if await _ends_before(stop, migrating):
            return await migrating
    await _cancel(migrating)
    _log.warning("migration cancelled")
    await _exit_if_anything_hangs(status=1)
    raise SystemExit(1)  # 0 would mean that the tables are migrated


def migration_sql(settings: Settings) -> str:
    """Return the SQL that creates the tables of the newest revision in an empty database. Raises `StartupError`."""
    return migrations.upgrade_sql(parse_database_url(settings.database_url).url)


def back_up(settings: Settings, path: Path, *, force: bool, on_progress: backup.Progress) -> int:
    """Copy a SQLite database to a file, even while servers use it. Returns the number of books in it.

    Raises `StartupError`.
    """
    return backup.copy_database(
        parse_database_url(settings.database_url).url,
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
    supervisor: SupervisorChannel | None = None,
) -> bool:
    """Start, serve until `stop` is set, and drain. Returns False if `stop` cancelled the start."""
    has_served = False

    async def serve_and_drain() -> None:
        nonlocal has_served
        async with running_server(settings, supervisor=supervisor):
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
    """Yield an event that SIGTERM or SIGINT sets. A second signal has its default action."""
    stop = asyncio.Event()
    loop = asyncio.get_running_loop()

    def request_stop() -> None:
        for signal_number in _STOP_SIGNALS:
            loop.remove_signal_handler(signal_number)
            signal.signal(signal_number, signal.SIG_DFL)
        stop.set()

    for signal_number in _STOP_SIGNALS:
        loop.add_signal_handler(signal_number, request_stop)
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
        work.exception()  # mark it as retrieved, or asyncio would log it


async def _exit_if_anything_hangs(status: int = 0) -> None:
    """Exit if the event loop could not end, because one of SQLite's threads waits for a lock."""
    remaining = asyncio.all_tasks() - {asyncio.current_task()}
    for task in remaining:
        task.cancel()
    _, hanging = await asyncio.wait(remaining, timeout=_HANGING_SECONDS) if remaining else (remaining, remaining)
    if hanging:
        flush_logs()
        os._exit(status)
