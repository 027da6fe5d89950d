"""Database URLs and SQLAlchemy engines, configured so that all databases behave alike."""

import asyncio
import math
import os
import re
import sqlite3
import time
from collections.abc import Awaitable, Callable
from typing import Any

from sqlalchemy import event, exc
from sqlalchemy.engine import URL, make_url
from sqlalchemy.ext.asyncio import AsyncEngine, create_async_engine
from sqlalchemy.pool import ConnectionPoolEntry

from bookstore_grpc.compat import aiosqlite as aiosqlite_compat
from bookstore_grpc.errors import DatabaseUnavailable, StartupError
from bookstore_grpc.limits import AUTHOR_MAX_CODE_POINTS, MARIADB_PACKET_MIN_BYTES

#: The key of a connection's `info` for the longest statement that MariaDB accepts, in bytes.
PACKET_BYTES = "packet_bytes"

# The one supported driver of each database, and the extra that installs it.
_DRIVERS = {
    "sqlite": ("sqlite+aiosqlite", "server"),
    "postgresql": ("postgresql+asyncpg", "postgresql"),
    "mariadb": ("mariadb+asyncmy", "mariadb"),
}
_SCHEMES = {"postgres": "postgresql", "mysql": "mariadb"}
_NO_FILE = re.compile(r"(file:)?(:memory:)?")
# Shorter than the idle timeouts of firewalls and servers.
_RECYCLE_SECONDS = 1_800
_BUSY_SECONDS = 2
# Steps of SQLite's virtual machine between two checks of the deadline: less than a millisecond.
_STEPS_PER_CHECK = 10_000
_BUSY_PAUSE_SECONDS = 0.05
# The WAL grows to so many pages of 4 KiB, 16 MB, before a checkpoint copies them into the database. An index page that
# many commits change is then copied once for all of them; with the default, 1,000, a batch of 500 books takes an eighth
# longer.
_WAL_PAGES = 4_000
# A WAL that has filled the disk stays for ever, because a checkpoint needs room for the database to grow. With less
# free space than four times the longest WAL, it is kept short.
_SCARCE_BYTES = 64 * 2**20
_WAL_PAGES_IF_SCARCE = 50


class Cutoff:
    """The deadline, by `time.monotonic`, of the statement that a SQLite connection runs; any thread may change it."""

    def __init__(self) -> None:
        self.at = math.inf


def parse_database_url(text: str) -> URL:
    """Parse a database URL and choose its driver. Raises `StartupError`, whose message never contains a password."""
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
        # Hosting providers give URLs in libpq's form; asyncpg takes the same values under another name.
        url = url.update_query_dict({"ssl": url.query["sslmode"]}).difference_update_query(["sslmode"])
    return url.set(drivername=drivername)


def reading_engine(url: URL, *, pool_size: int, timeout_seconds: float, statement_seconds: float) -> AsyncEngine:
    """Return an engine without transactions: one round trip for each statement, which has a time limit.

    SQLite's time limit is the `cutoff` of the connection.
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
    """Return an engine for transactions. SQLite allows one writer, so calls queue for one connection."""
    if url.get_backend_name() != "sqlite":
        # MariaDB's default, REPEATABLE READ, locks gaps between rows, which causes needless conflicts.
        engine = _engine(url, timeout_seconds, pool_size=pool_size, isolation_level="READ COMMITTED")
        if url.get_backend_name() == "mariadb":
            _require_packet_bytes(engine)
        return engine
    # Every transaction here ends with a commit or rollback, so the pool need not send another.
    engine = _engine(url, timeout_seconds, pool_size=1, pool_reset_on_return=None)
    _on_connect(
        engine,
        "PRAGMA journal_mode = WAL",
        "PRAGMA synchronous = FULL",
        "PRAGMA foreign_keys = ON",
    )

    @event.listens_for(engine.sync_engine, "begin")
    def begin(connection: Any) -> None:
        wal_pages = _wal_pages(url)
        if connection.info.get("wal_pages") != wal_pages:
            connection.exec_driver_sql(f"PRAGMA wal_autocheckpoint = {wal_pages}")
            connection.info["wal_pages"] = wal_pages
        # A transaction that began as a reader and then writes fails at once with SQLITE_BUSY instead of waiting.
        connection.exec_driver_sql("BEGIN IMMEDIATE")

    return engine


def _require_packet_bytes(engine: AsyncEngine) -> None:
    """Read `max_allowed_packet` on every new connection, and reject the connection if some call would not fit."""

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


def _wal_pages(url: URL) -> int:
    path = url.database or ""
    if path.startswith("file:"):
        return _WAL_PAGES  # a URI of SQLite's own, which only SQLite parses
    disk = os.statvfs(path)
    return _WAL_PAGES if disk.f_bavail * disk.f_frsize >= _SCARCE_BYTES else _WAL_PAGES_IF_SCARCE


def _engine(url: URL, timeout_seconds: float, *, statement_seconds: float = 0, **options: Any) -> AsyncEngine:
    backend = url.get_backend_name()
    if backend != "sqlite":
        options["pool_recycle"] = _RECYCLE_SECONDS
    try:
        return create_async_engine(
            url,
            connect_args=_connect_args(backend, timeout_seconds, statement_seconds),
            max_overflow=0,
            pool_timeout=timeout_seconds,
            hide_parameters=True,  # they are what callers sent, which must not be logged
            **options,
        )
    except (TypeError, ValueError) as error:
        raise StartupError(f"The database URL has an option that cannot be read: {error}.") from error
    except ModuleNotFoundError as error:
        extra = _DRIVERS[backend][1]
        raise StartupError(
            f"The driver for {backend} is not installed: pip install 'bookstore-grpc[{extra}]'."
        ) from error


def _connect_args(backend: str, timeout_seconds: float, statement_seconds: float) -> dict[str, Any]:
    if backend == "sqlite":
        aiosqlite_compat.check()
        return {"async_creator_fn": _checking_options(_sqlite_connect), "timeout": timeout_seconds}
    if backend == "postgresql":
        settings = {"statement_timeout": f"{statement_seconds * 1_000:.0f}"} if statement_seconds else {}
        return {
            "async_creator_fn": _checking_options(_postgresql_connect),
            "timeout": timeout_seconds,
            "server_settings": settings,
        }
    return {
        "async_creator_fn": _checking_options(_mariadb_connect(timeout_seconds)),
        "charset": "utf8mb4",
        # MariaDB sorts by so many leading bytes of a value; the default is 1,024. A cancelled call leaves its statement
        # running, for ever if max_statement_time is 0.
        "init_command": f"SET SESSION max_sort_length = {8 * AUTHOR_MAX_CODE_POINTS}, "
        f"max_statement_time = {statement_seconds:.3f}",
    }


_Connect = Callable[..., Awaitable[Any]]


def _checking_options(connect: _Connect) -> _Connect:
    """Wrap a driver's connect function: what it finds wrong with its arguments are options of the URL."""

    async def checked(*arguments: Any, **options: Any) -> Any:
        try:
            return await connect(*arguments, **options)
        except (TypeError, ValueError) as error:
            raise StartupError(f"The database URL has an option that its driver does not take: {error}.") from error

    return checked


async def _sqlite_connect(*arguments: Any, **options: Any) -> Any:
    import aiosqlite

    connection = aiosqlite.connect(*arguments, **options)
    thread = aiosqlite_compat.worker_thread(connection)
    thread.daemon = True  # a statement that does not end must not keep the process from exiting
    cutoff = Cutoff()
    try:
        await connection
        await connection.set_progress_handler(lambda: time.monotonic() > cutoff.at, _STEPS_PER_CHECK)
        connection.cutoff = cutoff  # type: ignore[attr-defined]  # the pool hands out nothing but the connection
        return connection
    except sqlite3.Error:
        # The thread reports once more to the event loop, and prints an error if that is closed by then.
        await asyncio.to_thread(thread.join)
        raise


async def _postgresql_connect(*arguments: Any, **options: Any) -> Any:
    import asyncpg  # type: ignore[import-untyped]  # an extra, which has no types

    return await asyncpg.connect(*arguments, **options)


def _mariadb_connect(timeout_seconds: float) -> _Connect:
    # The driver's own time limit ends with the TCP handshake, and a server may be silent after it.
    async def connect(**arguments: Any) -> Any:
        import asyncmy  # an extra: not installed for every database

        try:
            async with asyncio.timeout(timeout_seconds):
                return await asyncmy.connect(**arguments)
        except RuntimeError as error:
            # Raised under uvloop if a server, or a proxy before it, closes the connection at once.
            raise ConnectionError(*error.args) from error

    return connect


def _on_connect(engine: AsyncEngine, *statements: str) -> None:
    @event.listens_for(engine.sync_engine, "connect")
    def execute_each(connection: Any, _record: object) -> None:
        # The driver's own BEGIN comes late and is DEFERRED; the writing engine sends its own.
        connection.isolation_level = None
        cursor = connection.cursor()
        for statement in statements:
            _execute_until_unlocked(cursor, statement)
        cursor.close()


def _execute_until_unlocked(cursor: Any, statement: str) -> None:
    # Of two servers that create one file, only one can turn on its WAL, and SQLite's busy timeout excludes that lock.
    give_up_at = time.monotonic() + _BUSY_SECONDS
    while True:
        try:
            cursor.execute(statement)
        except sqlite3.OperationalError as error:
            if error.sqlite_errorcode & 0xFF != sqlite3.SQLITE_BUSY or time.monotonic() >= give_up_at:
                raise
            time.sleep(_BUSY_PAUSE_SECONDS)
        else:
            return
