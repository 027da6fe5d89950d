"""Connections that break while they are idle or in use: no call fails that can be done on another one."""

import asyncio
import os
import time
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager
from typing import Any

import pytest
from sqlalchemy import event, func, select, text
from sqlalchemy.engine import make_url
from sqlalchemy.ext.asyncio import AsyncConnection
from sqlalchemy.util import await_only

from bookstore_grpc.dal import pool_invalidation
from bookstore_grpc.dal.books import BookDAL
from bookstore_grpc.dal.database import Database
from bookstore_grpc.dal.records import BookDraft, BookRecord
from bookstore_grpc.errors import DatabaseUnavailable
from tests.conftest import SERVER_VARIABLES, SERVERS, require
from tests.dal.conftest import count_rows
from tests.rpc.obstacles import Network

_DRAFT = BookDraft("Dune", "Frank Herbert", 1965)
_POOL_SIZE = 5
_REST_SECONDS = 1.2

_KILL = {
    "postgresql": (
        "SELECT pg_terminate_backend(pid) FROM pg_stat_activity "
        "WHERE datname = current_database() AND pid <> pg_backend_pid()"
    ),
    "mariadb": (
        "SELECT concat('KILL ', id) FROM information_schema.processlist WHERE db = database() AND id <> connection_id()"
    ),
}
_END_AFTER_A_SECOND = {
    "postgresql": "SET SESSION idle_session_timeout = '1s'",
    "mariadb": "SET SESSION wait_timeout = 1",
}


@pytest.fixture(params=SERVERS)
def kind(request: pytest.FixtureRequest) -> str:
    require(os.environ.get(SERVER_VARIABLES[request.param]), f"{SERVER_VARIABLES[request.param]} is not set")
    return str(request.param)


@pytest.fixture
async def network(kind: str) -> AsyncIterator[Network]:
    """The way to the database."""
    url = make_url(os.environ[SERVER_VARIABLES[kind]])
    assert url.host
    network = Network(url.host, url.port or {"postgresql": 5432, "mariadb": 3306}[kind])
    await network.restore()
    yield network
    network.flow()
    await network.cut()


@pytest.fixture
async def database(fresh_url: str, network: Network) -> AsyncIterator[Database]:
    url = make_url(fresh_url).set(host="127.0.0.1", port=network.port).render_as_string(hide_password=False)
    database = Database(url, pool_size=_POOL_SIZE, timeout_seconds=5)
    await database.migrate()
    yield database
    await database.close()


async def kill_connections(url: str) -> int:
    """End every other connection to a database, on the server."""
    killer = Database(url, pool_size=1, timeout_seconds=10)
    async with killer._prober.connect() as connection:
        rows = (await connection.execute(text(_KILL[killer.dialect]))).all()
        if killer.dialect == "mariadb":
            for (statement,) in rows:
                await connection.execute(text(statement))
    await killer.close()
    return len(rows)


async def read_at_once(books: BookDAL, record: BookRecord, count: int = 50) -> None:
    for found in await asyncio.gather(*(books.get_book(record.id) for _ in range(count))):
        assert found == record


@asynccontextmanager
async def all_connections_rest(database: Database) -> AsyncIterator[tuple[BookDAL, BookRecord]]:
    """All connections are open and idle, and are then broken by the block; afterwards every call must succeed."""
    books = BookDAL(database)
    record = await books.create_book(_DRAFT)
    await asyncio.gather(*(database.read(select(func.count()).select_from(text("books"))) for _ in range(50)))
    await asyncio.gather(*(books.create_book(_DRAFT) for _ in range(5)))
    await database.ping()
    before, _ = await count_rows(database)
    yield books, record
    began = time.monotonic()
    async with asyncio.TaskGroup() as calls:
        calls.create_task(read_at_once(books, record))
        for _ in range(10):
            calls.create_task(books.create_book(_DRAFT))
        calls.create_task(database.ping())
    assert time.monotonic() - began < 4
    assert await count_rows(database) == (before + 10, 0)


async def test_killed_connections_fail_no_call(database: Database, fresh_url: str) -> None:
    async with all_connections_rest(database):
        assert await kill_connections(fresh_url) > _POOL_SIZE


async def test_connections_closed_for_being_idle_fail_no_call(database: Database, kind: str) -> None:
    for engine in (database._reader, database._writer, database._prober):

        @event.listens_for(engine.sync_engine, "connect")
        def shorten(connection: Any, _record: object) -> None:
            cursor = connection.cursor()
            cursor.execute(_END_AFTER_A_SECOND[kind])
            cursor.close()

    await database.read(select(1))
    database._pool_invalidation.invalidate()
    async with all_connections_rest(database):
        await asyncio.sleep(2.5)


async def test_connections_reset_by_the_network_fail_no_call(database: Database, network: Network) -> None:
    async with all_connections_rest(database):
        await network.cut()
        await network.restore()


async def test_connections_dropped_silently_by_the_network_fail_no_call(database: Database, network: Network) -> None:
    async with all_connections_rest(database):
        network.stall()
        network.forget()
        await asyncio.sleep(_REST_SECONDS)


async def test_a_read_whose_connection_is_killed_is_repeated(database: Database, kind: str, fresh_url: str) -> None:
    long = func.pg_sleep(1) if kind == "postgresql" else func.sleep(1)
    reads = [asyncio.create_task(database.read(select(long))) for _ in range(3)]
    await asyncio.sleep(0.4)
    assert await kill_connections(fresh_url) >= 3
    for read in reads:
        assert len(await read) == 1


async def test_a_read_is_repeated_on_no_connection_that_was_lost_with_its_own(
    database: Database, kind: str, network: Network
) -> None:
    database._pool_invalidation.invalidate()
    await database.read(select(1))  # opens the connection of the long read, which may take longer than the wait below
    long = func.pg_sleep(0.3) if kind == "postgresql" else func.sleep(0.3)
    read = asyncio.create_task(database.read(select(long)))
    await asyncio.sleep(0.1)
    await database.read(select(1))  # on a connection that was opened in the meantime
    await network.cut()
    await network.restore()
    assert len(await read) == 1


async def test_a_connection_that_was_idle_is_used_again(
    database: Database, kind: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(pool_invalidation, "_IDLE_SECONDS", 0)  # so that it is checked before each use
    session = select(func.pg_backend_pid() if kind == "postgresql" else func.connection_id())
    assert await database.read(session) == await database.read(session)


async def test_a_write_whose_connection_is_killed_before_its_commit_is_repeated_once(
    database: Database, fresh_url: str
) -> None:
    attempts = 0

    async def work(connection: AsyncConnection) -> None:
        nonlocal attempts
        attempts += 1
        await connection.execute(
            text(
                "INSERT INTO books (name, author, release_year, create_time, update_time, name_folded, author_folded) "
                "VALUES ('Dune', 'Frank Herbert', 1965, 0, 0, '', '')"
            )
        )
        if attempts == 1:
            await kill_connections(fresh_url)
        await connection.execute(text("SELECT 1"))

    await database.write(work)
    assert attempts == 2
    assert (await count_rows(database))[0] == 1


async def test_a_write_whose_connection_is_killed_at_its_commit_is_not_repeated(
    database: Database, fresh_url: str
) -> None:
    attempts = 0

    async def work(connection: AsyncConnection) -> None:
        nonlocal attempts
        attempts += 1
        await connection.execute(text("DELETE FROM books"))

    def kill(_connection: object) -> None:
        await_only(kill_connections(fresh_url))

    event.listen(database._writer.sync_engine, "commit", kill)
    try:
        with pytest.raises(DatabaseUnavailable):
            await database.write(work)
    finally:
        event.remove(database._writer.sync_engine, "commit", kill)
    assert attempts == 1
