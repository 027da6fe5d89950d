"""The status of an error fits into the headers that every client and proxy accepts, whatever callers have sent."""

import asyncio
from base64 import b64encode
from typing import Any
from urllib.parse import quote

import pytest
from bookstore.v1 import books_pb2
from google.protobuf.field_mask_pb2 import FieldMask
from google.protobuf.message import Message
from google.rpc import error_details_pb2
from hypothesis import example, given, settings
from hypothesis import strategies as st

from bookstore_grpc.calls.status import Status, status_from_error
from bookstore_grpc.errors import (
    BookNotFound,
    BookstoreError,
    ClientUnusable,
    InternalError,
    InvalidRequest,
    ResourceExhausted,
    Rule,
    StartupError,
    Unavailable,
    Violation,
)
from bookstore_grpc.limits import ERROR_MAX_BYTES
from bookstore_grpc.rpc.server import Server
from tests.every_error import every_class, made
from tests.http2 import call_frames, has_ended, opened
from tests.rpc.calls import UNESCAPED, Stub, book, rejection

NGINX_BUFFER_BYTES = 4_096

# Half of a surrogate pair, which no message takes, among them; and long ones, which are not found by themselves.
characters = st.characters(exclude_categories=())
texts = st.text(characters) | st.builds(lambda text, times: text * times, st.text(characters), st.integers(1, 3_000))
violations = st.builds(Violation, texts, texts, st.sampled_from(Rule))
ids = st.integers(1, 2**63 - 1)
ARGUMENTS: dict[str, st.SearchStrategy[Any]] = {
    "violations": st.lists(violations, max_size=8)
    | st.builds(lambda some, times: some * times, st.lists(violations, min_size=1, max_size=3), st.integers(1, 1_000)),
    "ids": st.lists(ids, min_size=1, max_size=8) | st.builds(lambda last: range(last, last + 1_000), ids),
    "metadata": st.dictionaries(st.sampled_from(["limit", "scope", "column", "another_key"]), texts),
    "rule": st.sampled_from(Rule),
    "book_id": ids,
    "column": ids,
    "max_bytes": ids,
    "retry_seconds": st.floats(0, 1e6),
}
NAMES = "message", "description", "method", "cause", "limit", "create_request_id"
request_ids = st.text("abcXYZ019._-", min_size=1, max_size=128) | st.just("x" * 128)


def size_of(status: Status, request_id: str) -> int:
    details = b64encode(status.details.SerializeToString())
    return len(quote(status.details.message, safe=UNESCAPED)) + len(details) + len(request_id)


def details_of(status: Status) -> dict[str, list[Message]]:
    found: dict[str, list[Message]] = {}
    for detail in status.details.details:
        message = getattr(error_details_pb2, detail.TypeName().rpartition(".")[2])()
        assert detail.Unpack(message)
        found.setdefault(type(message).__name__, []).append(message)
    return found


@pytest.mark.parametrize(
    "kind",
    [kind for kind in every_class() if kind not in (ClientUnusable, StartupError)],  # which never cross the wire
    ids=lambda kind: kind.__name__,
)
@settings(max_examples=10)  # for each of twenty classes
@given(values=st.fixed_dictionaries({**dict.fromkeys(NAMES, texts), **ARGUMENTS}), request_id=request_ids)
@example(values=dict.fromkeys(NAMES, "📚" * 3000), request_id="x" * 128)
@example(values=dict.fromkeys(NAMES, "x" * 3000), request_id="x" * 128)
@example(values=dict.fromkeys(NAMES, "%\x00" * 3000), request_id="x" * 128)
@example(values={"violations": [Violation("f" * 999, "d" * 999, Rule.CONTROL_CHARACTER)] * 999}, request_id="x" * 128)
@example(values={"violations": [Violation("", "", Rule.DUPLICATE)] * 999, "metadata": {}}, request_id="x")
def test_any_error_fits_in_and_says_how_much_did_not(
    kind: type[BookstoreError], values: dict[str, Any], request_id: str
) -> None:
    error = made(kind, **values)

    status = status_from_error(error, request_id=request_id)

    assert size_of(status, request_id) <= ERROR_MAX_BYTES
    details = details_of(status)
    (info,) = details["ErrorInfo"]
    assert isinstance(info, error_details_pb2.ErrorInfo)
    assert (info.reason, info.domain) == (error.reason, "bookstore.v1")
    assert details["RequestInfo"] == [error_details_pb2.RequestInfo(request_id=request_id)]
    assert ("RetryInfo" in details) == isinstance(error, Unavailable | ResourceExhausted)
    if isinstance(error, InvalidRequest | BookNotFound):
        all_of_it = error.violations if isinstance(error, InvalidRequest) else error.ids
        listed = details.get("ResourceInfo", [])
        for bad_request in details.get("BadRequest", []):
            assert isinstance(bad_request, error_details_pb2.BadRequest)
            listed = list(bad_request.field_violations)
        assert len(listed) + int(info.metadata.get("omitted_count", 0)) == len(all_of_it)
        assert bool(listed) == bool(all_of_it)


def test_a_status_that_fits_is_not_changed() -> None:
    error = InvalidRequest([Violation("book.name", "is 本" * 10, Rule.REQUIRED)] * 5, metadata={"of": "the reason"})
    status = status_from_error(error, request_id="r")
    assert status.details.message == error.message
    (info,), (bad_request,) = details_of(status)["ErrorInfo"], details_of(status)["BadRequest"]
    assert isinstance(info, error_details_pb2.ErrorInfo)
    assert isinstance(bad_request, error_details_pb2.BadRequest)
    assert info.metadata == error.metadata
    assert [tuple(error.violations[0])] * 5 == [
        (each.field, each.description, each.reason) for each in bad_request.field_violations
    ]


def test_of_a_long_text_the_end_stays_for_it_counts_what_is_missing() -> None:
    error = InvalidRequest([Violation("x" * 5_000, "is not a field of a book", Rule.UNKNOWN_FIELD)] * 7)
    message = status_from_error(error, request_id="r").details.message
    assert message.startswith("xxx")
    assert message.endswith("is not a field of a book (and 6 more).")
    assert "…" in message
    assert status_from_error(InternalError("\ud800"), request_id="r").details.message == "?"


async def test_of_1000_missing_books_the_first_are_named_and_the_others_counted(stub: Stub) -> None:
    ids = [2**63 - 1 - number for number in range(1_000)]
    rejected = await rejection(stub.BatchGetBooks(books_pb2.BatchGetBooksRequest(ids=ids)))
    assert 10 < len(rejected.resources) < 1_000
    assert int(rejected.metadata["omitted_count"]) == 1_000 - len(rejected.resources)


async def test_of_3000_violations_the_first_are_listed_and_the_others_counted(stub: Stub) -> None:
    requests = [books_pb2.CreateBookRequest(book=book("", "", None))] * 1_000
    rejected = await rejection(stub.BatchCreateBooks(books_pb2.BatchCreateBooksRequest(requests=requests)))
    assert 10 < len(rejected.violations) < 3_000
    assert int(rejected.metadata["omitted_count"]) == 3_000 - len(rejected.violations)


CALLS: dict[str, Message] = {
    "BatchGetBooks": books_pb2.BatchGetBooksRequest(ids=[2**63 - 1 - number for number in range(1_000)]),
    "BatchCreateBooks": books_pb2.BatchCreateBooksRequest(requests=[books_pb2.CreateBookRequest()] * 1_000),
    "ListBooks": books_pb2.ListBooksRequest(filter="\U0001f4da" * 1_900 + " = 1"),
    "UpdateBook": books_pb2.UpdateBookRequest(
        book=books_pb2.Book(id=1), update_mask=FieldMask(paths=["\U0001f4da" * 1_000] * 3)
    ),
}


@pytest.mark.parametrize("method", CALLS)
async def test_all_that_a_server_sends_fits_into_the_buffer_of_nginx(method: str, server: Server) -> None:
    """What comes first on a connection counts too: nginx has one buffer for it and the headers."""

    def received() -> bytes:
        with opened(server.addresses[0]) as connection:
            message = CALLS[method].SerializeToString()
            connection.sendall(call_frames(f"/bookstore.v1.BookService/{method}", message, stream=1))
            data = b""
            while not has_ended(data, stream=1):
                data += connection.recv(65_536)
            return data

    data = await asyncio.to_thread(received)
    assert b"grpc-status-details-bin" in data
    assert len(data) < NGINX_BUFFER_BYTES
