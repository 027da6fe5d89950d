import asyncio
from collections.abc import Awaitable
from typing import Any
from uuid import UUID

import grpc
import pytest
from bookstore.v1 import books_pb2
from grpc_reflection.v1alpha import reflection_pb2

from bookstore_grpc.errors import Rule
from tests.rpc.calls import (
    Stub,
    book,
    books_of,
    create,
    delete,
    get,
    list_page,
    rejection,
    rejection_from_error,
    update,
)

SERVICE = "/bookstore.v1.BookService"


async def test_every_error_has_a_message_and_details(stub: Stub) -> None:
    made = await create(stub)
    calls = {
        "INVALID_FIELD": get(stub, 0),
        "INVALID_FILTER": list_page(stub, filter="("),
        "INVALID_ORDER_BY": list_page(stub, order_by="x"),
        "INVALID_PAGE_TOKEN": list_page(stub, page_token="x"),
        "BOOK_NOT_FOUND": get(stub, made.id + 1),
        "ETAG_MISMATCH": delete(stub, made.id, etag="x"),
    }
    for reason, call in calls.items():
        rejected = await rejection(call)
        assert rejected.reason == reason
        assert rejected.message.endswith(".")
        assert rejected.retry_seconds is None
        assert (reason.startswith("INVALID")) == bool(rejected.violations)


@pytest.mark.databases("sqlite")
async def test_each_violation_has_its_rule_as_a_constant(stub: Stub) -> None:
    made = await create(stub)
    calls: dict[Awaitable[Any], dict[str, Rule]] = {
        create(stub, "", "x" * 1_001, None, request_id="7"): {
            "request_id": Rule.INVALID_UUID,
            "book.name": Rule.REQUIRED,
            "book.author": Rule.TOO_LONG,
            "book.release_year": Rule.REQUIRED,
        },
        create(stub, "\0", "A", 10_000, request_id=str(UUID(int=0))): {
            "request_id": Rule.INVALID_UUID,
            "book.name": Rule.CONTROL_CHARACTER,
            "book.release_year": Rule.OUT_OF_RANGE,
        },
        stub.CreateBook(books_pb2.CreateBookRequest()): {"book": Rule.REQUIRED},
        stub.UpdateBook(books_pb2.UpdateBookRequest()): {"book": Rule.REQUIRED},
        update(stub, made.id, mask=["shelf"]): {"update_mask": Rule.UNKNOWN_FIELD},
        get(stub, -1): {"id": Rule.OUT_OF_RANGE},
        stub.BatchGetBooks(books_pb2.BatchGetBooksRequest()): {"ids": Rule.REQUIRED},
        stub.BatchGetBooks(books_pb2.BatchGetBooksRequest(ids=[1] * 1_001)): {"ids": Rule.TOO_MANY},
        list_page(stub, page_size=-1): {"page_size": Rule.OUT_OF_RANGE},
        list_page(stub, page_token="x"): {"page_token": Rule.INVALID_TOKEN},
        list_page(stub, order_by="price"): {"order_by": Rule.UNKNOWN_FIELD},
        list_page(stub, order_by="id down"): {"order_by": Rule.INVALID_SYNTAX},
        list_page(stub, order_by="name, name"): {"order_by": Rule.DUPLICATE},
        list_page(stub, filter="("): {"filter": Rule.INVALID_SYNTAX},
        list_page(stub, filter="name = 'x"): {"filter": Rule.INVALID_SYNTAX},
        list_page(stub, filter="price > 3"): {"filter": Rule.UNKNOWN_FIELD},
        list_page(stub, filter="id:3"): {"filter": Rule.INVALID_OPERATOR},
        list_page(stub, filter="id = x"): {"filter": Rule.INVALID_TYPE},
        list_page(stub, filter="create_time > x"): {"filter": Rule.INVALID_TYPE},
        list_page(stub, filter="release_year = 99999999999"): {"filter": Rule.OUT_OF_RANGE},
        list_page(stub, filter="'\x07'"): {"filter": Rule.CONTROL_CHARACTER},
        list_page(stub, filter="x" * 2_001): {"filter": Rule.TOO_LONG},
        list_page(stub, filter="x " * 101): {"filter": Rule.TOO_MANY},
        list_page(stub, filter="(" * 21 + "x" + ")" * 21): {"filter": Rule.TOO_MANY},
    }
    for call, rules in calls.items():
        assert (await rejection(call)).rules == rules


async def test_the_id_of_an_earlier_create_is_distinguished_from_that_of_the_call(stub: Stub) -> None:
    create_request_id = "6f1e4c2a-58b1-4d0b-9c57-0e1f2a3b4c5d"
    await create(stub, request_id=create_request_id)
    rejected = await rejection(create(stub, "Other", request_id=create_request_id.upper()))
    assert (rejected.reason, rejected.metadata) == ("REQUEST_ID_REUSED", {"create_request_id": create_request_id})


async def test_an_etag_that_is_not_current_names_the_book(stub: Stub) -> None:
    made = await create(stub)
    for call in (delete(stub, made.id, etag="x"), update(stub, made.id, etag="x", name="Other")):
        rejected = await rejection(call)
        assert (rejected.reason, rejected.resources) == ("ETAG_MISMATCH", [f"books/{made.id}"])


@pytest.mark.databases("sqlite")
async def test_the_message_of_one_violation_names_field_and_rule(stub: Stub) -> None:
    rejected = await rejection(create(stub, release_year=10_000))
    assert "book.release_year" in rejected.message
    assert "9999" in rejected.message


@pytest.mark.databases("sqlite")
@pytest.mark.parametrize(
    "method",
    [
        f"{SERVICE}/BurnBooks",
        f"{SERVICE}/",
        f"{SERVICE}/getbook",
        "/bookstore.v2.BookService/GetBook",
        "/x",
        "/grpc.health.v1.Health/Nothing",
        f"{SERVICE}/{'x' * 2_000}",
    ],
    ids=lambda method: method[:50],
)
async def test_an_unknown_method_is_unimplemented(channel: grpc.aio.Channel, method: str) -> None:
    unary: grpc.aio.UnaryUnaryMultiCallable[bytes, bytes] = channel.unary_unary(method)
    rejected = await rejection(unary(b""))
    assert (rejected.code, rejected.reason) == (grpc.StatusCode.UNIMPLEMENTED, "METHOD_UNKNOWN")
    assert method[:50] in rejected.message


@pytest.mark.databases("sqlite")
async def test_an_unknown_streaming_method_is_unimplemented(channel: grpc.aio.Channel) -> None:
    stream: grpc.aio.StreamStreamMultiCallable[bytes, bytes] = channel.stream_stream(f"{SERVICE}/Watch")
    call = stream()
    with pytest.raises(grpc.aio.AioRpcError) as caught:
        async for _ in call:
            pass
    assert rejection_from_error(caught.value).reason == "METHOD_UNKNOWN"


@pytest.mark.databases("sqlite")
@pytest.mark.parametrize("method", ["CreateBook", "GetBook", "ListBooks", "BatchCreateBooks"])
async def test_bytes_that_are_not_a_message_are_an_invalid_argument(channel: grpc.aio.Channel, method: str) -> None:
    call: grpc.aio.UnaryUnaryMultiCallable[bytes, bytes] = channel.unary_unary(f"{SERVICE}/{method}")
    for data in (
        b"\xff",
        b"\x0a\x05ab",
        b"\x00",
        b"\x0a\xff\xff\xff\xff\x0f",
        b"not a message",
        b"\x08" + b"\xff" * 11,
    ):
        rejected = await rejection(call(data))
        assert rejected.code is grpc.StatusCode.INVALID_ARGUMENT, data
        assert rejected.reason == "MALFORMED_MESSAGE"


@pytest.mark.databases("sqlite")
async def test_text_that_is_not_utf_8_is_an_invalid_argument(channel: grpc.aio.Channel, stub: Stub) -> None:
    request = books_pb2.CreateBookRequest(book=book("~~")).SerializeToString()
    call: grpc.aio.UnaryUnaryMultiCallable[bytes, bytes] = channel.unary_unary(f"{SERVICE}/CreateBook")
    for bad in (b"\xff\xfe", b"\xc0\x80", b"\xed\xa0"):
        assert (await rejection(call(request.replace(b"~~", bad)))).code is grpc.StatusCode.INVALID_ARGUMENT
    assert await books_of(stub) == []


@pytest.mark.databases("sqlite")
@pytest.mark.parametrize(
    "method",
    ["/grpc.health.v1.Health/Check", "/grpc.health.v1.Health/Watch", f"{SERVICE}/GetBook"],
)
async def test_malformed_bytes_to_a_stream_or_to_health_are_an_invalid_argument(
    channel: grpc.aio.Channel, method: str
) -> None:
    call: grpc.aio.UnaryStreamMultiCallable[bytes, bytes] = channel.unary_stream(method)
    with pytest.raises(grpc.aio.AioRpcError) as caught:
        async for _ in call(b"\xff"):
            pass
    assert rejection_from_error(caught.value).code is grpc.StatusCode.INVALID_ARGUMENT


@pytest.mark.databases("sqlite")
@pytest.mark.parametrize("version", ["v1", "v1alpha"])
async def test_malformed_bytes_within_a_stream_are_an_invalid_argument(channel: grpc.aio.Channel, version: str) -> None:
    stream: grpc.aio.StreamStreamMultiCallable[bytes, bytes] = channel.stream_stream(
        f"/grpc.reflection.{version}.ServerReflection/ServerReflectionInfo"
    )
    call = stream(iter([reflection_pb2.ServerReflectionRequest().SerializeToString(), b"\xff"]))
    with pytest.raises(grpc.aio.AioRpcError) as caught:
        async for _ in call:
            pass
    assert rejection_from_error(caught.value).reason == "MALFORMED_MESSAGE"


@pytest.mark.databases("sqlite")
async def test_a_message_over_the_limit_is_resource_exhausted_and_the_connection_remains_usable(stub: Stub) -> None:
    with pytest.raises(grpc.aio.AioRpcError) as caught:
        await create(stub, "x" * (8 * 1024 * 1024))
    assert caught.value.code() is grpc.StatusCode.RESOURCE_EXHAUSTED
    assert await books_of(stub) == []


@pytest.mark.databases("sqlite")
async def test_a_message_just_under_the_limit_is_read(stub: Stub) -> None:
    rejected = await rejection(create(stub, "x" * (8 * 1024 * 1024 - 100)))
    assert list(rejected.violations) == ["book.name"]


@pytest.mark.parametrize(
    "text", ["'", '"', "\\", "'; DROP TABLE books; --", "\0", "é😀", "x" * 100_000], ids=lambda text: ascii(text[:9])
)
async def test_hostile_text_in_any_field_causes_no_internal_error_and_no_change(stub: Stub, text: str) -> None:
    made = await create(stub)
    calls = (
        list_page(stub, filter=text),
        list_page(stub, order_by=text),
        list_page(stub, page_token=text),
        update(stub, made.id, mask=[text], name="x"),
        update(stub, made.id, etag=text, name="x"),
        delete(stub, made.id, etag=text),
        create(stub, request_id=text),
    )
    # As a filter some of it is a word that no book contains; everything else is rejected.
    page, *rejected = await asyncio.gather(*calls, return_exceptions=True)
    if isinstance(page, books_pb2.ListBooksResponse):
        assert not page.books
    else:
        rejected.append(page)
    for error in rejected:
        assert isinstance(error, grpc.aio.AioRpcError)
        code = rejection_from_error(error).code
        assert code in {grpc.StatusCode.INVALID_ARGUMENT, grpc.StatusCode.ABORTED}
    assert await books_of(stub) == [made]
