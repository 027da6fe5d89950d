"""Cancelled calls and stalled networks leave no open connection and no transaction."""

import asyncio
import random
import sqlite3
import time
from collections.abc import Awaitable
from contextlib import closing, suppress
from pathlib import Path

import grpc
import pytest
from bookstore.v1 import books_pb2, books_pb2_grpc

from tests.e2e.conftest import Start
from tests.executable import Serving
from tests.faults.conftest import Figures
from tests.faults.database_servers import DatabaseServer
from tests.faults.load import Tally, check_connections, check_pool_is_whole, lost_and_doubled
from tests.faults.test_database_away import network_to

pytestmark = pytest.mark.e2e

METRICS = ("--metrics-listen", "127.0.0.1:0")


async def cancel_some(stub: "books_pb2_grpc.BookServiceAsyncStub", tally: Tally, count: int) -> int:
    """Start calls of every kind and cancel each at a random moment; return how many were cancelled."""
    chance = random.Random(1)
    cancelled = 0

    def call(place: int) -> Awaitable[object]:
        if place % 3 == 0:
            return tally.create(stub, 30)
        if place % 3 == 1:
            return stub.ListBooks(books_pb2.ListBooksRequest(page_size=50, filter="name:1"), timeout=30)
        book = books_pb2.Book(id=1, release_year=place)
        return stub.UpdateBook(books_pb2.UpdateBookRequest(book=book), timeout=30)

    async def one(place: int) -> None:
        nonlocal cancelled
        task = asyncio.ensure_future(call(place))
        await asyncio.sleep(chance.uniform(0, 0.03))
        cancelled += task.cancel()
        with suppress(asyncio.CancelledError, grpc.aio.AioRpcError):
            await task

    for begin in range(0, count, 40):
        await asyncio.gather(*(one(place) for place in range(begin, begin + 40)))
    return cancelled


async def cancel_a_thousand(server: Serving, tally: Tally) -> int:
    """Cancel a thousand calls and return how many were cancelled in time. Raises unless nothing of them is left."""
    async with grpc.aio.insecure_channel(server.address) as channel:
        stub: books_pb2_grpc.BookServiceAsyncStub = books_pb2_grpc.BookServiceStub(channel)
        await tally.create(stub, 30)
        cancelled = await cancel_some(stub, tally, 1_000)
    await check_pool_is_whole(server)
    lost, doubled = await lost_and_doubled(server.address, tally)
    assert cancelled > 300
    assert (lost, doubled) == (0, 0)
    # A connection with as many calls under way as it may have gets others rejected until the server knows which were
    # cancelled; the rejected ones have not begun.
    assert tally.rejections.keys() <= {grpc.StatusCode.UNAVAILABLE}
    assert tally.rejections.total() < 100
    return cancelled


@pytest.mark.timeout(300)
async def test_a_thousand_cancelled_calls_leave_nothing_open(
    start: Start, own_database: DatabaseServer, figures: Figures
) -> None:
    server = await asyncio.to_thread(start, own_database.url, "--migrate", *METRICS)
    cancelled = await cancel_a_thousand(server, Tally())
    await check_connections(own_database)
    figures(
        database=own_database.kind, calls=1_000, cancelled=cancelled, connections=own_database.connections(), lost=0
    )
    assert "Traceback" not in server.log_text()
    assert await asyncio.to_thread(server.stop) == 0


@pytest.mark.timeout(300)
async def test_a_thousand_cancelled_calls_leave_no_lock_on_a_file(
    start: Start, sqlite_url: str, sqlite_file: Path, figures: Figures
) -> None:
    server = await asyncio.to_thread(start, sqlite_url, *METRICS)
    cancelled = await cancel_a_thousand(server, Tally())
    with closing(sqlite3.connect(sqlite_file, isolation_level=None, timeout=0)) as other:
        # Both fail immediately if a transaction is still open.
        other.execute("BEGIN IMMEDIATE")
        other.execute("ROLLBACK")
        (is_busy, in_log, copied) = other.execute("PRAGMA wal_checkpoint(TRUNCATE)").fetchone()
    figures(database="sqlite", calls=1_000, cancelled=cancelled, lost=0)
    assert (is_busy, in_log, copied) == (0, 0, 0)
    assert "Traceback" not in server.log_text()
    assert await asyncio.to_thread(server.stop) == 0


@pytest.mark.timeout(300)
async def test_no_call_exceeds_its_deadline_on_a_stalled_network(
    start: Start, own_database: DatabaseServer, is_long: bool, margin_seconds: float, figures: Figures
) -> None:
    rounds = 5 if is_long else 1
    deadline_seconds = 1.0  # before the outage can be detected
    slowest, recoveries = 0.0, []
    tally = Tally()
    async with network_to(own_database) as (url, network):
        server = await asyncio.to_thread(start, url, "--migrate", *METRICS)
        async with grpc.aio.insecure_channel(server.address) as channel:
            stub: books_pb2_grpc.BookServiceAsyncStub = books_pb2_grpc.BookServiceStub(channel)
            for _ in range(rounds):
                await check_pool_is_whole(server)
                network.stall()
                before = len(tally.ended)
                calls = [call(stub, deadline_seconds) for _ in range(20) for call in (tally.create, tally.read)]
                assert not any(await asyncio.gather(*calls))
                slowest = max(slowest, *(call.at - call.began for call in tally.ended[before:]))
                network.flow()
                began = time.monotonic()
                async with asyncio.timeout(20):
                    while not await tally.create(stub, 5):  # noqa: ASYNC110  another process's
                        await asyncio.sleep(0.1)
                recoveries.append(time.monotonic() - began)
            await check_pool_is_whole(server)
            await check_connections(own_database)
        lost, doubled = await lost_and_doubled(server.address, tally)
        # The server can be stopped while it stalls, too.
        network.stall()
        began = time.monotonic()
        assert await asyncio.to_thread(server.stop) == 0
        end_seconds = time.monotonic() - began
    figures(
        database=own_database.kind,
        rounds=rounds,
        calls=len(tally.ended),
        lost=lost,
        doubled=doubled,
        slowest_seconds=round(slowest, 2),
        recovery_seconds=round(max(recoveries), 2),
        end_seconds=round(end_seconds, 2),
    )
    assert (lost, doubled) == (0, 0)
    assert tally.rejections.keys() <= {grpc.StatusCode.UNAVAILABLE, grpc.StatusCode.DEADLINE_EXCEEDED}
    assert slowest < deadline_seconds + 0.5 + margin_seconds
    # The connections are closed, which takes at most so long without a response.
    assert end_seconds < 7 + margin_seconds
    assert "Traceback" not in server.log_text()
