"""What a read may take: no statement goes on for ever, nor for a caller that has left."""

import asyncio
import time
from collections.abc import AsyncIterator
from typing import Any

import pytest
from sqlalchemy import Select, func, literal, select, text

from bookstore_grpc.dal.database import Database
from bookstore_grpc.errors import DatabaseUnavailable
from tests.rpc.obstacles import until

_LONG = 10_000_000_000


@pytest.fixture
async def hasty(database: Database, database_url: str) -> AsyncIterator[Database]:
    """The same database for reads of half a second."""
    hasty = Database(database_url, pool_size=2, timeout_seconds=10, statement_seconds=0.5)
    yield hasty
    await hasty.close()


def long_statement(database: Database) -> Select[int]:
    """One that takes minutes."""
    if database.dialect == "postgresql":
        return select(func.count()).select_from(func.generate_series(1, _LONG).alias())
    if database.dialect == "mariadb":
        return select(func.sleep(60))
    numbers = select(literal(1).label("n")).cte("numbers", recursive=True)
    numbers = numbers.union_all(select(numbers.c.n + 1).where(numbers.c.n < _LONG))
    return select(func.count()).select_from(numbers)


async def test_a_read_ends_after_its_time_limit_and_the_next_succeeds(hasty: Database) -> None:
    began = time.monotonic()
    with pytest.raises(DatabaseUnavailable):
        await hasty.read(long_statement(hasty))
    assert 0.4 < time.monotonic() - began < 5
    for _ in range(3):
        assert [tuple(row) for row in await hasty.read(select(literal(1)))] == [(1,)]


async def until_idle(database: Database) -> None:
    """Wait until the long statement runs no more."""

    async def is_idle() -> bool:
        if database.dialect == "sqlite":
            before = time.process_time()
            await asyncio.sleep(0.2)
            return time.process_time() - before < 0.1
        active = text(
            "SELECT count(*) FROM pg_stat_activity "
            "WHERE query LIKE '%generate_series(%' AND state = 'active' AND pid <> pg_backend_pid()"
        )
        async with database._prober.connect() as connection:
            return bool((await connection.execute(active)).scalar_one() == 0)

    await until(is_idle)


async def leave(database: Database) -> None:
    """Read for a caller that soon leaves."""
    with pytest.raises(TimeoutError):
        async with asyncio.timeout(0.3):
            await database.read(long_statement(database))


@pytest.mark.databases(
    "sqlite", "postgresql"
)  # MariaDB goes on until the statement's time is up, which the test above shows
async def test_a_read_ends_when_its_caller_leaves(database: Database) -> None:
    await leave(database)
    await until_idle(database)


@pytest.mark.databases("postgresql")
async def test_a_read_ends_when_its_caller_leaves_and_the_cancellation_is_missed(
    database: Database, monkeypatch: pytest.MonkeyPatch
) -> None:
    async def send_nothing(**_arguments: object) -> None: ...

    monkeypatch.setattr("asyncpg.connect_utils._cancel", send_nothing)
    await leave(database)
    await until_idle(database)


@pytest.mark.databases("postgresql", "mariadb")
async def test_a_read_that_is_cancelled_as_its_connection_opens_begins_no_statement(
    database_url: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    database = Database(database_url, pool_size=1, timeout_seconds=10)
    loop = asyncio.get_running_loop()
    connect, cancelled = loop.create_connection, 0

    async def cancel_when_open(*arguments: Any, **options: Any) -> Any:
        nonlocal cancelled
        connection = await connect(*arguments, **options)
        cancelled += read.cancel()
        return connection

    monkeypatch.setattr(loop, "create_connection", cancel_when_open)
    read = asyncio.create_task(database._rows(*database._driver_reader.compile(long_statement(database), None)))
    assert await asyncio.wait([read], timeout=10) == ({read}, set())
    assert read.cancelled()
    assert cancelled
    assert database.connections_in_use()["read"] == 0
    await database.close()
