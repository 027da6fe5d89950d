"""Searches take a share of the connections, and what is short never waits for them."""

import asyncio
import time
from collections.abc import AsyncIterator
from typing import Any

import pytest
from sqlalchemy import text

from bookstore_grpc.dal.books import BookDAL
from bookstore_grpc.dal.database import Database
from bookstore_grpc.dal.filters import parse_filter
from bookstore_grpc.dal.page_statements import is_search
from bookstore_grpc.dal.paging import parse_order_by
from bookstore_grpc.dal.records import BookDraft
from bookstore_grpc.errors import ResourceExhausted
from tests.dal.test_statement_time import long_statement
from tests.rpc.obstacles import until


@pytest.fixture
async def small(database: Database, database_url: str) -> AsyncIterator[Database]:
    """The same database with three connections to read, two of them for searches where there are cores for that."""
    small = Database(database_url, pool_size=3, timeout_seconds=0.5, statement_seconds=4, max_concurrent_searches=5)
    yield small
    await small.close()


@pytest.mark.parametrize(
    ("filter", "order_by", "expected"),
    [
        ("", "", False),
        ("  ", "", False),
        ("", "id desc", False),
        ("", "author", False),
        ("", "release_year, id", False),
        ("", "name desc, id desc", False),
        ("", "name desc", True),
        ("", "author, name", True),
        ("name:*", "", False),
        ("dune", "", True),
        ('name = "Dune"', "", True),
    ],
)
def test_a_search_has_a_filter_or_an_order_without_an_index(filter: str, order_by: str, expected: bool) -> None:
    parsed, _ = parse_filter(filter, dialect="sqlite")
    assert is_search(parsed, parse_order_by(order_by)) is expected


async def search(database: Database) -> Any:
    return await database.read(long_statement(database), is_search=True)


async def test_reads_by_id_do_not_wait_for_more_searches_than_connections(small: Database) -> None:
    books = BookDAL(small)
    record = await books.create_book(BookDraft("Dune", "Frank Herbert", 1965))
    await books.create_book(BookDraft("Emma", "Jane Austen", 1815))
    searches = [asyncio.create_task(search(small)) for _ in range(8)]
    try:
        await asyncio.sleep(0.2)
        assert 1 <= small.connections_in_use()["search"] <= 2
        began = time.monotonic()
        for _ in range(20):
            assert await books.get_book(record.id) == record
            assert await books.get_books([record.id]) == [record]
            page = await books.list_books(page_size=1, page_token="", filter="", order_by="name", include_total=True)
            assert (page.books, page.total) == ([record], (2, False))
        assert time.monotonic() - began < 3
        for number in range(20):
            await books.create_book(BookDraft(f"Dune {number}", "Frank Herbert", 1965))
    finally:
        for task in searches:
            task.cancel()
        await asyncio.gather(*searches, return_exceptions=True)


@pytest.mark.databases("postgresql", "mariadb")  # SQLite counts few books without a slot
async def test_counting_what_matches_a_filter_and_finding_what_to_purge_are_searches(small: Database) -> None:
    books = BookDAL(small)
    searches = [asyncio.create_task(search(small)) for _ in range(3)]
    try:
        await asyncio.sleep(0.1)
        calls = books._pages.count("release_year = 1965"), books.purge_books("release_year = 1965", seconds=60)
        rejected = await asyncio.gather(*calls, return_exceptions=True)
        assert [type(each) for each in rejected] == [ResourceExhausted] * 2
    finally:
        for task in searches:
            task.cancel()
        await asyncio.gather(*searches, return_exceptions=True)


async def test_a_search_that_waits_too_long_is_rejected_with_the_name_of_the_limit(small: Database) -> None:
    searches = [asyncio.create_task(search(small)) for _ in range(3)]
    try:
        await asyncio.sleep(0.1)
        with pytest.raises(ResourceExhausted) as caught:
            await search(small)
        assert caught.value.metadata == {"limit": "searches"}
    finally:
        for task in searches:
            task.cancel()
        await asyncio.gather(*searches, return_exceptions=True)


async def test_searches_one_after_the_other_and_a_few_at_once_succeed(small: Database) -> None:
    books = BookDAL(small)
    await books.create_books([BookDraft(f"Dune {number}", "Frank Herbert", 1965) for number in range(20)])

    async def walk() -> int:
        token, count = "", 0
        while True:
            page = await books.list_books(page_size=5, page_token=token, filter="dune", order_by="")
            count += len(page.books)
            token = page.next_page_token
            if not token:
                return count

    assert await asyncio.gather(*(walk() for _ in range(10))) == [20] * 10


async def test_a_pool_of_one_serves_searches_and_other_reads(database: Database, database_url: str) -> None:
    narrow = Database(database_url, pool_size=1, timeout_seconds=5)
    books = BookDAL(narrow)
    record = await books.create_book(BookDraft("Dune", "Frank Herbert", 1965))
    calls: list[Any] = []
    for _ in range(5):
        calls += [
            books.get_book(record.id),
            books.list_books(page_size=5, page_token="", filter="dune", order_by="name desc"),
        ]
    for found in await asyncio.gather(*calls):
        assert found == record or found.books == [record]
    await narrow.close()


@pytest.mark.databases("postgresql", "mariadb")  # tests/dal/test_statement_time.py shows it
async def test_a_search_ends_in_the_database_when_its_caller_leaves(database: Database) -> None:
    running = {
        "postgresql": "SELECT count(*) FROM pg_stat_activity WHERE query LIKE '%generate_series(%' "
        "AND state = 'active' AND pid <> pg_backend_pid()",
        "mariadb": "SELECT count(*) FROM information_schema.processlist WHERE info LIKE 'SELECT sleep(%'",
    }[database.dialect]

    async def count() -> int:
        async with database._prober.connect() as connection:
            return int((await connection.execute(text(running))).scalar_one())

    async def are_running() -> bool:
        return await count() > 0

    async def have_ended() -> bool:
        return await count() == 0

    async def are_free() -> bool:
        return database.connections_in_use()["search"] == 0

    searches = [asyncio.create_task(search(database)) for _ in range(2)]
    await until(are_running)
    await asyncio.sleep(0.5)  # one who leaves as it begins leaves it running on PostgreSQL, for the statement's time
    for task in searches:
        task.cancel()
    await asyncio.gather(*searches, return_exceptions=True)
    async with asyncio.timeout(20):  # otherwise it would run for a minute
        await until(have_ended)
        await until(are_free)  # asyncpg takes up to two seconds to take leave
