"""Database URLs to engines, with what each database needs to behave like the others."""

import asyncio
import math
import os
import re
import sqlite3
import time
from collections.abc import Callable
from typing import Any

from sqlalchemy import event, exc
from sqlalchemy.engine import URL, make_url
from sqlalchemy.ext.asyncio import AsyncEngine, create_async_engine
from sqlalchemy.pool import ConnectionPoolEntry

from bookstore_grpc.errors import DatabaseUnavailable, StartupError
from bookstore_grpc.limits import AUTHOR_MAX_CODE_POINTS, MARIADB_PACKET_MIN_BYTES

#: Where a connection's `info` has the longest statement that MariaDB takes from it, in bytes.
PACKET_BYTES = "packet_bytes"

# The one driver for each database, and the extra that brings it.
_DRIVERS = {
    "sqlite": ("sqlite+aiosqlite", "server"),
    "postgresql": ("postgresql+asyncpg", "postgresql"),
    "mariadb": ("mariadb+asyncmy", "mariadb"),
}
_SCHEMES = {"postgres": "postgresql", "mysql": "mariadb"}
_NO_FILE = re.compile(r"(file:)?(:memory:)?")
# Shorter than what firewalls and servers allow a connection to idle.
_RECYCLE_SECONDS = 1_800
_BUSY_SECONDS = 2
# Of SQLite's virtual machine between two looks at the clock: less than a millisecond.
_STEPS = 10_000
_BUSY_PAUSE_SECONDS = 0.05
# SQLite's log grows to so many pages of 4 KiB, 16 MB, before they are copied into the file. The pages of an index that
# many commits touch are then copied once for all of them; by the default, 1,000, a batch of 500 books takes an eighth
# longer.
_LOG_PAGES = 4_000
# A log that has taken the last room of a disk stays for ever: to be emptied it needs room for the file to grow. Where
# there is less than four times the longest log, it is kept short.
_SCARCE_BYTES = 64 * 2**20
_LOG_PAGES_WHERE_SCARCE = 50


class Cutoff:
    """When, by `time.monotonic`, the statement that a SQLite connection runs is to end; any thread may change it."""

    def __init__(self) -> None:
        self.at = math.inf


def parse_database_url(text: str) -> URL:
    """Read a database URL and settle its driver. Raises `StartupError`; its message never holds a password."""
    supported = ", ".join(driver for driver, _ in _DRIVERS.values())
    try:
        url = make_url(text)
    except (exc.ArgumentError, ValueError) as error:
        raise StartupError(
            f"The database URL cannot be read; it looks like {supported} followed by ://user:password@host/database."
        ) from error
    scheme, _, driver = url.drivername.partition("+")
    backend = _SCHEMES.get(scheme, scheme)
    if backend not in _DRIVERS:
        raise StartupError(f"The database URL starts with {url.drivername!r}; supported are {supported}.")
    drivername, _ = _DRIVERS[backend]
    if driver and driver != drivername.partition("+")[2]:
        raise StartupError(f"The driver {url.drivername!r} is not supported; use {drivername}.")
    if not 0 <= (url.port or 0) < 65_536:
        raise StartupError(f"The database URL names port {url.port}; ports end at 65535.")
    if backend == "sqlite" and (_NO_FILE.fullmatch(url.database or "") or "mode=memory" in text):
        raise StartupError(
            "A SQLite database needs a file, as in sqlite+aiosqlite:///bookstore.db; one in memory would be lost."
        )
    if backend != "sqlite" and not url.database:
        raise StartupError(f"The database URL names no database; it ends with /NAME, as in {drivername}://HOST/NAME.")
    if "sslmode" in url.query and backend == "postgresql":
        # Hosts print URLs as libpq reads them; asyncpg takes the same words under another name.
        url = url.update_query_dict({"ssl": url.query["sslmode"]}).difference_update_query(["sslmode"])
    return url.set(drivername=drivername)


def reading_engine(url: URL, *, pool_size: int, timeout_seconds: float, statement_seconds: float) -> AsyncEngine:
    """Make an engine whose every statement stands by itself: no transaction, one round trip, ended after a time.

    SQLite ends a statement only where its connection's `cutoff` says so.
    """
    engine = _engine(
        url,
        timeout_seconds,
        statement_seconds=statement_seconds,
        pool_size=pool_size,
        isolation_level="AUTOCOMMIT",
        pool_reset_on_return=None,
    )
    if url.get_backend_name() == "sqlite":
        _on_connect(engine, "PRAGMA query_only = ON")
    return engine


def writing_engine(url: URL, *, pool_size: int, timeout_seconds: float) -> AsyncEngine:
    """Make an engine for transactions. SQLite has one writer, so calls queue for one connection."""
    if url.get_backend_name() != "sqlite":
        # MariaDB's default, REPEATABLE READ, locks gaps between rows, and writers then meet where they need not.
        engine = _engine(url, timeout_seconds, pool_size=pool_size, isolation_level="READ COMMITTED")
        if url.get_backend_name() == "mariadb":
            _learn_packet_bytes(engine)
        return engine
    # Every transaction here ends with its commit or rollback, so the pool need not send another.
    engine = _engine(url, timeout_seconds, pool_size=1, pool_reset_on_return=None)
    _on_connect(
        engine,
        "PRAGMA journal_mode = WAL",
        "PRAGMA synchronous = FULL",
        "PRAGMA foreign_keys = ON",
    )

    @event.listens_for(engine.sync_engine, "begin")
    def begin(connection: Any) -> None:
        log_pages = _log_pages(url)
        if connection.info.get("log_pages") != log_pages:
            connection.exec_driver_sql(f"PRAGMA wal_autocheckpoint = {log_pages}")
            connection.info["log_pages"] = log_pages
        # A transaction that began as a reader and then writes fails at once with SQLITE_BUSY instead of waiting.
        connection.exec_driver_sql("BEGIN IMMEDIATE")

    return engine


def _learn_packet_bytes(engine: AsyncEngine) -> None:
    """Ask a new connection how long a statement may be. One too short for a call refuses all, so that it is seen."""

    @event.listens_for(engine.sync_engine, "connect")
    def ask(connection: Any, record: ConnectionPoolEntry) -> None:
        cursor = connection.cursor()
        cursor.execute("SELECT @@max_allowed_packet")
        packet_bytes = record.info[PACKET_BYTES] = cursor.fetchone()[0]
        cursor.close()
        if packet_bytes < MARIADB_PACKET_MIN_BYTES:
            raise DatabaseUnavailable from ValueError(
                f"max_allowed_packet is {packet_bytes}, and at least {MARIADB_PACKET_MIN_BYTES} bytes are needed"
            )


def _log_pages(url: URL) -> int:
    path = url.database or ""
    if path.startswith("file:"):
        return _LOG_PAGES  # a URI of SQLite's own, which only SQLite reads
    disk = os.statvfs(path)
    return _LOG_PAGES if disk.f_bavail * disk.f_frsize >= _SCARCE_BYTES else _LOG_PAGES_WHERE_SCARCE


def _engine(url: URL, timeout_seconds: float, *, statement_seconds: float = 0, **options: Any) -> AsyncEngine:
    backend = url.get_backend_name()
    connect_args: dict[str, Any] = {"timeout": timeout_seconds}
    if backend == "postgresql" and statement_seconds:
        connect_args["server_settings"] = {"statement_timeout": f"{statement_seconds * 1_000:.0f}"}
    if backend == "sqlite":
        connect_args["async_creator_fn"] = _sqlite_connect
    if backend == "mariadb":
        connect_args = {
            "async_creator_fn": _mariadb_connect(timeout_seconds),
            "charset": "utf8mb4",
            # It sorts by so many bytes of a value and takes what is alike in them for equal; the default is 1,024.
            # A call that is cancelled leaves its statement running; 0 would let it run for ever.
            "init_command": f"SET SESSION max_sort_length = {8 * AUTHOR_MAX_CODE_POINTS}, "
            f"max_statement_time = {statement_seconds:.3f}",
        }
    if backend != "sqlite":
        options["pool_recycle"] = _RECYCLE_SECONDS
    try:
        return create_async_engine(
            url,
            connect_args=connect_args,
            max_overflow=0,
            pool_timeout=timeout_seconds,
            hide_parameters=True,  # they hold what callers sent, which has no place in a log
            **options,
        )
    except (TypeError, ValueError) as error:
        raise StartupError(f"The database URL has an option that cannot be read: {error}.") from error
    except ModuleNotFoundError as error:
        extra = _DRIVERS[backend][1]
        raise StartupError(
            f"The driver for {backend} is not installed: pip install 'bookstore-grpc[{extra}]'."
        ) from error


async def _sqlite_connect(*arguments: Any, **options: Any) -> Any:
    import aiosqlite

    connection = aiosqlite.connect(*arguments, **options)
    thread = connection._thread
    thread.daemon = True
    cutoff = Cutoff()
    try:
        await connection
        await connection.set_progress_handler(lambda: time.monotonic() > cutoff.at, _STEPS)
        connection.cutoff = cutoff  # type: ignore[attr-defined]  # the pool hands out the connection and no more
        return connection
    except sqlite3.Error:
        # Its thread answers once more, and complains on standard error if the event loop is gone by then.
        await asyncio.to_thread(thread.join)
        raise


def _mariadb_connect(timeout_seconds: float) -> Callable[..., Any]:
    # The driver's own time limit ends with the TCP handshake; a server that then says nothing would hold the caller.
    async def connect(**arguments: Any) -> Any:
        import asyncmy  # an extra: not there for every database

        try:
            async with asyncio.timeout(timeout_seconds):
                return await asyncmy.connect(**arguments)
        except RuntimeError as error:
            # What it says under uvloop where a server, or a proxy before it, hangs up at once.
            raise ConnectionError(*error.args) from error

    return connect


def _on_connect(engine: AsyncEngine, *statements: str) -> None:
    @event.listens_for(engine.sync_engine, "connect")
    def execute_each(connection: Any, _record: object) -> None:
        # The driver's own BEGIN comes too late and is DEFERRED; where a transaction is wanted, one is begun.
        connection.isolation_level = None
        cursor = connection.cursor()
        for statement in statements:
            _execute_patiently(cursor, statement)
        cursor.close()


def _execute_patiently(cursor: Any, statement: str) -> None:
    # Two servers that make one new file: only one can turn its log on, and SQLite's time limit is not for that lock.
    give_up = time.monotonic() + _BUSY_SECONDS
    while True:
        try:
            cursor.execute(statement)
        except sqlite3.OperationalError as error:
            if error.sqlite_errorcode & 0xFF != sqlite3.SQLITE_BUSY or time.monotonic() >= give_up:
                raise
            time.sleep(_BUSY_PAUSE_SECONDS)
        else:
            return
