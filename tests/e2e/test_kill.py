"""A server killed under load loses no acknowledged write, and stores no write partially."""

import asyncio
import itertools
import uuid
from collections import Counter
from collections.abc import Awaitable, Callable
from dataclasses import dataclass, field

import grpc
import pytest
from bookstore.v1 import books_pb2, books_pb2_grpc

from bookstore_grpc.client import BookstoreClient
from tests.conftest import DATABASES
from tests.e2e.conftest import Start
from tests.executable import PATIENCE_SECONDS, Serving

pytestmark = [pytest.mark.e2e, pytest.mark.thorough]

ROUNDS = 5
IN_FLIGHT = 24


def numbered_request(number: int) -> books_pb2.CreateBookRequest:
    book = books_pb2.Book(name=f"Book {number}", author="Anon", release_year=number % 9_000)
    return books_pb2.CreateBookRequest(book=book, request_id=str(uuid.uuid4()))


async def create_until_killed(
    server: Serving, numbers: "itertools.count[int]", *, kill_after: int
) -> tuple[dict[int, books_pb2.Book], list[books_pb2.CreateBookRequest]]:
    """Create books from many callers and kill the server after some responses.

    Returns the acknowledged books, by id, and the requests without a response.
    """
    acknowledged: dict[int, books_pb2.Book] = {}
    unacknowledged: list[books_pb2.CreateBookRequest] = []
    async with grpc.aio.insecure_channel(server.address) as channel:
        stub = books_pb2_grpc.BookServiceStub(channel)

        async def create_on_and_on() -> None:
            while True:
                request = numbered_request(next(numbers))
                try:
                    book = await stub.CreateBook(request, timeout=PATIENCE_SECONDS)
                except grpc.aio.AioRpcError as error:
                    if error.code() is not grpc.StatusCode.UNAVAILABLE:
                        raise
                    unacknowledged.append(request)
                    return
                acknowledged[book.id] = book
                if len(acknowledged) == kill_after:
                    server.process.kill()

        await asyncio.gather(*(create_on_and_on() for _ in range(IN_FLIGHT)))
    await asyncio.to_thread(server.wait)
    return acknowledged, unacknowledged


async def test_every_acknowledged_book_is_stored_after_kill_9(start: Start, sqlite_url: str) -> None:
    acknowledged: dict[int, books_pb2.Book] = {}
    unacknowledged: list[books_pb2.CreateBookRequest] = []
    numbers = itertools.count()
    for round_number in range(ROUNDS):
        server = await asyncio.to_thread(start, sqlite_url)
        new, new_unacknowledged = await create_until_killed(server, numbers, kill_after=20 + 37 * round_number)
        assert not new.keys() & acknowledged.keys()
        acknowledged |= new
        unacknowledged += new_unacknowledged

    server = await asyncio.to_thread(start, sqlite_url)
    async with BookstoreClient(server.address) as client:
        stored = {book.id: book async for book in client.list_books()}
        assert stored | acknowledged == stored

        # A create without a response may be stored or not; sent again it is stored once.
        for request in unacknowledged:
            book = await client.create_book(
                name=request.book.name,
                author=request.book.author,
                release_year=request.book.release_year,
                request_id=request.request_id,
            )
            assert book.id not in acknowledged
        names = [book.name async for book in client.list_books()]

    assert len(unacknowledged) == ROUNDS * IN_FLIGHT
    assert sorted(names) == sorted(f"Book {number}" for number in range(next(numbers)))


CREATORS, UPDATERS, BATCHERS = 20, 16, 4
BATCH = 25


@dataclass
class Ledger:
    """What callers of every kind have sent, and which responses they got."""

    acknowledged: dict[int, books_pb2.Book] = field(default_factory=dict)
    unacknowledged: list[str] = field(default_factory=list)
    batches: dict[str, bool] = field(default_factory=dict)
    years: dict[int, tuple[int, int]] = field(
        default_factory=dict
    )  # of the updated books: acknowledged last, sent last
    responses: int = 0

    async def create(self, stub: "books_pb2_grpc.BookServiceAsyncStub", number: int) -> None:
        request = numbered_request(number)
        self.unacknowledged.append(request.book.name)
        book = await stub.CreateBook(request, timeout=PATIENCE_SECONDS)
        self.unacknowledged.remove(book.name)
        self.acknowledged[book.id] = book

    async def create_batch(self, stub: "books_pb2_grpc.BookServiceAsyncStub", number: int) -> None:
        author = f"Batch {number}"
        self.batches[author] = False
        requests = [numbered_request(place) for place in range(BATCH)]
        for request in requests:
            request.book.author = author
        response = await stub.BatchCreateBooks(
            books_pb2.BatchCreateBooksRequest(requests=requests), timeout=PATIENCE_SECONDS
        )
        assert len(response.books) == BATCH
        self.batches[author] = True

    async def update(self, stub: "books_pb2_grpc.BookServiceAsyncStub", book_id: int) -> None:
        acknowledged, sent = self.years[book_id]
        self.years[book_id] = (acknowledged, sent + 1)
        request = books_pb2.UpdateBookRequest(book=books_pb2.Book(id=book_id, release_year=sent + 1))
        book = await stub.UpdateBook(request, timeout=PATIENCE_SECONDS)
        assert book.release_year == sent + 1
        self.years[book_id] = (sent + 1, sent + 1)


async def write_until_killed(
    server: Serving, ledger: Ledger, numbers: "itertools.count[int]", *, kill_after: int
) -> None:
    """Create and update from many callers and kill the server after so many responses."""
    ledger.responses = 0
    async with grpc.aio.insecure_channel(server.address) as channel:
        stub: books_pb2_grpc.BookServiceAsyncStub = books_pb2_grpc.BookServiceStub(channel)

        async def on_and_on(call: Callable[[], Awaitable[None]]) -> None:
            while True:
                try:
                    await call()
                except grpc.aio.AioRpcError as error:
                    if error.code() is not grpc.StatusCode.UNAVAILABLE:
                        raise
                    return
                ledger.responses += 1
                if ledger.responses == kill_after:
                    server.process.kill()

        def updates_of(book_id: int) -> Callable[[], Awaitable[None]]:
            return lambda: ledger.update(stub, book_id)

        await asyncio.gather(
            *(on_and_on(lambda: ledger.create(stub, next(numbers))) for _ in range(CREATORS)),
            *(on_and_on(lambda: ledger.create_batch(stub, next(numbers))) for _ in range(BATCHERS)),
            *(on_and_on(updates_of(book_id)) for book_id in ledger.years),
        )
    await asyncio.to_thread(server.wait)


@pytest.mark.parametrize("any_database_url", DATABASES[:2], indirect=True)
async def test_every_kind_of_acknowledged_write_is_stored_after_kill_9_and_none_partially(
    start: Start, any_database_url: str
) -> None:
    ledger = Ledger()
    numbers = itertools.count()
    for round_number in range(3):
        server = await asyncio.to_thread(start, any_database_url, "--migrate")
        if not ledger.years:
            async with BookstoreClient(server.address) as client:
                updated = [await client.create_book(name="U", author="U", release_year=0) for _ in range(UPDATERS)]
            ledger.years = {book.id: (0, 0) for book in updated}
        await write_until_killed(server, ledger, numbers, kill_after=60 + 113 * round_number)

    server = await asyncio.to_thread(start, any_database_url)
    async with BookstoreClient(server.address) as client:
        stored = {book.id: book async for book in client.list_books()}
    for book_id, (acknowledged, sent) in ledger.years.items():
        assert acknowledged <= stored.pop(book_id).release_year <= sent
    by_author = Counter(book.author for book in stored.values())
    for author, is_acknowledged in ledger.batches.items():
        assert by_author.pop(author, 0) in ([BATCH] if is_acknowledged else [0, BATCH])
    assert by_author.keys() == {"Anon"}
    singles = {book_id: book for book_id, book in stored.items() if book.author == "Anon"}
    assert singles | ledger.acknowledged == singles
    surplus = [book.name for book_id, book in singles.items() if book_id not in ledger.acknowledged]
    assert len(surplus) == len(set(surplus))
    assert set(surplus) <= set(ledger.unacknowledged)
    assert len(ledger.unacknowledged) == 3 * CREATORS
    assert any(acknowledged for acknowledged, _ in ledger.years.values())
    assert any(ledger.batches.values())
