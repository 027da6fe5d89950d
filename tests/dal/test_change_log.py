"""What writes leave in the log of changes, and in which order."""

import asyncio
import time
from itertools import pairwise
from uuid import uuid4

import pytest
from sqlalchemy import select, text
from sqlalchemy.ext.asyncio import AsyncConnection

from bookstore_grpc.dal.books import BookDAL
from bookstore_grpc.dal.change_log import log_changes
from bookstore_grpc.dal.database import Database
from bookstore_grpc.dal.models import BookChange
from bookstore_grpc.dal.records import (
    BookChanges,
    BookDraft,
    BookUpdate,
    BookVersion,
    Change,
    ChangeType,
)
from bookstore_grpc.errors import BookNotFound, EtagMismatch, RequestIdReused
from bookstore_grpc.limits import AUTHOR_MAX_CODE_POINTS, BATCH_MAX, NAME_MAX_CODE_POINTS
from tests.dal.change_logs import DRAFT, WAIT_SECONDS, all_changes, empty_log, kinds, record
from tests.dal.conftest import execute, statements_of
from tests.dal.test_write_batch import in_one_batch, narrow

__all__ = ["narrow"]  # a fixture

_NOW = 1_767_225_600_000_001


@pytest.fixture(autouse=True)
async def empty(database: Database) -> None:
    await empty_log(database)


@pytest.fixture
def books(database: Database) -> BookDAL:
    return BookDAL(database, clock=lambda: _NOW)


async def test_a_create_is_logged_with_its_book_and_time(database: Database, books: BookDAL) -> None:
    created = await books.create_book(DRAFT)
    assert await all_changes(database) == [Change(ChangeType.CREATED, created, None, time=_NOW, number=1)]


async def test_the_books_of_a_batch_are_logged_as_one_call_in_its_order(database: Database, books: BookDAL) -> None:
    created = await books.create_books([BookDraft(name, "x", 1) for name in "cab"])
    changes = await all_changes(database)
    assert [(change.record, change.number, change.remaining) for change in changes] == [
        (created[0], 1, 2),
        (created[1], 2, 1),
        (created[2], 3, 0),
    ]


async def test_a_replayed_create_is_not_logged(database: Database, books: BookDAL) -> None:
    drafts = [DRAFT._replace(request_id=uuid4()) for _ in range(2)]
    await books.create_books(drafts)
    await books.create_books(drafts)
    assert kinds(await all_changes(database)) == [(1, "CREATED"), (2, "CREATED")]


async def test_only_the_new_books_of_a_partial_replay_are_logged(narrow: Database, books: BookDAL) -> None:
    old, new = (DRAFT._replace(request_id=uuid4()) for _ in range(2))
    await books.create_book(old)
    await books.create_books([old, new, new])
    first, second = await all_changes(narrow)
    assert (second.number, second.remaining) == (2, 0)
    assert second.record.id > first.record.id


async def test_an_update_is_logged_with_the_book_before_and_after(database: Database, books: BookDAL) -> None:
    created = await books.create_book(DRAFT)
    updated = await books.update_book(created.id, BookChanges(name="Dune Messiah"))
    _, change = await all_changes(database)
    assert change == Change(ChangeType.UPDATED, updated, created, time=_NOW, number=2)


async def test_two_updates_of_one_book_in_one_transaction_are_both_logged(narrow: Database, books: BookDAL) -> None:
    created = await books.create_book(DRAFT)
    both = BookDAL(narrow, clock=lambda: _NOW)
    first, second = await in_one_batch(
        narrow,
        both.update_book(created.id, BookChanges(name="first")),
        both.update_book(created.id, BookChanges(name="second")),
    )
    _, *changes = await all_changes(narrow)
    assert [(change.previous, change.record, change.remaining) for change in changes] == [
        (created, first, 0),
        (first, second, 0),
    ]


async def test_two_updates_of_one_book_in_one_call_are_one_call_of_the_log(database: Database, books: BookDAL) -> None:
    created = await books.create_book(DRAFT)
    updates = [BookUpdate(created.id, BookChanges(release_year=year)) for year in (1, 2)]
    first, second = await books.update_books(updates)
    _, *changes = await all_changes(database)
    assert [(change.previous, change.record, change.remaining) for change in changes] == [
        (created, first, 1),
        (first, second, 0),
    ]


async def test_an_update_that_changes_nothing_is_not_logged(database: Database, books: BookDAL) -> None:
    created, other = await books.create_books([DRAFT, DRAFT])
    await books.update_book(created.id, BookChanges(name=created.name))
    await books.update_books(
        [BookUpdate(created.id, BookChanges(author=created.author)), BookUpdate(other.id, BookChanges(name="x"))]
    )
    changes = await all_changes(database)
    assert [(change.number, change.record.id, change.remaining) for change in changes[2:]] == [(3, other.id, 0)]


async def test_a_delete_is_logged_with_the_last_state_of_its_book(database: Database, books: BookDAL) -> None:
    created = await books.create_books([DRAFT, DRAFT, DRAFT])
    await books.delete_books([BookVersion(each.id) for each in created[:2]])
    await books.delete_book(created[2].id)
    changes = (await all_changes(database))[3:]
    assert changes == [
        Change(ChangeType.DELETED, created[0], None, time=_NOW, number=4, remaining=1),
        Change(ChangeType.DELETED, created[1], None, time=_NOW, number=5, remaining=0),
        Change(ChangeType.DELETED, created[2], None, time=_NOW, number=6, remaining=0),
    ]


async def test_an_update_and_a_delete_in_one_transaction_are_both_logged(narrow: Database, books: BookDAL) -> None:
    created = await books.create_book(DRAFT)
    both = BookDAL(narrow, clock=lambda: _NOW)
    updated, deleted = await in_one_batch(
        narrow, both.update_book(created.id, BookChanges(name="last")), both.delete_book(created.id)
    )
    assert deleted is None
    _, update, delete = await all_changes(narrow)
    assert (update.type, update.previous, update.record) == (ChangeType.UPDATED, created, updated)
    assert (delete.type, delete.previous, delete.record) == (ChangeType.DELETED, None, updated)


async def test_changes_of_a_transaction_are_logged_in_the_order_of_its_calls(narrow: Database, books: BookDAL) -> None:
    first, second = await books.create_books([DRAFT, DRAFT])
    both = BookDAL(narrow)
    await in_one_batch(
        narrow,
        both.delete_book(first.id),
        both.create_books([DRAFT, DRAFT]),
        both.update_book(second.id, BookChanges(name="x")),
        both.create_book(DRAFT),
    )
    changes = (await all_changes(narrow))[2:]
    assert [(change.type.name, change.number, change.remaining) for change in changes] == [
        ("DELETED", 3, 0),
        ("CREATED", 4, 1),
        ("CREATED", 5, 0),
        ("UPDATED", 6, 0),
        ("CREATED", 7, 0),
    ]


async def test_each_portion_of_a_purge_is_logged_as_a_call(database: Database, books: BookDAL) -> None:
    created = await books.create_books([BookDraft(f"{number}", "x", number % 2) for number in range(220)])
    await books.purge_books("release_year = 0", seconds=60)
    changes = (await all_changes(database))[220:]
    assert {(change.type, change.previous, change.time) for change in changes} == {(ChangeType.DELETED, None, _NOW)}
    assert sorted(change.record for change in changes) == created[::2]
    assert (changes[0].remaining, changes[99].remaining) == (99, 0)
    assert changes[-1].remaining == 0


async def test_a_purge_that_finds_nothing_logs_nothing(database: Database, books: BookDAL) -> None:
    await books.create_book(DRAFT)
    await books.purge_books("release_year = 0", seconds=60)
    assert len(await all_changes(database)) == 1


async def test_rejected_calls_log_nothing(narrow: Database, books: BookDAL) -> None:
    used = DRAFT._replace(request_id=uuid4())
    created = await books.create_book(used)
    both = BookDAL(narrow)
    results = await in_one_batch(
        narrow,
        both.create_books([DRAFT, used._replace(name="another")]),
        both.update_books([BookUpdate(created.id, BookChanges(name="x")), BookUpdate(2**62, BookChanges(name="x"))]),
        both.update_book(created.id, BookChanges(name="x"), etag="stale"),
        both.delete_books([BookVersion(created.id), BookVersion(2**62)]),
        both.delete_book(created.id, etag="stale"),
        both.create_book(BookDraft("the only one", "x", 1)),
    )
    assert [type(result) for result in results[:5]] == [
        RequestIdReused,
        BookNotFound,
        EtagMismatch,
        BookNotFound,
        EtagMismatch,
    ]
    assert [(change.number, change.record.name) for change in await all_changes(narrow)] == [
        (1, "Dune"),
        (2, "the only one"),
    ]


async def test_a_transaction_that_is_rolled_back_takes_no_number(database: Database, books: BookDAL) -> None:
    await books.create_book(DRAFT)

    async def fail(connection: AsyncConnection) -> None:
        await log_changes(connection, [[Change(ChangeType.CREATED, record())]])
        raise BookNotFound([1])

    with pytest.raises(BookNotFound):
        await database.write(fail)
    assert kinds(await all_changes(database)) == [(1, "CREATED")]
    await books.create_book(DRAFT)
    assert kinds(await all_changes(database)) == [(1, "CREATED"), (2, "CREATED")]


async def test_completed_search_texts_and_entries_are_not_logged(database: Database) -> None:
    books = BookDAL(database, encode=lambda record: record.name.encode())
    created = await books.create_book(BookDraft("Émile", "x", 1))
    await execute(database, "UPDATE books SET name_folded = 'émile'")
    completed = await books.complete_search_texts(after=created.id - 1)
    assert completed is not None
    assert completed.completed == 1
    if database.is_embedded:
        await execute(database, "UPDATE books SET entry = NULL")
        assert await books.complete_entries() == 1
    assert len(await all_changes(database)) == 1


async def test_the_log_of_a_transaction_is_one_statement_more(narrow: Database) -> None:
    books = BookDAL(narrow)
    with statements_of(narrow) as statements:
        await in_one_batch(narrow, *(books.create_book(DRAFT) for _ in range(30)))
    of_log = [statement for statement in statements if "change_log" in statement or "book_changes" in statement]
    assert len(of_log) == 1
    assert statements[-1:] == of_log  # last, because on servers it takes the lock of all writes


@pytest.mark.parametrize("count", [1, BATCH_MAX])
async def test_a_batch_of_the_longest_books_is_logged_in_order(database: Database, count: int) -> None:
    """It has more bytes than MariaDB takes in one statement, and more values than SQLite does."""
    books = BookDAL(database)
    drafts = [
        BookDraft(f"{number:04}" + "𝄞" * (NAME_MAX_CODE_POINTS - 4), "'\\" * (AUTHOR_MAX_CODE_POINTS // 2), number)
        for number in range(count)
    ]
    created = await books.create_books(drafts)
    changes = await all_changes(database)
    assert [(change.number, change.remaining) for change in changes] == [
        (number, count - number) for number in range(1, count + 1)
    ]
    assert [change.record for change in changes] == created


async def test_numbers_follow_the_order_of_commits_on_two_servers(database: Database, twin: Database) -> None:
    """A reader at any moment sees all numbers up to the last one it sees."""
    servers = [BookDAL(database), BookDAL(twin)]
    is_over = False
    seen: list[int] = []

    async def read() -> None:
        while not is_over:
            rows = await twin.read(select(BookChange.number).order_by(BookChange.number))
            numbers = [row[0] for row in rows]
            assert numbers == list(range(1, len(numbers) + 1))
            assert len(numbers) >= (seen[-1] if seen else 0)
            seen.append(len(numbers))
            await asyncio.sleep(0)

    reader = asyncio.create_task(read())
    try:
        await asyncio.gather(*(_write(servers[caller % 2], caller) for caller in range(8)))
    finally:
        is_over = True
        await reader
    changes = await all_changes(database)
    assert [change.number for change in changes] == list(range(1, 8 * 10 + 1))
    by_book: dict[int, list[Change]] = {}
    for change in changes:
        by_book.setdefault(change.record.id, []).append(change)
    for history in by_book.values():  # each starts from what the one before left
        assert history[0].type is ChangeType.CREATED
        for before, after in pairwise(history):
            assert (after.previous or after.record) == before.record


async def _write(books: BookDAL, caller: int) -> None:
    first, second = await books.create_books([BookDraft(f"{caller}", "x", 0)] * 2)
    for year in range(1, 5):
        await books.update_books([BookUpdate(first.id, BookChanges(release_year=year))])
    for year in range(1, 4):
        await books.update_book(second.id, BookChanges(release_year=year))
    await books.delete_book(second.id)


@pytest.mark.databases("postgresql", "mariadb")
async def test_a_transaction_that_is_held_open_after_locking_the_log_holds_back_later_ones(
    database: Database, twin: Database
) -> None:
    held, other = BookDAL(database), BookDAL(twin)
    async with database._writer.connect() as connection:
        await connection.execute(text("SELECT log_id FROM change_log FOR UPDATE"))
        waiting = asyncio.create_task(other.create_book(DRAFT))
        try:
            # The other server's transaction gets as far as the log, and then waits.
            with pytest.raises(TimeoutError):
                async with asyncio.timeout(0.3):
                    await asyncio.shield(waiting)
            assert await all_changes(database) == []
        finally:
            await connection.rollback()
    created = await waiting
    await held.delete_book(created.id)
    assert kinds(await all_changes(twin)) == [(1, "CREATED"), (2, "DELETED")]


@pytest.mark.databases("postgresql", "mariadb")
async def test_a_server_that_hangs_before_its_commit_keeps_others_waiting_for_seconds_only(
    database: Database, twin: Database
) -> None:
    hanging, other = BookDAL(database), BookDAL(twin)
    began = time.monotonic()
    reached = asyncio.Event()

    async def hang(connection: AsyncConnection) -> None:
        await log_changes(connection, [[Change(ChangeType.CREATED, record(), time=1)]])
        reached.set()
        await asyncio.sleep(WAIT_SECONDS)

    stuck = asyncio.create_task(database.write(hang))
    await reached.wait()
    created = await other.create_book(DRAFT)
    assert 4 < time.monotonic() - began < 15
    stuck.cancel()
    await asyncio.wait([stuck])
    assert [change.record for change in await all_changes(twin)] == [created]
    await hanging.delete_book(created.id)
