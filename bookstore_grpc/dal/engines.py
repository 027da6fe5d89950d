"""SQLAlchemy engines, configured so that all databases behave alike."""

import asyncio
import math
import os
import sqlite3
import time
from collections.abc import Awaitable, Callable
from typing import Any

from sqlalchemy import event
from sqlalchemy.engine import URL
from sqlalchemy.ext.asyncio import AsyncEngine, create_async_engine
from sqlalchemy.pool import ConnectionPoolEntry

from bookstore_grpc.compat import aiosqlite as aiosqlite_compat
from bookstore_grpc.dal.connecting import connect_arguments
from bookstore_grpc.dal.database_url import DRIVERS, DatabaseUrl
from bookstore_grpc.dal.server_checks import require_mariadb
from bookstore_grpc.errors import DatabaseUnavailable, StartupError
from bookstore_grpc.limits import AUTHOR_MAX_CODE_POINTS, MARIADB_PACKET_MIN_BYTES

#: The key of a connection's `info` for the longest statement that MariaDB accepts, in bytes.
PACKET_BYTES = "packet_bytes"

# Shorter than the idle timeouts of firewalls and servers.
_RECYCLE_SECONDS = 1_800
# MariaDB sorts no values of `max_sort_length` with less than 15 times that.
_SORT_BUFFER_MIN_BYTES = 262_144
# As PostgreSQL's, which the function `log_book_changes` sets.
_IDLE_TRANSACTION_SECONDS = 5
_BUSY_SECONDS = 2
# SQLite checks the deadline after this many steps of its virtual machine, which take less than a millisecond.
_STEPS_PER_CHECK = 10_000
_BUSY_PAUSE_SECONDS = 0.05
# The WAL grows to this many pages of 4 KiB, 16 MB, before a checkpoint copies them into the database. An index page
# that several commits change is then copied once. With the default, 1,000, a batch of 500 books takes an eighth longer.
_WAL_PAGES = 4_000
# A transaction of 1,000 books changes more pages than fit into SQLite's default of 2 MB. It would write them twice.
_WRITING_CACHE_KIB = 16 * 1_024
# A WAL that has filled the disk could never be checkpointed, because the database needs space to grow. With less free
# space than four times the maximum size of the WAL, it is kept short.
_SCARCE_BYTES = 64 * 2**20
_WAL_PAGES_IF_SCARCE = 50
# A longer WAL is truncated. With less than twice the usual size it would be truncated, and so extended again, after
# every checkpoint.
_WAL_MAX_BYTES_PER_PAGE = 2 * 4_096


class Cutoff:
    """The deadline (`time.monotonic`) of the running statement of a SQLite connection. Any thread may change it."""

    def __init__(self) -> None:
        self.at = math.inf


def reading_engine(
    database_url: DatabaseUrl, *, pool_size: int, timeout_seconds: float, statement_seconds: float
) -> AsyncEngine:
    """Return an engine in autocommit mode: one round trip per statement, with a time limit for each.

    On SQLite the time limit is the `cutoff` of the connection.
    """
    engine = _engine(
        database_url,
        timeout_seconds,
        statement_seconds=statement_seconds,
        pool_size=pool_size,
        isolation_level="AUTOCOMMIT",
        pool_reset_on_return=None,
    )
    if database_url.url.get_backend_name() == "sqlite":
        _on_connect(engine, "PRAGMA query_only = ON")
    return engine


def writing_engine(database_url: DatabaseUrl, *, pool_size: int, timeout_seconds: float) -> AsyncEngine:
    """Return an engine for transactions. On SQLite, which has one writer, it has one connection."""
    url = database_url.url
    if url.get_backend_name() != "sqlite":
        # MariaDB's default, REPEATABLE READ, locks gaps between rows, which causes needless conflicts.
        engine = _engine(database_url, timeout_seconds, pool_size=pool_size, isolation_level="READ COMMITTED")
        if url.get_backend_name() == "mariadb":
            _require_packet_bytes(engine)
        return engine
    # Every transaction ends with a commit or rollback, so the pool need not send a rollback.
    engine = _engine(database_url, timeout_seconds, pool_size=1, pool_reset_on_return=None)
    _on_connect(
        engine,
        "PRAGMA journal_mode = WAL",
        "PRAGMA synchronous = FULL",
        "PRAGMA foreign_keys = ON",
        f"PRAGMA cache_size = -{_WRITING_CACHE_KIB}",
    )

    @event.listens_for(engine.sync_engine, "begin")
    def begin(connection: Any) -> None:
        wal_pages = _wal_pages(url)
        if connection.info.get("wal_pages") != wal_pages:
            connection.exec_driver_sql(f"PRAGMA wal_autocheckpoint = {wal_pages}")
            connection.exec_driver_sql(f"PRAGMA journal_size_limit = {_WAL_MAX_BYTES_PER_PAGE * wal_pages}")
            connection.info["wal_pages"] = wal_pages
        # A transaction that starts as a reader and then writes fails immediately with SQLITE_BUSY instead of waiting.
        connection.exec_driver_sql("BEGIN IMMEDIATE")

    return engine


def checkpointing_engine(database_url: DatabaseUrl) -> AsyncEngine:
    """Return an engine for checkpoints of a SQLite database, whose one connection never waits for a lock."""
    return _engine(database_url, 0, pool_size=1, isolation_level="AUTOCOMMIT", pool_reset_on_return=None)


def wal_max_bytes(url: URL) -> int:
    """Return the size of SQLite's WAL beyond which it is truncated: less while the disk has little space."""
    return _WAL_MAX_BYTES_PER_PAGE * _wal_pages(url)


def _require_packet_bytes(engine: AsyncEngine) -> None:
    """Read `max_allowed_packet` on every new connection, and reject those where it is too small for some calls."""

    @event.listens_for(engine.sync_engine, "connect")
    def read_packet_bytes(connection: Any, record: ConnectionPoolEntry) -> None:
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
        return _WAL_PAGES  # a SQLite URI, which only SQLite can parse
    disk = os.statvfs(path)
    return _WAL_PAGES if disk.f_bavail * disk.f_frsize >= _SCARCE_BYTES else _WAL_PAGES_IF_SCARCE


def _engine(
    database_url: DatabaseUrl, timeout_seconds: float, *, statement_seconds: float = 0, **options: Any
) -> AsyncEngine:
    backend = database_url.url.get_backend_name()
    connect_seconds = min(timeout_seconds, database_url.connect_seconds)
    if backend != "sqlite":
        options["pool_recycle"] = _RECYCLE_SECONDS
    try:
        return create_async_engine(
            database_url.url,
            connect_args=connect_arguments(database_url, _connect_args(backend, connect_seconds, statement_seconds)),
            max_overflow=0,
            pool_timeout=timeout_seconds,
            hide_parameters=True,  # parameters contain callers' data, which must not be logged
            **options,
        )
    except (TypeError, ValueError) as error:
        raise StartupError(f"The database URL has an invalid option: {error}.") from error
    except ModuleNotFoundError as error:
        extra = DRIVERS[backend][1]
        raise StartupError(
            f"The driver for {backend} is not installed: pip install 'bookstore-grpc[{extra}]'."
        ) from error


def _connect_args(backend: str, timeout_seconds: float, statement_seconds: float) -> dict[str, Any]:
    if backend == "sqlite":
        aiosqlite_compat.check()
        return {"async_creator_fn": _checking_options(_sqlite_connect), "timeout": timeout_seconds}
    if backend == "postgresql":
        return {
            "async_creator_fn": _checking_options(_postgresql_connect),
            "timeout_seconds": timeout_seconds,
            "statement_seconds": statement_seconds,
        }
    return {
        "async_creator_fn": _checking_options(_mariadb_connect(timeout_seconds)),
        "charset": "utf8mb4",
        "init_command": _mariadb_session(statement_seconds),
    }


def _mariadb_session(statement_seconds: float) -> str:
    """Return the SET statement of a new session: what the server's own defaults must not decide.

    docs/decisions/0019-mariadb-session.md has the reason of each.
    """
    values = {
        "sql_mode": "'STRICT_TRANS_TABLES,NO_ENGINE_SUBSTITUTION'",
        "default_storage_engine": "InnoDB",
        "completion_type": "NO_CHAIN",
        "tx_isolation": "'READ-COMMITTED'",
        "sql_select_limit": 2**64 - 1,
        "sql_big_selects": 1,
        "sql_quote_show_create": 1,
        "max_error_count": 0,
        "max_sort_length": 8 * AUTHOR_MAX_CODE_POINTS,
        "sort_buffer_size": f"GREATEST(@@sort_buffer_size, {_SORT_BUFFER_MIN_BYTES})",
        "max_statement_time": f"{statement_seconds:.3f}",
        # A server that hangs with the lock of the change log would make the writes of all others wait.
        "idle_write_transaction_timeout": _IDLE_TRANSACTION_SECONDS,
    }
    return "SET SESSION " + ", ".join(f"{name} = {value}" for name, value in values.items())


_Connect = Callable[..., Awaitable[Any]]


def _checking_options(connect: _Connect) -> _Connect:
    """Wrap a driver's connect function, so that invalid arguments are reported as options of the database URL."""

    async def checked(*arguments: Any, **options: Any) -> Any:
        try:
            return await connect(*arguments, **options)
        except UnicodeEncodeError:  # its text has the character, which may be one of a password
            raise StartupError(
                "The user or password of the database has a character that its driver cannot send; a password beyond "
                "Latin-1 belongs in the URL, not in a file."
            ) from None
        except (TypeError, ValueError) as error:
            raise StartupError(f"The database URL has an option that its driver rejects: {error}.") from error

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
        # The thread calls the event loop once more, and would print an error if the loop were closed by then.
        await asyncio.to_thread(thread.join)
        raise


async def _postgresql_connect(*arguments: Any, **options: Any) -> Any:
    from bookstore_grpc.dal import postgresql  # its driver is an extra, so not always installed

    return await postgresql.connect(*arguments, **options)


def _mariadb_connect(timeout_seconds: float) -> _Connect:
    # The driver's own time limit covers only the TCP handshake, after which a server may be unresponsive.
    async def connect(**arguments: Any) -> Any:
        import asyncmy  # in an extra, so not always installed

        task = asyncio.current_task()
        assert task is not None  # noqa: S101  for the type checker
        cancellations = task.cancelling()
        try:
            async with asyncio.timeout(timeout_seconds):
                init_command = arguments.pop("init_command")
                connection: Any = await asyncmy.connect(**arguments)
                try:
                    # The driver uses `wait_for`, which in Python 3.11 loses a cancellation that arrives when it is
                    # done. Then the statement of a cancelled call would run to its end.
                    if task.cancelling() > cancellations:
                        raise asyncio.CancelledError
                    await require_mariadb(connection)
                    await connection.query(init_command)
                except BaseException:
                    connection.close()
                    raise
                return connection
        except RuntimeError as error:
            # Raised under uvloop if the server, or a proxy in front of it, closes the connection immediately.
            raise ConnectionError(*error.args) from error

    return connect


def _on_connect(engine: AsyncEngine, *statements: str) -> None:
    @event.listens_for(engine.sync_engine, "connect")
    def execute_each(connection: Any, _record: object) -> None:
        # The driver's implicit BEGIN is late and DEFERRED, so it is disabled; the writing engine sends BEGIN itself.
        connection.isolation_level = None
        cursor = connection.cursor()
        for statement in statements:
            _execute_until_unlocked(cursor, statement)
        cursor.close()


def _execute_until_unlocked(cursor: Any, statement: str) -> None:
    # If two servers create a file together, only one can turn on WAL mode, and the busy timeout does not cover that.
    deadline = time.monotonic() + _BUSY_SECONDS
    while True:
        try:
            cursor.execute(statement)
        except sqlite3.OperationalError as error:
            if error.sqlite_errorcode & 0xFF != sqlite3.SQLITE_BUSY or time.monotonic() >= deadline:
                raise
            time.sleep(_BUSY_PAUSE_SECONDS)
        else:
            return
