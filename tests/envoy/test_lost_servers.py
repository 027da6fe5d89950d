"""A server that ends, is killed or comes back while calls come through Envoy: none is lost, no book is made twice."""

import asyncio
import itertools
import os
import signal
import time
import uuid
from collections.abc import AsyncIterator, Awaitable, Callable
from contextlib import asynccontextmanager

import grpc
import pytest
from bookstore.v1 import books_pb2, books_pb2_grpc

from bookstore_grpc.client import BookstoreClient
from tests.conftest import REQUIRE_ALL_VARIABLE
from tests.envoy.callers import ask
from tests.envoy.conftest import RunEdge
from tests.envoy.edge import Edge
from tests.executable import wait_until

# In CI the whole time, else a third of it.
LOAD_SECONDS = 30 if os.environ.get(REQUIRE_ALL_VARIABLE) else 10
READERS, CREATORS = 8, 8
DRAIN_DELAY = ("--drain-delay-seconds", "3")


class Load:
    """Callers of an edge, each with one call at a time until it is told to end, and what became of their calls."""

    def __init__(self, edge: Edge, *, repeats_creates: bool) -> None:
        self._edge = edge
        self._repeats_creates = repeats_creates
        self._numbers = itertools.count()
        self._is_over = False
        self.lost: list[str] = []
        self.reads = self.json_reads = self.repeated_creates = 0
        self.created: dict[str, int] = {}

    @asynccontextmanager
    async def running(self) -> AsyncIterator[None]:
        """Call while a block runs; at its end every call has ended."""
        async with self._edge.envoy.channel() as one, self._edge.envoy.channel() as other:
            stubs: list[books_pb2_grpc.BookServiceAsyncStub] = [
                books_pb2_grpc.BookServiceStub(channel) for channel in (one, other)
            ]
            first = await stubs[0].CreateBook(self._next_request())
            self.created[first.name] = first.id
            callers = [self._read(stubs[number % 2], first) for number in range(READERS)]
            callers += [self._create(stubs[number % 2]) for number in range(CREATORS)]
            callers.append(asyncio.to_thread(self._read_json, first.id))
            tasks = [asyncio.create_task(caller) for caller in callers]
            try:
                yield
            finally:
                self._is_over = True
                await asyncio.gather(*tasks)

    async def is_stored_once(self, address: str) -> None:
        """Check that what was answered is there, and every name once."""
        async with BookstoreClient(address) as client:
            stored = [(book.name, book.id) async for book in client.list_books()]
        assert sorted(stored) == sorted(self.created.items())

    def _next_request(self) -> books_pb2.CreateBookRequest:
        book = books_pb2.Book(name=f"Book {next(self._numbers)}", author="Anon", release_year=1)
        return books_pb2.CreateBookRequest(book=book, request_id=str(uuid.uuid4()))

    async def _read(self, stub: "books_pb2_grpc.BookServiceAsyncStub", book: books_pb2.Book) -> None:
        def kinds() -> tuple[Callable[[], Awaitable[object]], ...]:
            return (
                lambda: stub.GetBook(books_pb2.GetBookRequest(id=book.id), timeout=20),
                lambda: stub.ListBooks(books_pb2.ListBooksRequest(page_size=5), timeout=20),
                lambda: stub.BatchGetBooks(books_pb2.BatchGetBooksRequest(ids=[book.id]), timeout=20),
            )

        for call in itertools.cycle(kinds()):
            if self._is_over:
                return
            try:
                await call()
                self.reads += 1
            except grpc.aio.AioRpcError as error:
                self.lost.append(f"read: {error.code()} {error.details()}")
            await asyncio.sleep(0.005)

    async def _create(self, stub: "books_pb2_grpc.BookServiceAsyncStub") -> None:
        while not self._is_over:
            request = self._next_request()
            while request.book.name not in self.created:
                try:
                    created = await stub.CreateBook(request, timeout=20)
                    self.created[created.name] = created.id
                except grpc.aio.AioRpcError as error:
                    if not self._repeats_creates or error.code() is not grpc.StatusCode.UNAVAILABLE:
                        self.lost.append(f"create: {error.code()} {error.details()}")
                        return
                    self.repeated_creates += 1
                    await asyncio.sleep(0.02)
            await asyncio.sleep(0.005)

    def _read_json(self, book_id: int) -> None:
        while not self._is_over:
            answer = ask(self._edge.envoy.address, self._edge.envoy.ca, "GET", f"/v1/books/{book_id}")
            if answer.status == 200:
                self.json_reads += 1
            else:
                self.lost.append(f"JSON: {answer}")
            time.sleep(0.01)


async def test_no_call_is_lost_when_one_of_two_servers_is_killed(run_edge: RunEdge) -> None:
    async with run_edge() as edge:
        load = Load(edge, repeats_creates=True)
        async with load.running():
            await asyncio.sleep(LOAD_SECONDS / 3)
            edge.servers[0].process.kill()
            await asyncio.sleep(LOAD_SECONDS / 3)
            back = await asyncio.to_thread(edge.restart, 0)
            await asyncio.sleep(LOAD_SECONDS / 3)

        assert load.lost == []
        assert min(load.reads, load.json_reads, len(load.created)) > 10 * LOAD_SECONDS
        # Some of what was under way was read elsewhere, and the server that came back got its share again.
        assert edge.envoy.statistic("upstream_rq_retry_success") > 0
        assert sum(line["event"] == "call answered" for line in back.log_lines()) > LOAD_SECONDS
        await load.is_stored_once(back.address)


@pytest.mark.parametrize("arguments", [(), DRAIN_DELAY], ids=["at once", "with a delay"])
async def test_no_call_is_lost_when_one_of_two_servers_drains(run_edge: RunEdge, arguments: tuple[str, ...]) -> None:
    async with run_edge(*arguments) as edge:
        load = Load(edge, repeats_creates=False)
        async with load.running():
            await asyncio.sleep(1)
            assert await asyncio.to_thread(edge.servers[1].stop) == 0
            await asyncio.sleep(0.5)

        assert load.lost == []
        await load.is_stored_once(edge.servers[0].address)


async def test_a_server_that_hangs_gets_no_calls_until_it_turns_again(edge: Edge) -> None:
    stopped = edge.servers[0]
    stopped.process.send_signal(signal.SIGSTOP)
    try:
        await asyncio.to_thread(wait_until, lambda: stopped.address not in edge.envoy.healthy(), "it is out")
        async with edge.envoy.channel() as channel:
            stub: books_pb2_grpc.BookServiceAsyncStub = books_pb2_grpc.BookServiceStub(channel)
            for _ in range(10):
                await stub.ListBooks(books_pb2.ListBooksRequest(), timeout=5)
    finally:
        stopped.process.send_signal(signal.SIGCONT)
    await asyncio.to_thread(wait_until, lambda: stopped.address in edge.envoy.healthy(), "it is back")


async def test_callers_deadlines_put_no_server_out(edge: Edge) -> None:
    for _ in range(20):
        answer = await asyncio.to_thread(
            ask, edge.envoy.address, edge.envoy.ca, "DELETE", "/v1/books/1", headers={"grpc-timeout": "1n"}
        )
        assert answer.status == 504
    assert edge.envoy.statistic("outlier_detection.ejections_enforced_total") == 0
    assert len(edge.envoy.healthy()) == 2


async def test_when_no_server_is_healthy_all_are_asked_and_when_none_is_left_envoy_says_so(run_edge: RunEdge) -> None:
    async with run_edge("--drain-delay-seconds", "60") as edge, edge.envoy.channel() as channel:
        stub: books_pb2_grpc.BookServiceAsyncStub = books_pb2_grpc.BookServiceStub(channel)
        for server in edge.servers:
            server.process.send_signal(signal.SIGTERM)
        await asyncio.to_thread(wait_until, lambda: not edge.envoy.healthy(), "none is healthy")
        await stub.ListBooks(books_pb2.ListBooksRequest())

        for server in edge.servers:
            server.end()
        answer = await asyncio.to_thread(ask, edge.envoy.address, edge.envoy.ca, "GET", "/v1/books")
        assert (answer.status, answer.headers["content-type"]) == (503, "application/json")
        assert answer.json["code"] == grpc.StatusCode.UNAVAILABLE.value[0]
        with pytest.raises(grpc.aio.AioRpcError) as caught:
            await stub.ListBooks(books_pb2.ListBooksRequest())
        assert caught.value.code() is grpc.StatusCode.UNAVAILABLE
        assert "{" not in (caught.value.details() or "")
