"""What BookDAL promises beyond the wire: how many statements, whose clock, and who wins a race."""

import asyncio
import gc
from collections.abc import Callable, Iterator
from typing import Any

import pytest

from bookstore_grpc.dal.books import BookDAL
from bookstore_grpc.dal.database import Database
from bookstore_grpc.dal.records import BookChanges, BookDraft, BookRecord
from bookstore_grpc.errors import BookNotFound, BookstoreError, EtagMismatch
from tests.dal.conftest import LOG, count_rows, execute, kinds, statements_of

_DRAFT = BookDraft("Dune", "Frank Herbert", 1965)


def _drafts(count: int) -> list[BookDraft]:
    return [BookDraft(f"Book {number}", "x", number % 2_000) for number in range(count)]


def _clock(*moments: int) -> Callable[[], int]:
    rest = iter(moments)
    return lambda: next(rest)


class TestStatements:
    async def test_get_is_one(self, database: Database) -> None:
        books = BookDAL(database)
        record = await books.create_book(_DRAFT)
        with statements_of(database) as statements:
            assert await books.get_book(record.id) == record
        assert len(statements) == 1

    async def test_get_of_a_thousand_is_one(self, database: Database) -> None:
        books = BookDAL(database)
        stored = await books.create_books(_drafts(1_000))
        ids = [record.id for record in reversed(stored)]
        with statements_of(database) as statements:
            assert await books.get_books(ids) == stored[::-1]
        assert len(statements) == 1

    async def test_page_is_one(self, database: Database) -> None:
        books = BookDAL(database)
        await books.create_books(_drafts(100))
        token = ""
        for _ in range(3):
            with statements_of(database) as statements:
                page = await books.list_books(page_size=30, page_token=token, filter="book", order_by="name desc")
            assert len(page.books) == 30
            assert len(statements) == 1
            token = page.next_page_token

    async def test_create_without_a_request_id_is_one_and_that_of_the_log(self, database: Database) -> None:
        with statements_of(database) as statements:
            await BookDAL(database).create_book(_DRAFT)
        reads = ["SELECT"] if database.is_embedded else []  # of the next id
        assert kinds(statements) == [*reads, "INSERT", *LOG[database.dialect]]

    async def test_creates_do_not_grow_by_the_book(self, database: Database) -> None:
        books = BookDAL(database)
        counts = {}
        for size in (500, 1_000):
            with statements_of(database) as statements:
                await books.create_books(_drafts(size))
            counts[size] = len(statements)
        # A statement holds as many rows as its parameters allow.
        assert counts[1_000] <= 10

    async def test_update_that_changes_nothing_writes_nothing(self, database: Database) -> None:
        books = BookDAL(database)
        record = await books.create_book(_DRAFT)
        for changes in (BookChanges(), BookChanges(name="Dune"), BookChanges("Dune", "Frank Herbert", 1965)):
            with statements_of(database) as statements:
                assert await books.update_book(record.id, changes) == record
            assert kinds(statements) == ["SELECT"]

    async def test_update_and_delete_are_two_each_and_that_of_the_log(self, database: Database) -> None:
        books = BookDAL(database)
        record = await books.create_book(_DRAFT)
        with statements_of(database) as statements:
            await books.update_book(record.id, BookChanges(name="Dune Messiah"))
        assert kinds(statements) == ["SELECT", "UPDATE", *LOG[database.dialect]]
        with statements_of(database) as statements:
            await books.delete_book(record.id)
        assert kinds(statements) == ["SELECT", "DELETE", *LOG[database.dialect]]


class TestClock:
    async def test_times_come_from_the_clock(self, database: Database) -> None:
        books = BookDAL(database, clock=_clock(1_000_001, 2_000_002))
        record = await books.create_book(_DRAFT)
        assert (record.create_time, record.update_time) == (1_000_001, 1_000_001)
        changed = await books.update_book(record.id, BookChanges(release_year=1966))
        assert (changed.create_time, changed.update_time) == (1_000_001, 2_000_002)
        assert await books.get_book(record.id) == changed

    async def test_etag_differs_though_the_clock_stands_still_or_goes_back(self, database: Database) -> None:
        books = BookDAL(database, clock=_clock(1_000, 1_000, 5, 2_000))
        record = await books.create_book(_DRAFT)
        records = [record]
        for year in (1, 2, 3):
            records.append(await books.update_book(record.id, BookChanges(release_year=year)))
        assert [record.update_time for record in records] == [1_000, 1_001, 1_002, 2_000]
        assert len({record.etag for record in records}) == 4

    async def test_times_at_the_ends_of_what_can_be_stored_come_back(self, database: Database) -> None:
        books = BookDAL(database, clock=_clock(-(2**62), 2**62))
        for _ in range(2):
            record = await books.create_book(_DRAFT)
            assert await books.get_book(record.id) == record


class TestIds:
    async def test_id_is_not_given_again_after_its_book_is_deleted(self, database: Database) -> None:
        books = BookDAL(database)
        first, second = await books.create_books(_drafts(2))
        await books.delete_book(second.id)
        await books.delete_book(first.id)
        assert (await books.create_book(_DRAFT)).id > second.id

    async def test_books_of_a_batch_are_returned_in_their_order(self, database: Database) -> None:
        books = BookDAL(database)
        drafts = _drafts(1_000)[::-1]
        stored = await books.create_books(drafts)
        assert [record.name for record in stored] == [draft.name for draft in drafts]
        assert [record.id for record in stored] == sorted({record.id for record in stored})
        assert await books.get_books([record.id for record in stored]) == stored

    async def test_all_missing_ids_are_named_once_and_in_order(self, database: Database) -> None:
        books = BookDAL(database)
        record = await books.create_book(_DRAFT)
        unknown = record.id + 1_000
        with pytest.raises(BookNotFound) as caught:
            await books.get_books([unknown + 1, record.id, unknown, unknown + 1, 2**63 - 1])
        assert caught.value.ids == (unknown + 1, unknown, 2**63 - 1)

    async def test_repeated_ids_are_returned_as_often(self, database: Database) -> None:
        books = BookDAL(database)
        one, other = await books.create_books(_drafts(2))
        assert await books.get_books([other.id, one.id, other.id]) == [other, one, other]


class TestRaces:
    async def test_updates_of_different_fields_all_survive(self, database: Database, twin: Database) -> None:
        here, there = BookDAL(database), BookDAL(twin)
        record = await here.create_book(_DRAFT)
        await asyncio.gather(
            here.update_book(record.id, BookChanges(name="new name")),
            there.update_book(record.id, BookChanges(author="new author")),
            here.update_book(record.id, BookChanges(release_year=-1)),
        )
        changed = await there.get_book(record.id)
        assert (changed.name, changed.author, changed.release_year) == ("new name", "new author", -1)

    async def test_of_many_updates_with_one_etag_one_wins(self, database: Database, twin: Database) -> None:
        record = await BookDAL(database).create_book(_DRAFT)
        results = await asyncio.gather(
            *(
                BookDAL(place).update_book(record.id, BookChanges(release_year=number), etag=record.etag)
                for number, place in enumerate([database, twin] * 5)
            ),
            return_exceptions=True,
        )
        won = [result for result in results if isinstance(result, BookRecord)]
        lost = [result for result in results if isinstance(result, EtagMismatch)]
        assert (len(won), len(lost)) == (1, 9)
        assert await BookDAL(twin).get_book(record.id) == won[0]

    async def test_concurrent_update_and_delete_leave_no_book(self, database: Database, twin: Database) -> None:
        here, there = BookDAL(database), BookDAL(twin)
        for record in await here.create_books(_drafts(10)):
            updated, deleted = await asyncio.gather(
                here.update_book(record.id, BookChanges(name="changed")),
                there.delete_book(record.id),
                return_exceptions=True,
            )
            assert isinstance(updated, BookRecord | BookNotFound)
            assert deleted is None
        assert await count_rows(database) == (0, 0)

    async def test_of_many_deletes_one_finds_the_book(self, database: Database, twin: Database) -> None:
        record = await BookDAL(database).create_book(_DRAFT)
        results = await asyncio.gather(
            *(BookDAL(place).delete_book(record.id) for place in [database, twin] * 3), return_exceptions=True
        )
        assert sum(result is None for result in results) == 1
        assert sum(isinstance(result, BookNotFound) for result in results) == 5

    async def test_update_of_a_stale_etag_changes_nothing(self, database: Database) -> None:
        books = BookDAL(database)
        record = await books.create_book(_DRAFT)
        changed = await books.update_book(record.id, BookChanges(name="x"))
        for attempt in (
            books.update_book(record.id, BookChanges(name="y"), etag=record.etag),
            books.delete_book(record.id, etag=record.etag),
            books.delete_book(record.id, etag="nonsense"),
        ):
            with pytest.raises(EtagMismatch):
                await attempt
        assert await books.get_book(record.id) == changed


@pytest.fixture
def no_garbage_collection() -> Iterator[None]:
    """Without it what a connection left behind stays, as it may for long in a server at rest."""
    gc.disable()
    yield
    gc.enable()


@pytest.mark.usefixtures("no_garbage_collection")
async def test_write_that_is_cancelled_keeps_neither_lock_nor_connection(own_database: Database) -> None:
    books = BookDAL(own_database)
    for turns in [*range(60)] * 3:
        cancelled = asyncio.create_task(books.create_books(_drafts(3)))
        for _ in range(turns):
            await asyncio.sleep(0)
        cancelled.cancel()
        await asyncio.wait([cancelled])
        await books.create_books(_drafts(3))
    stored, _ = await count_rows(own_database)
    assert stored % 3 == 0
    pool: Any = own_database._writer.pool
    for _ in range(500):  # an abandoned batch ends a little after its callers are cancelled
        if pool.checkedout():
            await asyncio.sleep(0.01)
    assert pool.checkedout() == 0


async def test_writes_cancelled_in_a_crowd_fail_no_other(own_database: Database) -> None:
    books = BookDAL(own_database)
    for turns in range(0, 40, 2):
        tasks = [asyncio.create_task(books.create_books(_drafts(3))) for _ in range(20)]
        for _ in range(turns):
            await asyncio.sleep(0)
        for task in tasks[::2]:
            task.cancel()
        results = await asyncio.gather(*tasks, return_exceptions=True)
        assert not any(isinstance(result, BookstoreError) for result in results)
    stored, _ = await count_rows(own_database)
    assert stored % 3 == 0


async def test_texts_come_back_as_they_went_in(database: Database) -> None:
    books = BookDAL(database)
    for text in (
        "\U0001f600" * 500,
        "%s %(x)s :x $1 ?",
        "\\",
        "'",
        '"',
        "a\u0301\u0323",
        "\ufeff",
        "\U0010ffff",
        "\u2028",
    ):
        record = await books.create_book(BookDraft(text, text, 0))
        assert await books.get_book(record.id) == record


async def test_folded_texts_follow_an_update(database: Database) -> None:
    books = BookDAL(database)
    record = await books.create_book(_DRAFT)
    await books.update_book(record.id, BookChanges(name="ÜBER", author="STRAẞE"))
    for filter, is_found in (("über", True), ("strasse", True), ("dune", False), ("herbert", False)):
        page = await books.list_books(page_size=5, page_token="", filter=filter, order_by="")
        assert bool(page.books) == is_found


async def test_rows_of_another_writer_are_read(database: Database) -> None:
    """The columns have what the models define, also in rows that were stored by other means."""
    await execute(
        database,
        "INSERT INTO books (id, name, author, release_year, create_time, update_time, name_folded, author_folded) "
        "VALUES (424242, 'N', 'A', 1, 2, 3, 'n', 'a')",
    )
    assert await BookDAL(database).get_book(424242) == BookRecord(424242, "N", "A", 1, 2, 3)
