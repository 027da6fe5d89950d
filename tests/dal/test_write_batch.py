"""Writes in flight share a transaction, in which each has the result that it would have alone."""

import asyncio
import sqlite3
from collections.abc import AsyncIterator, Coroutine, Iterator, Sequence
from contextlib import closing, contextmanager
from typing import Any
from uuid import uuid4

import pytest
from sqlalchemy import event, text

from bookstore_grpc.dal.books import BookDAL
from bookstore_grpc.dal.database import Database
from bookstore_grpc.dal.records import BookChanges, BookDraft, BookRecord
from bookstore_grpc.errors import BookNotFound, BookstoreError, DatabaseUnavailable, EtagMismatch, RequestIdReused
from tests.dal.conftest import LOG, count_rows, kinds, statements_of

_DRAFT = BookDraft("Dune", "Frank Herbert", 1965)
_POISON = BookDraft("\ud800", "no driver takes it", 0)
_UNKNOWN = 2**62

Call = Coroutine[Any, Any, Any]


@pytest.fixture
async def narrow(database: Database, database_url: str) -> AsyncIterator[Database]:
    """The same database as `database` with one writing connection: the writes that wait for it are one batch."""
    narrow = Database(database_url, pool_size=1, timeout_seconds=10)
    yield narrow
    await narrow.close()


@contextmanager
def transactions_of(database: Database) -> Iterator[list[str]]:
    """Collect how the transactions of a database end meanwhile."""
    ends: list[str] = []
    engine = database._writer.sync_engine
    listeners = {end: lambda _connection, end=end: ends.append(end) for end in ("commit", "rollback")}
    for end, listener in listeners.items():
        event.listen(engine, end, listener)
    yield ends
    for end, listener in listeners.items():
        event.remove(engine, end, listener)


async def in_one_batch(narrow: Database, *calls: Call) -> list[Any]:
    """Make calls that share a transaction, and return their results and errors."""
    async with narrow._writer.connect():
        tasks = [asyncio.ensure_future(call) for call in calls]
        for _ in range(10):
            await asyncio.sleep(0)
    async with asyncio.timeout(60):
        return await asyncio.gather(*tasks, return_exceptions=True)


async def all_books(database: Database) -> list[BookRecord]:
    page = await BookDAL(database).list_books(page_size=5_000, page_token="", filter="", order_by="")
    return page.books


def _drafts(count: int, *, name: str = "Book") -> list[BookDraft]:
    return [BookDraft(f"{name} {number}", "x", number, uuid4()) for number in range(count)]


async def test_batch_is_one_transaction_and_a_few_statements(narrow: Database) -> None:
    books = BookDAL(narrow)
    stored = await books.create_books(_drafts(60))
    with transactions_of(narrow) as transactions, statements_of(narrow) as statements:
        results = await in_one_batch(
            narrow,
            *(books.create_book(draft) for draft in _drafts(60)),
            *(books.update_book(record.id, BookChanges(name="new")) for record in stored[:30]),
            *(books.delete_book(record.id) for record in stored[30:]),
        )
    assert not any(isinstance(result, Exception) for result in results)
    assert transactions == ["commit"]
    reads = ["SELECT", "SELECT", *(["SELECT"] if narrow.is_embedded else [])]  # the third is of the next id
    assert kinds(statements) == [*reads, "INSERT", "INSERT", "UPDATE", "DELETE", *LOG[narrow.dialect]]
    assert await count_rows(narrow) == (90, 120)


async def test_rejected_calls_of_a_batch_cost_the_others_nothing(narrow: Database) -> None:
    books = BookDAL(narrow)
    used = BookDraft("used", "x", 0, uuid4())
    await books.create_book(used)
    first, second, third = await books.create_books(_drafts(3))
    with transactions_of(narrow) as transactions:
        results = await in_one_batch(
            narrow,
            books.create_book(_DRAFT),
            books.update_book(_UNKNOWN, BookChanges(name="x")),
            books.update_book(first.id, BookChanges(name="first")),
            books.update_book(second.id, BookChanges(name="x"), etag=first.etag),
            books.create_book(used._replace(name="another")),
            books.delete_book(_UNKNOWN),
            books.delete_book(third.id, etag="stale"),
            books.delete_book(second.id),
            books.create_books([_DRAFT, used._replace(author="another"), _DRAFT]),
            books.create_books([_DRAFT, _DRAFT]),
        )
    assert transactions == ["commit"]
    assert [type(result) for result in results] == [
        BookRecord,
        BookNotFound,
        BookRecord,
        EtagMismatch,
        RequestIdReused,
        BookNotFound,
        EtagMismatch,
        type(None),
        RequestIdReused,
        list,
    ]
    stored = {book.id: book for book in await all_books(narrow)}
    assert stored[results[0].id] == results[0]
    assert stored[first.id] == results[2] == first._replace(name="first", update_time=results[2].update_time)
    assert stored[third.id] == third
    assert second.id not in stored
    assert [stored[record.id] for record in results[-1]] == results[-1]
    assert len(stored) == 1 + 2 + 1 + 2


@pytest.mark.parametrize("poison", ["create", "create with an id", "batch", "update"])
async def test_an_operation_that_the_driver_rejects_fails_alone(narrow: Database, poison: str) -> None:
    books = BookDAL(narrow)
    first, second, third = await books.create_books(_drafts(3))
    bad: dict[str, Call] = {
        "create": books.create_book(_POISON),
        "create with an id": books.create_book(_POISON._replace(request_id=uuid4())),
        "batch": books.create_books([_DRAFT, _POISON, _DRAFT]),
        "update": books.update_book(third.id, BookChanges(name="\ud800")),
    }
    mine = bad.pop(poison)
    for other in bad.values():
        other.close()
    results = await in_one_batch(
        narrow,
        books.create_book(_DRAFT),
        books.update_book(first.id, BookChanges(release_year=-1)),
        mine,
        books.update_book(_UNKNOWN, BookChanges(name="x")),
        books.delete_book(second.id),
        books.create_books(_drafts(2)),
    )
    assert isinstance(results[2], Exception)
    assert not isinstance(results[2], BookstoreError)
    assert isinstance(results[3], BookNotFound)
    assert await all_books(narrow) == [results[1], third, results[0], *results[5]]
    assert results[4] is None
    assert narrow._writer.pool.checkedout() == 0  # type: ignore[attr-defined]  # the queue's own method


async def test_one_request_id_twice_in_a_batch_makes_one_book(narrow: Database) -> None:
    books = BookDAL(narrow)
    draft = BookDraft("Dune", "Frank Herbert", 1965, uuid4())
    first, other, second, batch = await in_one_batch(
        narrow,
        books.create_book(draft),
        books.create_book(draft._replace(release_year=1966)),
        books.create_book(draft),
        books.create_books([draft, _DRAFT, draft]),
    )
    assert isinstance(other, RequestIdReused)
    assert first == second == batch[0] == batch[2] != batch[1]
    assert await all_books(narrow) == [first, batch[1]]
    again, another = await in_one_batch(narrow, books.create_book(draft), books.create_book(_DRAFT))
    assert again == first
    assert another.id > first.id
    assert await count_rows(narrow) == (3, 1)


async def test_request_id_of_a_rejected_create_is_free_for_the_next_in_the_batch(narrow: Database) -> None:
    books = BookDAL(narrow)
    used, free = _drafts(2)
    await books.create_book(used)
    rejected, made = await in_one_batch(
        narrow,
        books.create_books([free, used._replace(name="another")]),
        books.create_book(free._replace(name="other")),
    )
    assert isinstance(rejected, RequestIdReused)
    assert made.name == "other"
    assert await count_rows(narrow) == (2, 2)


async def test_of_calls_with_one_etag_the_first_wins(narrow: Database) -> None:
    books = BookDAL(narrow)
    record = await books.create_book(_DRAFT)
    results = await in_one_batch(
        narrow,
        books.update_book(record.id, BookChanges(release_year=1), etag=record.etag),
        books.update_book(record.id, BookChanges(release_year=2), etag=record.etag),
        books.delete_book(record.id, etag=record.etag),
    )
    assert [type(result) for result in results] == [BookRecord, EtagMismatch, EtagMismatch]
    assert await books.get_book(record.id) == results[0]
    assert results[0].etag != record.etag


async def test_deleted_book_is_missing_for_the_rest_of_its_batch_and_after(narrow: Database) -> None:
    books = BookDAL(narrow)
    record = await books.create_book(_DRAFT)
    calls = (
        books.update_book(record.id, BookChanges(name="x")),
        books.delete_book(record.id),
        books.update_book(record.id, BookChanges(name="y")),
        books.delete_book(record.id),
        books.create_book(_DRAFT),
    )
    with transactions_of(narrow) as transactions:
        results = await in_one_batch(narrow, *calls)
    assert transactions == ["commit"]
    assert [type(result) for result in results] == [BookRecord, type(None), BookNotFound, BookNotFound, BookRecord]
    assert results[4].id > record.id
    late, kept = await in_one_batch(
        narrow,
        books.update_book(record.id, BookChanges(name="z")),
        books.update_book(results[4].id, BookChanges(name="z")),
    )
    assert isinstance(late, BookNotFound)
    assert await all_books(narrow) == [kept]


async def test_updates_of_one_book_in_a_batch_build_on_one_another(narrow: Database) -> None:
    books = BookDAL(narrow, clock=lambda: 1_000)
    record = await books.create_book(_DRAFT)
    results = await in_one_batch(
        narrow,
        books.update_book(record.id, BookChanges(name=record.name)),
        books.update_book(record.id, BookChanges(name="new")),
        books.update_book(record.id, BookChanges(name="new"), etag=f"{record.id:x}-{1_001:x}"),
        books.update_book(record.id, BookChanges(author="new")),
        books.update_book(record.id, BookChanges()),
        books.update_book(record.id, BookChanges(release_year=7), etag=record.etag),
    )
    named, authored = record._replace(name="new", update_time=1_001), record._replace(name="new", author="new")
    authored = authored._replace(update_time=1_002)
    assert results[:5] == [record, named, named, authored, authored]
    assert isinstance(results[5], EtagMismatch)
    assert await books.get_book(record.id) == authored


async def test_batch_that_changes_nothing_writes_nothing(narrow: Database) -> None:
    books = BookDAL(narrow)
    records = await books.create_books(_drafts(3))
    with statements_of(narrow) as statements:
        results = await in_one_batch(
            narrow, *(books.update_book(record.id, BookChanges(name=record.name)) for record in records)
        )
    assert results == records
    assert [statement.split()[0] for statement in statements] == ["SELECT"]


async def test_ids_rise_in_the_order_of_the_calls(narrow: Database) -> None:
    books = BookDAL(narrow)
    drafts = _drafts(300)
    calls: list[Call] = [books.create_books(drafts[:100])]
    calls += [books.create_book(draft) for draft in drafts[100:200]]
    calls += [books.create_books(drafts[200:])]
    first, *singles, last = await in_one_batch(narrow, *calls)
    records = [*first, *singles, *last]
    assert [record.name for record in records] == [draft.name for draft in drafts]
    assert [record.id for record in records] == sorted({record.id for record in records})
    assert await all_books(narrow) == records


async def test_largest_batch_and_single_creates_are_stored_together(narrow: Database) -> None:
    books = BookDAL(narrow)
    singles, batch = _drafts(20, name="Single"), _drafts(1_000)
    results = await in_one_batch(
        narrow,
        *(books.create_book(draft) for draft in singles[:10]),
        books.create_books(batch),
        *(books.create_book(draft) for draft in singles[10:]),
    )
    assert [record.name for record in results[10]] == [draft.name for draft in batch]
    assert [record.name for record in results[:10] + results[11:]] == [draft.name for draft in singles]
    assert await count_rows(narrow) == (1_020, 1_020)


async def test_concurrent_gets_return_each_its_own_book_and_see_acknowledged_writes(database: Database) -> None:
    books = BookDAL(database)

    async def write_and_read(number: int) -> None:
        for year in range(5):
            record = await books.create_book(BookDraft(f"{number}", "x", year))
            assert await books.get_book(record.id) == record
            changed = await books.update_book(record.id, BookChanges(name="new"))
            found, missing, again = await asyncio.gather(
                books.get_book(record.id),
                books.get_book(_UNKNOWN + number),
                books.get_book(record.id),
                return_exceptions=True,
            )
            assert found == again == changed
            assert isinstance(missing, BookNotFound)
            assert missing.ids == (_UNKNOWN + number,)
            cancelled = asyncio.create_task(books.get_book(record.id))
            await asyncio.sleep(0)
            cancelled.cancel()
            await books.delete_book(record.id)
            with pytest.raises(BookNotFound):
                await books.get_book(record.id)

    await asyncio.gather(*(write_and_read(number) for number in range(16)))
    assert await count_rows(database) == (0, 0)


async def test_database_that_fails_within_a_batch_is_unavailable_for_all_and_stores_nothing(
    own_database: Database, fresh_url: str
) -> None:
    narrow = Database(fresh_url, pool_size=1, timeout_seconds=0.3 if own_database.is_embedded else 10)
    books = BookDAL(narrow)
    locked, changed, deleted = await books.create_books([_DRAFT] * 3)
    held: Sequence[Call] = (
        books.update_book(locked.id, BookChanges(name="x")),
        books.update_book(changed.id, BookChanges(name="x")),
        books.delete_book(deleted.id),
        books.create_book(_DRAFT._replace(request_id=uuid4())),
        books.create_books([_DRAFT] * 3),
        books.update_book(_UNKNOWN, BookChanges(name="x")),
    )
    if narrow.is_embedded:
        results = await _while_the_file_is_locked(narrow, *held)
    else:
        results = await _while_the_connection_is_killed(own_database, narrow, locked.id, *held)
    assert len(results) == 6
    assert all(isinstance(result, DatabaseUnavailable) for result in results), results
    assert await all_books(narrow) == [locked, changed, deleted]
    made, updated = await in_one_batch(
        narrow, books.create_book(_DRAFT), books.update_book(locked.id, BookChanges(name="y"))
    )
    assert await all_books(narrow) == [updated, changed, deleted, made]
    await narrow.close()


async def _while_the_file_is_locked(narrow: Database, *calls: Call) -> list[Any]:
    with closing(sqlite3.connect(str(narrow.url.database), isolation_level=None)) as other:
        other.execute("BEGIN IMMEDIATE")
        return await in_one_batch(narrow, *calls)


# Of this database, the session that waits for a book's lock.
_WAITING = {
    "postgresql": "SELECT max(pid) FROM pg_stat_activity WHERE datname = current_database() "
    "AND query LIKE '%FOR UPDATE%' AND wait_event_type = 'Lock' AND pid <> pg_backend_pid()",
    "mariadb": "SELECT max(id) FROM information_schema.processlist WHERE db = database() "
    "AND info LIKE '%FOR UPDATE%' AND id <> connection_id()",
}
_KILL = {"postgresql": "SELECT pg_terminate_backend({})", "mariadb": "KILL {}"}
# What has lost its connection before its commit is done once more.
_ATTEMPTS = 2


async def _while_the_connection_is_killed(
    database: Database, narrow: Database, book_id: int, *calls: Call
) -> list[Any]:
    async with database._writer.begin() as holder, database._prober.connect() as killer:
        await holder.execute(text(f"UPDATE books SET release_year = release_year WHERE id = {book_id}"))
        running = asyncio.create_task(in_one_batch(narrow, *calls))
        killed: list[int] = []
        async with asyncio.timeout(20):
            while len(killed) < _ATTEMPTS:
                assert not running.done(), "nothing held the batch"
                await asyncio.sleep(0.02)
                victim = (await killer.execute(text(_WAITING[narrow.dialect]))).scalar_one()
                if victim and victim not in killed:
                    killed.append(victim)
                    await killer.execute(text(_KILL[narrow.dialect].format(victim)))
        return await running
