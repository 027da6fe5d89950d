"""Calls in one line: books created, pages walked, errors decoded."""

from base64 import b64encode
from collections.abc import Awaitable, Iterable
from typing import TYPE_CHECKING, Any, NamedTuple
from urllib.parse import quote

import grpc
import pytest
from bookstore.v1 import books_pb2
from google.protobuf.field_mask_pb2 import FieldMask
from google.rpc import error_details_pb2, status_pb2

from bookstore_grpc.errors import Rule

if TYPE_CHECKING:
    from bookstore.v1.books_pb2_grpc import BookServiceAsyncStub as Stub
else:
    from bookstore.v1.books_pb2_grpc import BookServiceStub as Stub

__all__ = [
    "Rejection",
    "Stub",
    "book",
    "books_of",
    "check_health",
    "create",
    "create_all",
    "delete",
    "get",
    "list_page",
    "rejection",
    "rejection_from_error",
    "size_in_headers",
    "update",
    "walk",
]

HEALTH = "/grpc.health.v1.Health/Check"
DETAILS_KEY = "grpc-status-details-bin"
REQUEST_ID_KEY = "x-request-id"

# What gRPC does not escape in a message; and the whole of nginx's default buffer.
UNESCAPED = "".join(chr(code) for code in range(0x20, 0x7F)).replace("%", "")
HEADERS_MAX_BYTES = 4_096


def book(
    name: str = "Dune", author: str = "Frank Herbert", release_year: int | None = 1965, **fields: Any
) -> books_pb2.Book:
    return books_pb2.Book(name=name, author=author, release_year=release_year, **fields)


async def create(stub: Stub, *args: Any, request_id: str = "", **fields: Any) -> books_pb2.Book:
    request = books_pb2.CreateBookRequest(book=book(*args, **fields), request_id=request_id)
    return await stub.CreateBook(request)


async def create_all(stub: Stub, books: Iterable[books_pb2.Book]) -> list[books_pb2.Book]:
    requests = [books_pb2.CreateBookRequest(book=each) for each in books]
    response = await stub.BatchCreateBooks(books_pb2.BatchCreateBooksRequest(requests=requests))
    return list(response.books)


async def get(stub: Stub, book_id: int) -> books_pb2.Book:
    return await stub.GetBook(books_pb2.GetBookRequest(id=book_id))


async def update(
    stub: Stub, book_id: int, *, mask: Iterable[str] | None = None, etag: str = "", **fields: Any
) -> books_pb2.Book:
    """Update with exactly these fields present and, unless it is None, this mask."""
    request = books_pb2.UpdateBookRequest(
        book=books_pb2.Book(id=book_id, etag=etag, **fields),
        update_mask=None if mask is None else FieldMask(paths=list(mask)),
    )
    return await stub.UpdateBook(request)


async def delete(stub: Stub, book_id: int, *, etag: str = "") -> None:
    await stub.DeleteBook(books_pb2.DeleteBookRequest(id=book_id, etag=etag))


async def check_health(channel: grpc.aio.Channel) -> bytes:
    check: grpc.aio.UnaryUnaryMultiCallable[bytes, bytes] = channel.unary_unary(HEALTH)
    return await check(b"", timeout=10)


async def list_page(stub: Stub, **fields: Any) -> books_pb2.ListBooksResponse:
    return await stub.ListBooks(books_pb2.ListBooksRequest(**fields))


async def walk(stub: Stub, **fields: Any) -> list[list[books_pb2.Book]]:
    """Return the pages, in order, up to the one without a token."""
    pages = []
    token = ""
    while True:
        page = await list_page(stub, page_token=token, **fields)
        pages.append(list(page.books))
        if not page.next_page_token:
            return pages
        assert page.next_page_token != token
        token = page.next_page_token


async def books_of(stub: Stub, **fields: Any) -> list[books_pb2.Book]:
    return [each for page in await walk(stub, **fields) for each in page]


def size_in_headers(error: grpc.aio.AioRpcError) -> int:
    """Count what a failure takes in HTTP/2 headers, each with 32 bytes of overhead (RFC 9113, 6.5.2)."""
    status = ("grpc-status", str(error.code().value[0]))
    message = ("grpc-message", quote(error.details() or "", safe=UNESCAPED))
    headers = [(":status", "200"), ("content-type", "application/grpc"), status, message]
    for key, value in error.trailing_metadata() or ():
        headers.append((key, value if isinstance(value, str) else b64encode(value).decode()))
    return sum(len(key) + len(value) + 32 for key, value in headers)


class Rejection(NamedTuple):
    """A failing status with its details, unpacked."""

    code: grpc.StatusCode
    message: str
    reason: str
    request_id: str
    metadata: dict[str, str]
    violations: dict[str, str]
    rules: dict[str, str]
    resources: list[str]
    retry_seconds: float | None
    trailing: dict[str, str | bytes]


async def rejection(call: Awaitable[Any]) -> Rejection:
    """Await a call that must fail, and check what holds for every failure."""
    with pytest.raises(grpc.aio.AioRpcError) as caught:
        await call
    return rejection_from_error(caught.value)


def rejection_from_error(error: grpc.aio.AioRpcError) -> Rejection:
    trailing = dict(error.trailing_metadata() or ())
    message = error.details() or ""
    data = trailing.get(DETAILS_KEY)
    assert isinstance(data, bytes), f"{error.code()} without details: {message}"
    status = status_pb2.Status.FromString(data)
    assert (status.code, status.message) == (error.code().value[0], message)
    info: list[error_details_pb2.ErrorInfo] = []
    violations: dict[str, str] = {}
    rules: dict[str, str] = {}
    resources: list[str] = []
    request_ids: list[str] = []
    retry_seconds = None
    for detail in status.details:
        bad_request = error_details_pb2.BadRequest()
        resource = error_details_pb2.ResourceInfo()
        retry = error_details_pb2.RetryInfo()
        request = error_details_pb2.RequestInfo()
        error_info = error_details_pb2.ErrorInfo()
        if detail.Unpack(error_info):
            info.append(error_info)
        elif detail.Unpack(bad_request):
            violations |= {each.field: each.description for each in bad_request.field_violations}
            rules |= {each.field: Rule(each.reason) for each in bad_request.field_violations}
        elif detail.Unpack(resource):
            assert resource.resource_type == "bookstore.v1.Book"
            resources.append(resource.resource_name)
        elif detail.Unpack(request):
            request_ids.append(request.request_id)
        elif detail.Unpack(retry):
            retry_seconds = retry.retry_delay.seconds + retry.retry_delay.nanos / 1e9
        else:
            pytest.fail(f"unexpected detail {detail.type_url}")
    (error_info,) = info
    assert error_info.domain == "bookstore.v1"
    (request_id,) = request_ids
    assert request_id == trailing[REQUEST_ID_KEY]
    assert "request_id" not in error_info.metadata
    assert size_in_headers(error) < HEADERS_MAX_BYTES
    return Rejection(
        error.code(),
        message,
        error_info.reason,
        request_id,
        dict(error_info.metadata),
        violations,
        rules,
        resources,
        retry_seconds,
        trailing,
    )
