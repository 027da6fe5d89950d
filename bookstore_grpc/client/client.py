"""BookstoreClient, the Python client of the service: one method for each RPC, with paging and typed errors."""

import uuid
from collections.abc import AsyncIterator, Callable, Sequence
from types import TracebackType
from typing import Self, Unpack

import grpc
from bookstore.v1 import books_pb2, books_pb2_grpc
from google.protobuf.duration_pb2 import Duration
from google.protobuf.field_mask_pb2 import FieldMask
from grpc_health.v1 import health_pb2

from bookstore_grpc.client.call_options import BookOptions, CallOptions, reusable, split_fields
from bookstore_grpc.client.channel import TLS, call_metadata, connector
from bookstore_grpc.client.transport import Transport, given_metadata
from bookstore_grpc.client.watching import BookWatch, OutageCallback, Start
from bookstore_grpc.errors import BookstoreError
from bookstore_grpc.limits import BATCH_MAX, PAGE_SIZE_MAX
from bookstore_grpc.metadata import DEFAULT_SERVER, DEFAULT_TIMEOUT_SECONDS, Metadata

_NOT_FOUND = grpc.StatusCode.NOT_FOUND


class BookstoreClient:
    """A connection to the service, as an async context manager.

    Args:
        server: `HOST:PORT` or `unix:PATH`.
        timeout_seconds: The deadline of every call, retries included. None for no deadline.
        wait_for_ready: While no server is reachable, wait for one until the call's deadline. If false, fail immediately
            until a server has responded to this client for the first time.
        tls: Files for TLS. Without it the connection is plaintext.
        token: A bearer token, or a function that returns one for each call, such as a `TokenFile`.
        insecure: Send the token over a plaintext connection to another machine too.
        trace_context: Metadata from `metadata_from_environment`, sent if the program has no current OpenTelemetry span.

    Retries use backoff with jitter. A call that has not started is retried whatever it does; a call that may have
    started is retried only if that is safe: reads, and creates by their idempotency key (`request_id`). A call rejected
    by a limit is retried after the delay that the server asks for.

    Every method takes `CallOptions` as keywords: `timeout_seconds`, `metadata` and `call_id`. A method that makes
    several calls applies them to each. Methods raise the errors of `bookstore_grpc.errors`, and `ValueError` for
    invalid options.

    The first call opens the channel and binds the client to its event loop and process. In any other, and once the
    client is closed, its methods raise `ClientUnusable`.

    Raises:
        ValueError: An option or a file is invalid, or the token would be sent in plaintext.
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
            raise ValueError(f"a server must be HOST:PORT or unix:PATH, not {server!r}")
        self.server = server
        self._transport = Transport(
            connector(server, tls),
            metadata=call_metadata(server, token=token, is_encrypted=tls is not None, insecure=insecure),
            timeout_seconds=timeout_seconds,
            wait_for_ready=wait_for_ready,
            trace_context=trace_context,
        )

    async def __aenter__(self) -> Self:
        self._transport.connection()
        return self

    async def __aexit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        await self.close()

    async def close(self) -> None:
        """Close the connection; calls in progress raise `ClientUnusable`. Idempotent.

        Raises `ClientUnusable` in another process or event loop, unless the client's event loop has ended.
        """
        await self._transport.close()

    async def create_book(
        self,
        *,
        name: str,
        author: str,
        release_year: int,
        request_id: str | None = None,
        **options: Unpack[BookOptions],
    ) -> books_pb2.Book:
        """Store a book and return it. `request_id` is the idempotency key, a UUID; the default is a random one."""
        fields, call_options = split_fields(options)
        book = books_pb2.Book(name=name, author=author, release_year=release_year, **fields)
        return await self._transport.call(self._books.CreateBook, _create_request(book, request_id), **call_options)

    async def create_books(
        self,
        books: Sequence[books_pb2.Book],
        *,
        request_ids: Sequence[str] | None = None,
        **options: Unpack[CallOptions],
    ) -> Sequence[books_pb2.Book]:
        """Store 1 to 1,000 books, all or none, and return them in order. `request_ids` are their idempotency keys."""
        ids = request_ids if request_ids is not None else [None] * len(books)
        requests = [_create_request(book, request_id) for book, request_id in zip(books, ids, strict=True)]
        request = books_pb2.BatchCreateBooksRequest(requests=requests)
        return (await self._transport.call(self._books.BatchCreateBooks, request, **options)).books

    async def get_book(self, book_id: int, **options: Unpack[CallOptions]) -> books_pb2.Book:
        """Return one book. Raises `BookNotFound`."""
        return await self._transport.call(self._books.GetBook, books_pb2.GetBookRequest(id=book_id), **options)

    async def get_books(self, ids: Sequence[int], **options: Unpack[CallOptions]) -> list[books_pb2.Book]:
        """Return any number of books, in the order of `ids`. Raises `BookNotFound`."""
        options = reusable(options)
        books: list[books_pb2.Book] = []
        for start in range(0, len(ids), BATCH_MAX):
            request = books_pb2.BatchGetBooksRequest(ids=ids[start : start + BATCH_MAX])
            books += (await self._transport.call(self._books.BatchGetBooks, request, **options)).books
        return books

    async def list_page(
        self,
        *,
        filter: str = "",
        order_by: str = "",
        page_size: int = 0,
        page_token: str = "",
        include_total: bool = False,
        **options: Unpack[CallOptions],
    ) -> books_pb2.ListBooksResponse:
        """Return one page, with `include_total` also the number of books on all pages.

        Raises `InvalidFilter`, `InvalidOrderBy` and `InvalidPageToken`.
        """
        request = books_pb2.ListBooksRequest(
            filter=filter, order_by=order_by, page_size=page_size, page_token=page_token, include_total=include_total
        )
        return await self._transport.call(self._books.ListBooks, request, **options)

    async def list_books(
        self,
        *,
        filter: str = "",
        order_by: str = "",
        page_size: int = PAGE_SIZE_MAX,
        **options: Unpack[CallOptions],
    ) -> AsyncIterator[books_pb2.Book]:
        """Yield all books that match, fetching pages as needed. Raises what `list_page` raises."""
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
        **options: Unpack[BookOptions],
    ) -> books_pb2.Book:
        """Change the given fields of a book and return it; None leaves a field as it is.

        With `etag` (optimistic concurrency) only if it is the book's current one. Raises `BookNotFound` and
        `EtagMismatch`.
        """
        fields, call_options = split_fields(options)
        fields |= {"name": name, "author": author, "release_year": release_year}
        changes = {field: value for field, value in fields.items() if value is not None}
        book = books_pb2.Book(id=book_id, etag=etag, **changes)
        request = books_pb2.UpdateBookRequest(book=book, update_mask=FieldMask(paths=list(changes)))
        return await self._transport.call(self._books.UpdateBook, request, is_idempotent=False, **call_options)

    async def delete_book(self, book_id: int, *, etag: str = "", **options: Unpack[CallOptions]) -> None:
        """Delete a book. With `etag`, only if it is the current one. Raises `BookNotFound` and `EtagMismatch`."""
        request = books_pb2.DeleteBookRequest(id=book_id, etag=etag)
        await self._transport.call(self._books.DeleteBook, request, is_idempotent=False, **options)

    async def update_books(
        self, requests: Sequence[books_pb2.UpdateBookRequest], **options: Unpack[CallOptions]
    ) -> Sequence[books_pb2.Book]:
        """Change 1 to 1,000 books, all or none, in sequence, and return them in order.

        Raises `BookNotFound` and `EtagMismatch`, each with all such books.
        """
        request = books_pb2.BatchUpdateBooksRequest(requests=requests)
        update = self._books.BatchUpdateBooks
        return (await self._transport.call(update, request, is_idempotent=False, **options)).books

    async def delete_books(
        self, ids: Sequence[int], *, etags: Sequence[str] | None = None, **options: Unpack[CallOptions]
    ) -> None:
        """Delete 1 to 1,000 different books, all or none. With `etags` only if they are the current ones.

        Raises `BookNotFound` and `EtagMismatch`, each with all such books.
        """
        given = etags if etags is not None else [""] * len(ids)
        requests = [books_pb2.DeleteBookRequest(id=each, etag=etag) for each, etag in zip(ids, given, strict=True)]
        request = books_pb2.BatchDeleteBooksRequest(requests=requests)
        await self._transport.call(self._books.BatchDeleteBooks, request, is_idempotent=False, **options)

    async def purge_books(
        self, filter: str, *, force: bool = False, **options: Unpack[CallOptions]
    ) -> books_pb2.PurgeBooksResponse:
        """Delete the books that match a filter if `force` is true, otherwise count them and return a sample.

        With `force` the server returns before the call's deadline. While `more_matching` is set in the response,
        another call goes on. Raises `InvalidFilter`.
        """
        request = books_pb2.PurgeBooksRequest(filter=filter, force=force)
        return await self._transport.call(self._books.PurgeBooks, request, is_idempotent=not force, **options)

    async def list_change_page(
        self, *, filter: str = "", page_size: int = 0, page_token: str = "", **options: Unpack[CallOptions]
    ) -> books_pb2.ListBookChangesResponse:
        """Return one page of the changes of books, from the earliest that is kept or after `page_token`.

        A `resume_token` of a watch is a page token too. Raises `InvalidFilter`, `InvalidResumeToken` and
        `ResumeTokenExpired`.
        """
        request = books_pb2.ListBookChangesRequest(filter=filter, page_size=page_size, page_token=page_token)
        return await self._transport.call(self._books.ListBookChanges, request, **options)

    async def list_book_changes(
        self, *, filter: str = "", page_size: int = PAGE_SIZE_MAX, page_token: str = "", **options: Unpack[CallOptions]
    ) -> AsyncIterator[books_pb2.BookChange]:
        """Yield all changes so far, fetching pages as needed. Raises what `list_change_page` raises."""
        options = reusable(options)
        has_more = True
        while has_more:
            page = await self.list_change_page(filter=filter, page_size=page_size, page_token=page_token, **options)
            for change in page.changes:
                yield change
            page_token, has_more = page.next_page_token, page.more_changes

    def watch_books(
        self,
        *,
        filter: str = "",
        resume_token: str = "",
        start: Start = "now",
        checkpoint_interval_seconds: float | None = None,
        on_outage: OutageCallback | None = None,
        **options: Unpack[CallOptions],
    ) -> BookWatch:
        """Return an iterator of the changes of books as they are committed: `async for change in client.watch_books()`.

        It continues after `resume_token`, or without one starts with what is committed from now on, with the earliest
        change that is kept, or with all existing books. No change comes twice.

        The timeout is that of the first response; other methods wait for a server in the same way. Afterwards the
        watch has no deadline: whatever interrupts it, a server that shuts down, an outage, a connection that is lost or
        dead, it reconnects with backoff and resumes, with the current token of the client.

        Args:
            filter: Changes of books that match before or after it.
            resume_token: That of an earlier watch, of one of its changes, or of `list_change_page`.
            start: Where to start without a `resume_token`.
            checkpoint_interval_seconds: After how long without a change the `resume_token` moves on. A connection is
                dead after three such intervals, or 30 seconds if that is longer, without a response.
            on_outage: Called with the error once reconnecting has failed, and with None once it has succeeded.
            options: The timeout of the first response, metadata, and the id of the calls.

        Raises, while iterated: `InvalidFilter`, `InvalidResumeToken`, `ResumeTokenExpired` (start again with
        "existing"), and as other methods do.
        """
        request = books_pb2.WatchBooksRequest(
            filter=filter, resume_token=resume_token, start=books_pb2.WatchBooksRequest.Start.Value(start.upper())
        )
        if checkpoint_interval_seconds is not None:
            request.checkpoint_interval.CopyFrom(_duration(checkpoint_interval_seconds))
        return BookWatch(
            self._transport,
            request,
            given=given_metadata(options.get("metadata", ()), options.get("call_id", "")),
            timeout_seconds=self._transport.timeout(options.get("timeout_seconds", ...)),
            on_outage=on_outage,
        )

    async def health(self, service: str = "", **options: Unpack[CallOptions]) -> str:
        """Return the health of `service`: "SERVING", "NOT_SERVING" or "SERVICE_UNKNOWN"."""
        request = health_pb2.HealthCheckRequest(service=service)
        try:
            response = await self._transport.call(self._transport.connection().check_health, request, **options)
        except BookstoreError as error:
            if isinstance(error.__cause__, grpc.aio.AioRpcError) and error.__cause__.code() is _NOT_FOUND:
                return "SERVICE_UNKNOWN"
            raise
        return health_pb2.HealthCheckResponse.ServingStatus.Name(response.status)

    @property
    def _books(self) -> "books_pb2_grpc.BookServiceAsyncStub":  # of the type stubs only
        return self._transport.connection().books


def _duration(seconds: float) -> Duration:
    duration = Duration()
    duration.FromNanoseconds(round(seconds * 1e9))
    return duration


def _create_request(book: books_pb2.Book, request_id: str | None) -> books_pb2.CreateBookRequest:
    return books_pb2.CreateBookRequest(book=book, request_id=request_id or str(uuid.uuid4()))
