"""The database: reads, writes, the health probe and migrations.

Reads, writes and the probe have separate engines, so that none can starve the others.
"""

import asyncio
import math
import os
import random
import time
from collections.abc import Awaitable, Callable, Coroutine, Mapping, Sequence
from contextlib import AbstractAsyncContextManager, nullcontext, suppress
from typing import Any, TypeVar

import structlog
from sqlalchemy import exc, literal, select
from sqlalchemy.ext.asyncio import AsyncConnection
from sqlalchemy.pool import QueuePool
from sqlalchemy.util import greenlet_spawn

from bookstore_grpc.dal import migrations
from bookstore_grpc.dal.bulkhead import Bulkhead
from bookstore_grpc.dal.circuit_breaker import NO_RESPONSE, CircuitBreaker
from bookstore_grpc.dal.database_url import parse_database_url
from bookstore_grpc.dal.detached_tasks import DetachedTasks
from bookstore_grpc.dal.driver_errors import Conflict, ConnectionLost, ReadOnly, translated_errors
from bookstore_grpc.dal.driver_reader import DriverReader, Rows
from bookstore_grpc.dal.engines import Cutoff, reading_engine, writing_engine
from bookstore_grpc.dal.models import Query
from bookstore_grpc.dal.pool_invalidation import PoolInvalidation
from bookstore_grpc.dal.sqlite_file import SqliteFile
from bookstore_grpc.dal.sqlite_reader import InlineReader, Version
from bookstore_grpc.dal.sqlite_wal import SqliteWal
from bookstore_grpc.dal.writability import require_writable
from bookstore_grpc.errors import DatabaseUnavailable
from bookstore_grpc.limits import SEARCHES_WAITING_MAX

T = TypeVar("T")

_log = structlog.stdlib.get_logger("bookstore_grpc.dal.database")

_WRITE_ATTEMPTS = 8
_PROBE_SECONDS = 2
_WRITE_CHECK_SECONDS = 0.5
_CLOSE_SECONDS = 2
_LOCK_WAIT_LOGGED_SECONDS = 1
# How long a running migration of MariaDB may continue after a signal: less than the usual grace periods of platforms.
_MIGRATION_END_SECONDS = 20


class Database:
    """A database chosen by URL.

    It connects at the first call. `pool_size` is the maximum number of read connections, and of write connections, of
    which there are at most two (on SQLite one). `timeout_seconds` bounds the wait for a connection and for SQLite's
    lock, `statement_seconds` the duration of a read. Searches use at most `max_concurrent_searches` of the read
    connections, always leave one to other reads if there are two, and wait for a slot for at most half of
    `statement_seconds` (docs/decisions/0012-bounded-searches.md).

    Raises `StartupError` for a URL that names no supported database, or if its driver is not installed.
    """

    def __init__(
        self,
        url: str,
        *,
        pool_size: int,
        timeout_seconds: float,
        statement_seconds: float = 60,
        max_concurrent_searches: int = 5,
    ) -> None:
        self._statement_seconds = statement_seconds
        database_url = parse_database_url(url)
        self.url = database_url.url
        #: The database's name for logs and messages, without user, password and options.
        self.description = database_url.description
        self.dialect = self.url.get_backend_name()
        self.is_embedded = self.dialect == "sqlite"
        # The fewer concurrent batches, the larger they are: on PostgreSQL one created three times as many books per
        # second as ten. With two, a batch that waits for a lock does not block all other writes.
        self.writing_connections = 1 if self.is_embedded else min(2, pool_size)
        self._reader = reading_engine(
            database_url, pool_size=pool_size, timeout_seconds=timeout_seconds, statement_seconds=statement_seconds
        )
        self._file = SqliteFile(self.url)
        self._inline_reader = InlineReader(self.url, self._reader.dialect, self._file) if self.is_embedded else None
        self._writer = writing_engine(database_url, pool_size=self.writing_connections, timeout_seconds=timeout_seconds)
        self._prober = reading_engine(
            database_url, pool_size=1, timeout_seconds=timeout_seconds, statement_seconds=statement_seconds
        )
        # Two, because one may still be closing while the next one connects.
        self._listener = reading_engine(
            database_url, pool_size=2, timeout_seconds=timeout_seconds, statement_seconds=statement_seconds
        )
        self._wal = SqliteWal(database_url) if self.is_embedded else None
        self._tasks = DetachedTasks(cancels=not self.is_embedded)
        self._circuit_breaker = CircuitBreaker()
        self._was_read_only = False  # at a write since the last failover
        self._running_write_check: asyncio.Task[None] | None = None
        self._last_write_check: asyncio.Task[None] | None = None
        # SQLite reads on this process's cores, one of which stays free of searches.
        reads_at_once = min(pool_size, _cores()) if self.is_embedded else pool_size
        self._searches = Bulkhead(
            "searches",
            max_concurrent=max(1, min(max_concurrent_searches, reads_at_once - 1)),
            waiting_max=SEARCHES_WAITING_MAX,
            wait_seconds=statement_seconds / 2,
        )
        self._pool_invalidation = PoolInvalidation()
        if not self.is_embedded:
            for engine in (self._reader, self._writer, self._prober):
                self._pool_invalidation.watch(engine)
            self._driver_reader = DriverReader(self._reader, self._pool_invalidation)

    def connections_in_use(self) -> dict[str, int]:
        """Return the number of connections in use in each pool, and how many of them searches use."""
        pools = {"read": self._reader.pool, "write": self._writer.pool}
        in_use = {name: pool.checkedout() for name, pool in pools.items() if isinstance(pool, QueuePool)}
        return {**in_use, "search": self._searches.running}

    def wal_bytes(self) -> int | None:
        """Return the size of SQLite's WAL in bytes, or None for other databases."""
        return self._wal.size() if self._wal else None

    async def truncate_wal(self) -> None:
        """Truncate SQLite's WAL if a reader has let it grow and is gone. To be called periodically.

        A server that writes does so by itself with a later commit.
        """
        with suppress(DatabaseUnavailable), translated_errors(self.dialect):
            self._file.require_same()
            if self._wal and self._wal.is_too_long:
                await self._tasks.run(self._wal.truncate())

    async def read(
        self,
        statement: Query,
        parameters: Mapping[str, object] | None = None,
        *,
        is_search: bool = False,
        is_inline: bool = True,
    ) -> Rows:
        """Return the rows of one statement, in one round trip.

        On SQLite a short read is executed inline, on the event loop; one that is known to take longer should not try.
        Raises `DatabaseUnavailable`, and `ResourceExhausted` for a search while too many others run.
        """
        if not self._inline_reader:
            sql, values = self._driver_reader.compile(statement, parameters)
            return await self._unless_tripped(self._rows(sql, values, is_search=is_search))
        with translated_errors(self.dialect):
            if is_inline and (rows := self._inline_reader.rows(statement, parameters)) is not None:
                return rows
            async with self._slot(is_search=is_search):
                self._file.require_same()
                return await self._rows_in_thread(*self._inline_reader.compile(statement, parameters))

    async def read_from_primary(self, statement: Query, parameters: Mapping[str, object]) -> Rows:
        """Return the rows of one statement from a server of PostgreSQL or MariaDB that takes writes.

        After a failover a connection for reads may still be to the former primary. Raises `DatabaseUnavailable`, also
        while no server takes writes.
        """

        async def read(connection: AsyncConnection) -> Rows:
            await require_writable(connection)
            return [tuple(row) for row in await connection.execute(statement, parameters)]

        return await self.write(read)

    def leave_former_primary(self, *, opened_before: float) -> None:
        """Invalidate connections after a failover: those for reads may still be to a server that falls behind."""
        self._was_read_only = False
        self._pool_invalidation.invalidate(opened_before=opened_before)

    def version(self) -> Version | None:
        """Return a value that changes with every commit of any process, or None if it is not available without waiting.

        Only SQLite has such a version without a round trip. Raises `DatabaseUnavailable`.
        """
        if not self._inline_reader:
            return None
        with translated_errors(self.dialect):
            return self._inline_reader.version()

    async def listening_connection(self) -> Any:
        """Return a connection outside of the pools for reads and writes, for PostgreSQL's LISTEN.

        If cancelled it is closed once it is open: asyncpg logs an error for one that is cancelled while it connects.
        """
        opening = asyncio.create_task(self._listener.raw_connection())
        try:
            return await asyncio.shield(opening)
        except asyncio.CancelledError:
            self._tasks.start(_close_once_open(opening))
            raise

    async def write(self, work: Callable[[AsyncConnection], Awaitable[T]]) -> T:
        """Run `work` in one transaction, and commit it or roll it back.

        The transaction is retried if it conflicts with another one, and once on a new connection if its own is lost
        before the commit or is read-only, so `work` must have no effects outside of the transaction. Raises
        `DatabaseUnavailable`, and whatever `work` raises.
        """
        failed: ConnectionLost | ReadOnly | None = None
        for attempt in range(_WRITE_ATTEMPTS):
            if attempt:
                # Backoff with jitter, so that the same transactions do not conflict again. Not used for security.
                await asyncio.sleep(random.uniform(0, 0.01 * 2**attempt))  # noqa: S311
            began = time.monotonic()
            try:
                result = await self._unless_tripped(self._transaction(work))
            except Conflict as error:
                conflict: DatabaseUnavailable = error
            except (ConnectionLost, ReadOnly) as error:
                if failed:
                    raise
                failed = conflict = error
                self._was_read_only |= isinstance(error, ReadOnly)
            else:
                if isinstance(failed, ReadOnly):
                    self.leave_former_primary(opened_before=began)
                return result
        raise conflict

    async def ping(self) -> None:
        """Raise `DatabaseUnavailable` unless the database responds within two seconds.

        On PostgreSQL and MariaDB a failure trips the circuit breaker and invalidates all connections. A success resets
        the circuit breaker.
        """
        try:
            async with asyncio.timeout(_PROBE_SECONDS):
                await self._tasks.run(self._probe())
        except (DatabaseUnavailable, TimeoutError) as error:
            if not self.is_embedded:
                self._circuit_breaker.trip()
                self._pool_invalidation.invalidate()
            if isinstance(error, DatabaseUnavailable):
                raise
            late = TimeoutError(f"did not respond within {_PROBE_SECONDS} seconds")  # asyncio's own has no text
            raise DatabaseUnavailable(NO_RESPONSE) from late
        self._circuit_breaker.reset()

    async def check_writes(self) -> None:
        """Raise `DatabaseUnavailable` if the database cannot write, which is found out without a write.

        A read-only connection is replaced first, because a new one may lead to a server that can write. Takes at most
        half a second: without a result by then, for example because other writes wait for a lock, the last one counts.
        """
        if self.is_embedded:
            with translated_errors(self.dialect):
                self._file.require_writable()
            return
        check = self._running_write_check or self._tasks.start(self._require_writable())
        ended, running = await asyncio.wait({check}, timeout=_WRITE_CHECK_SECONDS)
        self._running_write_check = running.pop() if running else None
        self._last_write_check = ended.pop() if ended else self._last_write_check
        if self._last_write_check:
            self._last_write_check.result()

    async def migrate(self) -> str:
        """Migrate the tables to the newest revision, in a transaction, and return that revision.

        Several servers may call this concurrently: one migrates, the others wait. A newer schema, or that of another
        program, is left unchanged. If cancelled, it leaves no partial migration. Raises `DatabaseUnavailable`.
        """
        has_lock = asyncio.Event()

        async def upgrade(connection: AsyncConnection) -> str:
            return await connection.run_sync(lambda sync: migrations.upgrade(sync, on_locked=has_lock.set))

        migration = asyncio.create_task(self.write(upgrade))
        if self.is_embedded:  # on the other databases the migration itself logs that it waits
            asyncio.get_running_loop().call_later(_LOCK_WAIT_LOGGED_SECONDS, _log_lock_wait, migration, has_lock)
        try:
            revision = await asyncio.shield(migration)
        except asyncio.CancelledError:
            if self.dialect == "mariadb" and has_lock.is_set():
                # MariaDB commits at every change of a table, and a partial migration would block the next one.
                await asyncio.wait((migration,), timeout=_MIGRATION_END_SECONDS)
            migration.cancel()
            raise
        self._file.remember()
        return revision

    async def is_behind(self) -> bool:
        """Return whether migrations are missing. Raises `DatabaseUnavailable`."""
        with translated_errors(self.dialect):
            revision = await self._tasks.run(self._revision())
        return revision is None or migrations.is_behind(revision)

    async def is_search_index_missing(self) -> bool:
        """Return whether searches read the whole table, because PostgreSQL lacks an extension."""
        with translated_errors(self.dialect):
            return await self._tasks.run(self._is_search_index_missing())

    async def close(self) -> None:
        """Close all connections, after waiting up to two seconds for database calls in progress."""
        await self._tasks.wait(seconds=_CLOSE_SECONDS)
        if self._inline_reader:
            self._inline_reader.close()
        for engine in (self._reader, self._writer, self._prober, self._listener):
            await engine.dispose()

    def _slot(self, *, is_search: bool) -> AbstractAsyncContextManager[None]:
        return self._searches.slot() if is_search else nullcontext()

    async def _rows(self, sql: str, parameters: Sequence[object], *, is_search: bool = False) -> Rows:
        async with self._slot(is_search=is_search):
            try:
                return await self._rows_of_one_attempt(sql, parameters, is_search=is_search)
            except ConnectionLost:
                # All older connections have been invalidated, so this attempt uses a new one.
                return await self._rows_of_one_attempt(sql, parameters, is_search=is_search)

    async def _rows_of_one_attempt(self, sql: str, parameters: Sequence[object], *, is_search: bool) -> Rows:
        async with self._driver_reader.connection() as connection:
            try:
                return await self._driver_reader.fetch(connection, sql, parameters)
            except asyncio.CancelledError:
                if is_search and self.dialect == "mariadb":
                    self._tasks.start(self._kill_statement(connection.thread_id()))
                raise

    async def _kill_statement(self, thread_id: int) -> None:
        """Kill a statement on MariaDB, which notices a closed connection only when the statement has ended."""
        with suppress(DatabaseUnavailable, exc.DBAPIError), translated_errors(self.dialect):
            async with asyncio.timeout(_PROBE_SECONDS), self._prober.connect() as connection:
                await connection.exec_driver_sql(f"KILL {thread_id}")

    async def _rows_in_thread(self, sql: str, parameters: Sequence[object]) -> Rows:
        """Read SQLite in a thread. If the caller is cancelled, the statement is interrupted."""
        cutoff: Cutoff | None = None
        is_cancelled = False

        async def read() -> Rows:
            nonlocal cutoff
            async with self._reader.connect() as connection:
                if is_cancelled:
                    return []
                driver: Any = (await connection.get_raw_connection()).driver_connection
                cutoff = driver.cutoff
                cutoff.at = time.monotonic() + self._statement_seconds
                try:
                    # By the driver, because SQLAlchemy's results of ever new statements cost a millisecond.
                    rows: Rows = await driver.execute_fetchall(sql, parameters)
                    return rows
                finally:
                    cutoff.at = math.inf

        try:
            return await self._tasks.run(read())
        except asyncio.CancelledError:
            is_cancelled = True
            if cutoff:
                cutoff.at = 0
            raise

    async def _revision(self) -> str | None:
        async with self._prober.connect() as connection:
            return await connection.run_sync(migrations.current_revision)

    async def _is_search_index_missing(self) -> bool:
        async with self._prober.connect() as connection:
            return await connection.run_sync(migrations.is_search_index_missing)

    async def _probe(self) -> None:
        try:
            await self._select_one()
        except ConnectionLost:
            # The connection may predate an outage that is over. The other old connections are now invalidated too.
            await self._select_one()

    async def _select_one(self) -> None:
        with translated_errors(self.dialect):
            self._file.require_same()
            async with self._prober.connect() as connection:
                await connection.execute(select(literal(1)))

    async def _require_writable(self) -> None:
        began = time.monotonic()
        await self.write(require_writable)
        if self._was_read_only:
            self.leave_former_primary(opened_before=began)

    async def _transaction(self, work: Callable[[AsyncConnection], Awaitable[T]]) -> T:
        is_committing = False
        try:
            with translated_errors(self.dialect):
                self._file.require_same()
                async with self._writer.begin() as connection:
                    result = await work(connection)
                    is_committing = True
                return result
        except ConnectionLost as error:
            if is_committing:  # the outcome is unknown, so only the caller can decide whether to retry
                raise DatabaseUnavailable from error.__cause__
            raise

    async def _unless_tripped(self, calls: Coroutine[Any, Any, T]) -> T:
        """Await database calls until the circuit breaker trips. Raises `DatabaseUnavailable`."""
        async with self._circuit_breaker.bounded_wait():
            return await self._tasks.run(calls)


async def _close_once_open(opening: asyncio.Task[Any]) -> None:
    pooled = await opening
    await greenlet_spawn(pooled.invalidate)


def _log_lock_wait(migration: asyncio.Task[Any], has_lock: asyncio.Event) -> None:
    if not migration.done() and not has_lock.is_set():
        _log.info("waiting for SQLite's lock: another process holds it")


def _cores() -> int:
    return len(os.sched_getaffinity(0)) if hasattr(os, "sched_getaffinity") else os.cpu_count() or 1
