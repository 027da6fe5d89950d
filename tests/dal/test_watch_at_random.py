"""Random writes between the pages of a watch of existing books, which is resumed at random pages.

What it has sent is at every page what the database had at the position of its token: all books up to some id.
"""

from collections.abc import Iterator, Mapping
from contextlib import AsyncExitStack
from typing import NamedTuple

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from bookstore_grpc.dal import change_log, change_pages, change_tail, watch
from bookstore_grpc.dal.books import BookDAL
from bookstore_grpc.dal.database import Database
from bookstore_grpc.dal.records import (
    BookChanges,
    BookDraft,
    BookRecord,
    BookUpdate,
    BookVersion,
    ChangePage,
    ChangeType,
)
from bookstore_grpc.dal.resume_tokens import ResumePoint, resume_point_from_token
from bookstore_grpc.dal.watch import WatchStart
from tests.conftest import empty
from tests.dal.change_logs import Pages, all_changes, empty_log, next_page, watching
from tests.dal.test_write_batch import all_books

_CALL_MAX = 4
_CHECKPOINT_SECONDS = 0.002
_YEARS_MAX = 3

Books = Mapping[int, BookRecord]


class Create(NamedTuple):
    years: list[int]


class Update(NamedTuple):
    books: list[int]
    year: int


class Delete(NamedTuple):
    books: set[int]


class Purge(NamedTuple):
    year: int


class Receive(NamedTuple):
    """Receive a page, and then resume with its token if `is_resumed`."""

    is_resumed: bool


Step = Create | Update | Delete | Purge | Receive

_years = st.integers(1, _YEARS_MAX)
_books = st.integers(0, 9)
_writes = st.one_of(
    st.builds(Create, st.lists(_years, min_size=1, max_size=_CALL_MAX)),
    st.builds(Update, st.lists(_books, min_size=1, max_size=_CALL_MAX), _years),
    st.builds(Delete, st.sets(_books, min_size=1, max_size=2)),
    st.builds(Purge, _years),
)
_rounds = st.lists(st.tuples(st.lists(_writes, max_size=3), st.builds(Receive, st.booleans())), max_size=8)
_steps = _rounds.map(lambda rounds: [step for writes, receive in rounds for step in (*writes, receive)])


@pytest.fixture
def small_portions(monkeypatch: pytest.MonkeyPatch) -> Iterator[None]:
    """Read, keep and send few books and changes at once, so that few are many."""
    monkeypatch.setattr(watch, "EXISTING_READ_MAX", 2)
    monkeypatch.setattr(change_log, "CHANGES_READ_MAX", _CALL_MAX + 1)
    monkeypatch.setattr(change_pages, "RESPONSE_CHANGES_MAX", 3)
    monkeypatch.setattr(change_tail, "RECENT_CHANGES_MAX", 3)
    watch._existing_statement.cache_clear()
    yield
    watch._existing_statement.cache_clear()


class Copy:
    """A caller's copy of the books that match a filter, made of the pages of a watch and of those that resume it."""

    def __init__(self, books: BookDAL, *, year: int | None, log_id: str) -> None:
        self.books: dict[int, BookRecord] = {}
        self.point = ResumePoint(change_log.Position(0, 0), 0)
        self._dal = books
        self._year = year
        self._filter = f"release_year = {year}" if year else ""
        self._log_id = log_id
        self._stack = AsyncExitStack()
        self._pages: Pages | None = None
        self._token = ""

    def is_wanted(self, record: BookRecord) -> bool:
        return self._year is None or record.release_year == self._year

    async def receive(self) -> None:
        if self._pages is None:
            pages = watching(
                self._dal,
                filter=self._filter,
                start=WatchStart.EXISTING,
                resume_token=self._token,
                checkpoint_seconds=_CHECKPOINT_SECONDS,
            )
            self._pages = await self._stack.enter_async_context(pages)
        self._apply(await next_page(self._pages))

    async def leave(self) -> None:
        await self._stack.aclose()
        self._pages = None

    def _apply(self, page: ChangePage) -> None:
        for change in page.changes:
            if change.type is ChangeType.EXISTING:
                assert change.record.id not in self.books
            if change.type is ChangeType.DELETED or not self.is_wanted(change.record):
                self.books.pop(change.record.id, None)
            else:
                self.books[change.record.id] = change.record
        self._token = page.resume_token
        before, self.point = (
            self.point,
            resume_point_from_token(page.resume_token, log_id=self._log_id, filter=self._filter),
        )
        assert self.point.position.number >= before.position.number
        assert page.is_existing_sent == (self.point.after_id is None)


async def _write(books: BookDAL, ids: list[int], step: Create | Update | Delete | Purge) -> None:
    """Write, with numbers of books in the order of `ids`, of which those that do not exist are left out."""
    match step:
        case Create(years):
            ids += [each.id for each in await books.create_books([BookDraft("a", "b", year) for year in years])]
        case Update(numbers, year):
            changes = BookChanges(release_year=year)
            if known := [BookUpdate(ids[number], changes) for number in numbers if number < len(ids)]:
                await books.update_books(known)
        case Delete(numbers):
            if doomed := [BookVersion(ids[number]) for number in sorted(numbers) if number < len(ids)]:
                await books.delete_books(doomed)
        case Purge(year):
            await books.purge_books(f"release_year = {year}", seconds=60)
    ids[:] = [each for each in ids if each in {book.id for book in await all_books(books._database)}]


async def _states(database: Database) -> list[Books]:
    """Return the books after each change of the log, from none on."""
    states: list[Books] = [{}]
    for change in await all_changes(database):
        books = dict(states[-1])
        if change.type is ChangeType.DELETED:
            assert books.pop(change.record.id) == change.record
        else:
            assert books.get(change.record.id) == change.previous
            books[change.record.id] = change.record
        states.append(books)
    return states


def _up_to(state: Books, copy: Copy) -> Books:
    last_id = copy.point.after_id
    return {
        book_id: book
        for book_id, book in state.items()
        if copy.is_wanted(book) and (last_id is None or book_id <= last_id)
    }


@pytest.mark.usefixtures("small_portions")
@settings(max_examples=60)
@given(first=st.lists(_years, max_size=8), steps=_steps, year=st.one_of(st.none(), st.just(1)))
async def test_a_copy_is_at_every_page_what_the_database_had(
    migrated_database: Database, first: list[int], steps: list[Step], year: int | None
) -> None:
    await empty(migrated_database)
    await empty_log(migrated_database)
    books, ids = BookDAL(migrated_database), list[int]()
    if first:
        await _write(books, ids, Create(first))
    copy = Copy(books, year=year, log_id=(await books.changes._reader.head()).log_id)
    try:
        for step in [*steps, Receive(is_resumed=False)]:
            if not isinstance(step, Receive):
                await _write(books, ids, step)
                continue
            await copy.receive()
            assert copy.books == _up_to((await _states(migrated_database))[copy.point.position.number], copy)
            if step.is_resumed:
                await copy.leave()
        last = (await books.changes._reader.head()).position.number
        while copy.point.after_id is not None or copy.point.position.number < last:
            await copy.receive()
        stored = {book.id: book for book in await all_books(migrated_database) if copy.is_wanted(book)}
        assert copy.books == stored
    finally:
        await copy.leave()
