"""PurgeBooks: what it returns with and without `force`, and at a deadline."""

import asyncio
import math

import grpc
import pytest
from bookstore.v1 import books_pb2

from bookstore_grpc.dal import purge as purges
from bookstore_grpc.dal.books import BookDAL
from bookstore_grpc.dal.database import Database
from bookstore_grpc.dal.purge import Purged
from bookstore_grpc.service.servicer import BookServicer
from tests.rpc.calls import Stub, book, books_of, create_all, rejection
from tests.rpc.servers import stub_of


async def purge(stub: Stub, filter: str, *, force: bool = False) -> books_pb2.PurgeBooksResponse:
    return await stub.PurgeBooks(books_pb2.PurgeBooksRequest(filter=filter, force=force), timeout=20)


async def test_without_force_books_are_counted_and_some_are_shown(stub: Stub) -> None:
    books = await create_all(stub, [book(f"Book {number}", release_year=number % 2) for number in range(300)])
    response = await purge(stub, "release_year = 1")
    assert (response.purge_count, response.more_matching) == (150, False)
    assert list(response.purge_sample) == books[1:200:2]
    assert len(await books_of(stub, page_size=1_000)) == 300


async def test_with_force_they_are_deleted(stub: Stub) -> None:
    books = await create_all(stub, [book(f"Book {number}", release_year=number % 2) for number in range(300)])
    assert await purge(stub, "release_year = 1", force=True) == books_pb2.PurgeBooksResponse(purge_count=150)
    assert await books_of(stub, page_size=1_000) == books[::2]
    assert await purge(stub, "release_year = 1", force=True) == books_pb2.PurgeBooksResponse()
    assert await purge(stub, "release_year = 1") == books_pb2.PurgeBooksResponse()


@pytest.mark.parametrize("filter", ["", " \t"])
@pytest.mark.parametrize("force", [False, True])
@pytest.mark.databases("sqlite")
async def test_a_purge_needs_a_filter(stub: Stub, filter: str, force: bool) -> None:
    (made,) = await create_all(stub, [book()])
    rejected = await rejection(purge(stub, filter, force=force))
    assert (rejected.code, rejected.reason) == (grpc.StatusCode.INVALID_ARGUMENT, "INVALID_FIELD")
    assert rejected.rules == {"filter": "REQUIRED"}
    assert "id > 0" in rejected.violations["filter"]
    assert await books_of(stub) == [made]


@pytest.mark.parametrize("force", [False, True])
@pytest.mark.databases("sqlite")
async def test_a_broken_filter_is_reported_as_by_a_list(stub: Stub, force: bool) -> None:
    rejected = await rejection(purge(stub, "name = ", force=force))
    expected = await rejection(stub.ListBooks(books_pb2.ListBooksRequest(filter="name = ")))
    assert rejected._replace(request_id="", trailing={}) == expected._replace(request_id="", trailing={})
    assert rejected.reason == "INVALID_FILTER"


class TimedDAL(BookDAL):
    """Records how much time each purge gets, and ends before it has begun."""

    seconds: float = math.inf

    async def purge_books(self, filter: str, *, seconds: float) -> Purged:
        self.seconds = seconds
        return await super().purge_books(filter, seconds=0)


async def test_a_purge_ends_before_its_deadline_and_the_limit_of_calls(database: Database, stub: Stub) -> None:
    await create_all(stub, [book()])
    dal = TimedDAL(database)
    request = books_pb2.PurgeBooksRequest(filter="id > 0", force=True)
    async with stub_of(BookServicer(dal, max_call_seconds=8)) as timed:
        for timeout, seconds in ((None, 6), (100, 6), (4, 3)):
            response = await timed.PurgeBooks(request, timeout=timeout)
            assert (response.purge_count, response.more_matching) == (0, True)
            assert seconds - 1 < dal.seconds < seconds + 0.1  # gRPC sends a timeout rounded up


async def test_what_was_deleted_at_a_cancellation_stays_deleted_and_another_call_goes_on(
    stub: Stub, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(purges, "PURGE_PORTION_FIRST", 10)
    monkeypatch.setattr(purges, "PURGE_PORTION_MAX", 10)
    for _ in range(2):
        await create_all(stub, [book(f"Book {number}") for number in range(1_000)])
    call = asyncio.ensure_future(purge(stub, "id > 0", force=True))
    while len(await books_of(stub, page_size=1_000)) == 2_000:
        assert not call.done()
    call.cancel()
    with pytest.raises(asyncio.CancelledError):
        await call
    left = len(await books_of(stub, page_size=1_000))
    response = await purge(stub, "id > 0", force=True)
    # The portion in progress may still have been committed.
    assert 0 <= left - response.purge_count <= 1_000
    assert not response.more_matching
    assert await books_of(stub) == []
