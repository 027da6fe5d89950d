"""A server killed in the midst of its work loses no book that it has answered."""

import asyncio
import itertools
import uuid

import grpc
import pytest
from bookstore.v1 import books_pb2, books_pb2_grpc

from bookstore_grpc.client import BookstoreClient
from tests.e2e.conftest import Start
from tests.executable import PATIENCE_SECONDS, Serving

pytestmark = pytest.mark.e2e

ROUNDS = 5
IN_FLIGHT = 24


def numbered_request(number: int) -> books_pb2.CreateBookRequest:
    book = books_pb2.Book(name=f"Book {number}", author="Anon", release_year=number % 9_000)
    return books_pb2.CreateBookRequest(book=book, request_id=str(uuid.uuid4()))


async def create_until_killed(
    server: Serving, numbers: "itertools.count[int]", *, kill_after: int
) -> tuple[dict[int, books_pb2.Book], list[books_pb2.CreateBookRequest]]:
    """Create books from many callers and kill the server after some answers.

    Answers the books that were answered, by id, and the requests that were not.
    """
    answered: dict[int, books_pb2.Book] = {}
    unanswered: list[books_pb2.CreateBookRequest] = []
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
                    unanswered.append(request)
                    return
                answered[book.id] = book
                if len(answered) == kill_after:
                    server.process.kill()

        await asyncio.gather(*(create_on_and_on() for _ in range(IN_FLIGHT)))
    await asyncio.to_thread(server.wait)
    return answered, unanswered


async def test_every_answered_book_is_there_after_kill_9(start: Start, sqlite_url: str) -> None:
    answered: dict[int, books_pb2.Book] = {}
    unanswered: list[books_pb2.CreateBookRequest] = []
    numbers = itertools.count()
    for round_number in range(ROUNDS):
        server = await asyncio.to_thread(start, sqlite_url)
        new, without_answer = await create_until_killed(server, numbers, kill_after=20 + 37 * round_number)
        assert not new.keys() & answered.keys()
        answered |= new
        unanswered += without_answer

    server = await asyncio.to_thread(start, sqlite_url)
    async with BookstoreClient(server.address) as client:
        stored = {book.id: book async for book in client.list_books()}
        assert stored | answered == stored

        # What got no answer may be there or not; sent again it is there once.
        for request in unanswered:
            book = await client.create_book(
                name=request.book.name,
                author=request.book.author,
                release_year=request.book.release_year,
                request_id=request.request_id,
            )
            assert book.id not in answered
        names = [book.name async for book in client.list_books()]

    assert len(unanswered) == ROUNDS * IN_FLIGHT
    assert sorted(names) == sorted(f"Book {number}" for number in range(next(numbers)))
