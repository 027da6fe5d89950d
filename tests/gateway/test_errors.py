"""Errors have the same content as over gRPC, with the status and the headers of HTTP."""

import asyncio
import json
import time
from collections.abc import Awaitable, Callable
from pathlib import Path
from typing import Any

import grpc
import pytest
from bookstore.v1 import books_pb2
from google.rpc import code_pb2, status_pb2

from bookstore_grpc.errors import DatabaseUnavailable, DeadlineExceeded, ResourceExhausted, Rule
from bookstore_grpc.gateway.responses import STATUSES
from bookstore_grpc.service.servicer import BookServicer
from tests.conftest import LogLines
from tests.gateway.client import JSON, Response, Wire, ask, details_of, head, rejected, rejection_from_response
from tests.gateway.servers import http_server, http_server_with
from tests.rpc.calls import Stub, create
from tests.rpc.obstacles import Waiting, until
from tests.rpc.test_internal_defects import DEFECTS, SECRET, DefectiveServicer, await_a_cancelled_task

# What fails on each database is tested over gRPC; here it is written as JSON.
pytestmark = pytest.mark.databases("sqlite")

REUSED = "6f1e4c2a-58b1-4d0b-9c57-0e1f2a3b4c5d"
TOO_MANY = [0, *range(1, 1_001)]
NAME_AND_YEAR = "book.name", "book.release_year"
BOOK = {"name": "N", "author": "A", "releaseYear": 1}

Call = Callable[[Stub], Awaitable[Any]]

# What is sent over HTTP, and over gRPC; {id} is a book that is there.
FAILING: dict[str, tuple[int, str, str, Any, Call]] = {
    "fields": (
        400,
        "POST",
        "/v1/books?requestId=7",
        {"name": " ", "author": "A\0", "releaseYear": 99_999},
        lambda stub: create(stub, " ", "A\0", 99_999, request_id="7"),
    ),
    "no fields": (400, "POST", "/v1/books", {}, lambda stub: create(stub, "", "", None)),
    "filter": (
        400,
        "GET",
        "/v1/books?filter=name+%3D",
        None,
        lambda stub: stub.ListBooks(books_pb2.ListBooksRequest(filter="name =")),
    ),
    "order": (
        400,
        "GET",
        "/v1/books?orderBy=etag",
        None,
        lambda stub: stub.ListBooks(books_pb2.ListBooksRequest(order_by="etag")),
    ),
    "token": (
        400,
        "GET",
        "/v1/books?pageToken=x",
        None,
        lambda stub: stub.ListBooks(books_pb2.ListBooksRequest(page_token="x")),
    ),
    "page size": (
        400,
        "GET",
        "/v1/books?pageSize=-1",
        None,
        lambda stub: stub.ListBooks(books_pb2.ListBooksRequest(page_size=-1)),
    ),
    "id": (400, "GET", "/v1/books/0", None, lambda stub: stub.GetBook(books_pb2.GetBookRequest())),
    "no ids": (
        400,
        "GET",
        "/v1/books:batchGet",
        None,
        lambda stub: stub.BatchGetBooks(books_pb2.BatchGetBooksRequest()),
    ),
    "too many ids": (
        400,
        "GET",
        "/v1/books:batchGet?" + "&".join(f"ids={each}" for each in TOO_MANY),
        None,
        lambda stub: stub.BatchGetBooks(books_pb2.BatchGetBooksRequest(ids=TOO_MANY)),
    ),
    "mask": (
        400,
        "PATCH",
        "/v1/books/{id}?updateMask=shelf,releaseYear",
        {},
        lambda stub: stub.UpdateBook(_update(["shelf", "release_year"], id=_stored(stub))),
    ),
    "missing": (404, "GET", "/v1/books/99999", None, lambda stub: stub.GetBook(books_pb2.GetBookRequest(id=99_999))),
    "many missing": (
        404,
        "GET",
        "/v1/books:batchGet?ids=99997&ids={id}&ids=99998",
        None,
        lambda stub: stub.BatchGetBooks(books_pb2.BatchGetBooksRequest(ids=[99_997, _stored(stub), 99_998])),
    ),
    "etag": (
        409,
        "DELETE",
        "/v1/books/{id}?etag=x",
        None,
        lambda stub: stub.DeleteBook(books_pb2.DeleteBookRequest(id=_stored(stub), etag="x")),
    ),
    "reused": (
        409,
        "POST",
        f"/v1/books?requestId={REUSED}",
        {"name": "Other", "author": "A", "releaseYear": 1},
        lambda stub: create(stub, "Other", "A", 1, request_id=REUSED),
    ),
}

_ids: dict[Stub, int] = {}


def _stored(stub: Stub) -> int:
    return _ids[stub]


def _update(mask: list[str], **fields: Any) -> books_pb2.UpdateBookRequest:
    request = books_pb2.UpdateBookRequest(book=books_pb2.Book(**fields))
    request.update_mask.paths.extend(mask)
    return request


@pytest.mark.parametrize("name", FAILING)
async def test_an_error_has_the_same_content_as_over_grpc(name: str, address: str, stub: Stub) -> None:
    status, verb, path, body, call = FAILING[name]
    made = await create(stub, request_id=REUSED)
    _ids[stub] = made.id
    rejection = await rejected(address, verb, path.format(id=made.id), body)
    with pytest.raises(grpc.aio.AioRpcError) as caught:
        await call(stub)
    details = dict(caught.value.trailing_metadata() or ())["grpc-status-details-bin"]
    assert isinstance(details, bytes)
    expected = status_pb2.Status.FromString(details)
    assert (rejection.status, rejection.code, rejection.message) == (status, expected.code, expected.message)
    assert rejection.details == details_of(expected)


def test_every_code_has_the_status_that_its_comment_says() -> None:
    assert STATUSES.keys() == {code.name for code in grpc.StatusCode}
    assert STATUSES.keys() == set(code_pb2.Code.keys())


NOWHERE = [
    *("/nowhere", "/v1", "/v1/", "/v1/books/", "/v1/books/1/", "/v1/books/1/2", "/v2/books", "//v1/books", "/V1/books"),
    *("/v1/books:batchget", "/v1/../v1/books", "/v1/books%00"),
]
NO_JSON = ["text/plain", "application/x-www-form-urlencoded", "multipart/form-data", "application/jsonp", "text/json"]
TAKING_BODIES = ["POST /v1/books", "PATCH /v1/books/1", "PUT /v1/books/1", "POST /v1/books:batchCreate"]


@pytest.mark.parametrize("path", NOWHERE)
@pytest.mark.parametrize("verb", ["GET", "POST", "DELETE", "BREW"])
async def test_there_is_nothing_at_other_paths(address: str, verb: str, path: str) -> None:
    if verb == "BREW":
        with Wire(address) as wire:
            wire.send(head(verb, path))
            assert (await asyncio.to_thread(wire.read_to_end)).startswith(b"HTTP/1.1 400")
        return
    rejection = await rejected(address, verb, path)
    assert (rejection.status, rejection.reason) == (404, "METHOD_UNKNOWN")


@pytest.mark.parametrize(
    ("verb", "path", "allowed"),
    [
        ("PUT", "/v1/books", "GET, HEAD, POST"),
        ("DELETE", "/v1/books", "GET, HEAD, POST"),
        ("POST", "/v1/books/1", "DELETE, GET, HEAD, PATCH, PUT"),
        ("GET", "/v1/books:batchCreate", "POST"),
        ("POST", "/v1/books:batchGet", "GET, HEAD"),
        ("OPTIONS", "/v1/books", "GET, HEAD, POST"),
        ("TRACE", "/v1/books", "GET, HEAD, POST"),
        ("PROPFIND", "/v1/books", "GET, HEAD, POST"),
    ],
)
async def test_an_error_for_a_wrong_verb_names_the_allowed_ones(
    address: str, verb: str, path: str, allowed: str
) -> None:
    rejection = await rejected(address, verb, path)
    assert (rejection.status, rejection.reason, rejection.headers["allow"]) == (405, "VERB_NOT_ALLOWED", allowed)
    assert allowed.split(", ", maxsplit=1)[0] in rejection.message


@pytest.mark.parametrize("content_type", [*NO_JSON, ""])
@pytest.mark.parametrize("request_line", TAKING_BODIES)
async def test_a_body_that_may_not_be_json_is_rejected(address: str, request_line: str, content_type: str) -> None:
    verb, path = request_line.split()
    rejection = await rejected(address, verb, path, b'{"name": "N"}', content_type=content_type)
    assert (rejection.status, rejection.reason) == (415, "MEDIA_TYPE_UNSUPPORTED")


async def test_a_body_is_rejected_where_none_is_expected(address: str) -> None:
    for verb, path in (("GET", "/v1/books"), ("DELETE", "/v1/books/1"), ("GET", "/v1/books/1")):
        rejection = await rejected(address, verb, path, {"id": 5})
        assert (rejection.status, rejection.reason) == (400, "MALFORMED_MESSAGE")


async def test_a_missing_body_is_rejected(address: str) -> None:
    rejection = await rejected(address, "POST", "/v1/books", b"", **{"content_type": JSON["Content-Type"]})
    assert (rejection.status, rejection.reason) == (400, "MALFORMED_MESSAGE")


def send_and_read(address: str, *parts: bytes) -> Response:
    """Send as much as the server accepts, and return its response."""
    with Wire(address) as wire:
        for part in parts:
            try:
                wire.send(part)
            except ConnectionError:
                break
        top, _, rest = wire.read_to_end(10).partition(b"\r\n\r\n")
        line, *lines = top.decode().split("\r\n")
        headers = dict(each.lower().split(": ", 1) for each in lines)
        return Response(int(line.split()[1]), headers, rest)


async def test_a_body_beyond_the_limit_is_rejected_with_and_without_a_length(
    tmp_path: Path, log_lines: LogLines
) -> None:
    async with http_server(tmp_path, max_message_bytes=10_000) as server:
        address = server.http_address
        fits = json.dumps({"name": "N", "author": "A", "releaseYear": 1}).encode().ljust(10_000)
        assert (await ask(address, "POST", "/v1/books", fits)).status == 201
        post = {"content_type": "application/json", "connection": "close"}
        announced = head("POST", "/v1/books", **post, content_length="10001")
        enormous = head("POST", "/v1/books", **post, content_length="999999999999")
        chunked = head("POST", "/v1/books", **post, transfer_encoding="chunked")
        chunk = b"1000\r\n" + b" " * 0x1000 + b"\r\n"
        for parts in (
            (announced, b" " * 10_001),
            (enormous,),
            (enormous, *[b" " * 100_000] * 100),
            (chunked, *[chunk] * 10),
            (chunked, *[chunk] * 1_000, b"0\r\n\r\n"),
        ):
            response = await asyncio.to_thread(send_and_read, address, *parts)
            rejection = rejection_from_response(response)
            assert (rejection.status, rejection.reason) == (413, "REQUEST_TOO_LARGE")
            assert "10000 bytes" in rejection.message
    assert {line["status"] for line in log_lines() if line.get("reason")} == {"RESOURCE_EXHAUSTED"}


async def test_a_rejected_body_that_is_short_keeps_the_connection(address: str) -> None:
    def twice() -> bytes:
        with Wire(address) as wire:
            received = b""
            for _ in range(2):
                wire.send(head("POST", "/v1/books", content_length="5") + b"12345")
                received += wire.read_until(b"]}")
            return received

    assert (await asyncio.to_thread(twice)).count(b"HTTP/1.1 415 ") == 2


class Raising(BookServicer):
    def __init__(self, error: Exception) -> None:
        self._error = error

    async def ListBooks(self, request: books_pb2.ListBooksRequest, context: Any) -> Any:  # noqa: N802
        raise self._error


@pytest.mark.parametrize(
    ("error", "status", "code", "retry_after"),
    [
        (DatabaseUnavailable(), 503, "UNAVAILABLE", "1"),
        (ResourceExhausted("Too many.", retry_seconds=0.01), 429, "RESOURCE_EXHAUSTED", "1"),
        (ResourceExhausted("Too many.", retry_seconds=61.2), 429, "RESOURCE_EXHAUSTED", "62"),
        (DeadlineExceeded(), 504, "DEADLINE_EXCEEDED", None),
    ],
)
async def test_an_error_that_may_be_retried_has_a_delay(
    error: Exception, status: int, code: str, retry_after: str | None
) -> None:
    async with http_server_with(Raising(error)) as server:
        rejection = await rejected(server.http_address, "GET", "/v1/books")
    assert (rejection.status, rejection.code) == (status, code_pb2.Code.Value(code))
    assert rejection.headers.get("retry-after") == retry_after


@pytest.mark.parametrize("defect", DEFECTS, ids=lambda defect: defect.__name__)
async def test_a_defect_is_a_bare_500_and_is_logged_under_the_request_id(
    defect: Callable[[], Awaitable[None]], log_lines: LogLines
) -> None:
    async with http_server_with(DefectiveServicer(defect)) as server:
        response = await ask(server.http_address, "GET", "/v1/books/1", x_request_id="the-call")
    rejection = rejection_from_response(response)
    assert (rejection.status, rejection.code, rejection.reason) == (500, code_pb2.INTERNAL, "INTERNAL")
    assert rejection.message == "An internal error occurred."
    assert (rejection.metadata, rejection.headers["x-request-id"]) == ({}, "the-call")
    assert SECRET not in repr(response)
    assert defect.__name__ not in repr(response)
    (line,) = [line for line in log_lines() if line["level"] == "error"]
    assert (line["request_id"], line["method"]) == ("the-call", "/bookstore.v1.BookService/GetBook")
    if defect is not await_a_cancelled_task:
        assert defect.__name__ in line["exception"]


async def test_a_response_that_is_not_a_message_is_a_500_too() -> None:
    async with http_server_with(DefectiveServicer(DEFECTS[0])) as server:
        rejection = await rejected(server.http_address, "GET", "/v1/books")
    assert (rejection.status, rejection.reason) == (500, "INTERNAL")


async def test_a_disconnect_before_the_body_has_arrived_cancels_the_call(address: str, log_lines: LogLines) -> None:
    def go() -> None:
        with Wire(address) as wire:
            wire.send(head("POST", "/v1/books", content_type="application/json", content_length="100") + b"{")
            time.sleep(0.2)

    await asyncio.to_thread(go)

    async def is_told() -> bool:
        return any(line["event"] == "call cancelled" for line in log_lines())

    await until(is_told)
    (line,) = [line for line in log_lines() if line["event"].startswith("call ")]
    assert (line["status"], line["level"]) == ("CANCELLED", "info")


async def test_a_disconnect_ends_the_call(log_lines: LogLines) -> None:
    servicer = Waiting()
    async with http_server_with(servicer, max_concurrent_calls=1) as server:
        with Wire(server.http_address) as wire:
            wire.send(head("GET", "/v1/books/1"))
            await servicer.begun.acquire()

        async def is_told() -> bool:
            return any(line["event"] == "call cancelled" for line in log_lines())

        await until(is_told)
        servicer.may_go_on.set()
        assert (await ask(server.http_address, "GET", "/v1/books/2")).status == 200
    lines = log_lines()
    assert [line["status"] for line in lines if "status" in line] == ["CANCELLED", "OK"]
    assert {line["level"] for line in lines} == {"info"}


async def test_an_arbitrary_name_is_quoted_safely(address: str) -> None:
    rejection = await rejected(address, "GET", "/%0d%0aSet-Cookie:%20x%3D%22%00%3Cscript%3E" + "x" * 500)
    assert rejection.status == 404
    assert "set-cookie" not in rejection.headers
    assert len(rejection.message) < 200


async def test_more_violations_than_fit_are_cut_over_http_too(address: str) -> None:
    rejection = await rejected(address, "GET", "/v1/books?" + "&".join(f"x{number}=1" for number in range(5_000)))
    assert rejection.status == 400
    assert 10 < len(rejection.violations) < 500
    assert "and 4999 more" in rejection.message
    assert int(rejection.metadata["omitted_count"]) == 5_000 - len(rejection.violations)


@pytest.mark.parametrize(
    ("verb", "path", "body", "headers", "rules"),
    [
        ("POST", "/v1/books", [], {}, {"book": Rule.INVALID_TYPE}),
        ("POST", "/v1/books", {**BOOK, "shelf": 1}, {}, {"book.shelf": Rule.UNKNOWN_FIELD}),
        (
            *("POST", "/v1/books", {**BOOK, "name": 1, "releaseYear": "x"}, {}),
            dict.fromkeys(NAME_AND_YEAR, Rule.INVALID_TYPE),
        ),
        ("POST", "/v1/books", {**BOOK, "releaseYear": 2**40}, {}, {"book.release_year": Rule.OUT_OF_RANGE}),
        (
            *("POST", "/v1/books", {**BOOK, "releaseYear": 1, "release_year": 2}, {}),
            {"book.release_year": Rule.DUPLICATE},
        ),
        ("POST", "/v1/books:batchCreate", {"requests": {}}, {}, {"requests": Rule.INVALID_TYPE}),
        ("POST", "/v1/books:batchCreate", {"requests": [{}] * 10_001}, {}, {"requests": Rule.TOO_MANY}),
        ("GET", "/v1/books?x=1", None, {}, {"x": Rule.UNKNOWN_FIELD}),
        ("GET", "/v1/books?pageSize=1&page_size=2", None, {}, {"page_size": Rule.DUPLICATE}),
        ("PATCH", "/v1/books/1?updateMask=a__b", {}, {}, {"update_mask": Rule.INVALID_TYPE}),
        ("PUT", "/v1/books/1?updateMask=name", BOOK, {}, {"update_mask": Rule.CONFLICT}),
        ("PATCH", "/v1/books/1", {"id": 2}, {}, {"book.id": Rule.CONFLICT}),
        ("PATCH", "/v1/books/1", {"etag": "a"}, {"if_match": '"b"'}, {"book.etag": Rule.CONFLICT}),
        ("DELETE", "/v1/books/1", None, {"if_match": '""'}, {"etag": Rule.REQUIRED}),
        ("DELETE", "/v1/books/1", None, {"if_match": '"a", "b"'}, {"etag": Rule.TOO_MANY}),
    ],
)
async def test_each_violation_has_its_rule_as_a_constant(
    address: str, verb: str, path: str, body: Any, headers: dict[str, str], rules: dict[str, Rule]
) -> None:
    rejection = await rejected(address, verb, path, body, **headers)
    assert (rejection.reason, rejection.rules) == ("INVALID_FIELD", rules)


@pytest.mark.parametrize(
    ("verb", "path", "body", "violations"),
    [
        (
            *("POST", "/v1/books?requestId=7", {"releaseYear": "x", "shelf": 1}),
            {
                "book.release_year": Rule.INVALID_TYPE,  # and not REQUIRED, because it could not be read
                "book.shelf": Rule.UNKNOWN_FIELD,
                "request_id": Rule.INVALID_UUID,
                "book.name": Rule.REQUIRED,
                "book.author": Rule.REQUIRED,
            },
        ),
        ("POST", "/v1/books?requestId=7", 5, {"book": Rule.INVALID_TYPE, "request_id": Rule.INVALID_UUID}),
        (
            *("POST", "/v1/books:batchCreate", {"requests": [5, {"book": 5, "requestId": "7"}, {"book": BOOK}, {}]}),
            {
                "requests[0]": Rule.INVALID_TYPE,
                "requests[1].book": Rule.INVALID_TYPE,
                "requests[1].request_id": Rule.INVALID_UUID,
                "requests[3].book": Rule.REQUIRED,
            },
        ),
        (
            *("POST", "/v1/books:batchCreate", {"requests": [{"shelf": 1}] * 1_001}),
            {**{f"requests[{each}].shelf": Rule.UNKNOWN_FIELD for each in range(1_000)}},  # the others are not read
        ),
        (
            *("PATCH", "/v1/books/0?dryRun=1", {"name": " ", "author": 5}),
            {
                "book.author": Rule.INVALID_TYPE,
                "dryRun": Rule.UNKNOWN_FIELD,
                "book.id": Rule.OUT_OF_RANGE,
                "book.name": Rule.REQUIRED,
            },
        ),
        ("GET", "/v1/books?pageSize=-1&limit=5", None, {"limit": Rule.UNKNOWN_FIELD, "page_size": Rule.OUT_OF_RANGE}),
        (
            *("GET", "/v1/books:batchGet?ids=5&ids=x&ids=0", None),
            {"ids[1]": Rule.INVALID_TYPE, "ids[2]": Rule.OUT_OF_RANGE},  # each by its place in the query
        ),
        ("DELETE", "/v1/books/0?force=1", None, {"force": Rule.UNKNOWN_FIELD, "id": Rule.OUT_OF_RANGE}),
    ],
)
async def test_violations_of_json_and_of_fields_are_in_one_response_those_of_json_first(
    address: str, verb: str, path: str, body: Any, violations: dict[str, Rule]
) -> None:
    rejection = await rejected(address, verb, path, body)
    shown = len(rejection.rules)
    assert list(rejection.rules.items()) == list(violations.items())[:shown]
    assert int(rejection.metadata.get("omitted_count", 0)) == len(violations) - shown
