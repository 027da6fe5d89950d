"""The database: reading, writing, probing, and migrating it.

Three engines serve three purposes, so that none can starve another: one reads, one writes, one probes.
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
from bookstore_grpc.dal.circuit_breaker import Outages
from bookstore_grpc.dal.driver_errors import Conflict, ConnectionLost, translated_errors
from bookstore_grpc.dal.engines import Cutoff, parse_database_url, reading_engine, writing_engine
from bookstore_grpc.dal.sqlite_reader import InlineReader, Version
from bookstore_grpc.errors import DatabaseUnavailable
from bookstore_grpc.limits import SEARCHES_WAITING_MAX

T = TypeVar("T")

_log = structlog.stdlib.get_logger("bookstore_grpc.database")

_WRITE_ATTEMPTS = 8
_PROBE_SECONDS = 2
_UNDER_WAY_SECONDS = 2
_WAIT_TOLD_SECONDS = 1
# What a migration of MariaDB is given to end when the server is stopped: less than platforms give a server.
_MIGRATION_END_SECONDS = 20


class Database:
    """A database chosen by URL.

    Opens nothing before the first call. `pool_size` bounds the reading connections, and the writing ones, of which two
    are used at most (SQLite writes on one); `timeout_seconds` bounds the wait for a connection and for SQLite's lock,
    `statement_seconds` what a read may take. Searches have `searches_at_once` of the reading connections at most, leave
    one to others if there are two, and wait for each other half as long as one may take (docs/decisions/0012).

    Raises `StartupError` for a URL that names no supported database, or whose driver is not installed.
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
        self._inline = InlineReader(self.url, self._reader.dialect) if self.is_embedded else None
        self._writer = writing_engine(self.url, pool_size=self.writing_connections, timeout_seconds=timeout_seconds)
        self._prober = reading_engine(
            self.url, pool_size=1, timeout_seconds=timeout_seconds, statement_seconds=statement_seconds
        )
        self._file_identity: tuple[int, int] | None = None
        self._under_way: set[asyncio.Task[Any]] = set()
        self._outages = Outages()
        # SQLite reads with the cores of this process, which needs one for everything else.
        most = min(pool_size, _cores()) - 1 if self.is_embedded else pool_size - 1
        self._searches = Bulkhead(
            "searches",
            at_once=max(1, min(searches_at_once, most)),
            most_waiting=SEARCHES_WAITING_MAX,
            wait_seconds=statement_seconds / 2,
        )
        if not self.is_embedded:
            for engine in (self._reader, self._writer, self._prober):
                self._outages.watch_connections(engine)

    @property
    def description(self) -> str:
        """Name the database for logs and messages, without user, password and options."""
        if self.is_embedded:
            return f"sqlite {self.url.database}"
        port = f":{self.url.port}" if self.url.port else ""
        return f"{self.dialect} {self.url.host or 'localhost'}{port}/{self.url.database}"

    def connections_in_use(self) -> dict[str, int]:
        """Answer how many connections of each pool are in use, and how many of those that read for searches."""
        pools = {"read": self._reader.pool, "write": self._writer.pool}
        in_use = {name: pool.checkedout() for name, pool in pools.items() if isinstance(pool, QueuePool)}
        return {**in_use, "search": self._searches.under_way}

    async def read(
        self, statement: Select[Any], parameters: Mapping[str, object] | None = None, *, is_search: bool = False
    ) -> Sequence[Sequence[Any]]:
        """Answer the rows of one statement, in one round trip.

        Raises `DatabaseUnavailable`, and `ResourceExhausted` for a search beside too many others.
        """
        with translated_errors(self.dialect):
            self._require_same_file()
            if not self._inline:
                return await self._answered(self._rows(statement, parameters, is_search=is_search))
            rows = self._inline.rows(statement, parameters)
            if rows is not None:
                return rows
            async with self._slot(is_search=is_search):
                return await self._rows_in_thread(statement, parameters)

    def version(self) -> Version | None:
        """Answer what changes with every commit of anybody's, or None where it is not known at once.

        Only on SQLite, where it takes no round trip. Raises `DatabaseUnavailable`.
        """
        if not self._inline:
            return None
        with translated_errors(self.dialect):
            self._require_same_file()
            return self._inline.version()

    async def write(self, work: Callable[[AsyncConnection], Awaitable[T]]) -> T:
        """Run `work` in one transaction and commit it, or leave nothing behind.

        A transaction that met another one is run again, and once more one whose connection was lost before its commit,
        so `work` must not act outside its connection. Raises `DatabaseUnavailable`, and what `work` raises.
        """
        has_lost_one = False
        for attempt in range(_WRITE_ATTEMPTS):
            if attempt:
                # Spread, so that those who met do not meet again. It guards no secret.
                await asyncio.sleep(random.uniform(0, 0.01 * 2**attempt))  # noqa: S311
            try:
                return await self._answered(self._transaction(work))
            except Conflict as error:
                conflict: DatabaseUnavailable = error
            except ConnectionLost as error:
                if has_lost_one:
                    raise
                has_lost_one = True
                conflict = error
        raise conflict

    async def ping(self) -> None:
        """Raise `DatabaseUnavailable` unless the database answers within two seconds.

        Calls that wait for PostgreSQL or MariaDB then end too, and those that come until a ping succeeds do not wait
        for long.
        """
        try:
            async with asyncio.timeout(_PROBE_SECONDS):
                await self._detached(self._probe())
        except (DatabaseUnavailable, TimeoutError) as error:
            if not self.is_embedded:
                self._outages.began()
            if isinstance(error, DatabaseUnavailable):
                raise
            late = TimeoutError(f"did not answer within {_PROBE_SECONDS} seconds")  # asyncio's own says nothing
            raise DatabaseUnavailable("The database does not answer; try again.") from late
        self._outages.ended()

    async def migrate(self) -> str:
        """Bring the tables to the newest migration, in a transaction, and answer its revision.

        Several servers may do so at once: one migrates, the others wait. A database that a newer version has
        migrated is left as it is, and so is another program's. Cancelled, it leaves no half of a migration.
        Raises `DatabaseUnavailable`.
        """
        has_lock = asyncio.Event()

        async def upgrade(connection: AsyncConnection) -> str:
            return await connection.run_sync(lambda sync: migrations.upgrade(sync, on_locked=has_lock.set))

        migration = asyncio.create_task(self.write(upgrade))
        if self.is_embedded:  # the others tell of it themselves
            asyncio.get_running_loop().call_later(_WAIT_TOLD_SECONDS, _tell_of_wait, migration, has_lock)
        try:
            revision = await asyncio.shield(migration)
        except asyncio.CancelledError:
            if self.dialect == "mariadb" and has_lock.is_set():
                # It commits at every change of a table, and what is half made would be in the way of the next.
                await asyncio.wait((migration,), timeout=_MIGRATION_END_SECONDS)
            migration.cancel()
            raise
        self._remember_file()
        return revision

    async def is_behind(self) -> bool:
        """Tell whether migrations are missing. Raises `DatabaseUnavailable`."""
        with translated_errors(self.dialect):
            revision = await self._detached(self._revision())
        return revision is None or migrations.is_behind(revision)

    async def close(self) -> None:
        """Close every connection; those of work under way when it ends, if it ends soon."""
        with suppress(TimeoutError):
            async with asyncio.timeout(_UNDER_WAY_SECONDS):
                while self._under_way:  # what ends may leave a statement to be killed
                    await asyncio.wait(self._under_way)
        if self._inline:
            self._inline.close()
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
                # Those from before are cut now, so this one takes a new connection.
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
                self._start(self._kill_statement(thread_id))
            raise

    async def _kill_statement(self, thread_id: int) -> None:
        """End what MariaDB does for a connection that is gone, which it would not notice before it is done."""
        with suppress(DatabaseUnavailable, exc.DBAPIError), translated_errors(self.dialect):
            async with asyncio.timeout(_PROBE_SECONDS), self._prober.connect() as connection:
                await connection.exec_driver_sql(f"KILL {thread_id}")

    async def _rows_in_thread(
        self, statement: Select[Any], parameters: Mapping[str, object] | None
    ) -> Sequence[Row[Any]]:
        """Answer the rows that SQLite finds; for a caller that has left it does not go on looking."""
        cutoff: Cutoff | None = None
        has_left = False

        async def read() -> Sequence[Row[Any]]:
            nonlocal cutoff
            async with self._reader.connect() as connection:
                if has_left:
                    return []
                cutoff = (await connection.get_raw_connection()).driver_connection.cutoff  # type: ignore[union-attr]
                cutoff.at = time.monotonic() + self._statement_seconds
                try:
                    rows: Sequence[Row[Any]] = (await connection.execute(statement, parameters)).all()
                    return rows
                finally:
                    cutoff.at = math.inf

        try:
            return await self._detached(read())
        except asyncio.CancelledError:
            has_left = True
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
            # It may be from before an outage that is over; so are the others then, which are cut with it.
            await self._select_one()

    async def _select_one(self) -> None:
        with translated_errors(self.dialect):
            self._require_same_file()
            async with self._prober.connect() as connection:
                await connection.execute(select(literal(1)))

    async def _transaction(self, work: Callable[[AsyncConnection], Awaitable[T]]) -> T:
        is_committing = False
        try:
            with translated_errors(self.dialect):
                self._require_same_file()
                async with self._writer.begin() as connection:
                    outcome = await work(connection)
                    is_committing = True
                return outcome
        except ConnectionLost as error:
            if is_committing:  # it may have been done, so it is for the caller to say whether to do it again
                raise DatabaseUnavailable from error.__cause__
            raise

    async def _answered(self, calls: Coroutine[Any, Any, T]) -> T:
        """Wait for calls to the database, until it is found to be away. Raises `DatabaseUnavailable`."""
        async with self._outages.waiting():
            return await self._detached(calls)

    async def _detached(self, calls: Coroutine[Any, Any, T]) -> T:
        """Run calls to the database in a task of their own, so that a caller who leaves need not wait for their end.

        SQLite's statements run in a thread: cut off from it, an unfinished one holds the connection open and the file
        locked until the garbage collector comes by. So there the calls end by themselves. Elsewhere they are cancelled,
        and take seconds to take leave of a server that does not answer.
        """
        task = self._start(calls)
        try:
            return await asyncio.shield(task)
        finally:
            if not self.is_embedded:
                task.cancel()

    def _start(self, calls: Coroutine[Any, Any, T]) -> "asyncio.Task[T]":
        task = asyncio.create_task(calls)
        self._under_way.add(task)
        task.add_done_callback(self._have_ended)
        return task

    def _have_ended(self, task: asyncio.Task[Any]) -> None:
        self._under_way.discard(task)
        if not task.cancelled():
            task.exception()  # else asyncio logs what nobody waits for any more

    def _remember_file(self) -> None:
        self._file_identity = self._stat_file()

    def _require_same_file(self) -> None:
        # An open SQLite database outlives the removal of its file, and what is then written is lost; one that is opened
        # then is made anew, empty.
        if self._file_identity is not None and self._stat_file() != self._file_identity:
            raise DatabaseUnavailable("The database file was moved or replaced; restart the server.")

    def _stat_file(self) -> tuple[int, int] | None:
        path = self.url.database
        if not self.is_embedded or not path or path.startswith("file:"):
            return None
        stat = os.stat(path)
        return (stat.st_dev, stat.st_ino)


def _tell_of_wait(migration: asyncio.Task[Any], has_lock: asyncio.Event) -> None:
    if not migration.done() and not has_lock.is_set():
        _log.info("waiting for SQLite's lock, which another process holds")


def _cores() -> int:
    return len(os.sched_getaffinity(0)) if hasattr(os, "sched_getaffinity") else os.cpu_count() or 1
