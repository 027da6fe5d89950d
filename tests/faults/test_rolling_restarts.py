"""Two servers behind one name are replaced in turn under load, and no call of a plain stub fails."""

import asyncio
import itertools
import json
import subprocess
import threading
import time
import uuid
from collections import Counter
from collections.abc import AsyncIterator, Awaitable, Callable, Iterator
from concurrent.futures import ThreadPoolExecutor
from contextlib import AbstractAsyncContextManager, asynccontextmanager, contextmanager, suppress
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import grpc
import pytest
from bookstore.v1 import books_pb2, books_pb2_grpc
from grpc_health.v1 import health_pb2, health_pb2_grpc

from bookstore_grpc.client import BookstoreClient
from tests import node
from tests.e2e.conftest import Start
from tests.faults.conftest import Figures
from tests.faults.load import CALLERS

pytestmark = [pytest.mark.e2e, pytest.mark.timeout(900)]

# A client tries a server that was unavailable again after a second, and up to a fifth of that at random.
RECONNECT_SECONDS = 1.3
UNDER_LOAD_SECONDS = 0.3
CALL_SECONDS = 30
CHANNEL_OPTIONS = [("grpc.use_local_subchannel_pool", 1)]

Call = Callable[[str, Any], Awaitable[Any]]


@dataclass
class Tally:
    """What was sent, what failed, and by name the authors of the books that have to be stored."""

    calls: int = 0
    failures: Counter[str] = field(default_factory=Counter)
    slowest_seconds: float = 0.0
    kept: dict[str, str] = field(default_factory=dict)

    @contextmanager
    def counted(self, method: str) -> Iterator[None]:
        """Count the call that is made in the block."""
        self.calls += 1
        began = time.monotonic()
        try:
            yield
        except grpc.RpcError as error:
            self.failures[f"{method} {error.code().name}: {error.details()}"] += 1
            raise
        finally:
            self.slowest_seconds = max(self.slowest_seconds, time.monotonic() - began)

    def add(self, other: "Tally") -> None:
        self.calls += other.calls
        self.failures += other.failures
        self.slowest_seconds = max(self.slowest_seconds, other.slowest_seconds)
        self.kept |= other.kept


def book(name: str) -> books_pb2.CreateBookRequest:
    # Without a request id, so that a create that takes effect twice is stored twice.
    return books_pb2.CreateBookRequest(book=books_pb2.Book(name=name, author="Anon", release_year=1))


async def call_each(call: Call, tally: Tally, name: str) -> None:
    """Call every RPC, and note which books stay."""
    created = await call("CreateBook", book(name))
    tally.kept[name] = "Anon"
    await call("GetBook", books_pb2.GetBookRequest(id=created.id))
    await call("UpdateBook", books_pb2.UpdateBookRequest(book=books_pb2.Book(id=created.id, author="Somebody")))
    tally.kept[name] = "Somebody"
    await call("ListBooks", books_pb2.ListBooksRequest(page_size=3))
    await call("BatchGetBooks", books_pb2.BatchGetBooksRequest(ids=[created.id]))
    names = [f"{name} a", f"{name} b"]
    both = await call("BatchCreateBooks", books_pb2.BatchCreateBooksRequest(requests=map(book, names)))
    tally.kept |= dict.fromkeys(names, "Anon")
    await call("Check", health_pb2.HealthCheckRequest())
    await call("DeleteBook", books_pb2.DeleteBookRequest(id=both.books[0].id))
    del tally.kept[names[0]]


async def call_on_and_on(call: Call, tally: Tally, name: str, is_over: threading.Event) -> None:
    async def counted(method: str, request: Any) -> Any:
        with tally.counted(method):
            return await call(method, request)

    for number in itertools.count():
        if is_over.is_set():
            return
        with suppress(grpc.RpcError):
            await call_each(counted, tally, f"{name}-{number}")


def method_of(channel: grpc.Channel | grpc.aio.Channel) -> Callable[[str], Callable[..., Any]]:
    books, health = books_pb2_grpc.BookServiceStub(channel), health_pb2_grpc.HealthStub(channel)
    return lambda name: getattr(health if name == "Check" else books, name)


@asynccontextmanager
async def asyncio_callers(target: str, tally: Tally, run: str, _folder: Path) -> AsyncIterator[None]:
    async with grpc.aio.insecure_channel(target, options=CHANNEL_OPTIONS) as channel:
        method = method_of(channel)

        async def call(name: str, request: Any) -> Any:
            return await method(name)(request, timeout=CALL_SECONDS)

        is_over = threading.Event()
        async with asyncio.TaskGroup() as callers:
            for number in range(CALLERS):
                callers.create_task(call_on_and_on(call, tally, f"{run}{number}", is_over))
            try:
                yield
            finally:
                is_over.set()


@asynccontextmanager
async def thread_callers(target: str, tally: Tally, run: str, _folder: Path) -> AsyncIterator[None]:
    tallies = [Tally() for _ in range(CALLERS)]
    is_over = threading.Event()
    with grpc.insecure_channel(target, options=CHANNEL_OPTIONS) as channel, ThreadPoolExecutor(CALLERS) as threads:
        method = method_of(channel)

        async def call(name: str, request: Any) -> Any:
            return method(name)(request, timeout=CALL_SECONDS)  # blocks, in a thread of its own

        callers = [
            threads.submit(asyncio.run, call_on_and_on(call, own, f"{run}{number}", is_over))
            for number, own in enumerate(tallies)
        ]
        try:
            yield
        finally:
            is_over.set()
            await asyncio.gather(*map(asyncio.wrap_future, callers))
    for own in tallies:
        tally.add(own)


@asynccontextmanager
async def node_callers(target: str, tally: Tally, run: str, folder: Path) -> AsyncIterator[None]:
    command = node.command("on_and_on.js", target, run, CALLERS)
    # asyncio would use a socket as standard input, and Node does not see its end.
    with subprocess.Popen(command, cwd=folder, bufsize=0, stdin=subprocess.PIPE, stdout=subprocess.PIPE) as process:  # noqa: ASYNC220  brief
        try:
            # The first calls of a client that starts during the drain of a server may all meet its shutdown.
            assert process.stdout
            assert await asyncio.to_thread(process.stdout.readline) == b"calling\n"
            yield
            output, _ = await asyncio.to_thread(process.communicate, timeout=2 * CALL_SECONDS)
        finally:
            process.kill()
    result = json.loads(output)
    tally.add(Tally(result["calls"], Counter(result["failures"]), result["slowest_seconds"], dict(result["kept"])))


Callers = Callable[[str, Tally, str, Path], AbstractAsyncContextManager[None]]


@pytest.mark.parametrize(
    ("callers", "any_database_url", "delay_seconds"),
    [
        pytest.param(asyncio_callers, "sqlite", 0, id="asyncio"),
        pytest.param(thread_callers, "sqlite", 0, id="threads"),
        pytest.param(node_callers, "sqlite", 0, id="node"),
        pytest.param(asyncio_callers, "sqlite", 1, id="asyncio-delay"),
        pytest.param(asyncio_callers, "postgresql", 0, id="asyncio-postgresql"),
    ],
    indirect=["any_database_url"],
)
async def test_no_call_of_a_plain_stub_fails_while_two_servers_are_restarted_in_turn(
    start: Start,
    callers: Callers,
    any_database_url: str,
    delay_seconds: float,
    node_folder: Path,
    is_long: bool,
    figures: Figures,
) -> None:
    def start_one(*arguments: str) -> Any:
        return start(any_database_url, "--migrate", "--drain-delay-seconds", str(delay_seconds), *arguments)

    servers = [await asyncio.to_thread(start_one) for _ in range(2)]
    addresses = [server.address for server in servers]
    restarts = 20 if is_long else 1  # of each
    tally = Tally()
    run = f"Book {uuid.uuid4().hex[:8]} "
    async with callers(f"ipv4:{','.join(addresses)}", tally, run, node_folder):
        for number in range(2 * restarts):
            await asyncio.sleep(RECONNECT_SECONDS if number else UNDER_LOAD_SECONDS)
            which = number % 2
            assert await asyncio.to_thread(servers[which].stop) == 0
            assert "drain timed out" not in servers[which].log_text()
            servers[which] = await asyncio.to_thread(start_one, "--listen", addresses[which])
        await asyncio.sleep(UNDER_LOAD_SECONDS)

    async with BookstoreClient(addresses[0]) as client:
        stored = Counter([(book.name, book.author) async for book in client.list_books(page_size=1_000)])
    kept = Counter(tally.kept.items())
    lost, too_many = (kept - stored).total(), (stored - kept).total()
    figures(
        rounds=2 * restarts,
        calls=tally.calls,
        succeeded=tally.calls - tally.failures.total(),
        lost=lost,
        doubled=too_many,
        slowest_seconds=round(tally.slowest_seconds, 2),
        failed=tally.failures.total(),
    )
    assert tally.failures == {}
    assert (lost, too_many) == (0, 0)
    assert tally.calls > 100 * restarts
