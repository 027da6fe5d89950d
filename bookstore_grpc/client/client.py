"""BookstoreClient: the service for Python programs, with deadlines, safe retries, paging and typed errors.

It needs only the base install and knows nothing of the server's inside.
"""

import asyncio
import time
import uuid
from collections.abc import AsyncIterator, Callable, Sequence
from contextlib import suppress
from types import EllipsisType, TracebackType
from typing import Self, TypeVar, Unpack

import grpc
from bookstore.v1 import books_pb2
from google.protobuf.field_mask_pb2 import FieldMask
from grpc_health.v1 import health_pb2

from bookstore_grpc.client.call_options import (
    CallOptions,
    GivenMetadata,
    Pairs,
    checked_call_id,
    checked_metadata,
    checked_timeout,
    remaining_seconds,
    reusable,
)
from bookstore_grpc.client.channel import TLS, Connection, call_metadata, connector
from bookstore_grpc.client.errors import error_from_rpc_error
from bookstore_grpc.client.retries import ATTEMPTS_MAX, retry_delay_seconds
from bookstore_grpc.errors import (
    BookstoreError,
    ClientUnusable,
    DeadlineExceeded,
)
from bookstore_grpc.limits import BATCH_MAX, PAGE_SIZE_MAX
from bookstore_grpc.metadata import (
    DEFAULT_SERVER,
    DEFAULT_TIMEOUT_SECONDS,
    Metadata,
    metadata_of_current_span,
)

Request = TypeVar("Request")
Response = TypeVar("Response")

# For a call that fails at once.
_CAUSE_SECONDS = 0.5

_NOT_FOUND = grpc.StatusCode.NOT_FOUND


class BookstoreClient:
    """A connection to the service, as an async context manager.

    `server` is `HOST:PORT` or `unix:PATH`; `timeout_seconds` bounds every call, retries included, and None is no bound.
    While no server can be reached a call waits for one, up to its deadline; without `wait_for_ready` it fails at once,
    until a server has answered the client for the first time. What has not begun is sent again, whatever it is; what
    may have begun only if it is safe: reads, and creates by their request ids. What a limit has refused is sent again
    when the server said.

    With `tls` the calls travel encrypted. `token` is a bearer token, or what answers one at each call, such as a
    `TokenFile`; where others could read it on its way, it is sent only if `insecure`. A call joins the trace of the
    program's current span, if it traces by OpenTelemetry, and else the one of `trace_context`, metadata as
    `metadata_from_environment` answers it.

    Every method takes `CallOptions` as keywords: `timeout_seconds`, `metadata` and `call_id`. Those that make several
    calls apply them to each. Methods raise the errors of `bookstore_grpc.errors`, and `ValueError` for options that
    cannot be used.

    The client belongs to the event loop and the process of its first call, which opens its channel; elsewhere, and
    when it is closed, its methods raise `ClientUnusable`.

    Raises `ValueError` for options and files that cannot be used, and for a token that would travel in plaintext.
    """

    def __init__(
        self,
        server: str = DEFAULT_SERVER,
        *,
        timeout_seconds: float | None = DEFAULT_TIMEOUT_SECONDS,
        wait_for_ready: bool = True,
        tls: TLS | None = None,
        token: str | Callable[[], str] = "",
        insecure: bool = False,
        trace_context: Metadata = (),
    ) -> None:
        if not server.strip():
            raise ValueError(f"a server is HOST:PORT or unix:PATH, and not {server!r}")
        self.server = server
        self._timeout_seconds = checked_timeout(timeout_seconds)
        self._waits_for_ready = wait_for_ready
        self._trace_context = checked_metadata(trace_context)
        self._metadata = call_metadata(server, token=token, is_encrypted=tls is not None, insecure=insecure)
        self._connect = connector(server, tls)
        self._connection: Connection | None = None
        self._closed = asyncio.Event()

    async def __aenter__(self) -> Self:
        self._connected()
        return self

    async def __aexit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        await self.close()

    async def close(self) -> None:
        """Close the connection; calls under way end with `ClientUnusable`. Closing again does nothing.

        Raises `ClientUnusable` in another process or event loop, unless that of the client has ended.
        """
        connection = self._connection
        if connection is not None and not connection.is_orphaned:
            connection.check_place()
            self._closed.set()
            await connection.channel.close()
        self._closed.set()

    async def create_book(
        self,
        *,
        name: str,
        author: str,
        release_year: int,
        request_id: str | None = None,
        **options: Unpack[CallOptions],
    ) -> books_pb2.Book:
        """Store a book. Safe to retry: a `request_id` (a UUID) is made where none is given."""
        book = books_pb2.Book(name=name, author=author, release_year=release_year)
        return await self._call(self._connected().books.CreateBook, _create_request(book, request_id), **options)

    async def create_books(
        self,
        books: Sequence[books_pb2.Book],
        *,
        request_ids: Sequence[str] | None = None,
        **options: Unpack[CallOptions],
    ) -> Sequence[books_pb2.Book]:
        """Store 1 to 1,000 books, all or none, and answer them in order. Safe to retry as `create_book` is."""
        ids = request_ids if request_ids is not None else [None] * len(books)
        requests = [_create_request(book, request_id) for book, request_id in zip(books, ids, strict=True)]
        request = books_pb2.BatchCreateBooksRequest(requests=requests)
        return (await self._call(self._connected().books.BatchCreateBooks, request, **options)).books

    async def get_book(self, book_id: int, **options: Unpack[CallOptions]) -> books_pb2.Book:
        """Answer one book. Raises `BookNotFound`."""
        return await self._call(self._connected().books.GetBook, books_pb2.GetBookRequest(id=book_id), **options)

    async def get_books(self, ids: Sequence[int], **options: Unpack[CallOptions]) -> list[books_pb2.Book]:
        """Answer any number of books in the order of their ids. Raises `BookNotFound`."""
        options = reusable(options)
        books: list[books_pb2.Book] = []
        for start in range(0, len(ids), BATCH_MAX):
            request = books_pb2.BatchGetBooksRequest(ids=ids[start : start + BATCH_MAX])
            books += (await self._call(self._connected().books.BatchGetBooks, request, **options)).books
        return books

    async def list_page(
        self,
        *,
        filter: str = "",
        order_by: str = "",
        page_size: int = 0,
        page_token: str = "",
        **options: Unpack[CallOptions],
    ) -> books_pb2.ListBooksResponse:
        """Answer one page. Raises `InvalidFilter`, `InvalidOrderBy` and `InvalidPageToken`."""
        request = books_pb2.ListBooksRequest(
            filter=filter, order_by=order_by, page_size=page_size, page_token=page_token
        )
        return await self._call(self._connected().books.ListBooks, request, **options)

    async def list_books(
        self,
        *,
        filter: str = "",
        order_by: str = "",
        page_size: int = PAGE_SIZE_MAX,
        **options: Unpack[CallOptions],
    ) -> AsyncIterator[books_pb2.Book]:
        """Walk over all books that match, page by page as they are needed. Raises as `list_page` does."""
        options = reusable(options)
        page_token = ""
        while True:
            page = await self.list_page(
                filter=filter, order_by=order_by, page_size=page_size, page_token=page_token, **options
            )
            for book in page.books:
                yield book
            page_token = page.next_page_token
            if not page_token:
                return

    async def update_book(
        self,
        book_id: int,
        *,
        name: str | None = None,
        author: str | None = None,
        release_year: int | None = None,
        etag: str = "",
        **options: Unpack[CallOptions],
    ) -> books_pb2.Book:
        """Change the fields that are given; with `etag`, only if it is the book's current one.

        Raises `BookNotFound` and `EtagMismatch`.
        """
        values = {"name": name, "author": author, "release_year": release_year}
        given = {field: value for field, value in values.items() if value is not None}
        book = books_pb2.Book(id=book_id, etag=etag, name=name or "", author=author or "", release_year=release_year)
        request = books_pb2.UpdateBookRequest(book=book, update_mask=FieldMask(paths=list(given)))
        return await self._call(self._connected().books.UpdateBook, request, is_idempotent=False, **options)

    async def delete_book(self, book_id: int, *, etag: str = "", **options: Unpack[CallOptions]) -> None:
        """Delete a book; with `etag`, only if it is the current one. Raises `BookNotFound` and `EtagMismatch`."""
        request = books_pb2.DeleteBookRequest(id=book_id, etag=etag)
        await self._call(self._connected().books.DeleteBook, request, is_idempotent=False, **options)

    async def health(self, service: str = "", **options: Unpack[CallOptions]) -> str:
        """Answer what the health service says of `service`: "SERVING", "NOT_SERVING" or "SERVICE_UNKNOWN"."""
        request = health_pb2.HealthCheckRequest(service=service)
        try:
            response = await self._call(self._connected().check_health, request, **options)
        except BookstoreError as error:
            if isinstance(error.__cause__, grpc.aio.AioRpcError) and error.__cause__.code() is _NOT_FOUND:
                return "SERVICE_UNKNOWN"
            raise
        return health_pb2.HealthCheckResponse.ServingStatus.Name(response.status)

    def _connected(self) -> Connection:
        """Return the connection, opened if it is not yet. Raises `ClientUnusable`."""
        if self._closed.is_set():
            raise ClientUnusable("This client is closed.")
        if self._connection is None:
            self._connection = self._connect()
        else:
            self._connection.check_place()
        return self._connection

    async def _call(
        self,
        method: "grpc.aio.UnaryUnaryMultiCallable[Request, Response]",
        request: Request,
        *,
        is_idempotent: bool = True,
        timeout_seconds: float | EllipsisType | None = ...,
        metadata: GivenMetadata = (),
        call_id: str = "",
    ) -> Response:
        seconds = self._timeout_seconds if timeout_seconds is ... else checked_timeout(timeout_seconds)
        give_up_at = time.monotonic() + seconds
        given = checked_metadata(metadata) if metadata else ()
        if call_id:
            given += checked_call_id(call_id)
        try:
            return await self._answer(method, request, is_idempotent=is_idempotent, give_up_at=give_up_at, given=given)
        except asyncio.CancelledError:
            task = asyncio.current_task()
            if self._closed.is_set() and not (task and task.cancelling()):
                raise ClientUnusable("This client was closed amidst the call, which may have been done.") from None
            raise

    async def _answer(
        self,
        method: "grpc.aio.UnaryUnaryMultiCallable[Request, Response]",
        request: Request,
        *,
        is_idempotent: bool,
        give_up_at: float,
        given: Pairs,
    ) -> Response:
        """Send a call until it is answered, or until sending it again is not right."""
        attempts = 0
        while True:
            connecting = self._connected().connecting()
            try:
                return await self._attempt(method, request, give_up_at=give_up_at, given=given)
            except grpc.aio.AioRpcError as error:
                attempts += 1
                raised = error_from_rpc_error(error)
                if isinstance(raised, DeadlineExceeded) and not raised.reason:
                    if connecting and not connecting.done() and not self._is_connected():
                        raise await self._error_of_no_connection() from error
                    if not is_idempotent:
                        raise _late("The call took longer than its deadline, and may have been done.") from error
                if raised.request_id or error.code() is not grpc.StatusCode.UNAVAILABLE:
                    self._waits_for_ready = True  # there is a server
                delay = retry_delay_seconds(raised, error.code(), attempts=attempts, is_idempotent=is_idempotent)
                if delay is None or time.monotonic() + delay >= give_up_at or self._is_in_vain(attempts):
                    raise raised from error
            await self._sleep(delay)

    async def _attempt(
        self,
        method: "grpc.aio.UnaryUnaryMultiCallable[Request, Response]",
        request: Request,
        *,
        give_up_at: float,
        given: Pairs,
    ) -> Response:
        metadata = self._metadata() + (metadata_of_current_span() or self._trace_context)
        if given:
            keys = {key for key, _ in given}
            metadata = tuple(pair for pair in metadata if pair[0] not in keys) + given
        response = await method(
            request,
            timeout=remaining_seconds(give_up_at),
            metadata=metadata,
            wait_for_ready=self._waits_for_ready,
        )
        self._waits_for_ready = True
        return response

    async def _error_of_no_connection(self) -> BookstoreError:
        """Find out what keeps a call waiting: gRPC tells only one that does not wait.

        One of health, for it may be sent after all.
        """
        connection = self._connected()
        if connection.state is grpc.ChannelConnectivity.TRANSIENT_FAILURE:
            request = health_pb2.HealthCheckRequest()
            try:
                await connection.check_health(request, timeout=_CAUSE_SECONDS, wait_for_ready=False)
            except grpc.aio.AioRpcError as error:
                if error.code() is grpc.StatusCode.UNAVAILABLE:
                    return error_from_rpc_error(error)
        return _late("No connection came about.")

    def _is_in_vain(self, attempts: int) -> bool:
        """Say whether to tell a caller who does not want to wait for a server that none is there."""
        if self._waits_for_ready:
            return False
        return attempts >= ATTEMPTS_MAX or self._connected().state is grpc.ChannelConnectivity.TRANSIENT_FAILURE

    def _is_connected(self) -> bool:
        return self._connected().state is grpc.ChannelConnectivity.READY

    async def _sleep(self, seconds: float) -> None:
        """Sleep, or less if the client is closed meanwhile."""
        with suppress(TimeoutError):
            async with asyncio.timeout(seconds):
                await self._closed.wait()


def _late(message: str) -> DeadlineExceeded:
    late = DeadlineExceeded(message)
    late.reason = ""  # the service has said nothing
    return late


def _create_request(book: books_pb2.Book, request_id: str | None) -> books_pb2.CreateBookRequest:
    return books_pb2.CreateBookRequest(book=book, request_id=request_id or str(uuid.uuid4()))
