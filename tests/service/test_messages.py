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

from bookstore_grpc.dal.records import BookChanges, BookPage, BookRecord
from bookstore_grpc.errors import InvalidRequest
from bookstore_grpc.service import messages
from bookstore_grpc.service.servicer import BOOK_SERVICE
from bookstore_grpc.service.validation import stored_text

CHANGEABLE = ["name", "author", "release_year"]
OUTPUT_ONLY = ["id", "create_time", "update_time", "etag"]

printable = st.characters(exclude_categories=["Cs", "Cc", "Z"])
stored_texts = st.text(printable, min_size=1, max_size=20).map(stored_text).filter(bool)
years = st.integers(min_value=-5_000, max_value=9_999)
ids = st.integers(min_value=1, max_value=2**63 - 1)
# Timestamps reach from the year 1 to the year 9999.
microseconds = st.integers(min_value=-62_135_596_800_000_000, max_value=253_402_300_799_999_999)
records = st.builds(
    BookRecord,
    id=ids,
    name=stored_texts,
    author=stored_texts,
    release_year=years,
    create_time=microseconds,
    update_time=microseconds,
)
books = st.builds(
    books_pb2.Book,
    id=ids,
    name=stored_texts,
    author=stored_texts,
    release_year=years,
    etag=st.text(printable),
    create_time=st.none() | st.builds(Timestamp, seconds=st.integers(0, 10**9)),
)
unknown_paths = st.text().filter(lambda path: path not in {*CHANGEABLE, *OUTPUT_ONLY, "*"})


def record_from_message(message: books_pb2.Book) -> BookRecord:
    """Read a message by protobuf's own means."""
    return BookRecord(
        message.id,
        message.name,
        message.author,
        message.release_year,
        message.create_time.ToMicroseconds(),
        message.update_time.ToMicroseconds(),
    )


@given(records)
def test_a_record_survives_the_way_over_the_wire(record: BookRecord) -> None:
    data = messages.book_message_from_record(record).SerializeToString()
    message = books_pb2.Book.FromString(data)
    assert record_from_message(message) == record
    assert message.etag == record.etag
    assert message.HasField("release_year")
    assert 0 <= message.create_time.nanos < 10**9


@given(st.lists(records, max_size=5), st.text(printable))
def test_every_answer_holds_the_books_in_order(many: list[BookRecord], token: str) -> None:
    expected = [messages.book_message_from_record(record) for record in many]
    page = books_pb2.ListBooksResponse.FromString(messages.list_response_from_page(BookPage(many, token)))
    assert list(page.books) == expected
    assert page.next_page_token == token
    batch = books_pb2.BatchGetBooksResponse.FromString(messages.batch_get_response_from_records(many))
    assert list(batch.books) == expected
    assert list(messages.batch_create_response_from_records(many).books) == expected


@given(books, st.none() | st.uuids(allow_nil=False))
def test_a_draft_holds_what_the_request_says_and_nothing_else(book: books_pb2.Book, request_id: UUID | None) -> None:
    request = books_pb2.CreateBookRequest(book=book, request_id=str(request_id or ""))
    draft = messages.draft_from_create_request(request)
    assert draft == (book.name, book.author, book.release_year, request_id)
    batch = books_pb2.BatchCreateBooksRequest(requests=[request, request])
    assert messages.drafts_from_batch_create_request(batch) == [draft, draft]


@given(books, st.lists(st.sampled_from([*CHANGEABLE, *OUTPUT_ONLY, "*"])))
def test_a_mask_changes_exactly_what_it_names(book: books_pb2.Book, paths: list[str]) -> None:
    request = books_pb2.UpdateBookRequest(book=book, update_mask=FieldMask(paths=paths))
    update = messages.update_from_request(request)
    named = CHANGEABLE if "*" in paths or not paths else paths
    expected: dict[str, Any] = {field: getattr(book, field) for field in CHANGEABLE if field in named}
    assert update == (book.id, BookChanges(**expected), book.etag)


@given(books, st.sets(st.sampled_from(CHANGEABLE)))
def test_without_a_mask_what_is_absent_stays(book: books_pb2.Book, absent: set[str]) -> None:
    for field in absent:
        book.ClearField(field)  # type: ignore[arg-type]  # its stub wants literal names
    changes = messages.update_from_request(books_pb2.UpdateBookRequest(book=book)).changes
    assert {field for field in CHANGEABLE if getattr(changes, field) is None} == absent


@given(books, st.sets(st.sampled_from(CHANGEABLE), min_size=1), st.booleans())
def test_a_mask_that_names_absent_fields_is_refused_for_each(
    book: books_pb2.Book, cleared: set[str], everything: bool
) -> None:
    for field in cleared:
        book.ClearField(field)  # type: ignore[arg-type]  # its stub wants literal names
    mask = FieldMask(paths=["*"] if everything else sorted(cleared))
    with pytest.raises(InvalidRequest) as caught:
        messages.update_from_request(books_pb2.UpdateBookRequest(book=book, update_mask=mask))
    assert {violation.field for violation in caught.value.violations} == {f"book.{each}" for each in cleared}


@given(books, st.lists(st.sampled_from(CHANGEABLE)), unknown_paths)
def test_any_path_that_is_no_field_is_refused(book: books_pb2.Book, paths: list[str], unknown: str) -> None:
    mask = FieldMask(paths=[*paths, unknown])
    with pytest.raises(InvalidRequest) as caught:
        messages.update_from_request(books_pb2.UpdateBookRequest(book=book, update_mask=mask))
    assert [violation.field for violation in caught.value.violations] == ["update_mask"]


@given(st.integers(min_value=0, max_value=2**31 - 1))
def test_a_page_size_of_0_means_50_and_none_exceeds_1000(page_size: int) -> None:
    size = messages.page_size_from_request(books_pb2.ListBooksRequest(page_size=page_size))
    assert size == (min(page_size, 1_000) if page_size else 50)


@given(st.lists(ids, min_size=1, max_size=50))
def test_the_ids_of_a_batch_come_in_their_order(many: list[int]) -> None:
    assert messages.ids_from_batch_get_request(books_pb2.BatchGetBooksRequest(ids=many)) == many


def test_page_that_is_answered_again_is_encoded_once() -> None:
    page = BookPage([BookRecord(1, "N", "A", 0, 0, 0)], "token")
    assert messages.list_response_from_page(page) is messages.list_response_from_page(page)


def test_the_lists_of_books_that_are_sent_as_the_same_bytes_are_the_same_on_the_wire() -> None:
    listed, got = books_pb2.ListBooksResponse.DESCRIPTOR, books_pb2.BatchGetBooksResponse.DESCRIPTOR
    in_list, in_batch = listed.fields_by_name["books"], got.fields_by_name["books"]
    assert (in_batch.number, in_batch.type, in_batch.is_repeated) == (in_list.number, in_list.type, in_list.is_repeated)
    assert in_batch.message_type is in_list.message_type


@pytest.mark.parametrize("method", list(BOOK_SERVICE.methods), ids=lambda method: method.name)
def test_a_request_of_every_method_can_be_validated(method: MethodDescriptor) -> None:
    request: Any = GetMessageClass(method.input_type)()
    if method.name == "ListBooks":
        messages.validate_request(request)
        request.page_size = -1
    with pytest.raises(InvalidRequest):
        messages.validate_request(request)
