"""Calls that their callers give up, and networks that stall, leave no connection and no transaction behind."""

import asyncio
import random
import time
from collections.abc import Awaitable
from contextlib import suppress

import grpc
import pytest
from bookstore.v1 import books_pb2, books_pb2_grpc
from sqlalchemy.engine import make_url

from tests.e2e.conftest import Start
from tests.faults.conftest import Figures
from tests.faults.database_servers import DatabaseServer
from tests.faults.load import Tally, defects
from tests.faults.test_database_away import POOL, own_database
from tests.rpc.obstacles import Network

__all__ = ["own_database"]

pytestmark = pytest.mark.e2e


def arguments(timeout_seconds: float = 3) -> tuple[str, ...]:
    return ("--migrate", "--pool-size", str(POOL), "--database-timeout-seconds", str(timeout_seconds))


async def give_up(stub: "books_pb2_grpc.BookServiceAsyncStub", tally: Tally, count: int) -> int:
    """Begin calls of every kind and cancel each at a moment of chance; answer how many were cancelled."""
    chance = random.Random(1)
    cancelled = 0

    async def one(place: int) -> None:
        nonlocal cancelled
        calls: list[Awaitable[object]] = [
            tally.create(stub, 30),
            stub.ListBooks(books_pb2.ListBooksRequest(page_size=50, filter="name:1"), timeout=30),
            stub.UpdateBook(books_pb2.UpdateBookRequest(book=books_pb2.Book(id=1, release_year=place)), timeout=30),
        ]
        task = asyncio.ensure_future(calls[place % 3])
        for other in calls[place % 3 + 1 :] + calls[: place % 3]:
            getattr(other, "close" if asyncio.iscoroutine(other) else "cancel")()
        await asyncio.sleep(chance.uniform(0, 0.03))
        cancelled += task.cancel()
        with suppress(asyncio.CancelledError, grpc.aio.AioRpcError):
            await task

    for begin in range(0, count, 40):
        await asyncio.gather(*(one(place) for place in range(begin, begin + 40)))
    return cancelled


async def check_pool(stub: "books_pb2_grpc.BookServiceAsyncStub") -> None:
    """Raise unless as many calls at once as the pool has connections are answered."""
    reads: list[Awaitable[object]] = [
        stub.ListBooks(books_pb2.ListBooksRequest(page_size=1_000), timeout=30) for _ in range(2 * POOL)
    ]
    await asyncio.gather(*reads, *(Tally().create(stub, 30) for _ in range(2 * POOL)))


@pytest.mark.timeout(300)
async def test_a_thousand_cancelled_calls_leave_nothing_open(
    start: Start, own_database: DatabaseServer, figures: Figures
) -> None:
    server = await asyncio.to_thread(start, own_database.url, *arguments())
    async with grpc.aio.insecure_channel(server.address) as channel:
        stub: books_pb2_grpc.BookServiceAsyncStub = books_pb2_grpc.BookServiceStub(channel)
        await Tally().create(stub, 30)
        cancelled = await give_up(stub, Tally(), 1_000)
        await check_pool(stub)
        async with asyncio.timeout(10):
            while own_database.open_transactions():  # noqa: ASYNC110  another process's
                await asyncio.sleep(0.05)
        connections = own_database.connections()
    figures(database=own_database.kind, calls=1_000, cancelled=cancelled, connections=connections)
    assert cancelled > 300
    assert connections <= POOL + 2 + 1
    assert defects(server) == []  # the pool logs, with tracebacks, what it finds broken
    assert await asyncio.to_thread(server.stop) == 0


@pytest.mark.timeout(300)
async def test_a_thousand_cancelled_calls_leave_no_lock_on_a_file(
    start: Start, sqlite_url: str, figures: Figures
) -> None:
    server = await asyncio.to_thread(start, sqlite_url)
    async with grpc.aio.insecure_channel(server.address) as channel:
        stub: books_pb2_grpc.BookServiceAsyncStub = books_pb2_grpc.BookServiceStub(channel)
        cancelled = await give_up(stub, Tally(), 1_000)
        await check_pool(stub)
        other = await asyncio.to_thread(start, sqlite_url)
        async with grpc.aio.insecure_channel(other.address) as second:
            assert await Tally().create(books_pb2_grpc.BookServiceStub(second), 5)
    figures(database="sqlite", calls=1_000, cancelled=cancelled)
    assert cancelled > 300
    assert defects(server) == []  # the pool logs, with tracebacks, what it finds broken
    assert await asyncio.to_thread(server.stop) == 0


@pytest.mark.timeout(300)
async def test_a_network_that_stalls_holds_no_call_past_its_deadline(
    start: Start, own_database: DatabaseServer, is_long: bool, figures: Figures
) -> None:
    rounds = 5 if is_long else 1
    network = Network("127.0.0.1", own_database.port)
    await network.restore()
    url = make_url(own_database.url).set(port=network.port).render_as_string()
    slowest = 0.0
    try:
        server = await asyncio.to_thread(start, url, *arguments(1))
        async with grpc.aio.insecure_channel(server.address) as channel:
            stub: books_pb2_grpc.BookServiceAsyncStub = books_pb2_grpc.BookServiceStub(channel)
            for _ in range(rounds):
                await check_pool(stub)
                network.stall()
                tally = Tally()

                async def one(tally: Tally = tally) -> float:
                    began = time.monotonic()
                    assert not await tally.create(stub, 2)
                    return time.monotonic() - began

                slowest = max(slowest, *await asyncio.gather(*(one() for _ in range(20))))
                assert tally.refusals.keys() <= {grpc.StatusCode.UNAVAILABLE, grpc.StatusCode.DEADLINE_EXCEEDED}
                network.flow()
                # The pool is whole again as soon as the probe has found the database.
                async with asyncio.timeout(20):
                    while not await Tally().create(stub, 2):  # noqa: ASYNC110  another process's
                        await asyncio.sleep(0.1)
        # While it stalls the server can be ended, too.
        network.stall()
        began = time.monotonic()
        assert await asyncio.to_thread(server.stop) == 0
        end_seconds = time.monotonic() - began
    finally:
        network.flow()
        await network.cut()
    figures(
        database=own_database.kind,
        rounds=rounds,
        slowest_seconds=round(slowest, 2),
        end_seconds=round(end_seconds, 2),
    )
    assert slowest < 3
    assert end_seconds < 25
    assert defects(server) == []  # the pool logs, with tracebacks, what it finds broken
