"""Callers that create books on and on, and the count of what they were answered beside what is stored."""

import asyncio
import itertools
import uuid
from collections import Counter
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import grpc
from bookstore.v1 import books_pb2, books_pb2_grpc

from bookstore_grpc.client import BookstoreClient
from tests.executable import Serving

CALLERS = 16


def numbered_request(number: int, run: str = "") -> books_pb2.CreateBookRequest:
    book = books_pb2.Book(name=f"Book {run}{number}", author="Anon", release_year=number % 9_000)
    return books_pb2.CreateBookRequest(book=book, request_id=str(uuid.uuid4()))


@dataclass
class Tally:
    """What was sent, answered and refused. Every book has a name of its own."""

    numbers: "itertools.count[int]" = field(default_factory=itertools.count)
    run: str = field(default_factory=lambda: f"{uuid.uuid4().hex[:8]} ")  # tests may share a database
    calls: int = 0
    answered: dict[str, int] = field(default_factory=dict)
    unanswered: list[books_pb2.CreateBookRequest] = field(default_factory=list)
    refusals: Counter[grpc.StatusCode] = field(default_factory=Counter)
    slowest_seconds: float = 0.0

    async def create(self, stub: "books_pb2_grpc.BookServiceAsyncStub", timeout_seconds: float) -> bool:
        """Send one create; answer whether it was answered."""
        request = numbered_request(next(self.numbers), self.run)
        self.calls += 1
        began = asyncio.get_running_loop().time()
        try:
            book = await stub.CreateBook(request, timeout=timeout_seconds)
        except grpc.aio.AioRpcError as error:
            self.refusals[error.code()] += 1
            self.unanswered.append(request)
            return False
        finally:
            self.slowest_seconds = max(self.slowest_seconds, asyncio.get_running_loop().time() - began)
        self.answered[book.name] = book.id
        return True


@asynccontextmanager
async def load(
    target: str, tally: Tally, *, callers: int = CALLERS, timeout_seconds: float = 30, until_refused: bool = False
) -> AsyncIterator[None]:
    """Create books from many callers while a block runs; a call under way at its end is finished."""
    is_over = False

    async with grpc.aio.insecure_channel(target, options=[("grpc.use_local_subchannel_pool", 1)]) as channel:
        stub: books_pb2_grpc.BookServiceAsyncStub = books_pb2_grpc.BookServiceStub(channel)

        async def on_and_on() -> None:
            while not is_over:
                is_answered = await tally.create(stub, timeout_seconds)
                if not is_answered:
                    if until_refused:
                        return
                    await asyncio.sleep(0.05)

        tasks = [asyncio.create_task(on_and_on()) for _ in range(callers)]
        try:
            yield
            is_over = True
            await asyncio.gather(*tasks)
        finally:
            is_over = True
            for task in tasks:
                task.cancel()
            await asyncio.gather(*tasks, return_exceptions=True)


async def stored_books(address: str) -> Counter[tuple[str, int]]:
    async with BookstoreClient(address, timeout_seconds=60) as client:
        return Counter([(book.name, book.id) async for book in client.list_books()])


async def lost_and_doubled(address: str, tally: Tally) -> tuple[int, int]:
    """Send again what got no answer, and count the answered books that are not stored, and those stored twice."""
    async with BookstoreClient(address, timeout_seconds=60) as client:
        for request in tally.unanswered:
            book = await client.create_book(
                name=request.book.name,
                author=request.book.author,
                release_year=request.book.release_year,
                request_id=request.request_id,
            )
            tally.answered[book.name] = book.id
    stored = await stored_books(address)
    lost = sum(book not in stored for book in tally.answered.items())
    names = Counter(name for name, _ in stored.elements())
    return lost, sum(count - 1 for count in names.values())


def defects(server: Serving) -> list[dict[str, Any]]:
    """Answer the log's lines of calls that the service took for a defect of its own."""
    return [line for line in server.log_lines() if line.get("status") in ("INTERNAL", "UNKNOWN")]


def resident_megabytes(pid: int) -> float:
    for line in Path(f"/proc/{pid}/status").read_text().splitlines():
        if line.startswith("VmRSS:"):
            return int(line.split()[1]) / 1_024
    raise AssertionError("no VmRSS")
