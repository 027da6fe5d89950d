"""A server stops, is killed or starts again under calls through Envoy: no call is lost, no book is created twice."""

import asyncio
import itertools
import signal
import time
import uuid
from collections.abc import AsyncIterator, Awaitable, Callable
from contextlib import asynccontextmanager

import grpc
import pytest
from bookstore.v1 import books_pb2, books_pb2_grpc

from bookstore_grpc.client import BookstoreClient
from tests.envoy.callers import ask
from tests.envoy.conftest import RunEdge
from tests.envoy.edge import Edge
from tests.executable import wait_until

READERS, CREATORS = 4, 4
# Of each kind, in each state of the servers.
CALLS = 20
PAUSE_SECONDS = 0.01
DRAIN_DELAY = ("--drain-delay-seconds", "3")


class Load:
    """Callers through Envoy, each with one call at a time until the end of the load, and the results of their calls."""

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

    async def proceed(self) -> None:
        """Wait until so many more calls of each kind have succeeded."""
        wanted = [count + CALLS for count in self._counts()]

        def is_enough() -> bool:
            return all(count >= least for count, least in zip(self._counts(), wanted, strict=True))

        await asyncio.to_thread(wait_until, is_enough, "calls of each kind have succeeded")

    def _counts(self) -> tuple[int, int, int]:
        return self.reads, self.json_reads, len(self.created)

    async def check_stored_once(self, address: str) -> None:
        """Raise unless every acknowledged book is stored, and every name once."""
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
            await asyncio.sleep(PAUSE_SECONDS)

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
            await asyncio.sleep(PAUSE_SECONDS)

    def _read_json(self, book_id: int) -> None:
        while not self._is_over:
            response = ask(self._edge.envoy.address, self._edge.envoy.ca, "GET", f"/v1/books/{book_id}")
            if response.status == 200:
                self.json_reads += 1
            else:
                self.lost.append(f"JSON: {response}")
            time.sleep(PAUSE_SECONDS)


async def test_no_call_is_lost_when_one_of_two_servers_is_killed(run_edge: RunEdge) -> None:
    async with run_edge() as edge:
        load = Load(edge, repeats_creates=True)
        async with load.running():
            await load.proceed()
            edge.servers[0].process.kill()
            await load.proceed()
            back = await asyncio.to_thread(edge.restart, 0)
            await asyncio.to_thread(wait_until, lambda: back.calls() > CALLS, "the new server gets its share")
            await load.proceed()

        assert load.lost == []
        # Some reads in progress were retried on the other server.
        assert edge.envoy.statistic("upstream_rq_retry_success") > 0
        await load.check_stored_once(back.address)


@pytest.mark.parametrize("arguments", [(), DRAIN_DELAY], ids=["at once", "with a delay"])
async def test_no_call_is_lost_when_one_of_two_servers_drains(run_edge: RunEdge, arguments: tuple[str, ...]) -> None:
    async with run_edge(*arguments) as edge:
        load = Load(edge, repeats_creates=False)
        async with load.running():
            await load.proceed()
            assert await asyncio.to_thread(edge.servers[1].stop) == 0
            await load.proceed()

        assert load.lost == []
        await load.check_stored_once(edge.servers[0].address)


async def test_an_unresponsive_server_gets_no_calls_until_it_responds_again(edge: Edge) -> None:
    stopped = edge.servers[0]
    stopped.process.send_signal(signal.SIGSTOP)
    try:
        await asyncio.to_thread(wait_until, lambda: stopped.address not in edge.envoy.healthy(), "it is unhealthy")
        async with edge.envoy.channel() as channel:
            stub: books_pb2_grpc.BookServiceAsyncStub = books_pb2_grpc.BookServiceStub(channel)
            for _ in range(10):
                await stub.ListBooks(books_pb2.ListBooksRequest(), timeout=5)
    finally:
        stopped.process.send_signal(signal.SIGCONT)
    await asyncio.to_thread(wait_until, lambda: stopped.address in edge.envoy.healthy(), "it is healthy again")


async def test_deadlines_of_callers_eject_no_server(edge: Edge) -> None:
    for _ in range(20):
        response = await asyncio.to_thread(
            ask, edge.envoy.address, edge.envoy.ca, "DELETE", "/v1/books/1", headers={"grpc-timeout": "1n"}
        )
        assert response.status == 504
    assert edge.envoy.statistic("outlier_detection.ejections_enforced_total") == 0
    assert len(edge.envoy.healthy()) == 2


async def test_unhealthy_servers_get_calls_where_all_are_and_without_any_envoy_is_unavailable(
    run_edge: RunEdge,
) -> None:
    async with run_edge("--drain-delay-seconds", "60") as edge, edge.envoy.channel() as channel:
        stub: books_pb2_grpc.BookServiceAsyncStub = books_pb2_grpc.BookServiceStub(channel)
        for server in edge.servers:
            server.process.send_signal(signal.SIGTERM)
        await asyncio.to_thread(wait_until, lambda: not edge.envoy.healthy(), "none is healthy")
        await stub.ListBooks(books_pb2.ListBooksRequest())

        for server in edge.servers:
            server.end()
        response = await asyncio.to_thread(ask, edge.envoy.address, edge.envoy.ca, "GET", "/v1/books")
        assert (response.status, response.headers["content-type"]) == (503, "application/json")
        assert response.json["code"] == grpc.StatusCode.UNAVAILABLE.value[0]
        with pytest.raises(grpc.aio.AioRpcError) as caught:
            await stub.ListBooks(books_pb2.ListBooksRequest())
        assert caught.value.code() is grpc.StatusCode.UNAVAILABLE
        assert "{" not in (caught.value.details() or "")
