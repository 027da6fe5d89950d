"""BookstoreClient: the service for Python programs, with deadlines, safe retries, paging and typed errors.

It needs only the base install and knows nothing of the server's inside.
"""

import asyncio
import random
import time
import uuid
from collections.abc import AsyncIterator, Callable, Mapping, Sequence
from types import TracebackType
from typing import NamedTuple, Self, TypeVar

import grpc
from bookstore.v1 import books_pb2, books_pb2_grpc
from google.protobuf.field_mask_pb2 import FieldMask
from google.protobuf.message import DecodeError
from google.rpc import status_pb2
from google.rpc.error_details_pb2 import BadRequest, ErrorInfo, ResourceInfo, RetryInfo
from grpc_health.v1 import health_pb2

from bookstore_grpc.channel import TLS, TokenFile, call_metadata, open_channel
from bookstore_grpc.errors import (
    BookNotFound,
    BookstoreError,
    CallInterrupted,
    DatabaseUnavailable,
    DeadlineExceeded,
    EtagMismatch,
    InternalError,
    InvalidFilter,
    InvalidOrderBy,
    InvalidPageToken,
    InvalidRequest,
    MethodUnknown,
    PermissionDenied,
    RequestIdReused,
    RequestTooLarge,
    ResourceExhausted,
    ScopeMissing,
    ServerDraining,
    TokenInvalid,
    TokenMissing,
    Unauthenticated,
    Unavailable,
    Violation,
)
from bookstore_grpc.limits import BATCH_MAX, PAGE_SIZE_MAX
from bookstore_grpc.trace_context import metadata_from_environment, metadata_of_current_span
from bookstore_grpc.wire import (
    DEFAULT_SERVER,
    DEFAULT_TIMEOUT_SECONDS,
    ERROR_DOMAIN,
    OMITTED_COUNT_KEY,
    REQUEST_ID_KEY,
    STATUS_DETAILS_KEY,
    Metadata,
)

__all__ = ["TLS", "BookstoreClient", "TokenFile", "error_from_rpc_error", "metadata_from_environment"]

Request = TypeVar("Request")
Response = TypeVar("Response")


_ERRORS_BY_REASON: dict[str, type[BookstoreError]] = {
    error.reason: error
    for error in (
        TokenMissing,
        TokenInvalid,
        ScopeMissing,
        DatabaseUnavailable,
        ServerDraining,
        CallInterrupted,
        DeadlineExceeded,
        MethodUnknown,
    )
}


class _Details(NamedTuple):
    """What a status of the service says of an error, beside its reason."""

    message: str
    metadata: Mapping[str, str]
    violations: Sequence[Violation]
    ids: Sequence[int]


# These raise `LookupError` and `ValueError` where a detail is missing or is not as it is to be.
_ERRORS_FROM_DETAILS: dict[str, Callable[[_Details], BookstoreError]] = {
    InvalidFilter.reason: lambda details: InvalidFilter(
        details.violations[0].description,
        column=int(details.metadata["column"]),
        rule=details.violations[0].reason,
    ),
    InvalidOrderBy.reason: lambda details: InvalidOrderBy(
        details.violations[0].description, rule=details.violations[0].reason
    ),
    InvalidPageToken.reason: lambda details: InvalidPageToken(
        details.violations[0].description, rule=details.violations[0].reason
    ),
    BookNotFound.reason: lambda details: BookNotFound(details.ids, message=details.message),
    RequestTooLarge.reason: lambda details: RequestTooLarge(message=details.message),
    EtagMismatch.reason: lambda details: EtagMismatch(details.ids[0], message=details.message),
    RequestIdReused.reason: lambda details: RequestIdReused(
        details.metadata["create_request_id"], message=details.message
    ),
}
_NOT_FOUND = grpc.StatusCode.NOT_FOUND
_ERRORS_BY_CODE: dict[grpc.StatusCode, type[BookstoreError]] = {
    grpc.StatusCode.UNAUTHENTICATED: Unauthenticated,
    grpc.StatusCode.PERMISSION_DENIED: PermissionDenied,
    grpc.StatusCode.RESOURCE_EXHAUSTED: ResourceExhausted,
    grpc.StatusCode.UNAVAILABLE: Unavailable,
    # What gRPC says for a server that has too many calls waiting, or is ending; a call that its own caller cancels
    # does not come here.
    grpc.StatusCode.CANCELLED: Unavailable,
    grpc.StatusCode.DEADLINE_EXCEEDED: DeadlineExceeded,
    grpc.StatusCode.UNIMPLEMENTED: MethodUnknown,
    grpc.StatusCode.INTERNAL: InternalError,
}


class BookstoreClient:
    """A connection to the service, as an async context manager.

    `server` is `HOST:PORT` or `unix:PATH`; `timeout_seconds` bounds every call, retries included. A call that a limit
    has refused is sent again when the server said, if that is in time. With `tls` the calls travel encrypted. `token`
    is a bearer token, or what answers one at each call, such as a `TokenFile`; where others could read it on its way,
    it is sent only if `insecure`. A call joins the trace of the program's current span, if it traces by OpenTelemetry,
    and else the one of `trace_context`, metadata as `metadata_from_environment` answers it. Methods raise the errors of
    `bookstore_grpc.errors`.

    Raises `ValueError` for files that cannot be used, and for a token that would travel in plaintext.
    """

    def __init__(
        self,
        server: str = DEFAULT_SERVER,
        *,
        timeout_seconds: float = DEFAULT_TIMEOUT_SECONDS,
        tls: TLS | None = None,
        token: str | Callable[[], str] = "",
        insecure: bool = False,
        trace_context: Metadata = (),
    ) -> None:
        self.server = server
        self._timeout_seconds = timeout_seconds
        self._trace_context = trace_context
        self._metadata = call_metadata(server, token=token, is_encrypted=tls is not None, insecure=insecure)
        self._channel = open_channel(server, tls)
        self._stub = books_pb2_grpc.BookServiceStub(self._channel)
        self._check_health = self._channel.unary_unary(
            "/grpc.health.v1.Health/Check",
            request_serializer=health_pb2.HealthCheckRequest.SerializeToString,
            response_deserializer=health_pb2.HealthCheckResponse.FromString,
        )

    async def __aenter__(self) -> Self:
        return self

    async def __aexit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        await self.close()

    async def close(self) -> None:
        """Close the connection; calls under way are cancelled."""
        await self._channel.close()

    async def create_book(
        self, *, name: str, author: str, release_year: int, request_id: str | None = None
    ) -> books_pb2.Book:
        """Store a book. Safe to retry: a `request_id` (a UUID) is made where none is given."""
        book = books_pb2.Book(name=name, author=author, release_year=release_year)
        return await self._call(self._stub.CreateBook, _create_request(book, request_id))

    async def create_books(
        self, books: Sequence[books_pb2.Book], *, request_ids: Sequence[str] | None = None
    ) -> Sequence[books_pb2.Book]:
        """Store 1 to 1,000 books, all or none, and answer them in order. Safe to retry as `create_book` is."""
        ids = request_ids if request_ids is not None else [None] * len(books)
        requests = [_create_request(book, request_id) for book, request_id in zip(books, ids, strict=True)]
        request = books_pb2.BatchCreateBooksRequest(requests=requests)
        return (await self._call(self._stub.BatchCreateBooks, request)).books

    async def get_book(self, book_id: int) -> books_pb2.Book:
        """Answer one book. Raises `BookNotFound`."""
        return await self._call(self._stub.GetBook, books_pb2.GetBookRequest(id=book_id))

    async def get_books(self, ids: Sequence[int]) -> list[books_pb2.Book]:
        """Answer any number of books in the order of their ids. Raises `BookNotFound`."""
        books: list[books_pb2.Book] = []
        for start in range(0, len(ids), BATCH_MAX):
            request = books_pb2.BatchGetBooksRequest(ids=ids[start : start + BATCH_MAX])
            books += (await self._call(self._stub.BatchGetBooks, request)).books
        return books

    async def list_page(
        self, *, filter: str = "", order_by: str = "", page_size: int = 0, page_token: str = ""
    ) -> books_pb2.ListBooksResponse:
        """Answer one page. Raises `InvalidFilter`, `InvalidOrderBy` and `InvalidPageToken`."""
        request = books_pb2.ListBooksRequest(
            filter=filter, order_by=order_by, page_size=page_size, page_token=page_token
        )
        return await self._call(self._stub.ListBooks, request)

    async def list_books(
        self, *, filter: str = "", order_by: str = "", page_size: int = PAGE_SIZE_MAX
    ) -> AsyncIterator[books_pb2.Book]:
        """Walk over all books that match, page by page as they are needed. Raises as `list_page` does."""
        page_token = ""
        while True:
            page = await self.list_page(filter=filter, order_by=order_by, page_size=page_size, page_token=page_token)
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
    ) -> books_pb2.Book:
        """Change the fields that are given; with `etag`, only if it is the book's current one.

        Raises `BookNotFound` and `EtagMismatch`.
        """
        values = {"name": name, "author": author, "release_year": release_year}
        given = {field: value for field, value in values.items() if value is not None}
        book = books_pb2.Book(id=book_id, etag=etag, name=name or "", author=author or "", release_year=release_year)
        request = books_pb2.UpdateBookRequest(book=book, update_mask=FieldMask(paths=list(given)))
        return await self._call(self._stub.UpdateBook, request)

    async def delete_book(self, book_id: int, *, etag: str = "") -> None:
        """Delete a book; with `etag`, only if it is the current one. Raises `BookNotFound` and `EtagMismatch`."""
        await self._call(self._stub.DeleteBook, books_pb2.DeleteBookRequest(id=book_id, etag=etag))

    async def health(self, service: str = "") -> str:
        """Answer what the health service says of `service`: "SERVING", "NOT_SERVING" or "SERVICE_UNKNOWN"."""
        try:
            response = await self._call(self._check_health, health_pb2.HealthCheckRequest(service=service))
        except BookstoreError as error:
            if isinstance(error.__cause__, grpc.aio.AioRpcError) and error.__cause__.code() is _NOT_FOUND:
                return "SERVICE_UNKNOWN"
            raise
        return health_pb2.HealthCheckResponse.ServingStatus.Name(response.status)

    async def _call(self, method: "grpc.aio.UnaryUnaryMultiCallable[Request, Response]", request: Request) -> Response:
        give_up_at = time.monotonic() + self._timeout_seconds
        while True:
            try:
                metadata = self._metadata() + (metadata_of_current_span() or self._trace_context)
                return await method(request, timeout=give_up_at - time.monotonic(), metadata=metadata)
            except grpc.aio.AioRpcError as error:
                raised = error_from_rpc_error(error)
                if isinstance(raised, DeadlineExceeded) and not self._is_connected():
                    raised = DeadlineExceeded("No connection came about.")
                    raised.reason = ""  # the service has said nothing
                # What a limit has refused has not begun, so any call may be sent again, when the server said.
                if not isinstance(raised, ResourceExhausted) or not raised.reason:
                    raise raised from error
                # Spread, so that those who were refused together do not come together. It guards no secret.
                wait_seconds = raised.retry_seconds * random.uniform(1, 1.2)  # noqa: S311
                if time.monotonic() + wait_seconds >= give_up_at:
                    raise raised from error
            await asyncio.sleep(wait_seconds)

    def _is_connected(self) -> bool:
        return self._channel.get_state() is grpc.ChannelConnectivity.READY


def error_from_rpc_error(error: grpc.aio.AioRpcError) -> BookstoreError:
    """Turn a failed call, also one made with the generated stub, into the error that the server meant."""
    trailers = dict(error.trailing_metadata() or ())
    try:
        raised = _error(error, status_pb2.Status.FromString(_bytes(trailers.get(STATUS_DETAILS_KEY, b""))))
    except (DecodeError, LookupError, ValueError):
        # Details that this service did not make, a proxy's perhaps, do not hide the status.
        raised = _error(error, status_pb2.Status())
    raised.request_id = str(trailers[REQUEST_ID_KEY]) if REQUEST_ID_KEY in trailers else None
    return raised


def _error(error: grpc.aio.AioRpcError, status: status_pb2.Status) -> BookstoreError:
    info, bad_request, resource, retry = ErrorInfo(), BadRequest(), ResourceInfo(), RetryInfo()
    ids = []
    for detail in status.details:
        if detail.Unpack(resource):
            ids.append(int(resource.resource_name.removeprefix("books/")))
        else:
            detail.Unpack(info)
            detail.Unpack(bad_request)
            detail.Unpack(retry)
    if info.domain != ERROR_DOMAIN:
        info = ErrorInfo()
    message = error.details() or f"The server answered {error.code().name}."
    if error.code() is grpc.StatusCode.CANCELLED:
        message = "The server turned the call away before it began; try again."
    violations = [Violation(each.field, each.description, each.reason) for each in bad_request.field_violations]
    if make := _ERRORS_FROM_DETAILS.get(info.reason):
        raised = make(_Details(message, info.metadata, violations, ids))
    elif error.code() is grpc.StatusCode.INVALID_ARGUMENT:
        raised = InvalidRequest(violations, message=message)
    else:
        raised = _ERRORS_BY_REASON.get(info.reason, _ERRORS_BY_CODE.get(error.code(), BookstoreError))(message)
    raised.reason = info.reason  # what the service said, if it was the service
    raised.metadata = dict(info.metadata)
    if isinstance(raised, InvalidRequest | BookNotFound):
        raised.omitted_count = int(info.metadata.get(OMITTED_COUNT_KEY, 0))
    if isinstance(raised, ResourceExhausted | Unavailable) and retry.HasField("retry_delay"):
        raised.retry_seconds = retry.retry_delay.ToMilliseconds() / 1_000
    return raised


def _create_request(book: books_pb2.Book, request_id: str | None) -> books_pb2.CreateBookRequest:
    return books_pb2.CreateBookRequest(book=book, request_id=request_id or str(uuid.uuid4()))


def _bytes(value: str | bytes) -> bytes:
    return value if isinstance(value, bytes) else value.encode()
