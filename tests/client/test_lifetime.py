"""Where and how long a client can be used: in one event loop of one process, until it is closed."""

import asyncio
import os
import subprocess
import sys
import threading
from collections.abc import AsyncIterator, Awaitable, Callable
from typing import Any

import grpc
import pytest
from bookstore.v1 import books_pb2, books_pb2_grpc

from bookstore_grpc.calls.pipeline import CallPipeline
from bookstore_grpc.client import BookstoreClient
from bookstore_grpc.errors import BookstoreError, ClientUnusable, ServerDraining
from bookstore_grpc.rpc.interceptor import CallInterceptor
from bookstore_grpc.rpc.server import Server

UPDATE = books_pb2.UpdateBookRequest(book=books_pb2.Book(id=1, name="New"))
CALLS = [
    pytest.param(lambda client: client.create_book(name="N", author="A", release_year=1), id="create_book"),
    pytest.param(lambda client: client.create_books([books_pb2.Book()]), id="create_books"),
    pytest.param(lambda client: client.get_book(1), id="get_book"),
    pytest.param(lambda client: client.get_books([1]), id="get_books"),
    pytest.param(lambda client: client.list_page(), id="list_page"),
    pytest.param(lambda client: anext(client.list_books()), id="list_books"),
    pytest.param(lambda client: client.update_book(1, name="N"), id="update_book"),
    pytest.param(lambda client: client.delete_book(1), id="delete_book"),
    pytest.param(lambda client: client.update_books([UPDATE]), id="update_books"),
    pytest.param(lambda client: client.delete_books([1]), id="delete_books"),
    pytest.param(lambda client: client.purge_books("id > 0", force=True), id="purge_books"),
    pytest.param(lambda client: client.health(), id="health"),
    pytest.param(lambda client: client.__aenter__(), id="entering it again"),
]


@pytest.mark.parametrize("call", CALLS)
@pytest.mark.parametrize("is_used_before", [True, False], ids=["used", "unused"])
async def test_a_closed_client_raises_client_unusable(
    sqlite_server: Server, call: Callable[[BookstoreClient], Awaitable[object]], is_used_before: bool
) -> None:
    client = BookstoreClient(sqlite_server.addresses[0])
    if is_used_before:
        await client.health()
    await client.close()
    await client.close()

    with pytest.raises(ClientUnusable, match="closed"):
        await call(client)


class Stuck(books_pb2_grpc.BookServiceServicer):
    """Never responds to a read, and rejects every list like a server that drains."""

    async def GetBook(self, request: Any, context: Any) -> Any:  # noqa: N802  the contract's name
        await asyncio.sleep(60)

    async def ListBooks(self, request: Any, context: Any) -> Any:  # noqa: N802
        raise ServerDraining

    BatchCreateBooks = BatchGetBooks = CreateBook = DeleteBook = UpdateBook = GetBook
    BatchUpdateBooks = BatchDeleteBooks = PurgeBooks = ListBookChanges = GetBook
    WatchBooks: Any = GetBook


@pytest.fixture
async def stuck_address() -> AsyncIterator[str]:
    server = grpc.aio.server(interceptors=[CallInterceptor(CallPipeline())])
    books_pb2_grpc.add_BookServiceServicer_to_server(Stuck(), server)
    port = server.add_insecure_port("127.0.0.1:0")
    await server.start()
    yield f"127.0.0.1:{port}"
    await server.stop(None)


@pytest.mark.parametrize(
    "call",
    [
        pytest.param(lambda client: client.get_book(1), id="under way"),
        pytest.param(lambda client: client.list_page(), id="between two attempts"),
    ],
)
async def test_calls_under_way_end_as_the_client_is_closed(
    stuck_address: str, call: Callable[[BookstoreClient], Awaitable[object]]
) -> None:
    client = BookstoreClient(stuck_address)
    calls = [asyncio.ensure_future(call(client)) for _ in range(20)]
    await asyncio.sleep(0.5)
    await client.close()

    async with asyncio.timeout(0.5):
        ends = await asyncio.gather(*calls, return_exceptions=True)
    assert {type(end) for end in ends} == {ClientUnusable}


async def test_calls_that_wait_for_a_server_end_as_the_client_is_closed() -> None:
    client = BookstoreClient("127.0.0.1:1")
    call = asyncio.ensure_future(client.get_book(1))
    await asyncio.sleep(0.1)
    await client.close()

    with pytest.raises(ClientUnusable, match="closed"):
        await call


async def test_a_client_closed_while_it_looks_for_a_cause_raises_client_unusable(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    client = BookstoreClient("127.0.0.1:1", timeout_seconds=0.3)
    look = client._transport.connection_error  # what a call does at its deadline

    async def look_and_be_closed() -> BookstoreError:
        closing = asyncio.create_task(client.close())
        try:
            return await look()
        finally:
            await closing

    monkeypatch.setattr(client._transport, "connection_error", look_and_be_closed)
    with pytest.raises(ClientUnusable, match="closed"):
        await client.get_book(1)


async def test_the_callers_own_cancellation_stays_one(stuck_address: str) -> None:
    async with BookstoreClient(stuck_address) as client:
        for call in (client.get_book(1), client.list_page()):
            task = asyncio.ensure_future(call)
            await asyncio.sleep(0.1)
            task.cancel()
            with pytest.raises(asyncio.CancelledError):
                await task
        with pytest.raises(TimeoutError):
            await asyncio.wait_for(client.get_book(1), 0.1)


def elsewhere(work: Callable[[], Awaitable[object]]) -> BaseException | object:
    """Run a coroutine in an event loop of another thread; return its result or its error."""
    ends: list[BaseException | object] = []

    async def run() -> object:
        return await work()

    def target() -> None:
        try:
            ends.append(asyncio.run(run()))
        except BaseException as error:
            ends.append(error)

    thread = threading.Thread(target=target)
    thread.start()
    thread.join(10)
    return ends[0]


async def test_another_loop_gets_an_error_at_once_and_the_client_remains_usable(
    sqlite_server: Server, client: BookstoreClient
) -> None:
    await client.health()
    for work in (client.health, client.list_page, client.close):
        end = await asyncio.to_thread(elsewhere, work)
        assert isinstance(end, ClientUnusable)
        assert "another event loop" in end.message
    assert await client.health() == "SERVING"


async def test_a_client_made_outside_of_any_loop_belongs_to_the_first_that_uses_it(sqlite_server: Server) -> None:
    def use() -> list[object]:
        client = BookstoreClient(sqlite_server.addresses[0])  # in a thread without a loop
        return [elsewhere(client.health), elsewhere(client.health), elsewhere(client.close), elsewhere(client.health)]

    first, second, closed, last = await asyncio.to_thread(use)

    assert first == "SERVING"
    assert isinstance(second, ClientUnusable)
    assert "another event loop" in second.message
    assert closed is None
    assert isinstance(last, ClientUnusable)
    assert "closed" in last.message


FORKED = """
import asyncio, os, sys
from bookstore_grpc.client import BookstoreClient
from bookstore_grpc.errors import ClientUnusable

async def use(client):
    try:
        print(await client.health(timeout_seconds=5), flush=True)
    except ClientUnusable as error:
        print(error, flush=True)

async def parent(how):
    async with BookstoreClient(sys.argv[1]) as client:
        await use(client)
        calls = [asyncio.create_task(client.list_page()) for _ in range(10)]
        await asyncio.sleep(0)
        if not (pid := os.fork()):
            if how == "same loop":
                await use(client)
            else:
                try:
                    import threading
                    thread = threading.Thread(target=lambda: asyncio.run(use(client)))
                    thread.start()
                    thread.join()
                finally:
                    sys.stdout.flush()
            os._exit(0)
        _, status = await asyncio.to_thread(os.waitpid, pid, 0)
        print("child", status, flush=True)
        await asyncio.gather(*calls)
        await use(client)

asyncio.run(parent(sys.argv[2]))
"""


@pytest.mark.parametrize("how", ["same loop", "new loop"])
async def test_a_forked_process_gets_an_error_at_once_and_its_parent_continues(sqlite_server: Server, how: str) -> None:
    done = await asyncio.to_thread(
        subprocess.run,
        [sys.executable, "-c", FORKED, sqlite_server.addresses[0], how],
        capture_output=True,
        text=True,
        check=False,
        timeout=30,
        env={**os.environ, "GRPC_VERBOSITY": "NONE"},
    )

    assert done.stdout.splitlines() == [
        "SERVING",
        "This client belongs to the parent process. Create one client for each process.",
        "child 0",
        "SERVING",
    ], done.stderr
    assert done.returncode == 0


def test_it_is_an_error_of_ours() -> None:
    assert issubclass(ClientUnusable, BookstoreError)
