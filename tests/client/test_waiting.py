"""What a client does while there is no server: wait for one, or report at once why none can be reached."""

import asyncio
import socket
import time
from collections.abc import AsyncIterator, Awaitable, Callable
from contextlib import asynccontextmanager
from pathlib import Path
from random import randint
from typing import Any

import grpc
import pytest
from bookstore.v1 import books_pb2, books_pb2_grpc

from bookstore_grpc.client import TLS, BookstoreClient
from bookstore_grpc.errors import DeadlineExceeded, Unavailable
from bookstore_grpc.server.app import running_server
from tests.certificates import Authority
from tests.conftest import settings_for


@pytest.fixture
def free_address() -> str:
    """An address where nothing listens until a test does: other tests use ports of 127.0.0.1."""
    host = f"127.{randint(1, 254)}.{randint(0, 255)}.{randint(1, 254)}"
    with socket.socket() as bound:
        bound.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEADDR, 1)
        bound.bind((host, 0))
        return f"{host}:{bound.getsockname()[1]}"


@asynccontextmanager
async def starting_late(address: str, tmp_path: Path, seconds: float) -> AsyncIterator[None]:
    """Let a server with one book start so late while a block runs."""
    url = f"sqlite+aiosqlite:///{tmp_path}/bookstore.db"
    async with running_server(settings_for(url)) as server, BookstoreClient(server.addresses[0]) as client:
        await client.create_book(name="N", author="A", release_year=1)
    is_over = asyncio.Event()

    async def serve() -> None:
        await asyncio.sleep(seconds)
        async with running_server(settings_for(url, listen=(address,))):
            await is_over.wait()

    task = asyncio.create_task(serve())
    try:
        yield
    finally:
        is_over.set()
        await task


CALLS: list[Callable[[BookstoreClient], Awaitable[object]]] = [
    lambda client: client.create_book(name="N", author="A", release_year=1),
    lambda client: client.create_books([books_pb2.Book(name="N", author="A", release_year=1)]),
    lambda client: client.get_book(1),
    lambda client: client.get_books([1]),
    lambda client: client.list_page(),
    lambda client: anext(client.list_books()),
    lambda client: client.update_book(1, name="New"),
    lambda client: client.health(),
]


async def test_every_call_waits_for_a_server_that_starts_within_its_deadline(free_address: str, tmp_path: Path) -> None:
    async with starting_late(free_address, tmp_path, 1), BookstoreClient(free_address) as client:
        await asyncio.gather(*(call(client) for call in CALLS))
        await client.delete_book(1)


@pytest.mark.parametrize("wait_for_ready", [True, False])
async def test_an_unreachable_server_is_reported_with_the_cause(free_address: str, wait_for_ready: bool) -> None:
    client = BookstoreClient(free_address, timeout_seconds=0.7 if wait_for_ready else 30, wait_for_ready=wait_for_ready)
    async with client:
        began = time.monotonic()
        with pytest.raises(Unavailable, match="Connection refused") as raised:
            await client.update_book(1, name="N")
        seconds = time.monotonic() - began

    assert raised.value.reason == ""
    assert seconds > 0.6 if wait_for_ready else seconds < 10


async def test_an_unknown_host_is_reported_at_the_deadline() -> None:
    async with BookstoreClient("no-such-host.invalid:1", timeout_seconds=0.5) as client:
        with pytest.raises(Unavailable, match=r"no-such-host\.invalid"):
            await client.get_book(1)


async def test_a_server_of_another_authority_is_reported_with_the_cause(tmp_path: Path) -> None:
    cert, key = Authority().server().write(tmp_path, "server")
    other = Authority("other").write(tmp_path)
    settings = settings_for(f"sqlite+aiosqlite:///{tmp_path}/bookstore.db", tls_cert=cert, tls_key=key)
    async with (
        running_server(settings) as server,
        BookstoreClient(server.addresses[0], tls=TLS(ca=other), timeout_seconds=1) as client,
    ):
        with pytest.raises(Unavailable, match="CERTIFICATE_VERIFY_FAILED"):
            await client.get_book(1)


async def test_a_server_that_accepts_connections_and_does_not_respond_has_its_own_message() -> None:
    with socket.create_server(("127.0.0.1", 0)) as silent:
        address = f"127.0.0.1:{silent.getsockname()[1]}"
        async with BookstoreClient(address, timeout_seconds=0.3) as client:
            with pytest.raises(DeadlineExceeded, match="Could not connect") as raised:
                await client.get_book(1)

    assert raised.value.reason == ""


async def test_a_client_that_does_not_wait_for_its_first_response_waits_after_it(
    free_address: str, tmp_path: Path
) -> None:
    url = f"sqlite+aiosqlite:///{tmp_path}/bookstore.db"
    async with BookstoreClient(free_address, wait_for_ready=False) as client:
        with pytest.raises(Unavailable):
            await client.list_page()
        async with running_server(settings_for(url, listen=(free_address,))):
            async with BookstoreClient(free_address) as patient:
                await patient.health()
            await until_responding(client)
        async with starting_late(free_address, tmp_path, 0.5):
            await client.update_book(1, name="N")


async def until_responding(client: BookstoreClient) -> None:
    """Call until the channel has noticed that there is a server."""
    async with asyncio.timeout(10):
        while True:
            try:
                await client.list_page()
            except Unavailable:
                await asyncio.sleep(0.05)
            else:
                return


UPDATE = books_pb2.UpdateBookRequest(book=books_pb2.Book(id=1, name="New"))


class Outlasting(books_pb2_grpc.BookServiceServicer):
    """Responds to lists at once, and to nothing else."""

    def __init__(self) -> None:
        self.has_begun = asyncio.Event()

    async def GetBook(self, request: Any, context: Any) -> Any:  # noqa: N802  the contract's name
        self.has_begun.set()
        await asyncio.sleep(60)

    async def ListBooks(self, request: Any, context: Any) -> Any:  # noqa: N802
        return books_pb2.ListBooksResponse()

    BatchCreateBooks = BatchGetBooks = CreateBook = DeleteBook = UpdateBook = GetBook
    BatchUpdateBooks = BatchDeleteBooks = PurgeBooks = ListBookChanges = GetBook
    WatchBooks: Any = GetBook


@pytest.mark.parametrize("is_first_call", [True, False], ids=["first call", "later call"])
@pytest.mark.parametrize(
    ("call", "expected"),
    [
        pytest.param(lambda client: client.get_book(1), "Deadline", id="get_book"),
        pytest.param(lambda client: client.update_book(1, name="N"), "may have taken effect", id="update_book"),
        pytest.param(lambda client: client.delete_book(1), "may have taken effect", id="delete_book"),
        pytest.param(lambda client: client.update_books([UPDATE]), "may have taken effect", id="update_books"),
        pytest.param(lambda client: client.delete_books([1]), "may have taken effect", id="delete_books"),
        pytest.param(
            lambda client: client.purge_books("id > 0", force=True), "may have taken effect", id="purge_books"
        ),
    ],
)
async def test_a_call_under_way_on_a_server_that_ends_is_not_reported_as_one_without_a_connection(
    call: Callable[[BookstoreClient], Awaitable[object]], expected: str, is_first_call: bool
) -> None:
    server, servicer = grpc.aio.server(), Outlasting()
    books_pb2_grpc.add_BookServiceServicer_to_server(servicer, server)
    port = server.add_insecure_port("127.0.0.1:0")
    await server.start()
    async with BookstoreClient(f"127.0.0.1:{port}", timeout_seconds=0.6) as client:
        if not is_first_call:
            await client.list_page()
        sent = asyncio.ensure_future(call(client))
        await servicer.has_begun.wait()
        servicer.has_begun.clear()
        # Keeps the connection, which a server that ends closes with its last call.
        other = asyncio.ensure_future(client.get_book(2, timeout_seconds=30))
        await servicer.has_begun.wait()
        ended = asyncio.ensure_future(server.stop(3))  # no new connections
        with pytest.raises(DeadlineExceeded, match=expected) as raised:
            await sent
        with pytest.raises(Unavailable, match="Connection refused"):
            await call(client)
        other.cancel()
    await ended

    assert raised.value.reason == ""
