"""A purge: portions between other writes, what happens to books in the meantime, and how it ends."""

import asyncio
from collections.abc import Awaitable, Callable
from typing import Any

import pytest

from bookstore_grpc.dal import purge as purge_module
from bookstore_grpc.dal.books import BookDAL, microseconds_now
from bookstore_grpc.dal.database import Database
from bookstore_grpc.dal.purge import Purge, Purged
from bookstore_grpc.dal.records import BookChanges, BookDraft, BookRecord
from bookstore_grpc.errors import InvalidFilter
from bookstore_grpc.limits import PURGE_PORTION_FIRST, PURGE_PORTION_MAX, PURGE_PORTION_SECONDS
from tests.dal.conftest import count_rows
from tests.dal.test_write_batch import all_books, transactions_of

_DOOMED, _KEPT = 1, 2
_DOOMED_FILTER = f"release_year = {_DOOMED}"


def _drafts(count: int, year: int = _DOOMED) -> list[BookDraft]:
    return [BookDraft(f"Book {number}", "x", year) for number in range(count)]


async def _purge(books: BookDAL, filter: str = _DOOMED_FILTER) -> Purged:
    return await books.purge_books(filter, seconds=60)


def _in_between(work: Callable[[int], Awaitable[None]]) -> Callable[..., Awaitable[Any]]:
    """Return what awaits the statements of a purge, and calls `work` after each with the number of those before it."""
    number = 0

    async def observed(statement: Awaitable[Any], _summary: str = "") -> Any:
        nonlocal number
        result = await statement
        await work(number)
        number += 1
        return result

    return observed


def _never() -> bool:
    return False


# The statements of a purge, by their number.
_AFTER_START, _AFTER_SEARCH, _AFTER_FIRST_PORTION = range(3)


async def test_the_books_that_match_are_deleted_and_no_others(database: Database, books: BookDAL) -> None:
    await books.create_books([*_drafts(120), *_drafts(10, _KEPT), *_drafts(200)])
    assert await _purge(books) == (320, False)
    assert {book.release_year for book in await all_books(database)} == {_KEPT}
    assert await _purge(books) == (0, False)
    assert await _purge(books, "id > 0") == (10, False)
    assert await _purge(books, "id > 0") == (0, False)


async def test_a_purge_has_several_transactions_of_growing_size(
    database: Database, books: BookDAL, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(purge_module, "PURGE_PORTION_SECONDS", 60)
    await books.create_books(_drafts(1_000))
    with transactions_of(database) as transactions:
        assert await _purge(books) == (1_000, False)
    assert len(transactions) == 4  # of 100, 200, 400 and 300 books


async def test_books_are_found_in_several_reads(
    database: Database, books: BookDAL, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(purge_module, "PURGE_READ_MAX", 7)
    await books.create_books([*_drafts(7), *_drafts(3, _KEPT), *_drafts(13)])
    assert await _purge(books) == (20, False)
    assert await count_rows(database) == (3, 0)


@pytest.mark.parametrize("filter", ["name =", "pages = 3"])
async def test_a_broken_filter_is_rejected(books: BookDAL, filter: str) -> None:
    await books.create_books(_drafts(1))
    with pytest.raises(InvalidFilter):
        await _purge(books, filter)


async def test_a_book_that_no_longer_matches_is_kept(database: Database, books: BookDAL) -> None:
    created = await books.create_books(_drafts(5))

    async def change(number: int) -> None:
        if number == _AFTER_SEARCH:
            await books.update_book(created[2].id, BookChanges(release_year=_KEPT))

    purge = Purge(database, _DOOMED_FILTER, clock=microseconds_now, observed=_in_between(change))
    assert await purge.run(is_over=_never) == (4, False)
    assert [book.id for book in await all_books(database)] == [created[2].id]


async def test_a_book_that_changed_and_still_matches_is_deleted(database: Database, books: BookDAL) -> None:
    created = await books.create_books(_drafts(5))

    async def change(number: int) -> None:
        if number == _AFTER_SEARCH:
            await books.update_book(created[2].id, BookChanges(name="changed"))

    purge = Purge(database, _DOOMED_FILTER, clock=microseconds_now, observed=_in_between(change))
    assert await purge.run(is_over=_never) == (5, False)
    assert await count_rows(database) == (0, 0)


async def test_a_book_that_somebody_else_deletes_meanwhile_is_not_counted(database: Database, books: BookDAL) -> None:
    created = await books.create_books(_drafts(5))

    async def delete(number: int) -> None:
        if number == _AFTER_SEARCH:
            await books.delete_book(created[0].id)

    purge = Purge(database, _DOOMED_FILTER, clock=microseconds_now, observed=_in_between(delete))
    assert await purge.run(is_over=_never) == (4, False)


async def test_a_book_that_is_created_meanwhile_is_kept(database: Database, books: BookDAL) -> None:
    await books.create_books(_drafts(150))
    made: list[BookRecord] = []

    async def create(number: int) -> None:
        made.append(await books.create_book(BookDraft(f"made {number}", "x", _DOOMED)))

    purge = Purge(database, _DOOMED_FILTER, clock=microseconds_now, observed=_in_between(create))
    assert await purge.run(is_over=_never) == (150, False)
    assert await all_books(database) == made


async def test_a_purge_whose_time_is_over_can_be_continued(database: Database, books: BookDAL) -> None:
    await books.create_books(_drafts(3 * PURGE_PORTION_FIRST))
    done = 0

    async def count(number: int) -> None:
        nonlocal done
        done = number

    purge = Purge(database, _DOOMED_FILTER, clock=microseconds_now, observed=_in_between(count))
    assert await purge.run(is_over=lambda: done == _AFTER_FIRST_PORTION) == (PURGE_PORTION_FIRST, True)
    assert (await count_rows(database))[0] == 2 * PURGE_PORTION_FIRST
    assert await _purge(books) == (2 * PURGE_PORTION_FIRST, False)


async def test_a_purge_without_time_deletes_nothing(database: Database, books: BookDAL) -> None:
    await books.create_books(_drafts(1))
    assert await books.purge_books(_DOOMED_FILTER, seconds=0) == (0, True)
    assert await count_rows(database) == (1, 0)


async def test_what_a_cancelled_purge_deleted_stays_deleted(database: Database, books: BookDAL) -> None:
    await books.create_books(_drafts(3 * PURGE_PORTION_FIRST))
    has_deleted = asyncio.Event()

    async def stop(number: int) -> None:
        if number == _AFTER_FIRST_PORTION:
            has_deleted.set()
            await asyncio.Event().wait()

    purge = Purge(database, _DOOMED_FILTER, clock=microseconds_now, observed=_in_between(stop))
    task = asyncio.create_task(purge.run(is_over=_never))
    await has_deleted.wait()
    task.cancel()
    with pytest.raises(asyncio.CancelledError):
        await task
    assert await _purge(books) == (2 * PURGE_PORTION_FIRST, False)
    assert await count_rows(database) == (0, 0)


async def test_other_writes_take_place_between_the_portions(
    database: Database, books: BookDAL, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(purge_module, "PURGE_PORTION_FIRST", 20)
    monkeypatch.setattr(purge_module, "PURGE_PORTION_MAX", 20)
    await books.create_books(_drafts(1_000))
    (kept,) = await books.create_books(_drafts(1, _KEPT))
    purge = asyncio.create_task(_purge(books))
    updates = 0
    while not purge.done():
        kept = await books.update_book(kept.id, BookChanges(name=f"{updates}"), etag=kept.etag)
        updates += 1
    assert await purge == (1_000, False)
    assert updates > 3


@pytest.mark.parametrize(
    ("count", "seconds", "next_count"),
    [
        (100, PURGE_PORTION_SECONDS, 100),
        (100, 2 * PURGE_PORTION_SECONDS, 50),
        (100, 1.0, 2),
        (1, 10.0, 1),
        (100, 0.0001, 200),
        (100, 0.0, 200),
    ],
)
@pytest.mark.databases("sqlite")
async def test_portions_are_sized_by_the_time_that_they_take(
    database: Database, count: int, seconds: float, next_count: int
) -> None:
    purge = Purge(
        database, _DOOMED_FILTER, clock=microseconds_now, observed=_in_between(lambda _number: asyncio.sleep(0))
    )
    purge._portion = count
    purge._adapt(count, seconds)
    assert purge._portion == next_count
    for _ in range(20):
        purge._adapt(purge._portion, 0.0)
    assert purge._portion == PURGE_PORTION_MAX
