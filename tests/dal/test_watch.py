"""Watches: where they start, what they send, and where they can be resumed."""

import time
from collections.abc import Sequence

import pytest

from bookstore_grpc.dal.books import BookDAL
from bookstore_grpc.dal.database import Database
from bookstore_grpc.dal.records import BookChanges, BookDraft, BookRecord, Change, ChangePage, ChangeType
from bookstore_grpc.dal.watch import WatchStart
from bookstore_grpc.errors import InvalidFilter, InvalidResumeToken, ResumeTokenExpired
from bookstore_grpc.limits import (
    AUTHOR_MAX_CODE_POINTS,
    BATCH_MAX,
    EXISTING_READ_MAX,
    NAME_MAX_CODE_POINTS,
    PAGE_MAX_CODE_POINTS,
)
from tests.dal.change_logs import (
    DRAFT,
    Pages,
    empty_log,
    kinds,
    log_calls,
    log_creates,
    next_changes,
    next_page,
    record,
    watching,
)
from tests.dal.conftest import statements_of

_LONGEST = BookDraft("n" * NAME_MAX_CODE_POINTS, "a" * AUTHOR_MAX_CODE_POINTS, 1)
_FIT = PAGE_MAX_CODE_POINTS // (NAME_MAX_CODE_POINTS + AUTHOR_MAX_CODE_POINTS)


@pytest.fixture
async def books(database: Database) -> BookDAL:
    await empty_log(database)
    return BookDAL(database)


def _is_checkpoint(page: ChangePage, *, existing_sent: bool = True) -> bool:
    return not page.changes and not page.continues and page.is_existing_sent is existing_sent


def _existing(records: Sequence[BookRecord]) -> list[Change]:
    return [Change(ChangeType.EXISTING, each) for each in records]


async def _existing_pages(pages: Pages) -> list[ChangePage]:
    """Return the pages up to the one with the last existing book."""
    found = [await next_page(pages)]
    while not found[-1].is_existing_sent:
        found.append(await next_page(pages))
    return found


async def test_a_watch_from_now_sends_later_changes(books: BookDAL) -> None:
    await books.create_book(DRAFT)
    async with watching(books, start=WatchStart.NOW) as pages:
        assert _is_checkpoint(await next_page(pages))
        later = await books.create_book(DRAFT)
        page = await next_page(pages)
    assert [(change.number, change.type, change.record) for change in page.changes] == [(2, ChangeType.CREATED, later)]


async def test_a_watch_from_the_earliest_change_sends_what_is_kept(database: Database, books: BookDAL) -> None:
    await log_creates(database, [1, 2, 3])
    await books.changes.trim(before=2)
    async with watching(books, start=WatchStart.EARLIEST) as pages:
        assert _is_checkpoint(await next_page(pages))
        assert kinds(await next_changes(pages, 2)) == [(2, "CREATED"), (3, "CREATED")]
        await books.create_book(DRAFT)
        assert kinds(await next_changes(pages, 1)) == [(4, "CREATED")]


async def test_a_watch_of_an_empty_log_from_the_earliest_change_sends_later_ones(books: BookDAL) -> None:
    async with watching(books, start=WatchStart.EARLIEST) as pages:
        assert _is_checkpoint(await next_page(pages))
        await books.create_book(DRAFT)
        assert kinds(await next_changes(pages, 1)) == [(1, "CREATED")]


async def test_a_watch_from_the_existing_books_sends_them_and_later_changes(books: BookDAL) -> None:
    created = await books.create_books([DRAFT] * 3)
    await books.delete_book(created[1].id)
    async with watching(books, start=WatchStart.EXISTING) as pages:
        _, page = await _existing_pages(pages)
        assert page.changes == _existing([created[0], created[2]])
        updated = await books.update_book(created[0].id, BookChanges(name="x"))
        (change,) = await next_changes(pages, 1)
    assert (change.type, change.record, change.previous) == (ChangeType.UPDATED, updated, created[0])


async def test_a_watch_from_no_existing_book_says_that_they_are_sent(books: BookDAL) -> None:
    async with watching(books, start=WatchStart.EXISTING) as pages:
        assert _is_checkpoint(await next_page(pages), existing_sent=False)
        assert _is_checkpoint(await next_page(pages))
        created = await books.create_book(DRAFT)
        assert [change.record for change in await next_changes(pages, 1)] == [created]


@pytest.mark.parametrize(
    "count", [1, EXISTING_READ_MAX - 1, EXISTING_READ_MAX, EXISTING_READ_MAX + 1, 2 * EXISTING_READ_MAX]
)
async def test_existing_books_are_read_in_portions(database: Database, books: BookDAL, count: int) -> None:
    created = await books.create_books([DRAFT] * count)
    with statements_of(database) as statements:
        async with watching(books, start=WatchStart.EXISTING) as pages:
            found = await _existing_pages(pages)
            assert [change.record for page in found for change in page.changes] == created
            assert all(len(page.changes) <= EXISTING_READ_MAX for page in found)
            assert [page.is_existing_sent for page in found] == [False] * (len(found) - 1) + [True]
    of_books = [statement for statement in statements if "books.name" in statement]
    assert len(of_books) == count // EXISTING_READ_MAX + 1


async def test_existing_books_have_neither_number_nor_time(books: BookDAL) -> None:
    await books.create_book(DRAFT)
    async with watching(books, start=WatchStart.EXISTING) as pages:
        (change,) = await next_changes(pages, 1)
    assert (change.number, change.time, change.remaining, change.previous) == (0, 0, 0, None)


async def test_only_existing_books_that_match_are_sent(books: BookDAL) -> None:
    created = await books.create_books([BookDraft(f"{number}", "x", number % 2) for number in range(6)])
    async with watching(books, start=WatchStart.EXISTING, filter="release_year = 1") as pages:
        begin, page = await _existing_pages(pages)
        assert _is_checkpoint(begin, existing_sent=False)
        assert page.changes == _existing(created[1::2])
        await books.create_books([BookDraft("even", "x", 0), BookDraft("odd", "x", 1)])
        assert [change.record.name for change in await next_changes(pages, 1)] == ["odd"]


async def test_a_book_that_changes_behind_the_existing_ones_comes_in_its_new_state_only(books: BookDAL) -> None:
    created = await books.create_books([DRAFT] * (EXISTING_READ_MAX + 2))
    async with watching(books, start=WatchStart.EXISTING) as pages:
        assert len(await next_changes(pages, EXISTING_READ_MAX)) == EXISTING_READ_MAX
        sent = await books.update_book(created[0].id, BookChanges(name="sent"))
        not_sent = await books.update_book(created[-1].id, BookChanges(name="not sent"))
        await books.delete_book(created[-2].id)
        changes, existing = await _existing_pages(pages)
    assert [(change.type, change.record) for change in changes.changes] == [(ChangeType.UPDATED, sent)]
    assert existing.changes == _existing([not_sent])


async def test_long_existing_books_make_shorter_pages(books: BookDAL) -> None:
    created = [*await books.create_books([_LONGEST] * BATCH_MAX), *await books.create_books([DRAFT] * 2)]
    async with watching(books, start=WatchStart.EXISTING) as pages:
        found = await _existing_pages(pages)
    assert [change.record for page in found for change in page.changes] == created
    assert max(len(page.changes) for page in found) <= _FIT


@pytest.mark.parametrize("name", ["Dune", "other"])
async def test_a_change_is_sent_if_its_book_matches_before_or_after(books: BookDAL, name: str) -> None:
    async with watching(books, filter=f'name = "{name}"', checkpoint_seconds=60) as pages:
        await next_page(pages)
        created = await books.create_book(DRAFT)
        await books.update_book(created.id, BookChanges(name="other"))
        await books.update_book(created.id, BookChanges(name="third"))
        await books.update_book(created.id, BookChanges(name="third", author="x"))
        await books.delete_book(created.id)
        last = await books.create_book(BookDraft(name, "last", 1))
        changes = await next_changes(pages, 3)
    assert [change.number for change in changes] == {"Dune": [1, 2, 6], "other": [2, 3, 6]}[name]
    assert changes[-1].record == last


async def test_a_broken_filter_is_rejected(books: BookDAL) -> None:
    for start in WatchStart:
        async with watching(books, filter="pages = 3", start=start) as pages:
            with pytest.raises(InvalidFilter):
                await next_page(pages)
    assert books.changes.watchers == 0


@pytest.mark.databases("sqlite")
async def test_a_silent_watch_sends_checkpoints(books: BookDAL) -> None:
    async with watching(books, filter="name = other", checkpoint_seconds=0.05) as pages:
        first = await next_page(pages)
        began = time.monotonic()
        second = await next_page(pages)
        assert time.monotonic() - began >= 0.045
        assert second == first
        await books.create_book(DRAFT)  # which does not match
        third = await next_page(pages)
        while third == second:  # its checkpoint was due before the change was read
            third = await next_page(pages)
        assert _is_checkpoint(third)
    assert third.resume_token != second.resume_token
    async with watching(books, resume_token=third.resume_token) as pages:
        await next_page(pages)
        await books.create_book(DRAFT)
        assert kinds(await next_changes(pages, 1)) == [(2, "CREATED")]


@pytest.mark.databases("sqlite")
async def test_a_watch_of_many_changes_that_do_not_match_sends_checkpoints_too(
    database: Database, books: BookDAL
) -> None:
    await log_calls(database, *[[Change(ChangeType.CREATED, record(), time=1)] * BATCH_MAX] * 3)
    async with watching(books, filter="name = other", start=WatchStart.EARLIEST, checkpoint_seconds=0) as pages:
        tokens = [(await next_page(pages)).resume_token for _ in range(4)]
    assert len(set(tokens)) == 4


@pytest.mark.databases("sqlite")
async def test_a_page_puts_the_next_checkpoint_off(books: BookDAL) -> None:
    async with watching(books, checkpoint_seconds=0.2) as pages:
        await next_page(pages)
        for _ in range(5):
            await books.create_book(DRAFT)
            sent_at = time.monotonic()
            assert (await next_page(pages)).changes
        assert _is_checkpoint(await next_page(pages))
        assert time.monotonic() - sent_at >= 0.19


async def test_the_changes_of_a_call_are_in_one_page(books: BookDAL) -> None:
    async with watching(books) as pages:
        await next_page(pages)
        await books.create_books([DRAFT] * BATCH_MAX)
        page = await next_page(pages)
    assert (len(page.changes), page.continues) == (BATCH_MAX, False)


async def test_a_call_too_long_for_a_page_continues_in_the_next(books: BookDAL) -> None:
    async with watching(books) as pages:
        await next_page(pages)
        created = await books.create_books([_LONGEST] * (2 * _FIT - 300))
        await books.create_book(DRAFT)
        first, second = await next_page(pages), await next_page(pages)
        assert [first.continues, second.continues] == [True, False]
        assert [change.record for change in (*first.changes, *second.changes)][: len(created)] == created
    async with watching(books, resume_token=first.resume_token) as pages:
        rest = await next_changes(pages, len(created) + 1 - len(first.changes))
    assert rest[0].number == first.changes[-1].number + 1


async def test_a_watch_is_resumed_after_every_page(books: BookDAL) -> None:
    created = await books.create_book(DRAFT)
    tokens = list[str]()
    async with watching(books) as pages:
        tokens.append((await next_page(pages)).resume_token)
        for year in (10, 11, 12):
            await books.update_book(created.id, BookChanges(release_year=year))
            tokens.append((await next_page(pages)).resume_token)
    for left, token in zip((3, 2, 1), tokens, strict=False):
        async with watching(books, resume_token=token, start=WatchStart.EXISTING) as pages:
            assert _is_checkpoint(await next_page(pages))
            changes = await next_changes(pages, left)
        assert [change.record.release_year for change in changes] == [10, 11, 12][-left:]


async def test_a_watch_is_resumed_on_another_server(books: BookDAL, twin: Database) -> None:
    async with watching(books) as pages:
        token = (await next_page(pages)).resume_token
    created = await books.create_book(DRAFT)
    async with watching(BookDAL(twin), resume_token=token) as pages:
        await next_page(pages)
        assert [change.record for change in await next_changes(pages, 1)] == [created]


@pytest.mark.databases("sqlite")
async def test_a_watch_is_resumed_with_another_filter_unless_existing_books_are_left(books: BookDAL) -> None:
    await books.create_books([DRAFT] * (EXISTING_READ_MAX + 1))
    async with watching(books, start=WatchStart.EXISTING, filter="name = Dune") as pages:
        begin, first, last = await _existing_pages(pages)
    for token in (begin.resume_token, first.resume_token):
        async with watching(books, resume_token=token) as pages:
            with pytest.raises(InvalidResumeToken, match="of another database or filter"):
                await next_page(pages)
    async with watching(books, resume_token=first.resume_token, filter=" name = Dune") as pages:
        assert _is_checkpoint(await next_page(pages), existing_sent=False)
        assert await next_page(pages) == last
    async with watching(books, resume_token=last.resume_token) as pages:
        await next_page(pages)
        await books.create_book(BookDraft("other", "x", 1))
        await next_changes(pages, 1)


@pytest.mark.databases("sqlite")
async def test_a_watch_that_had_not_sent_all_existing_books_expires_with_its_changes(
    database: Database, books: BookDAL
) -> None:
    await books.create_books([DRAFT] * (EXISTING_READ_MAX + 1))
    async with watching(books, start=WatchStart.EXISTING) as pages:
        token = (await next_page(pages)).resume_token
    await log_creates(database, [2**60, 2**60])
    async with watching(books, resume_token=token) as pages:
        await next_page(pages)  # as long as they are kept
    await books.changes.trim(before=2**61)
    async with watching(books, resume_token=token) as pages:
        with pytest.raises(ResumeTokenExpired):
            await next_page(pages)


@pytest.mark.databases("sqlite")
async def test_a_watcher_slower_than_changes_are_deleted_ends(
    database: Database, books: BookDAL, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("bookstore_grpc.dal.change_tail.RECENT_CHANGES_MAX", 1)
    async with watching(books) as slow, watching(books) as quick:
        await next_page(slow)
        await next_page(quick)
        await log_creates(database, [1, 2, 3, 4])
        await next_changes(quick, 4)
        await books.changes.trim(before=4)
        with pytest.raises(ResumeTokenExpired):
            await next_page(slow)


@pytest.mark.databases("sqlite")
async def test_the_first_page_is_read_by_few_statements(database: Database, books: BookDAL) -> None:
    async with watching(books) as first:
        token = (await next_page(first)).resume_token
        counts = []
        for start, resume_token in ((WatchStart.NOW, ""), (WatchStart.EARLIEST, ""), (WatchStart.NOW, token)):
            with statements_of(database) as statements:
                async with watching(books, start=start, resume_token=resume_token) as pages:
                    await next_page(pages)
            counts.append(len(statements))
    assert counts == [1, 2, 2]  # of the head, and of the place to start at


async def test_a_database_without_its_log_ends_a_watch_of_existing_books(database: Database, books: BookDAL) -> None:
    await log_creates(database, [1, 2, 3])
    await books.create_books([DRAFT] * (EXISTING_READ_MAX + 1))
    async with watching(books, start=WatchStart.EXISTING) as pages:
        await next_changes(pages, EXISTING_READ_MAX)
        await empty_log(database)
        with pytest.raises(InvalidResumeToken, match="no longer has"):
            await next_page(pages)
