"""The database: reading, writing, probing, and migrating it.

Three engines serve three purposes, so that none can starve another: one reads, one writes, one probes.
"""

import asyncio
import os
import random
import time
from collections.abc import Awaitable, Callable, Coroutine, Mapping, Sequence
from typing import Any, TypeVar

from sqlalchemy import Row, Select, event, exc, literal, select
from sqlalchemy.ext.asyncio import AsyncConnection, AsyncEngine
from sqlalchemy.pool import ConnectionPoolEntry

from bookstore_grpc.dal import migrations
from bookstore_grpc.dal.driver_errors import Conflict, translated_errors
from bookstore_grpc.dal.engines import parse_database_url, reading_engine, writing_engine
from bookstore_grpc.errors import DatabaseUnavailable

T = TypeVar("T")

_WRITE_ATTEMPTS = 8
_PROBE_SECONDS = 2
_ABANDONED_SECONDS = 2


class Database:
    """A database chosen by URL.

    Opens nothing before the first call. `pool_size` bounds the reading and the writing connections each (SQLite
    writes on one); `timeout_seconds` bounds the wait for a connection and for SQLite's lock.

    Raises `StartupError` for a URL that names no supported database, or whose driver is not installed.
    """

    def __init__(self, url: str, *, pool_size: int, timeout_seconds: float) -> None:
        self.url = parse_database_url(url)
        self.dialect = self.url.get_backend_name()
        self.is_embedded = self.dialect == "sqlite"
        self._reader = reading_engine(self.url, pool_size=pool_size, timeout_seconds=timeout_seconds)
        self._writer = writing_engine(self.url, pool_size=pool_size, timeout_seconds=timeout_seconds)
        self._prober = reading_engine(self.url, pool_size=1, timeout_seconds=timeout_seconds)
        self._file_identity: tuple[int, int] | None = None
        self._last_away = 0.0
        self._abandoned: set[asyncio.Task[Any]] = set()
        self._is_closed = False
        if not self.is_embedded:
            for engine in (self._reader, self._writer):
                self._replace_connections_of_before_an_outage(engine)

    @property
    def description(self) -> str:
        """Name the database for logs and messages, without user, password and options."""
        if self.is_embedded:
            return f"sqlite {self.url.database}"
        port = f":{self.url.port}" if self.url.port else ""
        return f"{self.dialect} {self.url.host or 'localhost'}{port}/{self.url.database}"

    async def read(self, statement: Select[Any], parameters: Mapping[str, object] | None = None) -> Sequence[Row[Any]]:
        """Answer the rows of one statement, in one round trip. Raises `DatabaseUnavailable`."""

        async def rows() -> Sequence[Row[Any]]:
            with translated_errors(self.dialect):
                async with self._reader.connect() as connection:
                    found: Sequence[Row[Any]] = (await connection.execute(statement, parameters)).all()
                    return found

        return await self._uninterrupted(rows())

    async def write(self, work: Callable[[AsyncConnection], Awaitable[T]]) -> T:
        """Run `work` in one transaction and commit it, or leave nothing behind.

        A transaction that met another one is run again, so `work` must not act outside its connection.
        Raises `DatabaseUnavailable`, and what `work` raises.
        """
        for attempt in range(_WRITE_ATTEMPTS):
            if attempt:
                # Spread, so that those who met do not meet again. It guards no secret.
                await asyncio.sleep(random.uniform(0, 0.01 * 2**attempt))  # noqa: S311
            try:
                return await self._uninterrupted(self._transaction(work))
            except Conflict as error:
                conflict = error
        raise conflict

    async def ping(self) -> None:
        """Raise `DatabaseUnavailable` unless the database answers within two seconds."""
        try:
            async with asyncio.timeout(_PROBE_SECONDS):
                await self._uninterrupted(self._probe())
        except (DatabaseUnavailable, TimeoutError) as error:
            self._last_away = time.monotonic()
            if isinstance(error, DatabaseUnavailable):
                raise
            raise DatabaseUnavailable("The database does not answer; try again.") from error

    async def migrate(self) -> str:
        """Bring the tables to the newest migration, in a transaction, and answer its revision.

        Several servers may do so at once: one migrates, the others wait. A database that a newer version has
        migrated is left as it is. Raises `DatabaseUnavailable`.
        """

        async def upgrade(connection: AsyncConnection) -> str:
            return await connection.run_sync(migrations.upgrade)

        revision = await self.write(upgrade)
        self._remember_file()
        return revision

    async def is_behind(self) -> bool:
        """Tell whether migrations are missing. Raises `DatabaseUnavailable`."""
        with translated_errors(self.dialect):
            async with self._prober.connect() as connection:
                revision = await connection.run_sync(migrations.current_revision)
        return revision is None or migrations.is_behind(revision)

    async def close(self) -> None:
        """Close every connection; those of calls that were left to themselves when these end, if they end soon."""
        self._is_closed = True
        if self._abandoned:
            await asyncio.wait(self._abandoned, timeout=_ABANDONED_SECONDS)
        for engine in (self._reader, self._writer, self._prober):
            await engine.dispose()

    async def _probe(self) -> None:
        with translated_errors(self.dialect):
            self._require_same_file()
            async with self._prober.connect() as connection:
                await connection.execute(select(literal(1)))

    async def _transaction(self, work: Callable[[AsyncConnection], Awaitable[T]]) -> T:
        with translated_errors(self.dialect):
            self._require_same_file()
            async with self._writer.begin() as connection:
                await self._roll_back_if_abandoned(connection)
                result = await work(connection)
                await self._roll_back_if_abandoned(connection)
                return result

    async def _roll_back_if_abandoned(self, connection: AsyncConnection) -> None:
        task = asyncio.current_task()
        # A driver may swallow a cancellation (asyncio.wait_for does, on Python 3.11, as its time ends well).
        is_cancelled = task is not None and task.cancelling() > 0
        if task not in self._abandoned and not is_cancelled:
            return
        if self._is_closed:
            await connection.invalidate()  # the pool that it would go back to is gone
        raise asyncio.CancelledError

    async def _uninterrupted(self, calls: Coroutine[Any, Any, T]) -> T:
        """Let calls to the database end by themselves although their caller is cancelled.

        Only on SQLite, whose statements run in a thread. Cut off from it, an unfinished statement holds the
        connection open and the file locked until the garbage collector comes by. A write that is left to itself
        rolls back, unless it was already committing.
        """
        if not self.is_embedded:
            return await calls
        task = asyncio.create_task(calls)
        try:
            return await asyncio.shield(task)
        except asyncio.CancelledError:
            self._abandoned.add(task)
            task.add_done_callback(self._forget_abandoned)
            raise

    def _forget_abandoned(self, task: asyncio.Task[Any]) -> None:
        self._abandoned.discard(task)
        if not task.cancelled():
            task.exception()  # seen: whoever it concerned has gone

    def _replace_connections_of_before_an_outage(self, engine: AsyncEngine) -> None:
        # A pool learns that its connections are dead from a call that fails; the probe knows it before.
        @event.listens_for(engine.sync_engine, "connect")
        def remember(_connection: object, record: ConnectionPoolEntry) -> None:
            record.info["made"] = time.monotonic()

        @event.listens_for(engine.sync_engine, "checkout")
        def check(_connection: object, record: ConnectionPoolEntry, _proxy: object) -> None:
            if record.info["made"] <= self._last_away:
                raise exc.DisconnectionError

    def _remember_file(self) -> None:
        self._file_identity = self._stat_file()

    def _require_same_file(self) -> None:
        # An open SQLite database outlives the removal of its file, and what is then written is lost.
        if self._file_identity is not None and self._stat_file() != self._file_identity:
            raise DatabaseUnavailable("The database file was moved or replaced; restart the server.")

    def _stat_file(self) -> tuple[int, int] | None:
        path = self.url.database
        if not self.is_embedded or not path or path.startswith("file:"):
            return None
        stat = os.stat(path)
        return (stat.st_dev, stat.st_ino)
