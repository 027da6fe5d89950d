"""The number of books: kept by triggers for all of them, counted up to a limit for those that match a filter."""

import asyncio
import random
from typing import Any

import pytest
from sqlalchemy import text
from sqlalchemy.ext.asyncio import AsyncConnection

from bookstore_grpc.dal import migrations, totals
from bookstore_grpc.dal.books import BookDAL
from bookstore_grpc.dal.database import Database
from bookstore_grpc.dal.records import BookDraft, BookTotal, BookVersion
from bookstore_grpc.limits import BATCH_MAX, TOTAL_MAX
from tests.dal.conftest import count_rows, execute, statements_of

# What a server of the previous version sends, which knows nothing of the counts.
_OLD_INSERT = (
    "INSERT INTO books (name, author, release_year, create_time, update_time, name_folded, author_folded) "
    "VALUES ('old', 'x', {year}, 1, 1, 'old', 'x')"
)


def _drafts(count: int, *, year: int = 0) -> list[BookDraft]:
    return [BookDraft(f"Book {number}", "x", year) for number in range(count)]


async def _total(books: BookDAL, filter: str = "", *, page_size: int = 1) -> BookTotal | None:
    page = await books.list_books(page_size=page_size, page_token="", filter=filter, order_by="", include_total=True)
    return page.total


async def _kept(database: Database) -> int:
    """Return the number that the triggers keep, however few books there are."""
    total = totals.total_of_all(await database.read(totals.COUNT_ALL))
    assert total is not None
    assert not total.is_exceeded
    return total.size


async def test_all_books_are_counted_exactly(database: Database, books: BookDAL) -> None:
    assert await _total(books) == (0, False)
    created = await books.create_books(_drafts(5))
    assert await _total(books) == await _total(books, " ") == (5, False)
    await books.delete_books([BookVersion(created[0].id), BookVersion(created[1].id)])
    assert await _total(books) == (3, False)
    assert await _kept(database) == 3


async def test_every_page_has_the_total_if_it_is_asked_for(books: BookDAL) -> None:
    await books.create_books(_drafts(5))
    token = ""
    for _ in range(3):
        page = await books.list_books(
            page_size=2, page_token=token, filter="release_year = 0", order_by="name", include_total=True
        )
        assert page.total == (5, False)
        token = page.next_page_token
    assert token == ""
    assert (await books.list_books(page_size=2, page_token="", filter="", order_by="")).total is None


async def test_a_filter_counts_the_books_that_match(books: BookDAL) -> None:
    await books.create_books([*_drafts(3, year=1), *_drafts(4, year=2)])
    assert await _total(books, "release_year = 2") == (4, False)
    assert await _total(books, "release_year = 2 name:3") == (1, False)
    assert await _total(books, "release_year = 3") == (0, False)


@pytest.mark.databases("sqlite")
async def test_counting_matching_books_stops_at_10000(sqlite: Database) -> None:
    books = BookDAL(sqlite)
    for _ in range(TOTAL_MAX // BATCH_MAX):
        await books.create_books(_drafts(BATCH_MAX))
    assert await _total(books, "release_year = 0") == (10_000, False)
    await books.create_books(_drafts(2))
    assert await _total(books, "release_year = 0") == (10_000, True)
    assert await _total(books) == (10_002, False)


async def test_counting_stops_at_the_limit_on_every_database(books: BookDAL, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(totals, "TOTAL_MAX", 3)
    totals.count_matching.cache_clear()
    await books.create_books(_drafts(3))
    assert await _total(books, "release_year = 0") == (3, False)
    await books.create_books(_drafts(2))
    assert await _total(books, "release_year = 0") == (3, True)
    totals.count_matching.cache_clear()


async def test_a_total_costs_a_statement_only_if_the_page_does_not_tell(database: Database, books: BookDAL) -> None:
    await books.create_books(_drafts(3))
    for page_size, count in ((3, 1), (2, 2)):
        with statements_of(database) as statements:
            assert await _total(books, "release_year = 0", page_size=page_size) == (3, False)
        assert len(statements) == count, statements
    with statements_of(database) as statements:
        assert await _total(books, page_size=2) == (3, False)
    assert len(statements) == 2
    assert "book_counts" in statements[1]


@pytest.mark.databases("sqlite")
async def test_the_total_is_cached_with_its_page_until_the_next_commit(books: BookDAL) -> None:
    await books.create_books(_drafts(3))
    first = await _total(books, "release_year = 0")
    assert await _total(books, "release_year = 0") is first  # the same object
    await books.create_books(_drafts(1))
    assert await _total(books, "release_year = 0") == (4, False)


async def test_concurrent_writes_of_several_servers_are_counted(database: Database, twin: Database) -> None:
    servers = [BookDAL(database), BookDAL(twin)]
    chance = random.Random(7)

    async def write(books: BookDAL, turns: int) -> None:
        for turn in range(turns):
            created = await books.create_books(_drafts(chance.randint(1, 5), year=turn))
            await asyncio.gather(*(books.delete_book(each.id) for each in created[1:]), return_exceptions=True)

    async with asyncio.timeout(60):
        await asyncio.gather(*(write(books, 8) for books in servers * 3))
    assert await _kept(database) == (await count_rows(database))[0] == 48


async def test_a_rollback_counts_nothing(database: Database, books: BookDAL) -> None:
    await books.create_books(_drafts(2))

    async def fail(connection: AsyncConnection) -> None:
        await connection.execute(text(_OLD_INSERT.format(year=1)))
        await connection.execute(text("DELETE FROM books WHERE release_year = 0"))
        raise LookupError

    with pytest.raises(LookupError):
        await database.write(fail)
    assert await _kept(database) == 2


async def test_the_writes_of_a_server_of_the_previous_version_are_counted(database: Database, books: BookDAL) -> None:
    await books.create_books(_drafts(2))
    await execute(database, *(_OLD_INSERT.format(year=year) for year in (1, 2, 3)))
    await execute(database, "DELETE FROM books WHERE release_year IN (0, 2)")
    assert await _kept(database) == (await count_rows(database))[0] == 2
    assert await _total(books) == (2, False)


async def test_writes_during_the_migration_are_counted(fresh_database: Database, fresh_url: str) -> None:
    """A server of the previous version goes on writing."""
    await fresh_database.write(lambda connection: connection.run_sync(migrations.upgrade, "0002"))
    old_server = Database(fresh_url, pool_size=2, timeout_seconds=30)
    await execute(old_server, *[_OLD_INSERT.format(year=0)] * 500)
    is_over = asyncio.Event()
    written = 0

    async def write(year: int) -> None:
        nonlocal written
        while not is_over.is_set():
            await execute(old_server, _OLD_INSERT.format(year=year), _OLD_INSERT.format(year=-year))
            await execute(old_server, f"DELETE FROM books WHERE release_year = {-year}")
            written += 1

    writers = [asyncio.create_task(write(year)) for year in (1, 2)]
    while written < 5:  # noqa: ASYNC110  simpler than an event
        await asyncio.sleep(0.005)
    await fresh_database.migrate()
    before = written
    while written < before + 5:  # noqa: ASYNC110
        await asyncio.sleep(0.005)
    is_over.set()
    await asyncio.gather(*writers)
    assert await _kept(fresh_database) == (await count_rows(fresh_database))[0] == 500 + written
    await old_server.close()


@pytest.mark.databases("mariadb")
@pytest.mark.parametrize(
    "left_out",
    [
        ["DROP TABLE book_counts", "DROP TRIGGER count_created_books", "DROP TRIGGER count_deleted_books"],
        ["DELETE FROM book_counts", "DROP TRIGGER count_deleted_books"],
        ["DELETE FROM book_counts WHERE slot > 0"],
    ],
    ids=["all", "a trigger", "some of the rows"],
)
async def test_a_migration_that_was_interrupted_between_its_statements_counts_all_books(
    own_database: Database, left_out: list[str]
) -> None:
    books = BookDAL(own_database)
    await books.create_books(_drafts(3))
    await execute(own_database, *left_out, "UPDATE alembic_version SET version_num = '0002'")
    await own_database.migrate()
    await books.create_books(_drafts(2))
    assert await _kept(own_database) == 5


async def test_books_are_counted_like_those_of_a_filter_where_no_triggers_are_permitted(
    own_database: Database, monkeypatch: pytest.MonkeyPatch
) -> None:
    books = BookDAL(own_database)
    await books.create_books(_drafts(5))
    await execute(own_database, "DELETE FROM book_counts")  # as the migration leaves it
    assert await _total(books) == (5, False)
    await books.create_books(_drafts(1))
    monkeypatch.setattr(totals, "TOTAL_MAX", 3)
    totals.count_matching.cache_clear()
    assert await _total(books) == (3, True)
    totals.count_matching.cache_clear()


@pytest.mark.databases("postgresql")
async def test_truncating_the_table_is_counted(own_database: Database) -> None:
    books = BookDAL(own_database)
    await books.create_books(_drafts(5))
    await execute(own_database, "TRUNCATE books")
    assert await _kept(own_database) == 0
    await books.create_books(_drafts(2))
    assert await _kept(own_database) == 2


@pytest.mark.databases("postgresql")
async def test_a_session_with_another_search_path_is_counted_and_finds_no_table_of_others(
    own_database: Database,
) -> None:
    await BookDAL(own_database).create_books(_drafts(5))
    await execute(
        own_database,
        "CREATE TEMP TABLE book_counts (slot INTEGER, count BIGINT)",
        "SET LOCAL search_path = pg_temp, pg_catalog",
        "DELETE FROM public.books WHERE name <> 'Book 0'",
        "DROP TABLE pg_temp.book_counts",
    )
    assert await _kept(own_database) == 1


@pytest.mark.databases("postgresql", "mariadb")
async def test_transactions_on_two_connections_do_not_wait_for_each_other(own_database: Database) -> None:
    async def write_while(work: Any) -> None:
        async def write(connection: AsyncConnection) -> None:
            await connection.execute(text(_OLD_INSERT.format(year=1)))
            if work:
                await work()

        await own_database.write(write)

    async with asyncio.timeout(20):
        await write_while(lambda: write_while(None))
    assert await _kept(own_database) == 2
