from typing import Any
from uuid import UUID

import pytest
from bookstore.v1 import books_pb2
from google.protobuf.descriptor import MethodDescriptor
from google.protobuf.field_mask_pb2 import FieldMask
from google.protobuf.message_factory import GetMessageClass
from google.protobuf.timestamp_pb2 import Timestamp
from hypothesis import given
from hypothesis import strategies as st

from bookstore_grpc.client import book_fields
from bookstore_grpc.dal.records import FIELDS, BookChanges, BookDraft, BookPage, BookRecord, FieldType
from bookstore_grpc.errors import InvalidRequest
from bookstore_grpc.service import messages
from bookstore_grpc.service.servicer import BOOK_SERVICE
from bookstore_grpc.service.validation import stored_text

SETTABLE = [name for name, field in FIELDS.items() if field.is_settable]
REQUIRED = ["name", "author", "release_year"]
OUTPUT_ONLY = ["id", "create_time", "update_time", "etag"]

printable = st.characters(exclude_categories=["Cs", "Cc", "Z"])
stored_texts = st.text(printable, min_size=1, max_size=10).map(stored_text).filter(bool)
years = st.integers(min_value=-5_000, max_value=9_999)
ids = st.integers(min_value=1, max_value=2**63 - 1)
# Timestamps reach from the year 1 to the year 9999.
microseconds = st.integers(min_value=-62_135_596_800_000_000, max_value=253_402_300_799_999_999)
values = {
    FieldType.INT64: ids,
    FieldType.TEXT: stored_texts,
    FieldType.INT32: years,
    FieldType.TIME: microseconds,
}
records = st.builds(BookRecord, **{name: values[FIELDS[name].type] for name in BookRecord._fields})
books = st.builds(
    books_pb2.Book,
    id=ids,
    **{name: values[FIELDS[name].type] for name in SETTABLE},
    etag=st.text(printable),
    create_time=st.none() | st.builds(Timestamp, seconds=st.integers(0, 10**9)),
)
unknown_paths = st.text().filter(lambda path: path not in {*SETTABLE, *OUTPUT_ONLY, "*"})


def record_from_message(message: books_pb2.Book) -> BookRecord:
    """Read a message by protobuf's own means."""
    values: dict[str, Any] = {name: getattr(message, name) for name in BookRecord._fields}
    times = {name: value.ToMicroseconds() for name, value in values.items() if isinstance(value, Timestamp)}
    assert times.keys() == {"create_time", "update_time"}
    return BookRecord(**values | times)


@given(records)
def test_a_record_is_encoded_and_decoded_unchanged(record: BookRecord) -> None:
    data = messages.book_message_from_record(record).SerializeToString()
    message = books_pb2.Book.FromString(data)
    assert record_from_message(message) == record
    assert message.etag == record.etag
    assert message.HasField("release_year")
    assert 0 <= message.create_time.nanos < 10**9


@given(st.lists(records, max_size=5), st.text(printable))
def test_every_response_has_the_books_in_order(many: list[BookRecord], token: str) -> None:
    expected = [messages.book_message_from_record(record) for record in many]
    entries = [messages.entry_from_record(record) for record in many]
    page = books_pb2.ListBooksResponse.FromString(messages.list_response_from_page(BookPage(entries, token)))
    assert list(page.books) == expected
    assert page.next_page_token == token
    encoded = messages.batch_response_from_records(many)
    assert list(books_pb2.BatchGetBooksResponse.FromString(encoded).books) == expected
    assert list(books_pb2.BatchCreateBooksResponse.FromString(encoded).books) == expected


@given(books, st.none() | st.uuids(allow_nil=False))
def test_a_draft_has_the_values_of_the_request_and_nothing_else(book: books_pb2.Book, request_id: UUID | None) -> None:
    request = books_pb2.CreateBookRequest(book=book, request_id=str(request_id or ""))
    draft = messages.draft_from_create_request(request)
    assert draft == BookDraft(request_id=request_id, **{name: getattr(book, name) for name in SETTABLE})
    batch = books_pb2.BatchCreateBooksRequest(requests=[request, request])
    assert messages.drafts_from_batch_create_request(batch) == [draft, draft]


@given(books, st.lists(st.sampled_from([*SETTABLE, *OUTPUT_ONLY, "*"])))
def test_a_mask_changes_exactly_what_it_names(book: books_pb2.Book, paths: list[str]) -> None:
    request = books_pb2.UpdateBookRequest(book=book, update_mask=FieldMask(paths=paths))
    update = messages.update_from_request(request)
    named = SETTABLE if "*" in paths or not paths else paths
    expected: dict[str, Any] = {field: getattr(book, field) for field in SETTABLE if field in named}
    assert update == (book.id, BookChanges(**expected), book.etag)


@given(books, st.sets(st.sampled_from(SETTABLE)))
def test_without_a_mask_what_is_absent_stays(book: books_pb2.Book, absent: set[str]) -> None:
    for field in absent:
        book.ClearField(field)  # type: ignore[arg-type]  # its stub wants literal names
    changes = messages.update_from_request(books_pb2.UpdateBookRequest(book=book)).changes
    assert {field for field in SETTABLE if getattr(changes, field) is None} == absent


@given(books, st.sets(st.sampled_from(REQUIRED), min_size=1), st.booleans())
def test_a_mask_that_names_absent_fields_is_rejected_for_each(
    book: books_pb2.Book, cleared: set[str], everything: bool
) -> None:
    for field in cleared:
        book.ClearField(field)  # type: ignore[arg-type]  # its stub wants literal names
    mask = FieldMask(paths=["*"] if everything else sorted(cleared))
    with pytest.raises(InvalidRequest) as caught:
        messages.update_from_request(books_pb2.UpdateBookRequest(book=book, update_mask=mask))
    assert {violation.field for violation in caught.value.violations} == {f"book.{each}" for each in cleared}


@given(books, st.lists(st.sampled_from(SETTABLE)), unknown_paths)
def test_any_path_that_is_not_a_field_is_rejected(book: books_pb2.Book, paths: list[str], unknown: str) -> None:
    mask = FieldMask(paths=[*paths, unknown])
    with pytest.raises(InvalidRequest) as caught:
        messages.update_from_request(books_pb2.UpdateBookRequest(book=book, update_mask=mask))
    assert [violation.field for violation in caught.value.violations] == ["update_mask"]


@given(st.integers(min_value=0, max_value=2**31 - 1))
def test_a_page_size_of_0_means_50_and_none_exceeds_1000(page_size: int) -> None:
    size = messages.page_size_from_request(books_pb2.ListBooksRequest(page_size=page_size))
    assert size == (min(page_size, 1_000) if page_size else 50)


@given(st.lists(ids, min_size=1, max_size=50))
def test_the_ids_of_a_batch_are_decoded_in_their_order(many: list[int]) -> None:
    assert messages.ids_from_batch_get_request(books_pb2.BatchGetBooksRequest(ids=many)) == many


def test_the_table_of_fields_agrees_with_the_contract_and_with_what_the_client_reads_in_it() -> None:
    assert {*FIELDS, "etag"} == {field.name for field in book_fields.FIELDS}
    settable = {name: field for name, field in FIELDS.items() if field.is_settable}
    assert list(settable) == [field.name for field in book_fields.SETTABLE_FIELDS]
    for in_contract in book_fields.SETTABLE_FIELDS:
        field = settable[in_contract.name]
        assert in_contract.is_required == (not field.is_optional)
        assert in_contract.is_text == (field.type is FieldType.TEXT)


def test_page_that_is_returned_again_is_encoded_once() -> None:
    page = BookPage([messages.entry_from_record(BookRecord(1, "N", "A", 0, 0, 0))], "token")
    assert messages.list_response_from_page(page) is messages.list_response_from_page(page)


def test_the_lists_of_books_that_are_sent_as_the_same_bytes_are_the_same_on_the_wire() -> None:
    in_list = books_pb2.ListBooksResponse.DESCRIPTOR.fields_by_name["books"]
    for response in (books_pb2.BatchGetBooksResponse, books_pb2.BatchCreateBooksResponse):
        field = response.DESCRIPTOR.fields_by_name["books"]
        assert (field.number, field.type, field.is_repeated) == (in_list.number, in_list.type, in_list.is_repeated)
        assert field.message_type is in_list.message_type


@pytest.mark.parametrize("method", list(BOOK_SERVICE.methods), ids=lambda method: method.name)
def test_a_request_of_every_method_can_be_validated(method: MethodDescriptor) -> None:
    request: Any = GetMessageClass(method.input_type)()
    if "page_size" in method.input_type.fields_by_name:
        messages.validate_request(request)
        request.page_size = -1
    if method.name == "WatchBooks":
        messages.validate_request(request)
        request.checkpoint_interval.seconds = 301
    with pytest.raises(InvalidRequest):
        messages.validate_request(request)
