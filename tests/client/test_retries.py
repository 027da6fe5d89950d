"""Which calls the client retries when a response is lost: only those that are safe to repeat."""

import asyncio
import sqlite3
import time
from collections.abc import AsyncIterator, Awaitable, Callable
from contextlib import AbstractAsyncContextManager, asynccontextmanager, closing
from pathlib import Path
from typing import Any

import grpc
import pytest
from bookstore.v1 import books_pb2, books_pb2_grpc

from bookstore_grpc.calls.pipeline import CallPipeline
from bookstore_grpc.client import BookstoreClient, retries
from bookstore_grpc.dal.books import BookDAL
from bookstore_grpc.dal.database import Database
from bookstore_grpc.errors import (
    BookstoreError,
    CallInterrupted,
    DatabaseUnavailable,
    DeadlineExceeded,
    InternalError,
    ResourceExhausted,
    ServerDraining,
    Unavailable,
)
from bookstore_grpc.rpc.interceptor import CallInterceptor
from bookstore_grpc.rpc.server import Server
from bookstore_grpc.server.app import running_server
from bookstore_grpc.service.messages import entry_from_record
from bookstore_grpc.service.servicer import BookServicer
from tests.conftest import settings_for


class LostResponses(grpc.aio.ServerInterceptor):
    """Fails the first calls of a method, with the work done or not: by a code alone, or by an error of the service."""

    def __init__(self, count: int, failure: grpc.StatusCode | BookstoreError, *, is_done: bool) -> None:
        self._count = count
        self._failure = failure
        self._is_done = is_done
        self.requests: list[bytes] = []

    async def intercept_service(
        self,
        continuation: Callable[[grpc.HandlerCallDetails], Awaitable["grpc.RpcMethodHandler[Any, Any] | None"]],
        handler_call_details: grpc.HandlerCallDetails,
    ) -> "grpc.RpcMethodHandler[Any, Any]":
        handler = await continuation(handler_call_details)
        assert handler is not None
        handle = handler.unary_unary

        async def lose(request: Any, context: Any) -> Any:
            assert handle is not None
            self.requests.append(request.SerializeToString())
            is_lost = len(self.requests) <= self._count
            response = None if is_lost and not self._is_done else await handle(request, context)
            if is_lost:
                if isinstance(self._failure, BookstoreError):
                    raise self._failure
                await context.abort(self._failure, "the response was lost")
            return response

        return grpc.unary_unary_rpc_method_handler(
            lose, request_deserializer=handler.request_deserializer, response_serializer=handler.response_serializer
        )


@pytest.fixture
async def books(tmp_path: Path) -> AsyncIterator[BookDAL]:
    database = Database(f"sqlite+aiosqlite:///{tmp_path}/bookstore.db", pool_size=2, timeout_seconds=10)
    await database.migrate()
    yield BookDAL(database, encode=entry_from_record)
    await database.close()


@pytest.fixture
def short_backoff(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(retries, "_BACKOFF_MAX_SECONDS", 0.02)


BOOK = books_pb2.Book(name="N", author="A", release_year=1)
UPDATE = books_pb2.UpdateBookRequest(book=books_pb2.Book(id=1, name="New"))
Losing = Callable[..., AbstractAsyncContextManager[tuple[BookstoreClient, LostResponses]]]


@pytest.fixture
def losing(books: BookDAL) -> Losing:
    """Serve over an unreliable network: `async with losing(2) as (client, lost)` loses the first two responses."""

    @asynccontextmanager
    async def serve(
        count: int,
        failure: grpc.StatusCode | BookstoreError = grpc.StatusCode.UNAVAILABLE,
        *,
        is_done: bool = True,
        **options: Any,
    ) -> AsyncIterator[tuple[BookstoreClient, LostResponses]]:
        lost = LostResponses(count, failure, is_done=is_done)
        server = grpc.aio.server(interceptors=[CallInterceptor(CallPipeline()), lost])
        books_pb2_grpc.add_BookServiceServicer_to_server(BookServicer(books), server)
        port = server.add_insecure_port("127.0.0.1:0")
        await server.start()
        async with BookstoreClient(f"127.0.0.1:{port}", **options) as client:
            yield client, lost
        await server.stop(None)

    return serve


async def count_books(books: BookDAL) -> int:
    return len((await books.list_books(page_size=100, page_token="", filter="", order_by="")).books)


async def test_a_create_whose_responses_are_lost_is_retried_and_stores_one_book(losing: Losing, books: BookDAL) -> None:
    async with losing(3) as (client, lost):
        created = await client.create_book(name="N", author="A", release_year=1)

    assert len(lost.requests) == 4
    (request_id,) = {books_pb2.CreateBookRequest.FromString(request).request_id for request in lost.requests}
    assert request_id
    assert (await books.get_book(created.id)).name == "N"
    assert await count_books(books) == 1


async def test_a_batch_whose_response_is_lost_is_retried_and_stored_once(losing: Losing, books: BookDAL) -> None:
    batch = [books_pb2.Book(name=f"N{number}", author="A", release_year=number) for number in range(3)]
    async with losing(1) as (client, lost):
        created = await client.create_books(batch)

    sent = [books_pb2.BatchCreateBooksRequest.FromString(request) for request in lost.requests]
    first, second = ([entry.request_id for entry in request.requests] for request in sent)
    assert first == second
    assert len(set(first)) == 3
    assert [book.name for book in created] == ["N0", "N1", "N2"]
    assert await count_books(books) == 3


@pytest.mark.parametrize(
    "read",
    [
        pytest.param(lambda client: client.get_book(1), id="get_book"),
        pytest.param(lambda client: client.get_books([1]), id="get_books"),
        pytest.param(lambda client: client.list_page(), id="list_page"),
        pytest.param(lambda client: client.list_change_page(), id="list_change_page"),
    ],
)
async def test_a_read_is_retried(losing: Losing, read: Callable[[BookstoreClient], Awaitable[object]]) -> None:
    async with losing(0) as (client, _):
        await client.create_book(name="N", author="A", release_year=1)
    async with losing(2) as (client, lost):
        await read(client)

    assert len(lost.requests) == 3


@pytest.mark.parametrize(
    "write",
    [
        pytest.param(lambda client: client.update_book(1, name="New"), id="update_book"),
        pytest.param(lambda client: client.delete_book(1), id="delete_book"),
        pytest.param(lambda client: client.update_books([UPDATE]), id="update_books"),
        pytest.param(lambda client: client.delete_books([1]), id="delete_books"),
        pytest.param(lambda client: client.purge_books("id > 0", force=True), id="purge_books"),
    ],
)
async def test_an_update_or_delete_is_never_retried(
    losing: Losing, write: Callable[[BookstoreClient], Awaitable[object]]
) -> None:
    async with losing(0) as (client, _):
        await client.create_book(name="N", author="A", release_year=1)
    async with losing(1) as (client, lost):
        with pytest.raises(Unavailable, match="the response was lost"):
            await write(client)

    assert len(lost.requests) == 1


@pytest.mark.parametrize(
    "code",
    [grpc.StatusCode.INTERNAL, grpc.StatusCode.RESOURCE_EXHAUSTED, grpc.StatusCode.ABORTED],
    ids=lambda code: code.name,
)
async def test_a_call_rejected_by_the_server_is_not_retried(losing: Losing, code: grpc.StatusCode) -> None:
    async with losing(1, code) as (client, lost):
        with pytest.raises(BookstoreError):
            await client.create_book(name="N", author="A", release_year=1)

    assert len(lost.requests) == 1


CALLS = [
    pytest.param(lambda client: client.create_book(name="N", author="A", release_year=1), id="create_book"),
    pytest.param(lambda client: client.create_books([BOOK]), id="create_books"),
    pytest.param(lambda client: client.get_book(1), id="get_book"),
    pytest.param(lambda client: client.get_books([1]), id="get_books"),
    pytest.param(lambda client: client.list_page(), id="list_page"),
    pytest.param(lambda client: client.update_book(1, name="New"), id="update_book"),
    pytest.param(lambda client: client.delete_book(1), id="delete_book"),
    pytest.param(lambda client: client.update_books([UPDATE]), id="update_books"),
    pytest.param(lambda client: client.delete_books([1]), id="delete_books"),
    pytest.param(lambda client: client.purge_books("id > 0", force=True), id="purge_books"),
]


@pytest.mark.usefixtures("short_backoff")
@pytest.mark.parametrize("call", CALLS)
async def test_any_call_that_has_not_started_is_retried(
    losing: Losing, call: Callable[[BookstoreClient], Awaitable[object]]
) -> None:
    """As a server rejects calls that drains."""
    async with losing(0) as (client, _):
        await client.create_book(name="N", author="A", release_year=1)
    async with losing(6, ServerDraining(), is_done=False) as (client, lost):
        await call(client)

    assert len(lost.requests) == 7


@pytest.mark.usefixtures("short_backoff")
@pytest.mark.parametrize(
    ("call", "attempts"),
    [
        pytest.param(lambda client: client.update_book(1, name="New"), 1, id="update_book"),
        pytest.param(lambda client: client.delete_book(1), 1, id="delete_book"),
        pytest.param(lambda client: client.update_books([UPDATE]), 1, id="update_books"),
        pytest.param(lambda client: client.delete_books([1]), 1, id="delete_books"),
        pytest.param(lambda client: client.purge_books("id > 0", force=True), 1, id="purge_books"),
        pytest.param(lambda client: client.purge_books("id > 0"), 7, id="purge_books without force"),
        pytest.param(lambda client: client.get_book(1), 7, id="get_book"),
        pytest.param(lambda client: client.create_book(name="N", author="A", release_year=1), 7, id="create_book"),
    ],
)
@pytest.mark.parametrize(
    ("failure", "expected"),
    [
        pytest.param(CallInterrupted("cut off"), "cut off", id="by a drain"),
        # With a request id, so a handler had it.
        pytest.param(grpc.StatusCode.CANCELLED, "the call may have taken effect", id="cancelled"),
    ],
)
async def test_an_interrupted_call_is_retried_only_if_it_is_idempotent(
    losing: Losing,
    call: Callable[[BookstoreClient], Awaitable[object]],
    attempts: int,
    failure: grpc.StatusCode | BookstoreError,
    expected: str,
) -> None:
    async with losing(0) as (client, _):
        await client.create_book(name="N", author="A", release_year=1)
    async with losing(6, failure) as (client, lost):
        if attempts == 1:
            with pytest.raises(Unavailable, match=expected):
                await call(client)
        else:
            await call(client)

    assert len(lost.requests) == attempts


async def test_an_unavailable_service_is_tried_four_times(losing: Losing, books: BookDAL) -> None:
    unavailable = DatabaseUnavailable()
    unavailable.retry_seconds = 0.01
    async with losing(100, unavailable) as (client, lost):
        with pytest.raises(DatabaseUnavailable):
            await client.create_book(name="N", author="A", release_year=1)

    assert len(lost.requests) == 4
    assert await count_books(books) == 1


async def test_a_retry_waits_for_the_delay_of_the_server(losing: Losing) -> None:
    unavailable = DatabaseUnavailable()
    unavailable.retry_seconds = 0.3
    async with losing(1, unavailable) as (client, _):
        began = time.monotonic()
        await client.list_page()

    assert 0.3 < time.monotonic() - began < 5


async def test_retries_of_lost_responses_end_at_the_deadline(
    losing: Losing, books: BookDAL, monkeypatch: pytest.MonkeyPatch
) -> None:
    # Without jitter the fifth attempt is after 0.75 s and would be followed by one after 1.55 s, so that none is under
    # way at the deadline.
    monkeypatch.setattr("random.uniform", lambda _least, most: most)
    async with losing(100, timeout_seconds=1.5) as (client, lost):
        began = time.monotonic()
        with pytest.raises(Unavailable, match="the response was lost"):
            await client.create_book(name="N", author="A", release_year=1)

    assert time.monotonic() - began < 5
    assert len(lost.requests) > 4
    assert await count_books(books) == 1


async def test_a_client_that_does_not_wait_for_ready_tries_four_times(losing: Losing) -> None:
    """As behind a proxy that has no server."""
    lost_by_proxy = grpc.StatusCode.UNAVAILABLE
    server = grpc.aio.server(interceptors=[lost := LostResponses(100, lost_by_proxy, is_done=False)])
    books_pb2_grpc.add_BookServiceServicer_to_server(Unwilling(), server)
    port = server.add_insecure_port("127.0.0.1:0")
    await server.start()
    async with BookstoreClient(f"127.0.0.1:{port}", wait_for_ready=False) as client:
        began = time.monotonic()
        with pytest.raises(Unavailable, match="the response was lost"):
            await client.list_page()
    await server.stop(None)

    assert time.monotonic() - began < 5
    assert len(lost.requests) == 4


async def test_a_call_rejected_by_grpc_itself_is_retried_until_it_is_accepted() -> None:
    """Calls beyond those that may wait are CANCELLED, by gRPC itself and without details."""
    server, servicer = grpc.aio.server(options=[("grpc.server.max_pending_requests", 1)]), Slow()
    books_pb2_grpc.add_BookServiceServicer_to_server(servicer, server)
    port = server.add_insecure_port("127.0.0.1:0")
    await server.start()
    async with BookstoreClient(f"127.0.0.1:{port}") as client:
        await asyncio.gather(*(client.update_book(number, name="N") for number in range(100)))
    await server.stop(None)

    assert sorted(servicer.updated) == list(range(100))


class Slow(books_pb2_grpc.BookServiceServicer):
    """Notes which books were updated."""

    def __init__(self) -> None:
        self.updated: list[int] = []

    async def UpdateBook(self, request: Any, context: Any) -> Any:  # noqa: N802  the contract's name
        self.updated.append(request.book.id)
        await asyncio.sleep(0.001)
        return request.book

    GetBook = ListBooks = CreateBook = DeleteBook = BatchGetBooks = BatchCreateBooks = UpdateBook
    BatchUpdateBooks = BatchDeleteBooks = PurgeBooks = ListBookChanges = UpdateBook
    WatchBooks: Any = UpdateBook


class Unwilling(books_pb2_grpc.BookServiceServicer):
    """Does nothing, and notes how long it could have taken."""

    def __init__(self) -> None:
        self.seconds_given: list[float] = []

    async def UpdateBook(self, request: Any, context: Any) -> Any:  # noqa: N802  the contract's name
        self.seconds_given.append(context.time_remaining())
        await context.abort(grpc.StatusCode.INTERNAL, "never")

    GetBook = UpdateBook
    ListBooks = UpdateBook
    CreateBook = UpdateBook
    DeleteBook = UpdateBook
    BatchGetBooks = UpdateBook
    BatchCreateBooks = UpdateBook
    BatchUpdateBooks = UpdateBook
    BatchDeleteBooks = UpdateBook
    PurgeBooks = UpdateBook
    ListBookChanges = UpdateBook
    WatchBooks: Any = UpdateBook


@pytest.mark.parametrize(
    "call",
    [
        pytest.param(lambda client: client.create_book(name="N", author="A", release_year=1), id="create_book"),
        pytest.param(lambda client: client.create_books([books_pb2.Book()]), id="create_books"),
        pytest.param(lambda client: client.get_book(1), id="get_book"),
        pytest.param(lambda client: client.get_books([1]), id="get_books"),
        pytest.param(lambda client: client.list_page(), id="list_page"),
        pytest.param(lambda client: anext(client.list_books()), id="list_books"),
        pytest.param(lambda client: client.list_change_page(), id="list_change_page"),
        pytest.param(lambda client: anext(client.list_book_changes()), id="list_book_changes"),
        pytest.param(lambda client: client.update_book(1, name="N"), id="update_book"),
        pytest.param(lambda client: client.delete_book(1), id="delete_book"),
        pytest.param(lambda client: client.update_books([UPDATE]), id="update_books"),
        pytest.param(lambda client: client.delete_books([1]), id="delete_books"),
        pytest.param(lambda client: client.purge_books("id > 0", force=True), id="purge_books"),
    ],
)
async def test_every_call_has_the_clients_deadline(
    call: Callable[[BookstoreClient], Awaitable[object]],
) -> None:
    server, servicer = grpc.aio.server(), Unwilling()
    books_pb2_grpc.add_BookServiceServicer_to_server(servicer, server)
    port = server.add_insecure_port("127.0.0.1:0")
    await server.start()
    async with BookstoreClient(f"127.0.0.1:{port}", timeout_seconds=50) as client:
        with pytest.raises(InternalError):
            await call(client)
    await server.stop(None)

    (seconds,) = servicer.seconds_given
    assert 0 < seconds <= 51


async def test_a_call_past_its_deadline_raises_deadline_exceeded(books: BookDAL, losing: Losing) -> None:
    """The attempts of a create end with the deadline, not with their number."""
    async with losing(100) as (client, _):
        impatient = BookstoreClient(client.server, timeout_seconds=0.3)
        with pytest.raises((DeadlineExceeded, Unavailable)):
            await impatient.create_book(name="N", author="A", release_year=1)
        await impatient.close()

    assert await count_books(books) <= 1


async def test_the_servers_own_unavailable_keeps_its_reason(tmp_path: Path) -> None:
    settings = settings_for(f"sqlite+aiosqlite:///{tmp_path}/bookstore.db", database_timeout_seconds=0.1)
    async with running_server(settings) as server, BookstoreClient(server.addresses[0]) as client:
        book = await client.create_book(name="N", author="A", release_year=1)
        with closing(sqlite3.connect(tmp_path / "bookstore.db", isolation_level=None)) as other:
            other.execute("BEGIN IMMEDIATE")
            with pytest.raises(DatabaseUnavailable) as raised:
                await client.update_book(book.id, name="New")

    assert raised.value.reason == "DATABASE_UNAVAILABLE"
    assert raised.value.request_id


def rate_limited(tmp_path: Path, per_second: float) -> AbstractAsyncContextManager[Server]:
    url = f"sqlite+aiosqlite:///{tmp_path}/bookstore.db"
    return running_server(settings_for(url, rate_limit_per_second=per_second, rate_limit_burst=1))


async def test_a_call_rejected_by_a_limit_is_retried_after_the_delay_of_the_server(tmp_path: Path) -> None:
    async with rate_limited(tmp_path, 10.0) as server, BookstoreClient(server.addresses[0]) as client:
        book = await client.create_book(name="N", author="A", release_year=1)
        began = time.monotonic()
        for number in range(5):
            book = await client.update_book(book.id, name=f"N{number}", etag=book.etag)
        assert time.monotonic() - began > 0.45
        assert (await client.get_book(book.id)).name == "N4"


async def test_a_retry_that_would_exceed_the_deadline_is_not_waited_for(tmp_path: Path) -> None:
    async with (
        rate_limited(tmp_path, 0.01) as server,
        BookstoreClient(server.addresses[0], timeout_seconds=5) as client,
    ):
        await client.list_page()
        began = time.monotonic()
        with pytest.raises(ResourceExhausted) as caught:
            await client.list_page()
        assert time.monotonic() - began < 4
        assert caught.value.reason == "TOO_MANY_REQUESTS"
        assert 90 < caught.value.retry_seconds <= 100
