"""The write batch: creates, updates and deletes executed in one transaction.

All operations are decided in memory before anything is written: the batch reads and locks the rows concerned, applies
each operation in turn to what the earlier ones left, then writes all changes, one statement for each kind. A rejected
operation has therefore written nothing, and does not affect the others.
"""

from collections.abc import Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass
from hashlib import sha256
from operator import attrgetter
from typing import Any, NamedTuple, TypeVar
from uuid import UUID

from sqlalchemy import bindparam, delete, insert, select, update
from sqlalchemy.ext.asyncio import AsyncConnection

from bookstore_grpc.dal.casefold import fold_case
from bookstore_grpc.dal.engines import PACKET_BYTES
from bookstore_grpc.dal.models import FOLDED_COLUMNS, SELECT_BOOKS, Book, CreateRequest
from bookstore_grpc.dal.records import FIELDS, BookChanges, BookDraft, BookRecord, record_from_draft
from bookstore_grpc.errors import BookNotFound, BookstoreError, EtagMismatch, RequestIdReused
from bookstore_grpc.limits import INSERT_MAX_BYTES

# Built once. Every batch locks in the order of the ids, so that two batches cannot deadlock.
_GET_LOCKED = SELECT_BOOKS.where(Book.id.in_(bindparam("ids", expanding=True))).order_by(Book.id).with_for_update()
_GET_REQUESTS = select(
    CreateRequest.request_id, CreateRequest.book_id, CreateRequest.digest, CreateRequest.create_time
).where(CreateRequest.request_id.in_(bindparam("request_ids", expanding=True)))
_INSERT = insert(Book).returning(Book.id)
_INSERT_IN_ORDER = insert(Book).returning(Book.id, sort_by_parameter_order=True)
_INSERT_REQUESTS = insert(CreateRequest)
_UPDATE = update(Book).where(Book.id == bindparam("book_id"))
_DELETE = delete(Book).where(Book.id.in_(bindparam("ids", expanding=True)))

# Upper bound of a row of an INSERT without its texts: numbers, names, quotes, a digest with every byte escaped.
_ROW_BYTES = 256
# Upper bound of the INSERT before its rows.
_HEAD_BYTES = 512

_SETTABLE = [field.name for field in FIELDS.values() if field.is_settable]
_FOLDED = [(name, column.key) for name, column in FOLDED_COLUMNS.items()]
_OPTIONAL = [field.name for field in FIELDS.values() if field.is_settable and field.is_optional]
_required_values = attrgetter(*(name for name in _SETTABLE if name not in _OPTIONAL))

T = TypeVar("T")


class CreateBooks(NamedTuple):
    """Create books, all or none."""

    drafts: Sequence[BookDraft]


class UpdateBook(NamedTuple):
    """Change a book; an empty `etag` matches any state."""

    book_id: int
    changes: BookChanges
    etag: str


class DeleteBook(NamedTuple):
    """Delete a book; an empty `etag` matches any state."""

    book_id: int
    etag: str


Operation = CreateBooks | UpdateBook | DeleteBook
_SUMMARIES: dict[type[Operation], str] = {
    CreateBooks: "INSERT books",
    UpdateBook: "UPDATE books",
    DeleteBook: "DELETE books",
}
#: The books that a create made, or the one book as an update left it or as a delete found it.
Written = list[BookRecord]


@dataclass(slots=True)
class _Creation:
    """A book that this batch inserts, or that an earlier create with the same request id has inserted."""

    digest: bytes
    create_time: int
    book_id: int = 0  # known once the row is inserted


class _Created(NamedTuple):
    """The decision on a create, whose records are complete once the rows are inserted."""

    drafts: Sequence[BookDraft]
    creations: Sequence[_Creation]

    def records(self) -> Written:
        return [
            record_from_draft(draft, book_id=each.book_id, create_time=each.create_time)
            for draft, each in zip(self.drafts, self.creations, strict=True)
        ]


def summary_of_writes(operations: Iterable[Operation]) -> str:
    """Return what a batch does, as in "INSERT books UPDATE books"."""
    kinds = {type(operation) for operation in operations}
    return " ".join(summary for kind, summary in _SUMMARIES.items() if kind in kinds)


class BookWriteBatch:
    """The writes of one transaction. `now` is in microseconds since 1970-01-01T00:00:00Z."""

    def __init__(self, connection: AsyncConnection, *, now: int) -> None:
        self._connection = connection
        self._now = now
        self._by_request_id: dict[UUID, _Creation] = {}
        self._new: list[tuple[BookDraft, _Creation]] = []
        self._books: dict[int, BookRecord] = {}
        self._changed: set[int] = set()
        self._deleted: set[int] = set()

    async def lock(self, operations: Sequence[Operation]) -> None:
        """Read the request ids and the books that the operations name, and lock the books."""
        await self._read_requests(operations)
        await self._read_books(operations)

    async def apply(self, operations: Sequence[Operation]) -> list[Written | Exception]:
        """Execute the operations as if one after the other, and return a result or an error for each."""
        decisions = [self._decide(operation) for operation in operations]
        await self._insert()
        await self._update()
        await self._delete()
        return [each.records() if isinstance(each, _Created) else each for each in decisions]

    async def _read_requests(self, operations: Sequence[Operation]) -> None:
        creates = (operation for operation in operations if isinstance(operation, CreateBooks))
        request_ids = {draft.request_id for create in creates for draft in create.drafts if draft.request_id}
        if request_ids:
            for row in await self._connection.execute(_GET_REQUESTS, {"request_ids": _padded(list(request_ids))}):
                self._by_request_id[row.request_id] = _Creation(row.digest, row.create_time, row.book_id)

    async def _read_books(self, operations: Sequence[Operation]) -> None:
        ids = {operation.book_id for operation in operations if not isinstance(operation, CreateBooks)}
        if ids:
            for row in await self._connection.execute(_GET_LOCKED, {"ids": _padded(sorted(ids))}):
                self._books[row.id] = BookRecord._make(row)

    def _decide(self, operation: Operation) -> _Created | Written | Exception:
        try:
            match operation:
                case CreateBooks():
                    return self._decide_create(operation)
                case UpdateBook():
                    return self._decide_update(operation)
                case DeleteBook():
                    return self._decide_delete(operation)
        except BookstoreError as error:
            return error

    def _decide_create(self, create: CreateBooks) -> _Created:
        new: list[tuple[BookDraft, _Creation]] = []
        by_request_id: dict[UUID, _Creation] = {}
        creations: list[_Creation] = []
        for draft in create.drafts:
            request_id = draft.request_id
            digest = _digest(draft) if request_id else b""
            found = self._by_request_id.get(request_id) or by_request_id.get(request_id) if request_id else None
            if found is None:
                found = _Creation(digest, self._now)
                new.append((draft, found))
                if request_id:
                    by_request_id[request_id] = found
            elif found.digest != digest:
                raise RequestIdReused(str(request_id))
            creations.append(found)
        self._new += new
        self._by_request_id |= by_request_id
        return _Created(create.drafts, creations)

    def _decide_update(self, operation: UpdateBook) -> Written:
        record = self._current(operation.book_id, operation.etag)
        new_values = {field: value for field, value in operation.changes._asdict().items() if value is not None}
        changed = record._replace(**new_values)
        if changed != record:
            # The clock may stand still or go back; the etag must differ all the same.
            changed = changed._replace(update_time=max(self._now, record.update_time + 1))
            self._books[record.id] = changed
            self._changed.add(record.id)
        return [changed]

    def _decide_delete(self, operation: DeleteBook) -> Written:
        record = self._current(operation.book_id, operation.etag)
        del self._books[record.id]
        self._changed.discard(record.id)
        self._deleted.add(record.id)
        return [record]

    def _current(self, book_id: int, etag: str) -> BookRecord:
        """Return a book as the earlier operations left it. Raises `BookNotFound`, or `EtagMismatch`."""
        record = self._books.get(book_id)
        if record is None:
            raise BookNotFound([book_id])
        if etag and etag != record.etag:
            raise EtagMismatch(book_id)
        return record

    async def _insert(self) -> None:
        if not self._new:
            return
        rows = [{"create_time": self._now, **_columns(draft, update_time=self._now)} for draft, _ in self._new]
        # SQLite numbers the rows of one INSERT in their order; elsewhere SQLAlchemy returns the ids in that order.
        is_sqlite = self._connection.dialect.name == "sqlite"
        ids: list[int] = []
        for portion in self._portions(rows):
            result = await self._connection.execute(_INSERT if is_sqlite else _INSERT_IN_ORDER, portion)
            ids += [row[0] for row in result]
        for (_, creation), book_id in zip(self._new, sorted(ids) if is_sqlite else ids, strict=True):
            creation.book_id = book_id
        requests = [
            {
                "request_id": draft.request_id,
                "book_id": creation.book_id,
                "digest": creation.digest,
                "create_time": creation.create_time,
            }
            for draft, creation in self._new
            if draft.request_id
        ]
        if requests:
            # In the order of the ids, so that two batches with the same ids cannot deadlock.
            for portion in self._portions(sorted(requests, key=lambda row: str(row["request_id"]))):
                await self._connection.execute(_INSERT_REQUESTS, portion)

    def _portions(self, rows: Sequence[Mapping[str, object]]) -> Iterator[list[Mapping[str, object]]]:
        """Yield the rows of each INSERT: MariaDB bounds the length of a statement, so there it may take several."""
        if self._connection.dialect.name != "mariadb":
            yield list(rows)
            return
        info = self._connection.sync_connection.info  # type: ignore[union-attr]  # not None within a transaction
        most = min(INSERT_MAX_BYTES, info[PACKET_BYTES]) - _HEAD_BYTES
        portion: list[Mapping[str, object]] = []
        left = most
        for row in rows:
            # The driver writes the values into the statement, where each byte may need an escape.
            size = _ROW_BYTES + sum(2 * len(value.encode()) for value in row.values() if isinstance(value, str))
            if size > left and portion:
                yield portion
                portion, left = [], most
            portion.append(row)
            left -= size
        yield portion

    async def _update(self) -> None:
        changed = [self._books[book_id] for book_id in sorted(self._changed)]
        if changed:
            rows = [{"book_id": book.id, **_columns(book, update_time=book.update_time)} for book in changed]
            await self._connection.execute(_UPDATE, rows)

    async def _delete(self) -> None:
        if self._deleted:
            await self._connection.execute(_DELETE, {"ids": _padded(sorted(self._deleted))})


def _columns(book: BookDraft | BookRecord, *, update_time: int) -> dict[str, object]:
    """Return the columns that a write of a book sets."""
    columns: dict[str, Any] = {name: getattr(book, name) for name in _SETTABLE}
    for name, folded in _FOLDED:
        columns[folded] = fold_case(columns[name])
    columns["update_time"] = update_time
    return columns


def _digest(draft: BookDraft) -> bytes:
    """Return the digest of a draft by which a reused request id is told from a replay.

    An optional field counts only where it is set, so that adding one leaves the digests of earlier requests valid.
    """
    # Stored text holds no control characters, so NUL separates the fields unambiguously.
    values = [str(value) for value in _required_values(draft)]
    values += [f"{name}={value}" for name in _OPTIONAL if (value := getattr(draft, name))]
    return sha256("\0".join(values).encode()).digest()


def _padded(keys: Sequence[T]) -> Sequence[T]:
    """Repeat the last key up to a power of two, so that a few prepared statements serve batches of every size."""
    return [*keys, *[keys[-1]] * ((1 << (len(keys) - 1).bit_length()) - len(keys))]
