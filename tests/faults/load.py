"""Callers that create books continuously, and the comparison of acknowledged with stored books."""

import asyncio
import itertools
import time
import urllib.request
import uuid
from collections import Counter
from collections.abc import AsyncIterator, Awaitable, Callable, Iterator
from contextlib import asynccontextmanager, contextmanager
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any, NamedTuple

import grpc
from bookstore.v1 import books_pb2, books_pb2_grpc

from bookstore_grpc.client import BookstoreClient
from tests.executable import Serving
from tests.faults.database_servers import DatabaseServer

CALLERS = 16
# The default of --pool-size.
POOL = 10
# Calls at a time, where the order does not matter.
TOGETHER = 32

Call = Callable[["books_pb2_grpc.BookServiceAsyncStub", float], Awaitable[bool]]


def numbered_request(number: int, run: str = "") -> books_pb2.CreateBookRequest:
    book = books_pb2.Book(name=f"Book {run}{number}", author="Anon", release_year=number % 9_000)
    return books_pb2.CreateBookRequest(book=book, request_id=str(uuid.uuid4()))


class Ended(NamedTuple):
    """A call that has ended; when, by `time.monotonic`."""

    method: str
    began: float
    at: float
    code: grpc.StatusCode


@dataclass
class Tally:
    """What was sent, acknowledged and rejected. Every book has a name of its own."""

    numbers: "itertools.count[int]" = field(default_factory=itertools.count)
    run: str = field(default_factory=lambda: f"{uuid.uuid4().hex[:8]} ")  # tests may share a database
    calls: int = 0
    acknowledged: dict[str, int] = field(default_factory=dict)
    failed: list[books_pb2.CreateBookRequest] = field(default_factory=list)
    rejections: Counter[grpc.StatusCode] = field(default_factory=Counter)
    slowest_seconds: float = 0.0
    ended: list[Ended] = field(default_factory=list)

    async def create(self, stub: "books_pb2_grpc.BookServiceAsyncStub", timeout_seconds: float) -> bool:
        """Send one create; return whether it succeeded."""
        request = numbered_request(next(self.numbers), self.run)
        self.calls += 1
        try:
            with self._timed("CreateBook"):
                book = await stub.CreateBook(request, timeout=timeout_seconds)
        except grpc.aio.AioRpcError:
            self.failed.append(request)
            return False
        self.acknowledged[book.name] = book.id
        return True

    async def read(self, stub: "books_pb2_grpc.BookServiceAsyncStub", timeout_seconds: float) -> bool:
        """Read a page; return whether it succeeded."""
        try:
            with self._timed("ListBooks"):
                await stub.ListBooks(books_pb2.ListBooksRequest(page_size=5), timeout=timeout_seconds)
        except grpc.aio.AioRpcError:
            return False
        return True

    @contextmanager
    def _timed(self, method: str) -> Iterator[None]:
        began, code = time.monotonic(), grpc.StatusCode.OK
        try:
            yield
        except grpc.aio.AioRpcError as error:
            code = error.code()
            self.rejections[code] += 1
            raise
        except asyncio.CancelledError:
            code = grpc.StatusCode.CANCELLED
            raise
        finally:
            ended = Ended(method, began, time.monotonic(), code)
            self.ended.append(ended)
            self.slowest_seconds = max(self.slowest_seconds, ended.at - began)


@asynccontextmanager
async def load(
    target: str,
    tally: Tally,
    *,
    callers: int = CALLERS,
    readers: int = 0,
    timeout_seconds: float = 30,
    until_rejected: bool = False,
) -> AsyncIterator[None]:
    """Create and read books from many callers while a block runs; a call under way at its end is finished."""
    is_over = False

    async with grpc.aio.insecure_channel(target, options=[("grpc.use_local_subchannel_pool", 1)]) as channel:
        stub: books_pb2_grpc.BookServiceAsyncStub = books_pb2_grpc.BookServiceStub(channel)

        async def on_and_on(call: Call) -> None:
            while not is_over:
                is_done = await call(stub, timeout_seconds)
                if not is_done:
                    if until_rejected:
                        return
                    await asyncio.sleep(0.05)

        calls = [tally.create] * callers + [tally.read] * readers
        tasks = [asyncio.create_task(on_and_on(call)) for call in calls]
        try:
            yield
            is_over = True
            await asyncio.gather(*tasks)
        finally:
            is_over = True
            for task in tasks:
                task.cancel()
            await asyncio.gather(*tasks, return_exceptions=True)


async def until_acknowledged(tally: Tally, count: int = 20) -> float:
    """Wait until so many more creates have succeeded, and return the seconds until the first."""
    began, before = time.monotonic(), len(tally.acknowledged)
    first = 0.0
    async with asyncio.timeout(30):
        while len(tally.acknowledged) < before + count:
            await asyncio.sleep(0.01)
            first = first or (time.monotonic() - began) * (len(tally.acknowledged) > before)
    return first


async def stored_books(address: str) -> Counter[tuple[str, int]]:
    async with BookstoreClient(address, timeout_seconds=60) as client:
        return Counter([(book.name, book.id) async for book in client.list_books()])


async def lost_and_doubled(address: str, tally: Tally) -> tuple[int, int]:
    """Repeat the creates that failed, and count the acknowledged books that are not stored, and those stored twice."""
    async with BookstoreClient(address, timeout_seconds=60) as client:

        async def repeat(request: books_pb2.CreateBookRequest) -> None:
            book = await client.create_book(
                name=request.book.name,
                author=request.book.author,
                release_year=request.book.release_year,
                request_id=request.request_id,
            )
            tally.acknowledged[book.name] = book.id

        for begin in range(0, len(tally.failed), TOGETHER):
            await asyncio.gather(*map(repeat, tally.failed[begin : begin + TOGETHER]))
    stored = await stored_books(address)
    lost = sum(book not in stored for book in tally.acknowledged.items())
    names = Counter(name for name, _ in stored.elements())
    return lost, sum(count - 1 for count in names.values())


async def read_at_once(channel: grpc.aio.Channel, count: int = 2 * POOL) -> float:
    """Read so many long pages concurrently, more than there are connections; return the seconds of the slowest."""
    stub: books_pb2_grpc.BookServiceAsyncStub = books_pb2_grpc.BookServiceStub(channel)
    began = time.monotonic()
    reads: list[Awaitable[object]] = [
        stub.ListBooks(books_pb2.ListBooksRequest(page_size=1_000), timeout=30) for _ in range(count)
    ]
    await asyncio.gather(*reads)
    return time.monotonic() - began


async def check_pool_is_whole(server: Serving) -> None:
    """Raise unless as many concurrent calls as there are connections succeed, and all connections are returned."""
    async with grpc.aio.insecure_channel(server.address) as channel:
        tally = Tally()
        creates = (tally.create(books_pb2_grpc.BookServiceStub(channel), 30) for _ in range(2 * POOL))
        await asyncio.gather(read_at_once(channel), *creates)
    assert len(tally.acknowledged) == 2 * POOL
    url = f"http://{server.wait_for_event('serving')['metrics']}/metrics"
    async with asyncio.timeout(10):
        while await asyncio.to_thread(_connections_in_use, url):  # noqa: ASYNC110  another process's
            await asyncio.sleep(0.2)


async def check_connections(database: DatabaseServer) -> None:
    """Raise unless the database soon has no open transaction, and no more connections than the service may have."""
    most = POOL + 2 + 1  # those of readers and of writers, and the probe's
    give_up = time.monotonic() + 10
    while (counts := (database.connections(), database.open_transactions()))[0] > most or counts[1]:
        assert time.monotonic() < give_up, f"{counts[0]} connections, {counts[1]} transactions: {database.activity()}"
        await asyncio.sleep(0.05)


async def figures_of_load(server: Serving, database: DatabaseServer, tally: Tally) -> dict[str, Any]:
    """Check that all connections are usable and none is left over, and return the figures of a load that has ended."""
    await check_pool_is_whole(server)
    await check_connections(database)
    succeeded = len(tally.acknowledged)
    lost, doubled = await lost_and_doubled(server.address, tally)
    return {
        "database": database.kind,
        "calls": tally.calls,
        "succeeded": succeeded,
        "lost": lost,
        "doubled": doubled,
        "slowest_seconds": round(tally.slowest_seconds, 2),
    }


def _connections_in_use(url: str) -> float:
    with urllib.request.urlopen(url, timeout=10) as response:
        lines = response.read().decode().splitlines()
    return sum(float(line.split()[-1]) for line in lines if line.startswith("bookstore_database_connections_in_use{"))


def defects(server: Serving) -> list[dict[str, Any]]:
    """Return the log's lines of calls that failed by a defect of the service."""
    return [line for line in server.log_lines() if line.get("status") in ("INTERNAL", "UNKNOWN")]


def resident_megabytes(pid: int) -> float:
    for line in Path(f"/proc/{pid}/status").read_text().splitlines():
        if line.startswith("VmRSS:"):
            return int(line.split()[1]) / 1_024
    raise AssertionError("no VmRSS")
