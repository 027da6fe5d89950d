"""Entries that SQLite stores with the books: a page of them equals one that is encoded from the columns."""

import sqlite3
from contextlib import closing
from itertools import product
from pathlib import Path
from typing import Any
from uuid import uuid4

import pytest
from sqlalchemy import text
from sqlalchemy.dialects.sqlite import dialect as sqlite_dialect
from sqlalchemy.ext.asyncio import AsyncConnection

from bookstore_grpc.dal import migrations, sqlite_reader
from bookstore_grpc.dal.books import BookDAL
from bookstore_grpc.dal.database import Database
from bookstore_grpc.dal.records import FIELDS, BookChanges, BookDraft, BookRecord
from bookstore_grpc.dal.sqlite_entries import SELECT_WITHOUT_ENTRY
from bookstore_grpc.errors import EtagMismatch
from tests.dal.conftest import execute, statements_of
from tests.dal.tricky_books import TRICKY_BOOKS

_ORDERS = ["", *(f"{field}{direction}" for field in FIELDS for direction in ("", " desc")), "release_year desc, author"]
_FILTERS = ["", "release_year > 0", "NOT a", 'name = "*e*"']
# What the version before this migration sends.
_INSERT_OF_OLD_VERSION = (
    "INSERT INTO books (name, author, release_year, create_time, update_time, name_folded, author_folded) "
    "VALUES ('Old', 'Version', 2, 3, 3, 'old', 'version')"
)
_UPDATE_OF_OLD_VERSION = "UPDATE books SET name = 'Older', name_folded = 'older', update_time = update_time + 1"
_MISSING = "SELECT count(*) FROM books WHERE entry IS NULL"


def _encode(record: BookRecord) -> bytes:
    return repr(tuple(record)).encode()


@pytest.fixture
def encoding(sqlite: Database) -> BookDAL:
    return BookDAL(sqlite, encode=_encode)


async def _count(database: Database, statement: str) -> int:
    async def work(connection: AsyncConnection) -> int:
        return int((await connection.execute(text(statement))).scalar_one())

    return await database.write(work)


async def _require_equal_pages(database: Database, encoding: BookDAL) -> None:
    """Walk over all books in every order, by their entries and by their columns."""
    plain = BookDAL(database)
    for filter, order_by in product(_FILTERS, _ORDERS):
        token = None
        while token != "":
            asked: dict[str, Any] = {"page_size": 7, "page_token": token or "", "filter": filter, "order_by": order_by}
            page, expected = await encoding.list_books(**asked), await plain.list_books(**asked)
            assert page.books == [_encode(record) for record in expected.books]
            assert page.next_page_token == expected.next_page_token
            token = page.next_page_token


async def test_pages_of_stored_entries_equal_those_of_the_columns(sqlite: Database, encoding: BookDAL) -> None:
    drafts = [BookDraft(book.name, book.author, book.release_year, uuid4()) for book in TRICKY_BOOKS]
    stored = await encoding.create_books(drafts)
    assert await encoding.create_books(drafts) == stored
    await encoding.create_book(BookDraft("one", "alone", 1))
    for record in stored[::3]:
        await encoding.update_book(record.id, BookChanges(name=f"{record.name}!"))
        with pytest.raises(EtagMismatch):
            await encoding.update_book(record.id, BookChanges(name="?"), etag=record.etag)
    for record in stored[1::3]:
        await encoding.delete_book(record.id)

    assert await _count(sqlite, _MISSING) == 0
    await _require_equal_pages(sqlite, encoding)


async def test_entries_that_are_read_in_a_thread_are_the_same(
    sqlite: Database, encoding: BookDAL, monkeypatch: pytest.MonkeyPatch
) -> None:
    stored = await encoding.create_books([BookDraft(str(number), "x", 1) for number in range(1_000)])
    monkeypatch.setattr(sqlite_reader, "_CALLS_MAX", 0)
    page = await encoding.list_books(page_size=999, page_token="", filter="", order_by="")
    assert page.books == [_encode(record) for record in stored[:999]]
    assert page.next_page_token


async def test_page_of_entries_is_one_statement_that_reads_nothing_else(sqlite: Database, encoding: BookDAL) -> None:
    await encoding.create_books([BookDraft(str(number), "x", 1) for number in range(20)])
    with statements_of(sqlite) as statements:
        await encoding.list_books(page_size=5, page_token="", filter="x", order_by="name")
    (statement,) = statements
    assert statement.startswith("SELECT books.entry, books.name, books.id \nFROM")


async def test_books_of_a_server_of_the_previous_version_are_listed_and_then_completed(
    sqlite: Database, encoding: BookDAL
) -> None:
    first, _ = await encoding.create_books([BookDraft("A", "a", 1), BookDraft("B", "b", 1)])
    await execute(sqlite, _INSERT_OF_OLD_VERSION)
    await execute(sqlite, f"{_UPDATE_OF_OLD_VERSION} WHERE id = {first.id}")
    assert await _count(sqlite, _MISSING) == 2
    assert (await encoding.get_book(first.id)).name == "Older"
    await _require_equal_pages(sqlite, encoding)

    await encoding.create_book(BookDraft("C", "c", 1))
    assert await encoding.complete_entries() == 2
    assert await encoding.complete_entries() == 0
    assert await _count(sqlite, _MISSING) == 0
    await _require_equal_pages(sqlite, encoding)


async def test_a_server_that_encodes_nothing_leaves_no_entry_that_is_out_of_date(
    sqlite: Database, encoding: BookDAL
) -> None:
    changed, _ = await encoding.create_books([BookDraft("A", "a", 1), BookDraft("B", "b", 1)])
    await BookDAL(sqlite).update_book(changed.id, BookChanges(name="Changed"))
    assert await _count(sqlite, _MISSING) == 1
    await _require_equal_pages(sqlite, encoding)


async def test_books_that_were_there_before_the_migration_are_completed(sqlite: Database, encoding: BookDAL) -> None:
    await sqlite.write(lambda connection: connection.run_sync(migrations.downgrade, "0002"))
    for _ in range(600):
        await execute(sqlite, _INSERT_OF_OLD_VERSION)
    await sqlite.migrate()
    await _require_equal_pages(sqlite, encoding)

    completed = 0
    while count := await encoding.complete_entries():
        assert count <= 250
        completed += count
    assert completed == 600
    await _require_equal_pages(sqlite, encoding)


@pytest.mark.usefixtures("sqlite")
async def test_missing_entries_are_found_by_their_index(path: Path) -> None:
    statement = SELECT_WITHOUT_ENTRY.compile(dialect=sqlite_dialect())
    with closing(sqlite3.connect(path)) as connection:
        plan = connection.execute(f"EXPLAIN QUERY PLAN {statement}", (1, 0)).fetchall()
    assert [step[3] for step in plan] == ["SCAN books USING INDEX ix_books_without_entry"]


async def test_ids_go_on_after_books_that_were_deleted_or_inserted_by_others(
    sqlite: Database, encoding: BookDAL
) -> None:
    first, second = await encoding.create_books([BookDraft("A", "a", 1)] * 2)
    await encoding.delete_book(second.id)
    third = await encoding.create_book(BookDraft("C", "c", 1))
    await execute(sqlite, _INSERT_OF_OLD_VERSION)
    fifth = await encoding.create_book(BookDraft("D", "d", 1))
    assert [first.id, second.id, third.id, fifth.id] == [1, 2, 3, 5]
    await execute(sqlite, "DELETE FROM sqlite_sequence")
    assert (await encoding.create_book(BookDraft("E", "e", 1))).id == 6


@pytest.mark.parametrize("count", [1, 2, 3, 255, 256, 257, 1_000, 1_500])
async def test_an_insert_of_any_size_stores_each_book_and_key_once(
    sqlite: Database, encoding: BookDAL, count: int
) -> None:
    drafts = [BookDraft(f"Book {number}", "x", number, uuid4()) for number in range(count)]
    stored = await encoding.create_books(drafts)
    assert [record.id for record in stored] == list(range(1, count + 1))
    assert [(record.name, record.release_year) for record in await encoding.get_books(range(1, count + 1))] == [
        (draft.name, draft.release_year) for draft in drafts
    ]
    assert await encoding.create_books(drafts[::-1]) == stored[::-1]
    assert await _count(sqlite, "SELECT count(*) FROM books") == count
    assert await _count(sqlite, "SELECT count(*) FROM create_requests") == count


async def test_pages_of_the_longest_books_have_as_many_as_without_entries(sqlite: Database, encoding: BookDAL) -> None:
    await encoding.create_books([BookDraft("\U0001f600" * 500, "\U0001f601" * 1_000, 1)] * 700)
    for size in (100, 500, 1_000):
        asked: dict[str, Any] = {"page_size": size, "page_token": "", "filter": "", "order_by": ""}
        page, expected = await encoding.list_books(**asked), await BookDAL(sqlite).list_books(**asked)
        assert page.books == [_encode(record) for record in expected.books]
        assert page.next_page_token == expected.next_page_token
