"""The loader groups concurrent reads; the reads here end when a test lets them."""

import asyncio
from collections.abc import Mapping, Sequence

import pytest

from bookstore_grpc.dal.book_loader import BookLoader
from bookstore_grpc.dal.records import BookRecord
from bookstore_grpc.errors import DatabaseUnavailable


def book(book_id: int) -> BookRecord:
    return BookRecord(book_id, "Dune", "Frank Herbert", 1965, 0, 0)


class Reads:
    """The groups that a loader has begun to read, in order. Odd ids have no book."""

    def __init__(self) -> None:
        self.groups: list[list[int]] = []
        self.cancelled = 0
        self._ends: list[asyncio.Future[None]] = []

    async def load(self, ids: Sequence[int]) -> Mapping[int, BookRecord]:
        self.groups.append(sorted(ids))
        end: asyncio.Future[None] = asyncio.get_running_loop().create_future()
        self._ends.append(end)
        try:
            await end
        except asyncio.CancelledError:
            self.cancelled += 1
            raise
        return {book_id: book(book_id) for book_id in ids if book_id % 2 == 0}

    def end(self, group: int, error: Exception | None = None) -> None:
        if error:
            self._ends[group].set_exception(error)
        else:
            self._ends[group].set_result(None)


@pytest.fixture
def reads() -> Reads:
    return Reads()


async def begun(loader: BookLoader, *ids: int) -> "list[asyncio.Task[BookRecord | None]]":
    """Start to get books, and wait until nothing more happens on its own."""
    tasks = [asyncio.create_task(loader.get(book_id)) for book_id in ids]
    await settled()
    return tasks


async def settled() -> None:
    for _ in range(5):
        await asyncio.sleep(0)


async def test_reads_in_flight_are_grouped_and_a_lone_one_starts_at_once(reads: Reads) -> None:
    loader = BookLoader(reads.load, concurrent_max=2)
    first = await begun(loader, 2)
    second = await begun(loader, 4)
    rest = await begun(loader, 6, 7, 6)
    assert reads.groups == [[2], [4]]
    reads.end(1)
    assert await asyncio.gather(*second) == [book(4)]
    await settled()
    assert reads.groups == [[2], [4], [6, 7]]
    reads.end(2)
    reads.end(0)
    assert await asyncio.gather(*rest, *first) == [book(6), None, book(6), book(2)]


async def test_a_failure_fails_its_group_only(reads: Reads) -> None:
    loader = BookLoader(reads.load, concurrent_max=1)
    first = await begun(loader, 2, 4)
    rest = await begun(loader, 6)
    reads.end(0, DatabaseUnavailable())
    for task in first:
        with pytest.raises(DatabaseUnavailable):
            await task
    await settled()
    reads.end(1)
    assert await asyncio.gather(*rest) == [book(6)]


async def test_a_group_is_cancelled_with_its_last_caller(reads: Reads) -> None:
    loader = BookLoader(reads.load, concurrent_max=1)
    first = await begun(loader, 2, 4)
    rest = await begun(loader, 6)
    first[0].cancel()
    await settled()
    assert reads.cancelled == 0
    first[1].cancel()
    await settled()
    assert reads.cancelled == 1
    assert reads.groups == [[2, 4], [6]]
    reads.end(1)
    assert await asyncio.gather(*rest) == [book(6)]


async def test_a_cancelled_caller_that_waits_is_not_read(reads: Reads) -> None:
    loader = BookLoader(reads.load, concurrent_max=1)
    first = await begun(loader, 2)
    cancelled, other = await begun(loader, 4, 6)
    cancelled.cancel()
    reads.end(0)
    await asyncio.gather(*first)
    await settled()
    assert reads.groups == [[2], [6]]
    reads.end(1)
    assert await other == book(6)


async def test_a_caller_cancelled_just_before_its_read_begins_blocks_no_other(reads: Reads) -> None:
    loader = BookLoader(reads.load, concurrent_max=1)
    first = await begun(loader, 2)
    (cancelled,) = await begun(loader, 4)
    reads.end(0)
    await asyncio.sleep(0)  # the first read has ended, and the next is about to be started
    cancelled.cancel()
    await asyncio.gather(*first)
    await settled()
    (other,) = await begun(loader, 6)
    assert reads.groups == [[2], [6]]
    reads.end(1)
    assert await other == book(6)
