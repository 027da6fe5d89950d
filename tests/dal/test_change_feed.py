"""Pages of changes for those who poll."""

import asyncio
from collections.abc import Callable, Sequence

import pytest

from bookstore_grpc.dal import change_feed
from bookstore_grpc.dal.books import BookDAL
from bookstore_grpc.dal.database import Database
from bookstore_grpc.dal.records import BookChanges, BookDraft, Change, ChangePage, ChangeType
from bookstore_grpc.dal.watch import WatchStart
from bookstore_grpc.errors import InvalidFilter, InvalidResumeToken, ResumeTokenExpired
from bookstore_grpc.limits import AUTHOR_MAX_CODE_POINTS, NAME_MAX_CODE_POINTS, PAGE_MAX_CODE_POINTS, PAGE_SIZE_MAX
from tests.dal.change_logs import DRAFT, empty_log, log_calls, log_creates, next_page, record, watching
from tests.dal.conftest import statements_of

_LONGEST = record(name="n" * NAME_MAX_CODE_POINTS, author="a" * AUTHOR_MAX_CODE_POINTS)


@pytest.fixture
async def books(database: Database) -> BookDAL:
    await empty_log(database)
    return BookDAL(database)


async def _page(books: BookDAL, *, page_size: int = 50, page_token: str = "", filter: str = "") -> ChangePage:
    return await books.list_book_changes(page_size=page_size, page_token=page_token, filter=filter)


def _numbers(changes: Sequence[Change]) -> list[int]:
    return [change.number for change in changes]


async def test_an_empty_log_has_an_empty_page_whose_token_returns_later_changes(books: BookDAL) -> None:
    page = await _page(books)
    assert (page.changes, page.has_more) == ([], False)
    await books.create_book(DRAFT)
    assert _numbers((await _page(books, page_token=page.resume_token)).changes) == [1]


async def test_pages_follow_each_other_without_gap_or_repetition(database: Database, books: BookDAL) -> None:
    await log_creates(database, range(1, 8))
    pages, token = list[ChangePage](), ""
    for _ in range(3):
        pages.append(await _page(books, page_size=3, page_token=token))
        token = pages[-1].resume_token
    assert [_numbers(page.changes) for page in pages] == [[1, 2, 3], [4, 5, 6], [7]]
    assert [page.has_more for page in pages] == [True, True, False]
    assert await _page(books, page_token=token) == ChangePage([], token)


async def test_a_page_that_ends_with_the_log_has_no_more(database: Database, books: BookDAL) -> None:
    await log_creates(database, [1, 2, 3])
    assert not (await _page(books, page_size=3)).has_more
    assert (await _page(books, page_size=2)).has_more


async def test_a_page_may_end_within_a_call(database: Database, books: BookDAL) -> None:
    created = await books.create_books([DRAFT] * 4)
    first = await _page(books, page_size=3)
    second = await _page(books, page_size=3, page_token=first.resume_token)
    assert [change.record for change in (*first.changes, *second.changes)] == created


async def test_a_change_is_returned_if_its_book_matches_before_or_after(books: BookDAL) -> None:
    created = await books.create_book(BookDraft("a", "x", 1))
    await books.update_book(created.id, BookChanges(name="b"))
    await books.update_book(created.id, BookChanges(name="c"))
    await books.update_book(created.id, BookChanges(name="d"))
    await books.delete_book(created.id)
    found = {name: _numbers((await _page(books, filter=f"name = {name}")).changes) for name in "abcde"}
    assert found == {"a": [1, 2], "b": [2, 3], "c": [3, 4], "d": [4, 5], "e": []}


async def test_a_token_continues_with_another_filter(database: Database, books: BookDAL) -> None:
    await log_creates(database, [1, 2, 3])
    first = await _page(books, page_size=1, filter="name = Dune")
    rest = await _page(books, page_token=first.resume_token, filter="author:Frank")
    assert _numbers(rest.changes) == [2, 3]


async def test_long_books_make_shorter_pages(database: Database, books: BookDAL) -> None:
    fit = PAGE_MAX_CODE_POINTS // (NAME_MAX_CODE_POINTS + AUTHOR_MAX_CODE_POINTS)
    await log_calls(database, [Change(ChangeType.DELETED, _LONGEST, time=1)] * (fit + 10))
    first = await _page(books, page_size=PAGE_SIZE_MAX)
    assert (len(first.changes), first.has_more) == (fit, True)
    second = await _page(books, page_size=PAGE_SIZE_MAX, page_token=first.resume_token)
    assert (len(second.changes), second.has_more) == (10, False)


async def test_a_page_of_the_log_is_two_reads(database: Database, books: BookDAL) -> None:
    await log_creates(database, range(1, 200))
    first = await _page(books)
    with statements_of(database) as statements:
        await _page(books, page_token=first.resume_token)
    # Of the head, of the change at the token, and of the page.
    assert len(statements) == 3


@pytest.fixture
def few_reads(monkeypatch: pytest.MonkeyPatch) -> Callable[[int], None]:
    def limit(reads: int) -> None:
        monkeypatch.setattr(change_feed, "_READS_MAX", reads)

    return limit


async def test_a_page_that_finds_few_matches_stops_searching_and_has_more(
    database: Database, books: BookDAL, few_reads: Callable[[int], None]
) -> None:
    few_reads(2)
    other = [Change(ChangeType.CREATED, record(name="other"), time=1)] * 900
    await log_calls(database, *[other] * 5)
    await log_creates(database, [1])
    pages, token = list[ChangePage](), ""
    while not pages or pages[-1].has_more:
        pages.append(await _page(books, page_token=token, filter="name = Dune"))
        token = pages[-1].resume_token
    assert [_numbers(page.changes) for page in pages] == [[], [], [4501]]


async def test_a_page_that_stops_searching_at_the_end_has_no_more(
    database: Database, books: BookDAL, few_reads: Callable[[int], None]
) -> None:
    few_reads(1)
    await log_creates(database, [1, 2, 3])
    assert not (await _page(books, filter="name = other")).has_more


async def test_a_page_that_finds_few_matches_lets_other_calls_run(database: Database, books: BookDAL) -> None:
    other = [Change(ChangeType.CREATED, record(name="other"), time=1)] * 1_000
    await log_calls(database, *[other] * 3)
    turns = 0

    async def take_turns() -> None:
        nonlocal turns
        while True:
            await asyncio.sleep(0)
            turns += 1

    others = asyncio.create_task(take_turns())
    await asyncio.sleep(0)
    await _page(books, filter="name = Dune")
    others.cancel()
    assert turns >= 3  # once for each read, which SQLite does on the event loop


@pytest.mark.databases("sqlite")
async def test_a_broken_filter_is_rejected(books: BookDAL) -> None:
    with pytest.raises(InvalidFilter):
        await _page(books, filter="name =")


@pytest.mark.databases("sqlite")
async def test_a_damaged_token_is_rejected_as_a_page_token(books: BookDAL) -> None:
    with pytest.raises(InvalidResumeToken, match="damaged") as caught:
        await _page(books, page_token="x")
    assert [violation.field for violation in caught.value.violations] == ["page_token"]


@pytest.mark.databases("sqlite")
async def test_an_expired_or_lost_token_is_rejected(database: Database, books: BookDAL) -> None:
    await log_creates(database, [1, 2, 3])
    first, last = await _page(books, page_size=1), await _page(books)
    await books.changes.trim(before=3)
    with pytest.raises(ResumeTokenExpired):
        await _page(books, page_token=first.resume_token)
    await empty_log(database)
    with pytest.raises(InvalidResumeToken, match="no longer has") as caught:
        await _page(books, page_token=last.resume_token)
    assert [violation.field for violation in caught.value.violations] == ["page_token"]


@pytest.mark.databases("sqlite")
async def test_a_token_of_a_watch_continues_a_list_unless_existing_books_are_left(books: BookDAL) -> None:
    await books.create_books([DRAFT] * 501)
    async with watching(books, start=WatchStart.EXISTING) as pages:
        _, first, last = [await next_page(pages) for _ in range(3)]
    with pytest.raises(InvalidResumeToken, match="only a watch can continue it") as caught:
        await _page(books, page_token=first.resume_token)
    assert [violation.field for violation in caught.value.violations] == ["page_token"]
    await books.create_book(DRAFT)
    assert _numbers((await _page(books, page_token=last.resume_token)).changes) == [502]


@pytest.mark.databases("sqlite")
async def test_a_token_of_a_list_continues_a_watch(database: Database, books: BookDAL) -> None:
    await log_creates(database, [1, 2, 3])
    page = await _page(books, page_size=1)
    async with watching(books, resume_token=page.resume_token) as pages:
        assert (await next_page(pages)).changes == ()
        assert _numbers((await next_page(pages)).changes) == [2, 3]
