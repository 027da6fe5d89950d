"""The database: reading, writing, probing and migrating it.

Reads, writes and probes each have an engine of their own, so that none can starve the others.
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
from sqlalchemy import Row, Select, exc, literal, select
from sqlalchemy.ext.asyncio import AsyncConnection
from sqlalchemy.pool import QueuePool

from bookstore_grpc.dal import migrations
from bookstore_grpc.dal.bulkhead import Bulkhead
from bookstore_grpc.dal.circuit_breaker import NO_RESPONSE, CircuitBreaker
from bookstore_grpc.dal.detached_tasks import DetachedTasks
from bookstore_grpc.dal.driver_errors import Conflict, ConnectionLost, translated_errors
from bookstore_grpc.dal.engines import Cutoff, parse_database_url, reading_engine, writing_engine
from bookstore_grpc.dal.pool_invalidation import PoolInvalidation
from bookstore_grpc.dal.sqlite_file import SqliteFile
from bookstore_grpc.dal.sqlite_reader import InlineReader, Version
from bookstore_grpc.errors import DatabaseUnavailable
from bookstore_grpc.limits import SEARCHES_WAITING_MAX

T = TypeVar("T")

_log = structlog.stdlib.get_logger("bookstore_grpc.database")

_WRITE_ATTEMPTS = 8
_PROBE_SECONDS = 2
_CLOSE_SECONDS = 2
_LOCK_WAIT_LOGGED_SECONDS = 1
# How long a migration of MariaDB may take to end once the server is stopped: less than platforms give a server.
_MIGRATION_END_SECONDS = 20


class Database:
    """A database chosen by URL.

    It opens no connection before the first call. `pool_size` bounds the reading connections, and the writing ones, of
    which there are at most two (on SQLite one). `timeout_seconds` bounds the wait for a connection and for SQLite's
    lock, `statement_seconds` the duration of a read. Searches use at most `searches_at_once` of the reading
    connections, leave one to other reads if there are two, and wait for each other half as long as one may take
    (docs/decisions/0012-bounded-searches.md).

    Raises `StartupError` for a URL that names no supported database, or if its driver is not installed.
    """

    def __init__(
        self,
        url: str,
        *,
        pool_size: int,
        timeout_seconds: float,
        statement_seconds: float = 60,
        searches_at_once: int = 5,
    ) -> None:
        self._statement_seconds = statement_seconds
        self.url = parse_database_url(url)
        self.dialect = self.url.get_backend_name()
        self.is_embedded = self.dialect == "sqlite"
        # The fewer batches run at once, the larger they are: on PostgreSQL one at a time created three times as many
        # books a second as ten. With two, a batch that waits for a lock does not block all other writes.
        self.writing_connections = 1 if self.is_embedded else min(2, pool_size)
        self._reader = reading_engine(
            self.url, pool_size=pool_size, timeout_seconds=timeout_seconds, statement_seconds=statement_seconds
        )
        self._inline_reader = InlineReader(self.url, self._reader.dialect) if self.is_embedded else None
        self._writer = writing_engine(self.url, pool_size=self.writing_connections, timeout_seconds=timeout_seconds)
        self._prober = reading_engine(
            self.url, pool_size=1, timeout_seconds=timeout_seconds, statement_seconds=statement_seconds
        )
        self._file = SqliteFile(self.url)
        self._tasks = DetachedTasks(cancels=not self.is_embedded)
        self._circuit_breaker = CircuitBreaker()
        # SQLite reads on this process's cores, one of which is left to everything else.
        reads_at_once = min(pool_size, _cores()) if self.is_embedded else pool_size
        self._searches = Bulkhead(
            "searches",
            at_once=max(1, min(searches_at_once, reads_at_once - 1)),
            waiting_max=SEARCHES_WAITING_MAX,
            wait_seconds=statement_seconds / 2,
        )
        self._pool_invalidation = PoolInvalidation()
        if not self.is_embedded:
            for engine in (self._reader, self._writer, self._prober):
                self._pool_invalidation.watch(engine)

    @property
    def description(self) -> str:
        """How logs and messages name the database: without user, password and options."""
        if self.is_embedded:
            return f"sqlite {self.url.database}"
        port = f":{self.url.port}" if self.url.port else ""
        return f"{self.dialect} {self.url.host or 'localhost'}{port}/{self.url.database}"

    def connections_in_use(self) -> dict[str, int]:
        """Return how many connections of each pool are in use, and how many of them read for searches."""
        pools = {"read": self._reader.pool, "write": self._writer.pool}
        in_use = {name: pool.checkedout() for name, pool in pools.items() if isinstance(pool, QueuePool)}
        return {**in_use, "search": self._searches.running}

    async def read(
        self, statement: Select[Any], parameters: Mapping[str, object] | None = None, *, is_search: bool = False
    ) -> Sequence[Sequence[Any]]:
        """Return the rows of one statement, in one round trip.

        Raises `DatabaseUnavailable`, and `ResourceExhausted` for a search while too many others run.
        """
        with translated_errors(self.dialect):
            self._file.require_same()
            if not self._inline_reader:
                return await self._unless_tripped(self._rows(statement, parameters, is_search=is_search))
            rows = self._inline_reader.rows(statement, parameters)
            if rows is not None:
                return rows
            async with self._slot(is_search=is_search):
                return await self._rows_in_thread(statement, parameters)

    def version(self) -> Version | None:
        """Return a value that changes with every commit of any process, or None if that would take a wait.

        Only SQLite has one, where it takes no round trip. Raises `DatabaseUnavailable`.
        """
        if not self._inline_reader:
            return None
        with translated_errors(self.dialect):
            self._file.require_same()
            return self._inline_reader.version()

    async def write(self, work: Callable[[AsyncConnection], Awaitable[T]]) -> T:
        """Run `work` in one transaction and commit it, or leave nothing behind.

        A transaction that conflicts with another is retried, and so is, once, one whose connection was lost before its
        commit, so `work` must have no effect outside its connection. Raises `DatabaseUnavailable`, and what `work`
        raises.
        """
        has_lost_connection = False
        for attempt in range(_WRITE_ATTEMPTS):
            if attempt:
                # Jitter, so that the same transactions do not conflict again. It protects no secret.
                await asyncio.sleep(random.uniform(0, 0.01 * 2**attempt))  # noqa: S311
            try:
                return await self._unless_tripped(self._transaction(work))
            except Conflict as error:
                conflict: DatabaseUnavailable = error
            except ConnectionLost as error:
                if has_lost_connection:
                    raise
                has_lost_connection = True
                conflict = error
        raise conflict

    async def ping(self) -> None:
        """Raise `DatabaseUnavailable` unless the database responds within two seconds.

        A failure trips the circuit breaker of PostgreSQL or MariaDB and invalidates their connections; a success resets
        it.
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

    async def migrate(self) -> str:
        """Bring the tables to the newest migration, in a transaction, and return its revision.

        Several servers may do so at once: one migrates, the others wait. A database that a newer version has
        migrated is left as it is, and so is another program's. If cancelled, it leaves no partial migration.
        Raises `DatabaseUnavailable`.
        """
        has_lock = asyncio.Event()

        async def upgrade(connection: AsyncConnection) -> str:
            return await connection.run_sync(lambda sync: migrations.upgrade(sync, on_locked=has_lock.set))

        migration = asyncio.create_task(self.write(upgrade))
        if self.is_embedded:  # elsewhere the migration itself logs that it waits
            asyncio.get_running_loop().call_later(_LOCK_WAIT_LOGGED_SECONDS, _log_lock_wait, migration, has_lock)
        try:
            revision = await asyncio.shield(migration)
        except asyncio.CancelledError:
            if self.dialect == "mariadb" and has_lock.is_set():
                # It commits at every change of a table, and a partial migration would block the next.
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

    async def close(self) -> None:
        """Close every connection, after a short wait for the calls under way."""
        await self._tasks.wait(seconds=_CLOSE_SECONDS)
        if self._inline_reader:
            self._inline_reader.close()
        for engine in (self._reader, self._writer, self._prober):
            await engine.dispose()

    def _slot(self, *, is_search: bool) -> AbstractAsyncContextManager[None]:
        return self._searches.slot() if is_search else nullcontext()

    async def _rows(
        self, statement: Select[Any], parameters: Mapping[str, object] | None, *, is_search: bool = False
    ) -> Sequence[Row[Any]]:
        async with self._slot(is_search=is_search):
            try:
                return await self._rows_of_one_attempt(statement, parameters, is_search=is_search)
            except ConnectionLost:
                # All older connections are invalid now, so this attempt opens a new one.
                return await self._rows_of_one_attempt(statement, parameters, is_search=is_search)

    async def _rows_of_one_attempt(
        self, statement: Select[Any], parameters: Mapping[str, object] | None, *, is_search: bool
    ) -> Sequence[Row[Any]]:
        thread_id: int | None = None
        try:
            with translated_errors(self.dialect):
                async with self._reader.connect() as connection:
                    if is_search and self.dialect == "mariadb":
                        driver_connection: Any = (await connection.get_raw_connection()).driver_connection
                        thread_id = driver_connection.thread_id()
                    rows: Sequence[Row[Any]] = (await connection.execute(statement, parameters)).all()
                    return rows
        except asyncio.CancelledError:
            if thread_id is not None:
                self._tasks.start(self._kill_statement(thread_id))
            raise

    async def _kill_statement(self, thread_id: int) -> None:
        """End a statement on MariaDB, which notices a closed connection only at the statement's end."""
        with suppress(DatabaseUnavailable, exc.DBAPIError), translated_errors(self.dialect):
            async with asyncio.timeout(_PROBE_SECONDS), self._prober.connect() as connection:
                await connection.exec_driver_sql(f"KILL {thread_id}")

    async def _rows_in_thread(
        self, statement: Select[Any], parameters: Mapping[str, object] | None
    ) -> Sequence[Row[Any]]:
        """Read SQLite in a thread, which ends the statement early if the caller is cancelled."""
        cutoff: Cutoff | None = None
        is_cancelled = False

        async def read() -> Sequence[Row[Any]]:
            nonlocal cutoff
            async with self._reader.connect() as connection:
                if is_cancelled:
                    return []
                cutoff = (await connection.get_raw_connection()).driver_connection.cutoff  # type: ignore[union-attr]
                cutoff.at = time.monotonic() + self._statement_seconds
                try:
                    rows: Sequence[Row[Any]] = (await connection.execute(statement, parameters)).all()
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

    async def _probe(self) -> None:
        try:
            await self._select_one()
        except ConnectionLost:
            # The connection may predate an outage that is over. Then all others do, and are invalid now too.
            await self._select_one()

    async def _select_one(self) -> None:
        with translated_errors(self.dialect):
            self._file.require_same()
            async with self._prober.connect() as connection:
                await connection.execute(select(literal(1)))

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
            if is_committing:  # it may have been committed, so only the caller can decide to retry
                raise DatabaseUnavailable from error.__cause__
            raise

    async def _unless_tripped(self, calls: Coroutine[Any, Any, T]) -> T:
        """Await database calls until the circuit breaker trips. Raises `DatabaseUnavailable`."""
        async with self._circuit_breaker.bounded_wait():
            return await self._tasks.run(calls)


def _log_lock_wait(migration: asyncio.Task[Any], has_lock: asyncio.Event) -> None:
    if not migration.done() and not has_lock.is_set():
        _log.info("waiting for SQLite's lock, which another process holds")


def _cores() -> int:
    return len(os.sched_getaffinity(0)) if hasattr(os, "sched_getaffinity") else os.cpu_count() or 1
