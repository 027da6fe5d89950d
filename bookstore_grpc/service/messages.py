"""Decoding and validation of requests to the DAL's values, and encoding of records to messages.

Every decoder raises `InvalidRequest` with all violations of the request. The fields of a book are those of the DAL's
table `FIELDS`; what it says of each is looked up once, at import.
"""

from collections.abc import Callable, Iterable, Mapping, Sequence
from functools import lru_cache
from operator import attrgetter
from typing import Any, NamedTuple
from uuid import UUID
from weakref import WeakKeyDictionary

from bookstore.v1 import books_pb2
from google.protobuf.message import Message

from bookstore_grpc.dal.purge import Purged
from bookstore_grpc.dal.records import (
    FIELDS,
    BookChanges,
    BookDraft,
    BookPage,
    BookRecord,
    BookTotal,
    BookUpdate,
    BookVersion,
    Change,
    ChangePage,
    ChangeType,
    Field,
    FieldType,
)
from bookstore_grpc.dal.watch import WatchStart
from bookstore_grpc.errors import Rule, quoted
from bookstore_grpc.limits import (
    BATCH_MAX,
    CHECKPOINT_SECONDS_DEFAULT,
    ENCODED_BOOKS_MAX,
    ENCODED_CHANGES_MAX,
    PAGE_SIZE_DEFAULT,
    PAGE_SIZE_MAX,
)
from bookstore_grpc.service.validation import (
    Violations,
    checkpoint_violation,
    count_violation,
    duplicate_violation,
    id_violation,
    integer_violation,
    is_plainly_stored,
    page_size_violation,
    purge_filter_violation,
    request_id_violation,
    stored_text,
    text_violation,
)

# Paths of a mask without an effect.
_OUTPUT_ONLY = {"etag", *(field.name for field in FIELDS.values() if not field.is_settable)}
# Each field with its position in a record, which is a tuple: in a loop, names would take longer.
_PLAIN = [(name, at) for at, name in enumerate(BookRecord._fields) if FIELDS[name].type is not FieldType.TIME]
_TIMES = [name for name in BookRecord._fields if FIELDS[name].type is FieldType.TIME]
_times_of = attrgetter(*_TIMES)
_ENCODED_TIMES_MAX = 1_024


def _tag(message: type[Message], field: str) -> bytes:
    """Return the tag of a field whose values have a length (https://protobuf.dev/programming-guides/encoding)."""
    return bytes((message.DESCRIPTOR.fields_by_name[field].number << 3 | 2,))


# Of the field `books` in all responses with books, and of `changes` in those with changes.
_ENTRY_TAG = _tag(books_pb2.ListBooksResponse, "books")
_BOOK_TAG = _tag(books_pb2.BookChange, "book")
_PREVIOUS_BOOK_TAG = _tag(books_pb2.BookChange, "previous_book")
_WATCH_STARTS: Mapping[int, WatchStart] = {
    books_pb2.WatchBooksRequest.START_UNSPECIFIED: WatchStart.NOW,
    books_pb2.WatchBooksRequest.NOW: WatchStart.NOW,
    books_pb2.WatchBooksRequest.EARLIEST: WatchStart.EARLIEST,
    books_pb2.WatchBooksRequest.EXISTING: WatchStart.EXISTING,
}

_INT32_MAX = 2**31 - 1


class WatchRequest(NamedTuple):
    """Where a watch without a resume token starts, and after how many seconds of silence it sends a checkpoint."""

    start: WatchStart
    checkpoint_seconds: float


_encoded_pages: WeakKeyDictionary[BookPage, bytes] = WeakKeyDictionary()


def draft_from_create_request(request: books_pb2.CreateBookRequest) -> BookDraft:
    """Decode the request of CreateBook."""
    violations = Violations()
    draft = _draft(request, path="", violations=violations)
    violations.raise_if_any()
    return draft


def drafts_from_batch_create_request(request: books_pb2.BatchCreateBooksRequest) -> list[BookDraft]:
    """Decode the request of BatchCreateBooks."""
    violations = Violations()
    violations.check("requests", count_violation(len(request.requests), most=BATCH_MAX))
    violations.raise_if_any()
    drafts = [_draft(create, path="", violations=violations) for create in request.requests]
    if not len(violations):
        return drafts
    located = Violations()  # the paths take a tenth of the time, and nearly all batches need none
    for index, create in enumerate(request.requests):
        _draft(create, path=f"requests[{index}].", violations=located)
    raise located.error()


def update_from_request(request: books_pb2.UpdateBookRequest) -> BookUpdate:
    """Decode the request of UpdateBook. The fields in the mask change, or without one those that are present."""
    violations = Violations()
    update = _update(request, path="", violations=violations)
    violations.raise_if_any()
    return update


def updates_from_batch_update_request(request: books_pb2.BatchUpdateBooksRequest) -> list[BookUpdate]:
    """Decode the request of BatchUpdateBooks."""
    violations = Violations()
    violations.check("requests", count_violation(len(request.requests), most=BATCH_MAX))
    violations.raise_if_any()
    updates = [
        _update(update, path=f"requests[{index}].", violations=violations)
        for index, update in enumerate(request.requests)
    ]
    violations.raise_if_any()
    return updates


def id_from_request(request: books_pb2.GetBookRequest | books_pb2.DeleteBookRequest) -> int:
    """Decode the id of the book that a request is about."""
    violations = Violations()
    violations.check("id", id_violation(request.id))
    violations.raise_if_any()
    return request.id


def versions_from_batch_delete_request(request: books_pb2.BatchDeleteBooksRequest) -> list[BookVersion]:
    """Decode the request of BatchDeleteBooks. The books must differ."""
    violations = Violations()
    violations.check("requests", count_violation(len(request.requests), most=BATCH_MAX))
    violations.raise_if_any()
    first_index: dict[int, int] = {}
    for index, delete in enumerate(request.requests):
        violations.check(
            f"requests[{index}].id", id_violation(delete.id) or duplicate_violation(delete.id, first_index)
        )
        first_index.setdefault(delete.id, index)
    violations.raise_if_any()
    return [BookVersion(delete.id, delete.etag) for delete in request.requests]


def filter_from_purge_request(request: books_pb2.PurgeBooksRequest) -> str:
    """Decode the filter of PurgeBooks, which must not be empty: that of ListBooks would match all books."""
    violations = Violations()
    violations.check("filter", purge_filter_violation(request.filter))
    violations.raise_if_any()
    return request.filter


def ids_from_batch_get_request(request: books_pb2.BatchGetBooksRequest) -> list[int]:
    """Decode the request of BatchGetBooks."""
    violations = Violations()
    violations.check("ids", count_violation(len(request.ids), most=BATCH_MAX))
    violations.raise_if_any()
    for index, book_id in enumerate(request.ids):
        violations.check(f"ids[{index}]", id_violation(book_id))
    violations.raise_if_any()
    return list(request.ids)


def page_size_from_request(request: books_pb2.ListBooksRequest | books_pb2.ListBookChangesRequest) -> int:
    """Decode how many books or changes a page may hold."""
    violations = Violations()
    violations.check("page_size", page_size_violation(request.page_size))
    violations.raise_if_any()
    return min(request.page_size or PAGE_SIZE_DEFAULT, PAGE_SIZE_MAX)


def watch_from_request(request: books_pb2.WatchBooksRequest) -> WatchRequest:
    """Decode where a watch starts, and how often it sends checkpoints."""
    violations = Violations()
    if request.start not in _WATCH_STARTS:
        violations.add("start", Rule.OUT_OF_RANGE, f"is {request.start}, which is not a value of Start")
    interval = request.checkpoint_interval
    has_interval = request.HasField("checkpoint_interval")
    seconds = interval.seconds + interval.nanos / 1e9 if has_interval else CHECKPOINT_SECONDS_DEFAULT
    violations.check("checkpoint_interval", checkpoint_violation(seconds))
    violations.raise_if_any()
    return WatchRequest(_WATCH_STARTS[request.start], seconds)


_DECODERS: Mapping[type[Message], Callable[[Any], object]] = {
    books_pb2.CreateBookRequest: draft_from_create_request,
    books_pb2.GetBookRequest: id_from_request,
    books_pb2.ListBooksRequest: page_size_from_request,
    books_pb2.UpdateBookRequest: update_from_request,
    books_pb2.DeleteBookRequest: id_from_request,
    books_pb2.BatchGetBooksRequest: ids_from_batch_get_request,
    books_pb2.BatchCreateBooksRequest: drafts_from_batch_create_request,
    books_pb2.BatchUpdateBooksRequest: updates_from_batch_update_request,
    books_pb2.BatchDeleteBooksRequest: versions_from_batch_delete_request,
    books_pb2.PurgeBooksRequest: filter_from_purge_request,
    books_pb2.WatchBooksRequest: watch_from_request,
    books_pb2.ListBookChangesRequest: page_size_from_request,
}


def validate_request(request: Message) -> None:
    """Check the fields of any request of the service, without doing anything. Raises `InvalidRequest`."""
    _DECODERS[type(request)](request)


def book_message_from_record(record: BookRecord) -> books_pb2.Book:
    """Encode a book."""
    message = books_pb2.Book()
    _fill_plain(message, record)
    _fill_times(message, _times_of(record))
    return message


def list_response_from_page(page: BookPage) -> bytes:
    """Encode a page of entries, as the bytes of a ListBooksResponse; a page object is encoded once."""
    encoded = _encoded_pages.get(page)
    if encoded is None:
        end = books_pb2.ListBooksResponse(next_page_token=page.next_page_token)
        if page.total:
            end.total_size, end.total_size_exceeded = _int32_from_total(page.total)
        encoded = _encoded_pages[page] = b"".join(page.books) + end.SerializeToString()
    return encoded


def batch_response_from_records(records: Iterable[BookRecord]) -> bytes:
    """Encode books as the bytes of a BatchGetBooksResponse, a BatchCreateBooksResponse or a BatchUpdateBooksResponse.

    They are entries of a ListBooksResponse, which are the same bytes: in all of these messages `books` has the same
    number and type.
    """
    return b"".join(map(entry_from_record, records))


def purge_response_from_page(page: BookPage) -> books_pb2.PurgeBooksResponse:
    """Encode what a purge without `force` returns: the number of the books that match, and the first of them."""
    response = books_pb2.PurgeBooksResponse()
    if page.total:
        response.purge_count, response.more_matching = _int32_from_total(page.total)
    response.purge_sample.extend(books_pb2.ListBooksResponse.FromString(b"".join(page.books)).books)
    return response


def purge_response_from_purged(purged: Purged) -> books_pb2.PurgeBooksResponse:
    """Encode what a purge with `force` returns."""
    return books_pb2.PurgeBooksResponse(purge_count=purged.deleted, more_matching=purged.is_interrupted)


def watch_response_from_page(page: ChangePage) -> bytes:
    """Encode changes, or a checkpoint, as the bytes of a WatchBooksResponse."""
    end = books_pb2.WatchBooksResponse(
        resume_token=page.resume_token, continues=page.continues, existing_sent=page.is_existing_sent
    )
    return b"".join(map(_entry_from_change, page.changes)) + end.SerializeToString()


def changes_response_from_page(page: ChangePage) -> bytes:
    """Encode changes as the bytes of a ListBookChangesResponse."""
    end = books_pb2.ListBookChangesResponse(next_page_token=page.resume_token, more_changes=page.has_more)
    return b"".join(map(_entry_from_change, page.changes)) + end.SerializeToString()


def _entry_from_change(change: Change) -> bytes:
    """Encode a change as one entry of the list in a response. An existing book is for one watcher, so not cached."""
    encode = _encoded_change.__wrapped__ if change.type is ChangeType.EXISTING else _encoded_change
    return encode(change)


@lru_cache(maxsize=ENCODED_CHANGES_MAX)
def _encoded_change(change: Change) -> bytes:
    """Encode a change. Its books are entries with another tag."""
    message = books_pb2.BookChange(type=int(change.type), number=change.number)  # type: ignore[arg-type]  # an enum's number
    if change.time:
        message.change_time.seconds, message.change_time.nanos = _time_parts(change.time)
    encoded = message.SerializeToString() + _BOOK_TAG + entry_from_record(change.record)[1:]
    if change.previous:
        encoded += _PREVIOUS_BOOK_TAG + entry_from_record(change.previous)[1:]
    return _ENTRY_TAG + _varint(len(encoded)) + encoded


def _int32_from_total(total: BookTotal) -> tuple[int, bool]:
    """Return a total as the contract has it: as an int32 (AIP-158), and whether there are more."""
    size = min(total.size, _INT32_MAX)
    return size, total.is_exceeded or total.size > size


@lru_cache(maxsize=ENCODED_BOOKS_MAX)
def entry_from_record(record: BookRecord) -> bytes:
    """Encode a book as one entry of the list in a response.

    Concatenated messages are one message, with the entries of all in its list
    (https://protobuf.dev/programming-guides/encoding/#last-one-wins), so a page is its entries and its token. A cached
    entry cannot be out of date: the whole record is its key.
    """
    message = books_pb2.Book()
    _fill_plain(message, record)
    book = message.SerializeToString() + _encoded_times(_times_of(record))
    return _ENTRY_TAG + _varint(len(book)) + book


@lru_cache(maxsize=_ENCODED_TIMES_MAX)
def _encoded_times(times: Sequence[int]) -> bytes:
    """Encode the times of a book, which books that are created together share, as a part of its message."""
    message = books_pb2.Book()
    _fill_times(message, times)
    return message.SerializeToString()


def _varint(value: int) -> bytes:
    encoded = bytearray()
    while value > 0x7F:
        encoded.append(value & 0x7F | 0x80)
        value >>= 7
    encoded.append(value)
    return bytes(encoded)


def _fill_plain(message: books_pb2.Book, record: BookRecord) -> None:
    # Filling a message in place takes 0.4 of the time of building one from keywords and copying it in.
    values: tuple[Any, ...] = record
    for name, position in _PLAIN:
        setattr(message, name, values[position])
    message.etag = record.etag


def _fill_times(message: books_pb2.Book, times: Sequence[int]) -> None:
    for name, microseconds in zip(_TIMES, times, strict=True):
        time = getattr(message, name)
        time.seconds, time.nanos = _time_parts(microseconds)


def _time_parts(microseconds: int) -> tuple[int, int]:
    """Return the seconds and nanoseconds of a Timestamp."""
    return microseconds // 1_000_000, microseconds % 1_000_000 * 1_000


def _draft(request: books_pb2.CreateBookRequest, *, path: str, violations: Violations) -> BookDraft:
    # A draft with violations is never used, so the placeholder of a bad value does not matter.
    if malformed := request_id_violation(request.request_id):
        violations.add(f"{path}request_id", *malformed)
    request_id = UUID(request.request_id) if request.request_id and not malformed else None
    if not request.HasField("book"):
        violations.add(f"{path}book", Rule.REQUIRED, "is required")
        return BookDraft("", "", 0, request_id)
    book = request.book
    values = [decode(book, path, violations) for decode in _FIELD_DECODERS.values()]
    values.insert(_REQUEST_ID_POSITION, request_id)
    return BookDraft._make(values)


def _update(request: books_pb2.UpdateBookRequest, *, path: str, violations: Violations) -> BookUpdate:
    if not request.HasField("book"):
        violations.add(f"{path}book", Rule.REQUIRED, "is required")
        return BookUpdate(0, BookChanges())
    book = request.book
    violations.check(f"{path}book.id", id_violation(book.id))
    paths = list(request.update_mask.paths) or [field.name for field, _ in book.ListFields()]
    for name in paths:
        if name != "*" and name not in _FIELD_DECODERS and name not in _OUTPUT_ONLY:
            violations.add(f"{path}update_mask", Rule.UNKNOWN_FIELD, f"{quoted(name)} is not a field of a book")
    decoders = _FIELD_DECODERS.items()
    changes = {name: decode(book, path, violations) for name, decode in decoders if name in paths or "*" in paths}
    return BookUpdate(book.id, BookChanges(**changes), book.etag)


_FieldDecoder = Callable[[Message, str, Violations], Any]


def _field_decoder(field: Field) -> _FieldDecoder:
    """Return the function that returns a field of a book in its stored form, and adds the rule that it breaks."""
    return _text_decoder(field) if field.type is FieldType.TEXT else _integer_decoder(field)


def _text_decoder(field: Field) -> _FieldDecoder:
    name, max_code_points, is_optional = field.name, field.max_code_points, field.is_optional

    def decode(book: Message, path: str, violations: Violations) -> str:
        text: str = getattr(book, name)
        if is_plainly_stored(text, max_code_points=max_code_points):
            return text
        text = stored_text(text)
        if broken := text_violation(text, max_code_points=max_code_points, is_optional=is_optional):
            violations.add(f"{path}book.{name}", *broken)
        return text

    return decode


def _integer_decoder(field: Field) -> _FieldDecoder:
    name, min_value, max_value = field.name, field.min_value, field.max_value

    def decode(book: Message, path: str, violations: Violations) -> int:
        value = getattr(book, name) if book.HasField(name) else None
        if broken := integer_violation(value, min_value=min_value, max_value=max_value):
            violations.add(f"{path}book.{name}", *broken)
        return value or 0

    return decode


#: In the order of a `BookDraft`, which has the request id between its fields.
_FIELD_DECODERS: Mapping[str, _FieldDecoder] = {
    name: _field_decoder(FIELDS[name]) for name in BookDraft._fields if name in FIELDS
}
_REQUEST_ID_POSITION = BookDraft._fields.index("request_id")
