"""Failed calls raise the errors of `bookstore_grpc.errors`, with the details that the server sent."""

import socket
import uuid
from collections.abc import AsyncIterator, Awaitable, Callable

import grpc
import pytest
from google.protobuf.any_pb2 import Any
from google.rpc import error_details_pb2, status_pb2

from bookstore_grpc.client import BookstoreClient, error_from_rpc_error
from bookstore_grpc.errors import (
    BookNotFound,
    BookstoreError,
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
    Rule,
    Unauthenticated,
    Unavailable,
)
from bookstore_grpc.rpc.server import Server

LATER = 2**40


async def create_invalid(client: BookstoreClient) -> None:
    await client.create_book(name=" ", author="A\x00", release_year=10_000)


async def update_with_a_stale_etag(client: BookstoreClient) -> None:
    book = await client.create_book(name="N", author="A", release_year=1)
    await client.update_book(book.id, name="New", etag="stale")


async def delete_with_a_stale_etag(client: BookstoreClient) -> None:
    book = await client.create_book(name="N", author="A", release_year=1)
    await client.delete_book(book.id, etag="stale")


async def reuse_a_request_id(client: BookstoreClient) -> None:
    request_id = str(uuid.uuid4())
    await client.create_book(name="N", author="A", release_year=1, request_id=request_id)
    await client.create_book(name="Other", author="A", release_year=1, request_id=request_id)


async def send_too_much(client: BookstoreClient) -> None:
    await client.create_book(name="x" * (9 * 1024 * 1024), author="A", release_year=1)


async def send_far_too_much(client: BookstoreClient) -> None:
    await client.create_book(name="x" * (17 * 1024 * 1024), author="A", release_year=1)


@pytest.mark.parametrize(
    ("call", "error_class", "reason"),
    [
        pytest.param(create_invalid, InvalidRequest, "INVALID_FIELD", id="invalid field"),
        pytest.param(lambda client: client.list_page(filter="name ="), InvalidFilter, "INVALID_FILTER", id="filter"),
        pytest.param(
            lambda client: client.list_page(order_by="price"),
            InvalidOrderBy,
            "INVALID_ORDER_BY",
            id="order_by",
        ),
        pytest.param(
            lambda client: client.list_page(page_token="damaged"),
            InvalidPageToken,
            "INVALID_PAGE_TOKEN",
            id="page token",
        ),
        pytest.param(lambda client: client.get_book(LATER), BookNotFound, "BOOK_NOT_FOUND", id="get of none"),
        pytest.param(
            lambda client: client.update_book(LATER, name="N"), BookNotFound, "BOOK_NOT_FOUND", id="update of none"
        ),
        pytest.param(lambda client: client.delete_book(LATER), BookNotFound, "BOOK_NOT_FOUND", id="delete of none"),
        pytest.param(update_with_a_stale_etag, EtagMismatch, "ETAG_MISMATCH", id="update with a stale etag"),
        pytest.param(delete_with_a_stale_etag, EtagMismatch, "ETAG_MISMATCH", id="delete with a stale etag"),
        pytest.param(reuse_a_request_id, RequestIdReused, "REQUEST_ID_REUSED", id="request id reused"),
        pytest.param(send_too_much, RequestTooLarge, "REQUEST_TOO_LARGE", id="message over the limit"),
        pytest.param(send_far_too_much, ResourceExhausted, "", id="message far over the limit"),
    ],
)
async def test_a_rejected_call_raises_the_error_of_its_reason(
    client: BookstoreClient,
    call: Callable[[BookstoreClient], Awaitable[object]],
    error_class: type[BookstoreError],
    reason: str,
) -> None:
    with pytest.raises(BookstoreError) as raised:
        await call(client)

    assert type(raised.value) is error_class
    assert raised.value.reason == reason
    assert raised.value.message == str(raised.value) != ""
    assert isinstance(raised.value.__cause__, grpc.aio.AioRpcError)


async def test_every_violation_has_its_field(client: BookstoreClient) -> None:
    with pytest.raises(InvalidRequest) as raised:
        await create_invalid(client)

    assert [violation.field for violation in raised.value.violations] == [
        "book.name",
        "book.author",
        "book.release_year",
    ]
    assert all(violation.description for violation in raised.value.violations)


async def test_each_violation_has_its_rule(client: BookstoreClient) -> None:
    with pytest.raises(InvalidRequest) as raised:
        await create_invalid(client)
    assert [violation.reason for violation in raised.value.violations] == [
        Rule.REQUIRED,
        Rule.CONTROL_CHARACTER,
        Rule.OUT_OF_RANGE,
    ]
    for filter, rule in (("price > 3", Rule.UNKNOWN_FIELD), ("id = x", Rule.INVALID_TYPE)):
        with pytest.raises(InvalidFilter) as raised_by_filter:
            await client.list_page(filter=filter)
        assert [violation.reason for violation in raised_by_filter.value.violations] == [rule]


async def test_violations_that_did_not_fit_into_the_response_are_counted(client: BookstoreClient) -> None:
    book = await client.create_book(name="N", author="A", release_year=1)
    with pytest.raises(InvalidRequest) as few:
        await create_invalid(client)
    with pytest.raises(InvalidRequest) as many:
        await client.create_books([type(book)(name="N", author="A")] * 900)
    with pytest.raises(BookNotFound) as missing:
        await client.get_books([book.id, *range(LATER, LATER + 900)])

    assert few.value.omitted_count == 0
    assert len(many.value.violations) + many.value.omitted_count == 900
    assert len(missing.value.ids) + missing.value.omitted_count == 900
    assert missing.value.ids[0] == LATER


async def test_a_stale_etag_and_a_reused_id_have_their_errors(client: BookstoreClient) -> None:
    book = await client.create_book(name="N", author="A", release_year=1)
    with pytest.raises(EtagMismatch) as mismatch:
        await client.delete_book(book.id, etag="stale")
    with pytest.raises(RequestIdReused) as reused:
        await reuse_a_request_id(client)

    assert mismatch.value.book_id == book.id
    assert reused.value.metadata == {"create_request_id": reused.value.create_request_id}
    assert reused.value.create_request_id in reused.value.message
    assert reused.value.request_id != reused.value.create_request_id


async def test_violations_of_a_batch_name_its_entries(client: BookstoreClient) -> None:
    good = await client.create_book(name="N", author="A", release_year=1)
    bad = type(good)(name="N", release_year=1)

    with pytest.raises(InvalidRequest) as raised:
        await client.create_books([good, bad])

    assert [violation.field for violation in raised.value.violations] == ["requests[1].book.author"]


async def test_a_filter_error_has_its_column(client: BookstoreClient) -> None:
    with pytest.raises(InvalidFilter) as raised:
        await client.list_page(filter="name = 'é' AND price > 3")

    assert raised.value.column == 16
    assert [violation.field for violation in raised.value.violations] == ["filter"]


async def test_missing_books_are_named_by_their_ids(client: BookstoreClient) -> None:
    book = await client.create_book(name="N", author="A", release_year=1)

    with pytest.raises(BookNotFound) as raised:
        await client.get_books([LATER, book.id, LATER + 1])

    assert raised.value.ids == (LATER, LATER + 1)


async def test_an_error_carries_the_request_id_that_is_in_the_log(client: BookstoreClient) -> None:
    with pytest.raises(BookNotFound) as first:
        await client.get_book(LATER)
    with pytest.raises(BookNotFound) as second:
        await client.get_book(LATER)

    assert first.value.request_id
    assert second.value.request_id
    assert first.value.request_id != second.value.request_id


async def test_an_error_of_the_generated_stub_can_be_turned_too(sqlite_server: Server) -> None:
    async with grpc.aio.insecure_channel(sqlite_server.addresses[0]) as channel:
        unknown: grpc.aio.UnaryUnaryMultiCallable[bytes, bytes] = channel.unary_unary(
            "/bookstore.v1.BookService/BurnBook"
        )
        with pytest.raises(grpc.aio.AioRpcError) as raised:
            await unknown(b"", metadata=(("x-request-id", "mine"),))

    error = error_from_rpc_error(raised.value)
    assert type(error) is MethodUnknown
    assert error.request_id == "mine"


async def test_nothing_listening_is_unavailable() -> None:
    with socket.socket() as bound:
        bound.bind(("127.0.0.1", 0))  # without listen(): every connection fails
        async with BookstoreClient(f"127.0.0.1:{bound.getsockname()[1]}", timeout_seconds=0.5) as client:
            with pytest.raises(Unavailable) as raised:
                await client.delete_book(1)

    assert type(raised.value) is Unavailable
    assert raised.value.request_id is None


@pytest.fixture
async def silent_address() -> AsyncIterator[str]:
    """A port that accepts connections and never sends anything."""
    with socket.create_server(("127.0.0.1", 0)) as listening:
        yield f"127.0.0.1:{listening.getsockname()[1]}"


async def test_a_server_that_never_responds_exceeds_the_deadline(silent_address: str) -> None:
    async with BookstoreClient(silent_address, timeout_seconds=0.2) as client:
        with pytest.raises(DeadlineExceeded):
            await client.get_book(1)


def rpc_error(
    code: grpc.StatusCode, message: str | None = None, *trailers: tuple[str, str | bytes]
) -> grpc.aio.AioRpcError:
    return grpc.aio.AioRpcError(code, grpc.aio.Metadata(), grpc.aio.Metadata(*trailers), details=message)


@pytest.mark.parametrize(
    ("code", "error_class"),
    [
        (grpc.StatusCode.INVALID_ARGUMENT, InvalidRequest),
        (grpc.StatusCode.UNAUTHENTICATED, Unauthenticated),
        (grpc.StatusCode.PERMISSION_DENIED, PermissionDenied),
        (grpc.StatusCode.RESOURCE_EXHAUSTED, ResourceExhausted),
        (grpc.StatusCode.UNAVAILABLE, Unavailable),
        (grpc.StatusCode.DEADLINE_EXCEEDED, DeadlineExceeded),
        (grpc.StatusCode.UNIMPLEMENTED, MethodUnknown),
        (grpc.StatusCode.INTERNAL, InternalError),
        (grpc.StatusCode.NOT_FOUND, BookstoreError),
        (grpc.StatusCode.ABORTED, BookstoreError),
        (grpc.StatusCode.UNKNOWN, BookstoreError),
    ],
    ids=lambda value: value.name if isinstance(value, grpc.StatusCode) else "",
)
def test_a_status_without_details_is_translated_by_its_code(
    code: grpc.StatusCode, error_class: type[BookstoreError]
) -> None:
    error = error_from_rpc_error(rpc_error(code, "said by a proxy"))

    assert type(error) is error_class
    assert error.message == "said by a proxy"
    assert error.request_id is None
    assert code.name in error_from_rpc_error(rpc_error(code)).message


def status_details(*details: Any) -> tuple[str, bytes]:
    return "grpc-status-details-bin", status_pb2.Status(details=details).SerializeToString()


def packed(message: error_details_pb2.ErrorInfo | error_details_pb2.ResourceInfo) -> Any:
    detail = Any()
    detail.Pack(message)
    return detail


def test_the_reason_of_another_service_is_left_aside() -> None:
    info = packed(error_details_pb2.ErrorInfo(reason="DATABASE_UNAVAILABLE", domain="example.com"))

    error = error_from_rpc_error(rpc_error(grpc.StatusCode.UNAVAILABLE, "busy", status_details(info)))

    assert type(error) is Unavailable
    assert not isinstance(error, DatabaseUnavailable)


@pytest.mark.parametrize(
    "trailer",
    [
        pytest.param(("grpc-status-details-bin", b"\xff\xff no message"), id="bytes that are no status"),
        pytest.param(status_details(Any(type_url="type.googleapis.com/unknown.Type")), id="an unknown detail"),
        pytest.param(
            status_details(packed(error_details_pb2.ResourceInfo(resource_name="projects/example"))),
            id="a resource that is no book",
        ),
        pytest.param(
            status_details(Any(type_url="type.googleapis.com/google.rpc.ErrorInfo", value=b"\xff")),
            id="a damaged detail",
        ),
    ],
)
def test_details_that_a_proxy_made_up_do_not_hide_the_status(trailer: tuple[str, bytes]) -> None:
    error = error_from_rpc_error(rpc_error(grpc.StatusCode.PERMISSION_DENIED, "not here", trailer))

    assert type(error) is PermissionDenied
    assert error.message == "not here"
