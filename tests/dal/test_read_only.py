"""Sessions that are read-only, as after a failover: they are replaced, and writes return without a restart."""

import os
import time
from collections.abc import AsyncIterator
from typing import Any

import pytest
from sqlalchemy import event, func, select
from sqlalchemy.ext.asyncio import AsyncEngine

from bookstore_grpc.dal import pool_invalidation
from bookstore_grpc.dal.books import BookDAL
from bookstore_grpc.dal.database import Database
from bookstore_grpc.dal.driver_errors import ReadOnly
from bookstore_grpc.dal.records import BookDraft
from tests.conftest import SERVER_VARIABLES, SERVERS, require
from tests.dal.conftest import count_rows

_DRAFT = BookDraft("Dune", "Frank Herbert", 1965)


@pytest.fixture(params=SERVERS)
def kind(request: pytest.FixtureRequest) -> str:
    require(os.environ.get(SERVER_VARIABLES[request.param]), f"{SERVER_VARIABLES[request.param]} is not set")
    return str(request.param)


class Sessions:
    """The sessions of an engine, of which new ones are read-only while `are_read_only`."""

    def __init__(self, engine: AsyncEngine) -> None:
        self.are_read_only = False
        self.opened = 0
        event.listen(engine.sync_engine, "connect", self._on_connect)

    def _on_connect(self, connection: Any, _record: object) -> None:
        self.opened += 1
        if self.are_read_only:
            connection.run_async(_make_read_only)


async def _make_read_only(connection: Any) -> None:
    if hasattr(connection, "query"):
        await connection.query("SET SESSION tx_read_only = 1")
    else:
        await connection.execute("SET SESSION default_transaction_read_only = on")


@pytest.fixture
async def database(fresh_url: str) -> AsyncIterator[Database]:
    database = Database(fresh_url, pool_size=2, timeout_seconds=5)
    await database.migrate()
    database._pool_invalidation.invalidate()  # the tests open connections of their own
    yield database
    await database.close()


@pytest.fixture
def written(database: Database) -> Sessions:
    return Sessions(database._writer)


async def session_id(database: Database) -> int:
    function = func.pg_backend_pid() if database.dialect == "postgresql" else func.connection_id()
    return int((await database.read(select(function)))[0][0])


async def test_a_write_on_a_read_only_session_is_repeated_on_a_new_one(
    database: Database, written: Sessions, monkeypatch: pytest.MonkeyPatch
) -> None:
    books = BookDAL(database)
    written.are_read_only = True
    with pytest.raises(ReadOnly):
        await books.create_book(_DRAFT)
    monkeypatch.setattr(pool_invalidation, "_READ_ONLY_SECONDS", 0)
    reader = await session_id(database)
    written.are_read_only = False
    await books.create_book(_DRAFT)
    assert await count_rows(database) == (1, 0)
    assert await session_id(database) != reader, "a connection for reads is still to the former primary"


async def test_while_new_sessions_are_read_only_too_writes_fail_at_once_and_few_are_opened(
    database: Database, written: Sessions
) -> None:
    written.are_read_only = True
    books = BookDAL(database)
    reader = await session_id(database)
    began = time.monotonic()
    for _ in range(20):
        with pytest.raises(ReadOnly, match="read-only"):
            await books.create_book(_DRAFT)
    assert written.opened <= 2 * (1 + time.monotonic() - began)
    assert await session_id(database) == reader


async def test_the_check_of_writes_follows_the_sessions_and_writes_nothing(
    database: Database, written: Sessions, monkeypatch: pytest.MonkeyPatch
) -> None:
    await database.check_writes()
    database._pool_invalidation.invalidate()
    monkeypatch.setattr(pool_invalidation, "_READ_ONLY_SECONDS", 0)
    written.are_read_only = True
    for _ in range(2):
        with pytest.raises(ReadOnly):
            await database.check_writes()
    reader = await session_id(database)
    written.are_read_only = False
    await database.check_writes()
    assert await session_id(database) != reader
    await database.check_writes()
    assert await count_rows(database) == (0, 0)


async def test_while_every_connection_for_writes_is_in_use_the_last_check_counts(
    database: Database, written: Sessions
) -> None:
    async with database._writer.connect(), database._writer.connect():
        await database.check_writes()  # there is no result yet
    await database.check_writes()
    database._pool_invalidation.invalidate()
    written.are_read_only = True
    with pytest.raises(ReadOnly):
        await database.check_writes()
    async with database._writer.connect(), database._writer.connect():
        began = time.monotonic()
        with pytest.raises(ReadOnly):
            await database.check_writes()
        assert time.monotonic() - began < 2
