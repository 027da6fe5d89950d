"""Many calls in flight on one connection of an idle server: none is rejected, and clients queue the excess."""

import asyncio
import random
from collections import Counter
from collections.abc import Awaitable, Callable

import grpc
import pytest
from bookstore.v1 import books_pb2, books_pb2_grpc

from bookstore_grpc.client import BookstoreClient
from bookstore_grpc.errors import BookstoreError
from tests.executable import Serving

pytestmark = pytest.mark.e2e

# The default of --max-calls-per-connection is 100.
COUNTS = [1, 256, 1_000]
ROUNDS = 2
BOOK = books_pb2.Book(name="N", author="A", release_year=1)

Update = Callable[[books_pb2.UpdateBookRequest], Awaitable[object]]


def request_for(book_id: int, number: int) -> books_pb2.UpdateBookRequest:
    return books_pb2.UpdateBookRequest(book=books_pb2.Book(id=book_id, release_year=number % 2_000))


async def outcomes(update: Update, book_id: int, count: int) -> Counter[str]:
    """Keep so many calls in flight, several in a row each, and return how they ended."""
    ended: Counter[str] = Counter()

    async def work(place: int) -> None:
        for number in range(ROUNDS):
            try:
                await update(request_for(book_id, ROUNDS * place + number))
                ended["OK"] += 1
            except (grpc.aio.AioRpcError, BookstoreError) as error:
                ended[repr(error)] += 1

    await asyncio.gather(*map(work, range(count)))
    return ended


@pytest.mark.parametrize("count", COUNTS)
async def test_all_calls_of_the_client_succeed(shared_server: Serving, count: int) -> None:
    async with BookstoreClient(shared_server.address, timeout_seconds=60) as client:
        book = await client.create_book(name="N", author="A", release_year=1)

        async def update(request: books_pb2.UpdateBookRequest) -> object:
            return await client.update_book(request.book.id, release_year=request.book.release_year)

        assert await outcomes(update, book.id, count) == {"OK": ROUNDS * count}
        await client.delete_book(book.id)


@pytest.mark.parametrize("count", COUNTS)
async def test_all_calls_of_a_plain_stub_succeed(shared_server: Serving, count: int) -> None:
    async with grpc.aio.insecure_channel(shared_server.address) as channel:
        stub: books_pb2_grpc.BookServiceAsyncStub = books_pb2_grpc.BookServiceStub(channel)
        book = await stub.CreateBook(books_pb2.CreateBookRequest(book=BOOK))

        async def update(request: books_pb2.UpdateBookRequest) -> object:
            return await stub.UpdateBook(request, timeout=60)

        assert await outcomes(update, book.id, count) == {"OK": ROUNDS * count}
        await stub.DeleteBook(books_pb2.DeleteBookRequest(id=book.id))


@pytest.mark.parametrize("count", COUNTS)
def test_all_calls_of_a_stub_without_asyncio_succeed(shared_server: Serving, count: int) -> None:
    with grpc.insecure_channel(shared_server.address) as channel:
        stub: books_pb2_grpc.BookServiceStub = books_pb2_grpc.BookServiceStub(channel)
        book = stub.CreateBook(books_pb2.CreateBookRequest(book=BOOK))
        for number in range(ROUNDS):
            calls = [
                stub.UpdateBook.future(request_for(book.id, count * number + place), timeout=60)
                for place in range(count)
            ]
            assert {call.exception(timeout=60) for call in calls} == {None}
        stub.DeleteBook(books_pb2.DeleteBookRequest(id=book.id))


async def test_all_calls_succeed_while_others_are_cancelled(shared_server: Serving) -> None:
    async with grpc.aio.insecure_channel(shared_server.address) as channel:
        stub: books_pb2_grpc.BookServiceAsyncStub = books_pb2_grpc.BookServiceStub(channel)
        book = await stub.CreateBook(books_pb2.CreateBookRequest(book=BOOK))
        is_over = False

        async def call_and_cancel(seed: int) -> None:
            pauses = random.Random(seed)
            while not is_over:
                call = stub.GetBook(books_pb2.GetBookRequest(id=book.id), timeout=60)
                await asyncio.sleep(pauses.uniform(0, 0.05))
                call.cancel()

        async def update(request: books_pb2.UpdateBookRequest) -> object:
            return await stub.UpdateBook(request, timeout=60)

        cancelling = [asyncio.create_task(call_and_cancel(seed)) for seed in range(20)]
        ended = await outcomes(update, book.id, 256)
        is_over = True
        await asyncio.gather(*cancelling)
        assert ended == {"OK": ROUNDS * 256}
        await stub.DeleteBook(books_pb2.DeleteBookRequest(id=book.id))
