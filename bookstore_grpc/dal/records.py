"""The fields of a book, and the plain values that enter and leave the DAL.

`FIELDS` is the one table of fields. Columns, indexes, filters, orders, page tokens and the write batch derive from it,
and so do the validation of requests, the messages of responses and the bounds in the OpenAPI document. The named tuples
below repeat its names for the type checker, and importing this module checks that they agree.
"""

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from enum import Enum, IntEnum
from operator import itemgetter
from typing import Any, NamedTuple
from uuid import UUID

from bookstore_grpc.limits import (
    AUTHOR_MAX_CODE_POINTS,
    NAME_MAX_CODE_POINTS,
    RELEASE_YEAR_MAX,
    RELEASE_YEAR_MIN,
)


class FieldType(Enum):
    """What a field holds. A time is whole microseconds since 1970-01-01T00:00:00Z."""

    TEXT = "text"
    INT32 = "int32"
    INT64 = "int64"
    TIME = "time"


class Field(NamedTuple):
    """A field of a book.

    A text has at most `max_code_points`. It `is_searchable` by `:` and bare words of a filter through a column with its
    folded text, and is indexed by its head of `head_code_points` where that is not 0. A field that `is_settable` is
    written by callers, any other by the service. A text that `is_optional` is stored as "" while it is absent; a caller
    clears it with "". A settable integer is required, and from `min_value` to `max_value`. A field that `is_orderable`
    has an index. The documentation of the API shows the `example`.
    """

    name: str
    type: FieldType
    max_code_points: int = 0
    head_code_points: int = 0
    min_value: int = 0
    max_value: int = 0
    example: str | int | None = None
    is_settable: bool = False
    is_optional: bool = False
    is_searchable: bool = False
    is_orderable: bool = True


# No database but SQLite can index 1,000 code points of four bytes (PostgreSQL up to 2,704 bytes, MariaDB up to 3,072).
_AUTHOR_HEAD_CODE_POINTS = 255

#: In the order in which error messages list them.
FIELDS: Mapping[str, Field] = {
    field.name: field
    for field in (
        Field("id", FieldType.INT64, example=1),
        Field(
            "name",
            FieldType.TEXT,
            NAME_MAX_CODE_POINTS,
            example="The Left Hand of Darkness",
            is_settable=True,
            is_searchable=True,
        ),
        Field(
            "author",
            FieldType.TEXT,
            AUTHOR_MAX_CODE_POINTS,
            head_code_points=_AUTHOR_HEAD_CODE_POINTS,
            example="Ursula K. Le Guin",
            is_settable=True,
            is_searchable=True,
        ),
        Field(
            "release_year",
            FieldType.INT32,
            min_value=RELEASE_YEAR_MIN,
            max_value=RELEASE_YEAR_MAX,
            example=1969,
            is_settable=True,
        ),
        Field("create_time", FieldType.TIME),
        Field("update_time", FieldType.TIME),
    )
}


class BookDraft(NamedTuple):
    """A book to be stored, its fields valid and in their stored form. Optional fields come last.

    `request_id` is the idempotency key.
    """

    name: str
    author: str
    release_year: int
    request_id: UUID | None = None


class BookRecord(NamedTuple):
    """A stored book. Times are microseconds since 1970-01-01T00:00:00Z. Optional fields come last."""

    id: int
    name: str
    author: str
    release_year: int
    create_time: int
    update_time: int

    @property
    def etag(self) -> str:
        """The entity tag of this state: `update_time` grows with every change, and ids are never reused."""
        return f"{self.id:x}-{self.update_time:x}"


class BookChanges(NamedTuple):
    """New values for a book's fields; None leaves a field as it is."""

    name: str | None = None
    author: str | None = None
    release_year: int | None = None


class BookUpdate(NamedTuple):
    """Changes of a book; an empty `etag` matches any state."""

    book_id: int
    changes: BookChanges
    etag: str = ""


class BookVersion(NamedTuple):
    """A book in the state that `etag` names; an empty one matches any state."""

    book_id: int
    etag: str = ""


class ChangeType(IntEnum):
    """What happened to a book. The numbers are stored, and those of the contract."""

    CREATED = 1
    UPDATED = 2
    DELETED = 3
    EXISTING = 4


class Change(NamedTuple):
    """A change of a book, or with `EXISTING` a book.

    `record` is the book after the change, for a delete its last state, and `previous` for an update the book before it.
    `time` is in microseconds since 1970-01-01T00:00:00Z. `number` is the position in the order of all commits, and
    `remaining` is how many further changes of the same call follow.
    """

    type: ChangeType
    record: BookRecord
    previous: BookRecord | None = None
    time: int = 0
    number: int = 0
    remaining: int = 0


class ChangePage(NamedTuple):
    """Changes in their order, and the token that continues after them.

    It `continues` if the next page has further changes of the same call, `has_more` that further changes followed
    when the page was read, and `is_existing_sent` that only changes follow, and no existing books.
    """

    changes: Sequence[Change]
    resume_token: str
    continues: bool = False
    has_more: bool = False
    is_existing_sent: bool = True


class BookTotal(NamedTuple):
    """How many books match a filter: `size`, or more if `is_exceeded`, because counting has stopped there."""

    size: int
    is_exceeded: bool = False


@dataclass(frozen=True, eq=False)
class BookPage:
    """A page of books and the token of the next one, empty on the last; the total of all pages if it was asked for.

    Each book is what the DAL's `Encode` returns of it, or without one its record. A page is equal only to itself, so
    that caches can use it as a key.
    """

    books: list[Any]
    next_page_token: str
    total: BookTotal | None = None


#: Encodes a book as an entry, in which form the DAL returns and on SQLite stores it. It does not know the form.
Encode = Callable[[BookRecord], bytes]


def record_from_draft(draft: BookDraft, *, book_id: int, create_time: int) -> BookRecord:
    """Return the record of a book as it was created."""
    return BookRecord._make(_in_record_order((book_id, create_time, *draft)))


def code_points_of_record(record: BookRecord) -> int:
    """Return the length of the texts of a book."""
    return sum(map(len, _texts_of(record)))


def code_points_of_change(change: Change) -> int:
    """Return the length of the texts of a change."""
    return code_points_of_record(change.record) + (code_points_of_record(change.previous) if change.previous else 0)


def _position(name: str) -> int:
    """Return where `record_from_draft` has the value of a record's field."""
    if name in BookDraft._fields:
        return 2 + BookDraft._fields.index(name)
    return 0 if name == "id" else 1


_texts_of = itemgetter(*(at for at, name in enumerate(BookRecord._fields) if FIELDS[name].type is FieldType.TEXT))
_in_record_order = itemgetter(*map(_position, BookRecord._fields))


def _require_agreement() -> None:
    settable = {field.name for field in FIELDS.values() if field.is_settable}
    for kind, expected in (
        (BookRecord, set(FIELDS)),
        (BookDraft, settable | {"request_id"}),
        (BookChanges, settable),
    ):
        if differing := expected ^ set(kind._fields):
            raise TypeError(f"{kind.__name__} and FIELDS differ in {', '.join(sorted(differing))}")


_require_agreement()
