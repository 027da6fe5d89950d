"""The tail of the log: what it keeps, that watchers share it, and how it ends."""

import asyncio
from contextlib import AsyncExitStack
from itertools import pairwise
from pathlib import Path

import pytest

from bookstore_grpc.dal import change_tail
from bookstore_grpc.dal.books import BookDAL
from bookstore_grpc.dal.change_log import Position
from bookstore_grpc.dal.change_tail import RecentChanges
from bookstore_grpc.dal.database import Database
from bookstore_grpc.dal.records import Change, ChangeType
from bookstore_grpc.dal.watch import WatchStart
from bookstore_grpc.errors import DatabaseUnavailable, InvalidResumeToken
from bookstore_grpc.limits import BATCH_MAX
from tests.conftest import LogLines
from tests.dal.change_logs import (
    DRAFT,
    Pages,
    empty_log,
    log_creates,
    next_changes,
    next_page,
    record,
    until_true,
    watching,
)
from tests.dal.conftest import move, statements_of


def _changes(first: int, last: int, *, name: str = "ab") -> list[Change]:
    book = record(name=name, author="")
    return [Change(ChangeType.CREATED, book, time=number, number=number) for number in range(first, last + 1)]


def _kept(recent: RecentChanges) -> int:
    """Return how many changes are in memory."""
    last = recent.position.number
    return max(last - number for number in range(last + 1) if recent.after(number) is not None)


@pytest.fixture
def recent(monkeypatch: pytest.MonkeyPatch) -> RecentChanges:
    """At most five changes, and twenty code points."""
    monkeypatch.setattr(change_tail, "RECENT_CHANGES_MAX", 5)
    monkeypatch.setattr(change_tail, "RECENT_CHANGES_MAX_CODE_POINTS", 20)
    return RecentChanges(Position(10, 10))


def test_recent_changes_are_returned_after_a_number(recent: RecentChanges) -> None:
    assert recent.after(10) == ()
    assert recent.after(12) == ()  # of a watcher that has read the log itself
    assert recent.after(9) is None
    recent.add(_changes(11, 13))
    assert recent.position == Position(13, 13)
    assert recent.after(10) == tuple(_changes(11, 13))
    assert recent.after(12) == tuple(_changes(13, 13))
    assert recent.after(13) == ()
    assert recent.after(9) is None


def test_recent_changes_are_bounded_by_their_number(recent: RecentChanges) -> None:
    for number in range(11, 30):
        recent.add(_changes(number, number))
        assert _kept(recent) == min(number - 10, 5)
    assert recent.after(24) == tuple(_changes(25, 29))
    assert recent.after(23) is None


def test_recent_changes_are_bounded_by_the_length_of_their_texts(recent: RecentChanges) -> None:
    recent.add(_changes(11, 14, name="x" * 6))
    assert _kept(recent) == 3
    recent.add(_changes(15, 15, name="x" * 14))
    assert _kept(recent) == 2
    recent.add(_changes(16, 16, name="x" * 21))  # alone too long
    assert (_kept(recent), recent.after(15)) == (0, None)
    recent.add(_changes(17, 17))
    assert recent.after(16) == tuple(_changes(17, 17))


def test_the_texts_of_both_states_of_an_update_count(recent: RecentChanges) -> None:
    book = record(name="x" * 6, author="")
    recent.add([Change(ChangeType.UPDATED, book, book, time=11, number=11)])
    recent.add([Change(ChangeType.UPDATED, book, book, time=12, number=12)])
    assert _kept(recent) == 1


@pytest.fixture
async def books(database: Database) -> BookDAL:
    await empty_log(database)
    return BookDAL(database)


async def _watchers(stack: AsyncExitStack, books: BookDAL, count: int) -> list[Pages]:
    """Start watchers, each of which has its first page."""
    watchers = [await stack.enter_async_context(watching(books)) for _ in range(count)]
    for pages in watchers:
        assert (await next_page(pages)).changes == ()
    return watchers


async def test_many_watchers_share_one_reader(database: Database, books: BookDAL) -> None:
    async with AsyncExitStack() as stack:
        watchers = await _watchers(stack, books, 50)
        with statements_of(database) as statements:
            await books.create_book(DRAFT)
            for pages in watchers:
                assert len(await next_changes(pages, 1)) == 1
        reads = [statement for statement in statements if "FROM book_changes" in statement]
        assert 1 <= len(reads) < 20  # some find nothing, on a slow machine
        assert books.changes.watchers == 50


@pytest.mark.databases("sqlite")
async def test_watchers_look_at_many_changes_in_turn_and_other_calls_run_in_between(books: BookDAL) -> None:
    iteration = 0

    async def count_iterations() -> None:
        nonlocal iteration
        while True:
            iteration += 1
            await asyncio.sleep(0)

    async def iteration_of_page(pages: Pages) -> int:
        assert len((await next_page(pages)).changes) == BATCH_MAX
        return iteration

    others = asyncio.create_task(count_iterations())
    async with AsyncExitStack() as stack:
        watchers = await _watchers(stack, books, 20)
        receiving = [asyncio.create_task(iteration_of_page(pages)) for pages in watchers]
        await books.create_books([DRAFT] * BATCH_MAX)
        iterations = await asyncio.gather(*receiving)
    others.cancel()
    assert len(set(iterations)) == len(watchers)


@pytest.mark.databases("sqlite")
@pytest.mark.parametrize(
    ("start", "condition"), [(WatchStart.EARLIEST, "book_changes.number >="), (WatchStart.EXISTING, "books.id >")]
)
async def test_watchers_that_read_for_themselves_do_so_in_turn(
    database: Database, books: BookDAL, start: WatchStart, condition: str
) -> None:
    """On SQLite, where a read is inline, no two reads come in one iteration of the event loop."""
    await books.create_books([DRAFT] * 20)
    counts = [0]

    async def count_reads(statements: list[str]) -> None:
        while True:
            counts.append(sum(condition in statement for statement in statements))
            await asyncio.sleep(0)

    async with AsyncExitStack() as stack:
        watchers = [await stack.enter_async_context(watching(books, start=start)) for _ in range(20)]
        with statements_of(database) as statements:
            others = asyncio.create_task(count_reads(statements))
            await asyncio.gather(*(next_changes(pages, 20) for pages in watchers))
            others.cancel()
    assert counts[-1] >= len(watchers)
    assert max(after - before for before, after in pairwise(counts)) <= 2  # one may be of the tail


async def test_nothing_is_read_once_the_last_watcher_has_left(database: Database, books: BookDAL) -> None:
    async with AsyncExitStack() as stack:
        await _watchers(stack, books, 2)
        assert books.changes.watchers == 2
    assert books.changes.watchers == 0
    with statements_of(database) as statements:
        await asyncio.sleep(0.3)  # three times as long as between two polls
    assert statements == []


async def test_a_watcher_that_leaves_disturbs_no_other(books: BookDAL) -> None:
    async with AsyncExitStack() as stack:
        (staying,) = await _watchers(stack, books, 1)
        async with AsyncExitStack() as other:
            await _watchers(other, books, 3)
            assert books.changes.watchers == 4
        assert books.changes.watchers == 1
        await books.create_book(DRAFT)
        await next_changes(staying, 1)


async def test_a_watcher_that_is_cancelled_while_it_waits_leaves(books: BookDAL) -> None:
    async with AsyncExitStack() as stack:
        (pages,) = await _watchers(stack, books, 1)
        waiting = asyncio.create_task(next_page(pages))
        await asyncio.sleep(0)
        waiting.cancel()
        with pytest.raises(asyncio.CancelledError):
            await waiting
        assert books.changes.watchers == 0


async def test_a_watcher_far_behind_reads_the_log_itself(
    database: Database, books: BookDAL, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(change_tail, "RECENT_CHANGES_MAX", 5)
    async with AsyncExitStack() as stack:
        slow, quick = await _watchers(stack, books, 2)
        for _ in range(20):
            await books.create_book(DRAFT)
        assert [change.number for change in await next_changes(quick, 20)] == list(range(1, 21))
        await until_true(lambda: books.changes.lag == 20)
        with statements_of(database) as statements:
            assert [change.number for change in await next_changes(slow, 20)] == list(range(1, 21))
        assert [statement for statement in statements if "FROM book_changes" in statement]
        await books.create_book(DRAFT)
        with statements_of(database) as statements:
            assert [change.number for change in await next_changes(slow, 1)] == [21]
        await next_changes(quick, 1)
        await until_true(lambda: books.changes.lag == 0)


async def test_lag_is_that_of_the_slowest_watcher_and_of_none_0(books: BookDAL) -> None:
    assert books.changes.lag == 0
    async with AsyncExitStack() as stack:
        quick, _slow = await _watchers(stack, books, 2)
        for _ in range(3):
            await books.create_book(DRAFT)
        await next_changes(quick, 3)
        await until_true(lambda: books.changes.lag == 3)
    assert books.changes.lag == 0


async def test_a_database_that_lost_changes_ends_all_watchers(
    database: Database, books: BookDAL, log_lines: LogLines
) -> None:
    await log_creates(database, [1, 2, 3])
    async with AsyncExitStack() as stack:
        watchers = await _watchers(stack, books, 3)
        await empty_log(database)  # as a restore of an older state does
        for pages in watchers:
            with pytest.raises(InvalidResumeToken, match="no longer has"):
                await next_page(pages)
        assert books.changes.watchers == 0
        (pages,) = await _watchers(stack, books, 1)
        await books.create_book(DRAFT)
        assert [change.number for change in await next_changes(pages, 1)] == [1]
    (line,) = [line for line in log_lines() if line["event"] == "watching changes failed"]
    assert "no longer has" in line["cause"]


async def test_a_database_that_lost_changes_and_made_others_ends_all_watchers(
    database: Database, books: BookDAL
) -> None:
    await log_creates(database, [1, 2, 3])
    async with AsyncExitStack() as stack:
        watchers = await _watchers(stack, books, 2)
        await empty_log(database)
        await log_creates(database, [4, 5, 6, 7])
        for pages in watchers:
            with pytest.raises(InvalidResumeToken, match="no longer has"):
                await next_page(pages)


async def test_a_failure_of_the_database_ends_all_watchers_and_new_ones_work_later(
    sqlite: Database, path: Path, tmp_path: Path
) -> None:
    books = BookDAL(sqlite)
    await books.create_book(DRAFT)
    away = tmp_path / "away.db"
    async with AsyncExitStack() as stack:
        watchers = await _watchers(stack, books, 3)
        move(path, away)
        for pages in watchers:
            with pytest.raises(DatabaseUnavailable):
                await next_page(pages)
        with pytest.raises(DatabaseUnavailable):
            await _watchers(stack, books, 1)
        assert books.changes.watchers == 0
        move(away, path)
        (pages,) = await _watchers(stack, books, 1)
        await books.create_book(DRAFT)
        await next_changes(pages, 1)


async def test_a_watcher_that_comes_after_a_failure_has_a_reader_of_its_own(database: Database, books: BookDAL) -> None:
    """Watchers of the failed reader that have not noticed yet do not disturb it, neither then nor when they leave."""
    await log_creates(database, [1, 2, 3])
    async with AsyncExitStack() as stack:
        (old,) = await _watchers(stack, books, 1)
        failed = books.changes._tails._tail
        assert failed is not None
        await empty_log(database)
        await until_true(lambda: failed.has_ended)
        (new,) = await _watchers(stack, books, 1)
        with pytest.raises(InvalidResumeToken):
            await next_page(old)
        await books.create_book(DRAFT)
        assert [change.number for change in await next_changes(new, 1)] == [1]
