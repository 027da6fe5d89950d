"""How these tests speak to the service: books made in one line, pages walked, refusals read back."""

from collections.abc import Awaitable, Iterable
from typing import TYPE_CHECKING, Any, NamedTuple

import grpc
import pytest
from bookstore.v1 import books_pb2
from google.protobuf.field_mask_pb2 import FieldMask
from google.rpc import error_details_pb2, status_pb2

if TYPE_CHECKING:
    from bookstore.v1.books_pb2_grpc import BookServiceAsyncStub as Stub
else:
    from bookstore.v1.books_pb2_grpc import BookServiceStub as Stub

__all__ = [
    "Refusal",
    "Stub",
    "book",
    "books_of",
    "check_health",
    "create",
    "create_all",
    "delete",
    "get",
    "list_page",
    "refusal",
    "refusal_from_error",
    "update",
    "walk",
]

HEALTH = "/grpc.health.v1.Health/Check"
DETAILS_KEY = "grpc-status-details-bin"
REQUEST_ID_KEY = "x-request-id"


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
    """Answer the pages, in order, up to the one without a token."""
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


class Refusal(NamedTuple):
    """A failing status with its details, unpacked."""

    code: grpc.StatusCode
    message: str
    reason: str
    metadata: dict[str, str]
    violations: dict[str, str]
    resources: list[str]
    retry_seconds: float | None
    trailing: dict[str, str | bytes]


async def refusal(call: Awaitable[Any]) -> Refusal:
    """Await a call that must fail, and check what holds for every failure."""
    with pytest.raises(grpc.aio.AioRpcError) as caught:
        await call
    return refusal_from_error(caught.value)


def refusal_from_error(error: grpc.aio.AioRpcError) -> Refusal:
    trailing = dict(error.trailing_metadata() or ())
    message = error.details() or ""
    data = trailing.get(DETAILS_KEY)
    assert isinstance(data, bytes), f"{error.code()} without details: {message}"
    status = status_pb2.Status.FromString(data)
    assert (status.code, status.message) == (error.code().value[0], message)
    info: list[error_details_pb2.ErrorInfo] = []
    violations: dict[str, str] = {}
    resources: list[str] = []
    retry_seconds = None
    for detail in status.details:
        bad_request = error_details_pb2.BadRequest()
        resource = error_details_pb2.ResourceInfo()
        retry = error_details_pb2.RetryInfo()
        error_info = error_details_pb2.ErrorInfo()
        if detail.Unpack(error_info):
            info.append(error_info)
        elif detail.Unpack(bad_request):
            violations |= {each.field: each.description for each in bad_request.field_violations}
        elif detail.Unpack(resource):
            assert resource.resource_type == "bookstore.v1.Book"
            resources.append(resource.resource_name)
        elif detail.Unpack(retry):
            retry_seconds = retry.retry_delay.seconds + retry.retry_delay.nanos / 1e9
        else:
            pytest.fail(f"unexpected detail {detail.type_url}")
    (error_info,) = info
    assert error_info.domain == "bookstore.v1"
    assert error_info.metadata["request_id"] == trailing[REQUEST_ID_KEY]
    return Refusal(
        error.code(),
        message,
        error_info.reason,
        dict(error_info.metadata),
        violations,
        resources,
        retry_seconds,
        trailing,
    )
