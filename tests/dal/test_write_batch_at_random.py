"""Random batches of writes: any operations, callers who leave at any moment, two servers that race."""

import asyncio
import random
from collections.abc import Coroutine
from dataclasses import dataclass, field
from typing import Any, NamedTuple
from uuid import UUID, uuid4

from hypothesis import given, settings
from hypothesis import strategies as st

from bookstore_grpc.dal.books import BookDAL
from bookstore_grpc.dal.database import Database
from bookstore_grpc.dal.records import BookChanges, BookDraft, BookRecord, BookUpdate, BookVersion
from bookstore_grpc.errors import BookNotFound, BookstoreError, EtagMismatch, RequestIdReused
from tests.conftest import empty
from tests.dal.conftest import count_rows
from tests.dal.test_write_batch import all_books, in_one_batch, narrow, transactions_of

__all__ = ["narrow"]  # a fixture

_NOW = 1_000_000
_AT_FIRST = 3
_REQUEST_IDS = [UUID(int=number) for number in range(3)]


class Create(NamedTuple):
    drafts: list[BookDraft]


class Update(NamedTuple):
    book: int
    changes: BookChanges
    etag: int | None


class Delete(NamedTuple):
    book: int
    etag: int | None


class UpdateMany(NamedTuple):
    updates: list[Update]


class DeleteMany(NamedTuple):
    deletes: list[Delete]


Step = Create | Update | Delete | UpdateMany | DeleteMany
#: A book with the number of its creation in place of its id.
Numbered = BookRecord
Outcome = list[Numbered] | type[BookstoreError] | None


@dataclass
class Model:
    """A model of a batch: one operation after the other, on a dict."""

    books: dict[int, Numbered] = field(default_factory=dict)
    made: dict[UUID, tuple[BookDraft, Numbered]] = field(default_factory=dict)
    count: int = 0

    def run(self, step: Step) -> Outcome:
        match step:
            case Create(drafts):
                return self._create(drafts)
            case Update():
                return self._update_all([step])
            case UpdateMany(updates):
                return self._update_all(updates)
            case Delete():
                return self._delete_all([step])
            case DeleteMany(deletes):
                return self._delete_all(deletes)

    def _update_all(self, updates: list[Update]) -> Outcome:
        before = dict(self.books)
        if any(each.book not in self.books for each in updates):
            return BookNotFound
        outcome = []
        for number, changes, etag in updates:
            if rejected := self._rejected(number, etag):
                self.books = before
                return rejected
            outcome.append(self._update(self.books[number], changes))
        return outcome

    def _delete_all(self, deletes: list[Delete]) -> Outcome:
        rejections = [self._rejected(number, etag) for number, etag in deletes]
        for rejected in (BookNotFound, EtagMismatch):
            if rejected in rejections:
                return rejected
        for number, _ in deletes:
            del self.books[number]
        return None

    def _create(self, drafts: list[BookDraft]) -> Outcome:
        seen = {request_id: draft for request_id, (draft, _) in self.made.items()}
        for draft in drafts:
            if draft.request_id and seen.setdefault(draft.request_id, draft) != draft:
                return RequestIdReused
        outcome = []
        for draft in drafts:
            if draft.request_id in self.made:
                outcome.append(self.made[draft.request_id][1])
                continue
            values = {name: value for name, value in draft._asdict().items() if name != "request_id"}
            book = Numbered(id=self.count, create_time=_NOW, update_time=_NOW, **values)
            self.books[self.count] = book
            self.count += 1
            if draft.request_id:
                self.made[draft.request_id] = (draft, book)
            outcome.append(book)
        return outcome

    def _rejected(self, number: int, etag: int | None) -> type[BookstoreError] | None:
        if number not in self.books:
            return BookNotFound
        return EtagMismatch if etag is not None and etag != self.books[number].update_time else None

    def _update(self, book: Numbered, changes: BookChanges) -> Numbered:
        new = book._replace(**{name: value for name, value in changes._asdict().items() if value is not None})
        if new != book:
            self.books[book.id] = new._replace(update_time=book.update_time + 1)
        return self.books[book.id]


_NAMES = st.sampled_from("abc")
_YEARS = st.integers(0, 1)
_DRAFTS = st.builds(BookDraft, _NAMES, st.just("x"), _YEARS, st.none() | st.sampled_from(_REQUEST_IDS))
_CHANGES = st.builds(BookChanges, st.none() | _NAMES, st.none() | st.just("y"), st.none() | _YEARS)
_BOOKS = st.integers(0, _AT_FIRST)  # the last is missing
_ETAGS = st.none() | st.integers(_NOW, _NOW + 3)
_UPDATES = st.builds(Update, _BOOKS, _CHANGES, _ETAGS)
_DELETES = st.builds(Delete, _BOOKS, _ETAGS)
_STEPS = st.lists(
    st.builds(Create, st.lists(_DRAFTS, min_size=1, max_size=3))
    | _UPDATES
    | _DELETES
    | st.builds(UpdateMany, st.lists(_UPDATES, min_size=1, max_size=3))
    | st.builds(DeleteMany, st.lists(_DELETES, min_size=1, max_size=3, unique_by=lambda delete: delete.book)),
    min_size=1,
    max_size=16,
)


async def _outcomes(database: Database, steps: list[Step], *, together: bool) -> tuple[list[Outcome], list[Numbered]]:
    """Run steps on three books, and return the result of each and what is stored in the end."""
    await empty(database)
    books = BookDAL(database, clock=lambda: _NOW)
    first = await books.create_books([BookDraft("a", "x", 0)] * _AT_FIRST)
    ids = [*(record.id for record in first), 2**60]

    def etag(step: Update | Delete) -> str:
        return "" if step.etag is None else f"{ids[step.book]:x}-{step.etag:x}"

    def call(step: Step) -> Coroutine[Any, Any, Any]:
        match step:
            case Create(drafts):
                return books.create_books(drafts)
            case Update():
                return books.update_book(ids[step.book], step.changes, etag=etag(step))
            case UpdateMany(updates):
                return books.update_books([BookUpdate(ids[each.book], each.changes, etag(each)) for each in updates])
            case Delete():
                return books.delete_book(ids[step.book], etag=etag(step))
            case DeleteMany(deletes):
                return books.delete_books([BookVersion(ids[each.book], etag(each)) for each in deletes])

    if together:
        with transactions_of(database) as transactions:
            results = await in_one_batch(database, *map(call, steps))
        assert transactions == ["commit"]
    else:
        results = [(await asyncio.gather(call(step), return_exceptions=True))[0] for step in steps]
    made = {record.id for result in results if isinstance(result, list) for record in result}
    numbers = {book_id: number for number, book_id in enumerate([*ids[:_AT_FIRST], *sorted(made - set(ids))])}

    def outcome(result: Any) -> Outcome:
        if isinstance(result, BookstoreError):
            return type(result)
        if result is None:
            return None
        return [numbered(record) for record in (result if isinstance(result, list) else [result])]

    def numbered(record: BookRecord) -> Numbered:
        return record._replace(id=numbers[record.id])

    return [outcome(result) for result in results], [numbered(record) for record in await all_books(database)]


def _named(step: Step) -> list[int]:
    """Return the books that a step names."""
    match step:
        case Create():
            return []
        case UpdateMany(updates):
            return [each.book for each in updates]
        case DeleteMany(deletes):
            return [each.book for each in deletes]
    return [step.book]


async def _check(database: Database, steps: list[Step]) -> None:
    model = Model()
    model.run(Create([BookDraft("a", "x", 0)] * _AT_FIRST))
    # The ids of the books that a batch creates are not known before, so no step names them.
    expected = [
        BookNotFound if any(number >= _AT_FIRST for number in _named(step)) else model.run(step) for step in steps
    ]
    in_the_end = sorted(model.books.values())
    for together in (True, False):
        outcomes, stored = await _outcomes(database, steps, together=together)
        assert outcomes == expected
        assert stored == in_the_end


@settings(max_examples=12)
@given(steps=_STEPS)
async def test_any_batch_has_the_results_of_its_calls_one_after_the_other(narrow: Database, steps: list[Step]) -> None:
    await _check(narrow, steps)


@settings(max_examples=40)
@given(steps=_STEPS)
async def test_any_batch_on_sqlite_has_the_results_of_its_calls_one_after_the_other(
    sqlite: Database, steps: list[Step]
) -> None:
    await _check(sqlite, steps)


def connections_in_use(database: Database) -> Any:
    return database._writer.pool.checkedout()  # type: ignore[attr-defined]  # the queue's own method


async def test_operations_cancelled_at_any_moment_do_not_affect_the_others(own_database: Database) -> None:
    books = BookDAL(own_database)
    chance = random.Random(3)
    kept = await books.create_books([BookDraft("kept", "x", 0)] * 4)
    returned: set[int] = set()
    updates_returned = 0
    for year in range(1, 201 if own_database.is_embedded else 61):
        tasks = [
            asyncio.create_task(call)
            for _ in range(3)
            for call in (
                books.create_book(BookDraft("new", "x", 0, uuid4())),
                books.create_book(BookDraft("new", "x", 0)),
                books.update_book(kept[0].id, BookChanges(release_year=year)),
            )
        ]
        leaving = chance.sample(tasks, chance.choice([1, 4, 8, 9]))
        for task in leaving:
            for _ in range(chance.choice([0, 0, 1, 3, 10, 30])):
                await asyncio.sleep(0)
            task.cancel()
        async with asyncio.timeout(30):
            results = await asyncio.gather(*tasks, return_exceptions=True)
        for task, result in zip(tasks, results, strict=True):
            assert isinstance(result, BookRecord) or (task in leaving and isinstance(result, asyncio.CancelledError))
        returned |= {result.id for result in results if isinstance(result, BookRecord)}
        if any(isinstance(result, BookRecord) for result in results[2::3]):
            updates_returned += 1
            assert (await books.get_book(kept[0].id)).release_year == year
    stored = {record.id for record in await all_books(own_database)}
    assert returned <= stored
    assert updates_returned > 10
    async with asyncio.timeout(30):
        while connections_in_use(own_database):  # noqa: ASYNC110  a pool sets no event
            await asyncio.sleep(0.01)
        # Every row can be locked again, on every connection of the pool.
        await asyncio.gather(*(books.update_book(record.id, BookChanges(name="free")) for record in kept))
    assert {record.name for record in await books.get_books([record.id for record in kept])} == {"free"}


async def test_servers_that_race_with_request_ids_make_one_book_for_each(database: Database, twin: Database) -> None:
    here, there = BookDAL(database), BookDAL(twin)
    chance = random.Random(5)
    for _ in range(10):
        drafts = [BookDraft(f"Book {number}", "x", number, uuid4()) for number in range(20)]
        shuffled = [chance.sample(drafts, 20) for _ in range(4)]
        results = await asyncio.gather(
            *(
                books.create_book(draft)
                for books, order in zip([here, there] * 2, shuffled, strict=True)
                for draft in order
            ),
            here.create_books(drafts),
            there.create_books(drafts[::-1]),
        )
        *singles, forth, back = results
        assert forth == back[::-1]
        assert set(singles) == set(forth)
        assert len(set(forth)) == 20
    assert await count_rows(database) == (200, 200)


async def test_servers_that_race_for_the_same_books_lose_no_update(database: Database, twin: Database) -> None:
    counted = await BookDAL(database).create_books([BookDraft("counted", "x", 0)] * 3)

    async def count_up(books: BookDAL, book_id: int) -> None:
        for _ in range(5):
            while True:
                record = await books.get_book(book_id)
                try:
                    await books.update_book(
                        book_id, BookChanges(release_year=record.release_year + 1), etag=record.etag
                    )
                    break
                except EtagMismatch:
                    continue

    async def disturb(books: BookDAL, number: int) -> None:
        for turn in range(10):
            for record in random.Random(number).sample(counted, 3):
                await books.update_book(record.id, BookChanges(author=f"{number} {turn}"))

    servers = [BookDAL(database), BookDAL(twin)]
    async with asyncio.timeout(60):
        await asyncio.gather(
            *(count_up(books, record.id) for books in servers for record in counted for _ in range(3)),
            *(disturb(books, number) for number, books in enumerate(servers * 2)),
        )
    found = await BookDAL(twin).get_books([record.id for record in counted])
    assert [record.release_year for record in found] == [30, 30, 30]


async def test_servers_that_delete_and_update_the_same_books_agree(database: Database, twin: Database) -> None:
    servers = [BookDAL(database), BookDAL(twin)]
    chance = random.Random(11)
    for _ in range(10):
        stored = await servers[0].create_books([BookDraft("doomed", "x", 0)] * 10)
        deletes = [
            books.delete_book(record.id) for record in chance.sample(stored, 10) for books in chance.sample(servers, 2)
        ]
        updates = [
            books.update_book(record.id, BookChanges(release_year=1))
            for record in chance.sample(stored, 10)
            for books in servers
        ]
        calls = [*deletes, *updates]
        results = await asyncio.gather(*calls, return_exceptions=True)
        deleted, updated = results[: len(deletes)], results[len(deletes) :]
        assert deleted.count(None) == 10
        assert all(result is None or isinstance(result, BookNotFound) for result in deleted)
        assert all(isinstance(result, BookRecord | BookNotFound) for result in updated)
    assert await count_rows(database) == (0, 0)
