"""Behind PgBouncer, in both of its pool modes, calls work as on the database itself."""

import asyncio
from collections.abc import AsyncIterator

import pytest
from sqlalchemy import func, select, text

from bookstore_grpc.dal.books import BookDAL
from bookstore_grpc.dal.database import Database
from bookstore_grpc.dal.records import BookChanges, BookDraft, BookRecord
from tests.dal.test_lost_connections import kill_connections
from tests.dal.test_statement_time import long_statement
from tests.pgbouncer import pgbouncer
from tests.rpc.obstacles import until

pytestmark = pytest.mark.databases("postgresql")

_ROUNDS = 10
_SETTING = select(func.current_setting("statement_timeout"))


@pytest.fixture(params=["transaction", "session"])
async def pooled(request: pytest.FixtureRequest, fresh_url: str) -> AsyncIterator[list[Database]]:
    """Two servers' databases behind one PgBouncer."""
    with pgbouncer(fresh_url, pool_mode=request.param) as url:
        databases = [Database(url, pool_size=3, timeout_seconds=10) for _ in range(2)]
        await databases[0].migrate()
        yield databases
        for database in databases:
            await database.close()


async def call_each(books: BookDAL, caller: int) -> None:
    """Call every operation, with statements of several shapes, and check the responses."""
    for round in range(_ROUNDS):
        name = f"Book {caller} {round}"
        (record, other) = await books.create_books([BookDraft(name, "Anon", round), BookDraft(name, "Other", round)])
        assert await books.get_book(record.id) == record
        changed = await books.update_book(record.id, BookChanges(author="Somebody"))
        assert await books.get_books([other.id, record.id]) == [other, changed]
        found = await list_all(books, f'name = "{name}"')
        assert found == [changed, other]
        assert await list_all(books, f'name = "{name}" AND release_year < {round}') == []
        await books.delete_book(other.id)


async def list_all(books: BookDAL, filter: str) -> list[BookRecord]:
    return (await books.list_books(page_size=50, page_token="", filter=filter, order_by="name")).books


async def test_concurrent_calls_of_two_servers_succeed(pooled: list[Database]) -> None:
    servers = [BookDAL(database) for database in pooled]
    await asyncio.gather(*(call_each(servers[caller % 2], caller) for caller in range(16)))
    assert len(await list_all(servers[0], "")) == 50
    for database in pooled:
        await database.ping()
        assert not await database.is_behind()


async def test_killed_sessions_of_the_server_fail_no_call(pooled: list[Database], fresh_url: str) -> None:
    servers = [BookDAL(database) for database in pooled]
    await asyncio.gather(*(call_each(servers[caller % 2], caller) for caller in range(4)))
    assert await kill_connections(fresh_url) > 0
    await asyncio.gather(*(call_each(servers[caller % 2], caller + 4) for caller in range(4)))


async def test_a_time_limit_is_not_left_to_other_clients(pooled: list[Database]) -> None:
    limits = await asyncio.gather(*(database.read(_SETTING) for database in pooled for _ in range(6)))
    assert {row[0][0] for row in limits} == {"0"}


async def test_a_read_ends_when_its_caller_leaves(pooled: list[Database]) -> None:
    with pytest.raises(TimeoutError):
        async with asyncio.timeout(0.3):
            await pooled[0].read(long_statement(pooled[0]))
    active = text(
        "SELECT count(*) FROM pg_stat_activity "
        "WHERE query LIKE '%generate_series(%' AND state = 'active' AND pid <> pg_backend_pid()"
    )

    async def is_idle() -> bool:
        async with pooled[1]._prober.connect() as connection:
            return bool((await connection.execute(active)).scalar_one() == 0)

    await until(is_idle)
