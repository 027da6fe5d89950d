import asyncio
import random
from collections.abc import AsyncIterator, Callable, Coroutine
from contextlib import suppress
from typing import Any

import grpc
import pytest
from bookstore.v1 import books_pb2

from bookstore_grpc.dal.books import BookDAL
from bookstore_grpc.dal.database import Database
from bookstore_grpc.service.messages import entry_from_record
from bookstore_grpc.service.servicer import BookServicer
from tests.conftest import LogLines
from tests.rpc.calls import Stub, book, books_of, create, create_all, get, update
from tests.rpc.obstacles import lock_request, locked_book, until
from tests.rpc.servers import stub_of

POOL_SIZE = 3


@pytest.fixture
async def own_database(database: Database, database_url: str) -> AsyncIterator[Database]:
    """A small pool on the same tables, to be looked into."""
    own = Database(database_url, pool_size=POOL_SIZE, timeout_seconds=30)
    yield own
    await own.close()


@pytest.fixture
async def own_stub(own_database: Database, log_lines: LogLines) -> AsyncIterator[Stub]:
    async with stub_of(BookServicer(BookDAL(own_database, encode=entry_from_record))) as stub:
        yield stub


def connections_in_use(database: Database) -> int:
    engines = (database._reader, database._writer, database._prober)
    return sum(engine.pool.checkedout() for engine in engines)  # type: ignore[attr-defined]  # each is a QueuePool


async def idle(database: Database) -> bool:
    return connections_in_use(database) == 0


async def until_the_server_knows(stub: Stub, each: books_pb2.Book) -> None:
    """Wait until the server has seen what this connection cancelled: the response to a later call comes after that."""
    assert await get(stub, each.id) == each


async def test_a_call_that_waits_past_its_deadline_ends_and_leaves_nothing_behind(
    own_stub: Stub, own_database: Database, database_url: str
) -> None:
    made = await create(own_stub)
    request = books_pb2.UpdateBookRequest(book=books_pb2.Book(id=made.id, name="Dune Messiah"))
    async with locked_book(database_url, made.id):
        with pytest.raises(grpc.aio.AioRpcError) as caught:
            await own_stub.UpdateBook(request, timeout=0.3)
        assert caught.value.code() is grpc.StatusCode.DEADLINE_EXCEEDED
        await until_the_server_knows(own_stub, made)
    await until(lambda: idle(own_database))
    assert await get(own_stub, made.id) == made
    assert (await own_stub.UpdateBook(request)).name == "Dune Messiah"


async def test_a_call_whose_deadline_has_passed_at_the_start_does_nothing(own_stub: Stub) -> None:
    with pytest.raises(grpc.aio.AioRpcError) as caught:
        await own_stub.CreateBook(books_pb2.CreateBookRequest(book=book()), timeout=-1)
    assert caught.value.code() is grpc.StatusCode.DEADLINE_EXCEEDED
    assert await books_of(own_stub) == []


async def test_calls_cancelled_while_they_wait_for_a_lock_or_a_connection_leak_none(
    own_stub: Stub, own_database: Database, database_url: str
) -> None:
    made = await create(own_stub)
    async with locked_book(database_url, made.id):
        with lock_request() as asked:
            calls = [asyncio.ensure_future(update(own_stub, made.id, release_year=n)) for n in range(30)]
            await asked.wait()
        for call in calls:
            call.cancel()
        await asyncio.wait(calls)
        await until_the_server_knows(own_stub, made)
    await until(lambda: idle(own_database))
    assert await get(own_stub, made.id) == made
    assert (await update(own_stub, made.id, release_year=1)).release_year == 1


async def test_hundreds_of_calls_cancelled_at_any_moment_leak_no_connection(
    own_stub: Stub, own_database: Database
) -> None:
    books = await create_all(own_stub, [book(str(number)) for number in range(50)])
    chance = random.Random(1)

    async def cancelled_call(number: int) -> None:
        each = books[number % len(books)]
        make_call: Callable[[], Coroutine[Any, Any, object]] = [
            lambda: get(own_stub, each.id),
            lambda: update(own_stub, each.id, release_year=number),
            lambda: books_of(own_stub, filter="frank", order_by="name desc"),
            lambda: create(own_stub, f"new {number}"),
        ][number % 4]
        call = asyncio.create_task(make_call())
        await asyncio.sleep(chance.random() * 0.02)
        call.cancel()
        with suppress(asyncio.CancelledError):
            await call

    for start in range(0, 400, 20):
        await asyncio.gather(*(cancelled_call(number) for number in range(start, start + 20)))
    await until(lambda: idle(own_database))
    # Every connection of the pools is there and fit for use.
    responses = await asyncio.gather(
        *(update(own_stub, each.id, release_year=-1) for each in books), *(get(own_stub, books[0].id) for _ in books)
    )
    assert len(responses) == 100
    assert connections_in_use(own_database) == 0
