"""JSON to messages and back: what the library writes is read as it was, and nothing else is taken for it."""

import json
import time
from typing import Any

import pytest
from bookstore.v1 import books_pb2
from google.protobuf import json_format
from google.protobuf.duration_pb2 import Duration
from google.protobuf.field_mask_pb2 import FieldMask
from google.protobuf.message import Message
from google.protobuf.message_factory import GetMessageClass
from google.protobuf.timestamp_pb2 import Timestamp
from hypothesis import given
from hypothesis import strategies as st

from bookstore_grpc.errors import InvalidRequest
from bookstore_grpc.gateway.json_codec import fill_message, json_from_message
from bookstore_grpc.service.validation import Violations
from tests.gateway.shelves import shelf_service

texts = st.text(max_size=20)
numbers = st.integers(-(2**31), 2**31 - 1)
long_numbers = st.integers(-(2**63), 2**63 - 1)
# From the first to the last that has a form in JSON.
times = st.builds(Timestamp, seconds=st.integers(-62_135_596_800, 253_402_300_799), nanos=st.integers(0, 999_999_999))
books = st.builds(
    books_pb2.Book,
    id=long_numbers,
    name=texts,
    author=texts,
    release_year=st.none() | numbers,
    create_time=st.none() | times,
    update_time=st.none() | times,
    etag=texts,
)
creates = st.builds(books_pb2.CreateBookRequest, book=st.none() | books, request_id=texts)
durations = st.builds(Duration, seconds=st.integers(-315_576_000_000, 315_576_000_000))
changes = st.builds(
    books_pb2.BookChange,
    type=st.sampled_from(books_pb2.BookChange.Type.values()),
    book=st.none() | books,
    previous_book=st.none() | books,
    change_time=st.none() | times,
    number=long_numbers,
)
messages: st.SearchStrategy[Message] = st.one_of(
    books,
    st.builds(
        books_pb2.WatchBooksRequest, filter=texts, start=st.sampled_from(books_pb2.WatchBooksRequest.Start.values()),
        checkpoint_interval=st.none() | durations
    ),
    st.builds(
        books_pb2.WatchBooksResponse, changes=st.lists(changes, max_size=3), resume_token=texts,
        continues=st.booleans(), existing_sent=st.booleans()
    ),
    st.builds(books_pb2.BatchCreateBooksRequest, requests=st.lists(creates, max_size=3)),
    st.builds(
        books_pb2.ListBooksRequest, page_size=numbers, page_token=texts, filter=texts, order_by=texts,
        include_total=st.booleans()
    ),
    st.builds(books_pb2.BatchGetBooksRequest, ids=st.lists(long_numbers, max_size=5)),
    st.builds(books_pb2.PurgeBooksRequest, filter=texts, force=st.booleans()),
    st.builds(
        books_pb2.UpdateBookRequest,
        book=st.none() | books,
        update_mask=st.none() | st.builds(FieldMask, paths=st.lists(st.sampled_from(["name", "release_year", "*"]))),
    ),
)  # fmt: skip


def read(kind: type[Message], value: Any) -> Message:
    message, violations = kind(), Violations()
    fill_message(message, value, "", violations)
    violations.raise_if_any()
    return message


def violations_of(value: Any, kind: type[Message] = books_pb2.BatchCreateBooksRequest) -> dict[str, str]:
    with pytest.raises(InvalidRequest) as caught:
        read(kind, value)
    found = {violation.field: violation.description for violation in caught.value.violations}
    assert len(found) == len(caught.value.violations), "a field is reported twice"
    return found


@given(message=messages, keeps_names=st.booleans())
def test_what_the_library_writes_is_read_as_it_was_in_both_spellings(message: Message, keeps_names: bool) -> None:
    written = json_format.MessageToDict(message, preserving_proto_field_name=keeps_names)
    assert read(type(message), written) == message


@given(message=messages)
def test_what_is_written_is_what_the_library_writes(message: Message) -> None:
    written = json_from_message(message)
    assert json.loads(written) == json_format.MessageToDict(message)
    assert json_format.Parse(written, type(message)()) == message


def test_a_value_of_an_enum_without_a_name_is_written_as_its_number() -> None:
    change = books_pb2.BookChange(number=1)
    change.MergeFromString(bytes([8, 99]))  # the type, as a later version may have it
    assert json.loads(json_from_message(change)) == {"type": 99, "number": "1"}


def test_what_is_streamed_is_written_without_the_library(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.delattr(json_format, "MessageToDict")
    change = books_pb2.BookChange(type=books_pb2.BookChange.DELETED, number=7)
    response = books_pb2.WatchBooksResponse(changes=[change], resume_token="t")
    written = {"changes": [{"type": "DELETED", "number": "7"}], "resumeToken": "t"}
    assert json.loads(json_from_message(response)) == written


JUNK = st.recursive(
    st.none() | st.booleans() | st.integers() | st.floats(allow_nan=False, allow_infinity=False) | st.text(max_size=5),
    lambda inner: (
        st.lists(inner, max_size=3)
        | st.dictionaries(
            st.sampled_from(
                ["requests", "book", "id", "name", "releaseYear", "release_year", "createTime", "etag", "x"]
            ),
            inner,
            max_size=4,
        )
    ),
    max_leaves=10,
)


@given(value=st.dictionaries(st.sampled_from(["start", "checkpointInterval", "filter"]), JUNK))
def test_any_json_of_other_types_is_decoded_as_by_the_library_or_rejected(value: Any) -> None:
    try:
        message = read(books_pb2.WatchBooksRequest, value)
    except InvalidRequest:
        return
    assert message == json_format.ParseDict(value, books_pb2.WatchBooksRequest())


@given(value=JUNK)
def test_any_json_is_decoded_as_by_the_library_or_rejected(value: Any) -> None:
    try:
        message = read(books_pb2.BatchCreateBooksRequest, value)
    except InvalidRequest:
        return
    assert message == json_format.ParseDict(value, books_pb2.BatchCreateBooksRequest())


@pytest.mark.parametrize(
    ("year", "expected"), [(1965, 1965), ("1965", 1965), ("-5", -5), (1965.0, 1965), (0, 0), ("0", 0)]
)
def test_a_whole_number_has_several_forms(year: Any, expected: int) -> None:
    book = read(books_pb2.Book, {"releaseYear": year})
    assert book == books_pb2.Book(release_year=expected)


@pytest.mark.parametrize(
    "year",
    ["1_0", "", " 5", "5 ", "+5", "1e3", "0x10", "1.0", "٥", "--5", True, False, 1.5, 1e-9, {}, [], [5], "five"],
    ids=repr,
)
def test_a_value_that_is_not_a_whole_number_is_rejected(year: Any) -> None:
    assert violations_of({"releaseYear": year}, books_pb2.Book) == {"release_year": "must be a whole number"}


@pytest.mark.parametrize(
    ("field", "value"),
    [
        ("id", 2**63),
        ("id", str(2**63)),
        ("id", -(2**63) - 1),
        ("id", 1e30),
        ("releaseYear", 2**31),
        ("releaseYear", "3000000000"),
    ],
    ids=str,
)
def test_a_number_too_large_for_its_field_is_rejected(field: str, value: Any) -> None:
    (violation,) = violations_of({field: value}, books_pb2.Book).values()
    assert "does not fit into its type" in violation


@pytest.mark.parametrize("value", [5, 1.5, True, {}, [], ["Dune"]], ids=repr)
def test_a_value_that_is_not_text_is_rejected(value: Any) -> None:
    assert violations_of({"name": value}, books_pb2.Book) == {"name": "must be a string"}


@pytest.mark.parametrize("value", [5, True, {}, [], "", "today", "2020-01-01", "0000-01-01T00:00:00Z", "T"], ids=repr)
def test_a_value_that_is_not_a_time_is_rejected(value: Any) -> None:
    assert violations_of({"createTime": value}, books_pb2.Book) == {"create_time": "is not a valid Timestamp"}


def test_null_is_as_good_as_absent_at_every_depth() -> None:
    assert read(books_pb2.BatchCreateBooksRequest, {"requests": None}) == books_pb2.BatchCreateBooksRequest()
    written = {"requests": [{"book": {"name": None, "releaseYear": None, "createTime": None}, "requestId": None}]}
    create = books_pb2.CreateBookRequest(book=books_pb2.Book())
    assert read(books_pb2.BatchCreateBooksRequest, written) == books_pb2.BatchCreateBooksRequest(requests=[create])


@pytest.mark.parametrize("value", [[], "text", 5, True, None, 1.5], ids=repr)
def test_a_value_that_is_not_an_object_is_rejected(value: Any) -> None:
    assert violations_of(value) == {"body": "must be a JSON object"}


def test_all_violations_are_reported_at_once_with_the_names_of_the_contract() -> None:
    found = violations_of(
        {
            "requests": [
                {"book": {"name": 5, "releaseYear": 1.5, "shelf": "x"}},
                {"book": [], "requestId": 7},
                "no object",
                None,
                {"book": {"release_year": 1, "releaseYear": 2}, "colour": "red"},
                {"book": {"createTime": "today"}},
            ],
            "dryRun": True,
        }
    )
    assert found == {
        "requests[0].book.name": "must be a string",
        "requests[0].book.release_year": "must be a whole number",
        "requests[0].book.shelf": "is not a field of Book",
        "requests[1].book": "must be a JSON object",
        "requests[1].request_id": "must be a string",
        "requests[2]": "must be a JSON object",
        "requests[3]": "must be a JSON object",
        "requests[4].book.release_year": "is given twice, in two spellings",
        "requests[4].colour": "is not a field of CreateBookRequest",
        "requests[5].book.create_time": "is not a valid Timestamp",
        "dryRun": "is not a field of BatchCreateBooksRequest",
    }


@pytest.mark.parametrize("value", [{}, "text", 5, True], ids=repr)
def test_a_value_that_is_not_an_array_is_rejected(value: Any) -> None:
    assert violations_of({"requests": value}) == {"requests": "must be a JSON array"}


def test_invalid_numbers_in_arrays_are_named_by_their_index() -> None:
    found = violations_of({"ids": ["1", "x", 2, None]}, books_pb2.BatchGetBooksRequest)
    assert found == {"ids[1]": "must be a whole number", "ids[3]": "must be a whole number"}


@pytest.mark.parametrize("entry", [{}, 1, {"a": 1}], ids=repr)
def test_an_array_beyond_the_limit_is_rejected_before_it_is_decoded(entry: Any) -> None:
    began = time.process_time()
    assert violations_of({"requests": [entry] * 2_000_000}) == {"requests": "has 2,000,000 entries, more than 10,000"}
    assert time.process_time() - began < 1  # meanwhile no other call is served


@pytest.mark.parametrize(
    "value",
    [
        {"requests": [1] * 10_000},
        {"requests": [{"a": 1}] * 10_000},
        {str(number): 1 for number in range(100_000)},
        {"requests": [{str(number): 1 for number in range(100_000)}] * 100},
    ],
    ids=["entries", "fields of entries", "fields", "fields without end"],
)
def test_after_a_thousand_violations_no_more_are_looked_for(value: Any) -> None:
    began = time.process_time()
    assert len(violations_of(value)) == 1_000
    assert time.process_time() - began < 1


def test_a_long_name_of_no_field_is_cut() -> None:
    (field,) = violations_of({"x" * 10_000: 1}, books_pb2.Book)
    assert len(field) < 200


@pytest.mark.parametrize("value", ["true", 1, 0, [], {}], ids=repr)
def test_what_the_library_reads_is_read_as_strictly(value: Any) -> None:
    request = GetMessageClass(shelf_service().methods_by_name["DustShelf"].input_type)
    assert read(request, {"gently": True, "times": 3}) == request(gently=True, times=3)
    assert violations_of({"gently": value}, request) == {"gently": "must be true or false"}
