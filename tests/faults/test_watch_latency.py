"""How long a change takes to watchers: of the same process, of two workers, and of another server.

The times are figures of the long form, and no test depends on them.
"""

import asyncio
import os
import random
import statistics
import time
from collections.abc import AsyncIterator, Sequence
from contextlib import AsyncExitStack, asynccontextmanager

import grpc
import pytest
from bookstore.v1 import books_pb2, books_pb2_grpc

from tests.conftest import FAULTS_VARIABLE
from tests.e2e.conftest import Start
from tests.faults.conftest import Figures

pytestmark = [pytest.mark.e2e, pytest.mark.timeout(600)]

IS_LONG = os.environ.get(FAULTS_VARIABLE) == "long"
# On connections of their own, so that each of two workers serves some of them.
WATCHERS = 8
# Between two changes, at random, so that they come at every moment between two polls.
PAUSE_SECONDS = 0.2
ARRIVAL_SECONDS = 30


class Arrivals:
    """When the watchers have received a change, by the name of its book."""

    def __init__(self) -> None:
        self._at: dict[str, list[float]] = {}
        self._arrived = asyncio.Event()

    async def watch(self, stub: "books_pb2_grpc.BookServiceAsyncStub", is_watching: asyncio.Barrier) -> None:
        """Receive changes from now on, which is when `is_watching`."""
        is_first = True
        async for response in stub.WatchBooks(books_pb2.WatchBooksRequest()):
            now = time.monotonic()
            for change in response.changes:
                self._at.setdefault(change.book.name, []).append(now)
            self._arrived.set()
            if is_first:
                is_first = False
                await is_watching.wait()

    async def last(self, name: str) -> float:
        """Return when the last of the watchers received it."""
        async with asyncio.timeout(ARRIVAL_SECONDS):
            while len(self._at.get(name, ())) < WATCHERS:
                self._arrived.clear()
                await self._arrived.wait()
        return max(self._at.pop(name))


@asynccontextmanager
async def watching(address: str) -> AsyncIterator[Arrivals]:
    """Let watchers receive while a block runs."""
    arrivals = Arrivals()
    async with AsyncExitStack() as stack:
        is_watching = asyncio.Barrier(WATCHERS + 1)
        tasks = []
        for _ in range(WATCHERS):
            stub = await stack.enter_async_context(connected(address))
            tasks.append(asyncio.create_task(arrivals.watch(stub, is_watching)))
        try:
            async with asyncio.timeout(ARRIVAL_SECONDS):
                await is_watching.wait()
            yield arrivals
        finally:
            for task in tasks:
                task.cancel()
            await asyncio.gather(*tasks, return_exceptions=True)


@asynccontextmanager
async def connected(address: str) -> AsyncIterator["books_pb2_grpc.BookServiceAsyncStub"]:
    async with grpc.aio.insecure_channel(address, options=[("grpc.use_local_subchannel_pool", 1)]) as channel:
        yield books_pb2_grpc.BookServiceStub(channel)


@pytest.mark.parametrize("any_database_url", ["sqlite", "postgresql", "mariadb"], indirect=True)
@pytest.mark.parametrize("place", ["process", "workers", "servers"] if IS_LONG else ["servers"])
async def test_changes_come_to_all_watchers(start: Start, any_database_url: str, place: str, figures: Figures) -> None:
    workers = ("--workers", "2") if place == "workers" else ()
    servers = [await asyncio.to_thread(start, any_database_url, "--migrate", *workers)]
    if place == "servers":
        servers.append(await asyncio.to_thread(start, any_database_url))
    writes, after_call, after_response = [], [], []
    async with connected(servers[0].address) as stub, watching(servers[-1].address) as arrivals:
        for number in range(300 if IS_LONG else 3):
            await asyncio.sleep(random.uniform(0, PAUSE_SECONDS))
            book = books_pb2.Book(name=f"Book {number}", author="Ann", release_year=1)
            called = time.monotonic()
            await stub.CreateBook(books_pb2.CreateBookRequest(book=book), timeout=30)
            responded = time.monotonic()
            arrived = await arrivals.last(book.name)
            writes.append(responded - called)
            after_call.append(arrived - called)
            after_response.append(max(0.0, arrived - responded))
    figures(
        changes=len(writes),
        write_p50_ms=percentile(writes, 50),
        from_call_p50_ms=percentile(after_call, 50),
        from_call_p99_ms=percentile(after_call, 99),
        after_response_p50_ms=percentile(after_response, 50),
        after_response_p99_ms=percentile(after_response, 99),
    )


def percentile(seconds: Sequence[float], share: int) -> float:
    """Return a percentile in milliseconds."""
    return round(1_000 * statistics.quantiles(seconds, n=100, method="inclusive")[share - 1], 1)
