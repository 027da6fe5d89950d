"""The write batch: creates, updates and deletes executed in one transaction.

All operations are decided in memory before anything is written. The batch reads and locks the affected rows, decides
each operation in turn on the state left by the previous ones, then writes all changes with one statement per kind. So a
rejected operation writes nothing, and does not affect the others.
"""

from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass
from hashlib import sha256
from operator import attrgetter
from typing import Any, NamedTuple, TypeVar
from uuid import UUID

from sqlalchemy import Executable
from sqlalchemy.ext.asyncio import AsyncConnection

from bookstore_grpc.dal.change_log import log_changes
from bookstore_grpc.dal.folding import searchable_text
from bookstore_grpc.dal.models import FOLDED_COLUMNS
from bookstore_grpc.dal.packets import packets
from bookstore_grpc.dal.records import (
    FIELDS,
    BookDraft,
    BookRecord,
    BookUpdate,
    BookVersion,
    Change,
    ChangeType,
    Encode,
    record_from_draft,
)
from bookstore_grpc.dal.sqlite_entries import entry_columns
from bookstore_grpc.dal.sqlite_insert import insert_records, insert_requests, next_book_id
from bookstore_grpc.dal.write_statements import WRITE_STATEMENTS
from bookstore_grpc.errors import BookNotFound, BookstoreError, EtagMismatch, RequestIdReused

_SETTABLE = [field.name for field in FIELDS.values() if field.is_settable]
_FOLDED = [(column.key, name) for name, column in FOLDED_COLUMNS.items()]
_OPTIONAL = [field.name for field in FIELDS.values() if field.is_settable and field.is_optional]
_required_values = attrgetter(*(name for name in _SETTABLE if name not in _OPTIONAL))

T = TypeVar("T")


class CreateBooks(NamedTuple):
    """Create books, all or none."""

    drafts: Sequence[BookDraft]


class UpdateBooks(NamedTuple):
    """Change books, all or none, in sequence."""

    updates: Sequence[BookUpdate]


class DeleteBooks(NamedTuple):
    """Delete different books, all or none."""

    versions: Sequence[BookVersion]


class CompleteSearchTexts(NamedTuple):
    """Store the search texts of books anew, as far as the books still exist."""

    ids: Sequence[int]


Operation = CreateBooks | UpdateBooks | DeleteBooks | CompleteSearchTexts
_SUMMARIES: dict[type[Operation], str] = {
    CreateBooks: "INSERT books",
    UpdateBooks: "UPDATE books",
    DeleteBooks: "DELETE books",
    CompleteSearchTexts: "UPDATE books",
}
#: The books that a create made, those that updates changed, each as its update left it, or none for a delete.
Written = list[BookRecord]


@dataclass(slots=True)
class _Creation:
    """A book that this batch inserts, or that an earlier create with the same request id has inserted."""

    digest: bytes
    create_time: int
    book_id: int = 0  # known once the row is inserted
    record: BookRecord | None = None  # then too, if this batch inserts it


class _Created(NamedTuple):
    """The decision on a create, whose records are complete once the rows are inserted."""

    drafts: Sequence[BookDraft]
    creations: Sequence[_Creation]

    def records(self) -> Written:
        return [
            each.record or record_from_draft(draft, book_id=each.book_id, create_time=each.create_time)
            for draft, each in zip(self.drafts, self.creations, strict=True)
        ]


def summary_of_writes(operations: Iterable[Operation]) -> str:
    """Return a summary of a batch, such as "INSERT books UPDATE books"."""
    kinds = {type(operation) for operation in operations}
    return " ".join(dict.fromkeys(summary for kind, summary in _SUMMARIES.items() if kind in kinds))


class BookWriteBatch:
    """The writes of one transaction. `now` is in microseconds since 1970-01-01T00:00:00Z.

    On SQLite, a book's entry is stored with it if `encode` is given.
    """

    def __init__(self, connection: AsyncConnection, *, now: int, encode: Encode | None = None) -> None:
        self._connection = connection
        self._now = now
        self._encode = encode
        self._is_sqlite = connection.dialect.name == "sqlite"
        self._statements = WRITE_STATEMENTS[connection.dialect.name]
        self._by_request_id: dict[UUID, _Creation] = {}
        self._new: list[tuple[BookDraft, _Creation]] = []
        self._books: dict[int, BookRecord] = {}
        self._changed: set[int] = set()
        self._deleted: set[int] = set()
        self._calls: list[list[Change | _Creation]] = []  # what each call changes, for the log of changes

    async def lock(self, operations: Sequence[Operation]) -> None:
        """Read the idempotency keys and the books of the operations, and lock the books."""
        await self._read_requests(operations)
        await self._read_books(operations)

    async def apply(self, operations: Sequence[Operation]) -> list[Written | Exception]:
        """Execute the operations with the effect of executing them in sequence. Returns a result or error for each."""
        decisions = [self._decide(operation) for operation in operations]
        await self._insert()
        await self._update()
        await self._delete()
        await log_changes(self._connection, [[self._change(each) for each in call] for call in self._calls])
        return [each.records() if isinstance(each, _Created) else each for each in decisions]

    async def _read_requests(self, operations: Sequence[Operation]) -> None:
        creates = (operation for operation in operations if isinstance(operation, CreateBooks))
        request_ids = {draft.request_id for create in creates for draft in create.drafts if draft.request_id}
        if request_ids:
            for row in await self._connection.execute(
                self._statements.get_requests, {"request_ids": self._statements.keys(list(request_ids))}
            ):
                self._by_request_id[row.request_id] = _Creation(row.digest, row.create_time, row.book_id)

    async def _read_books(self, operations: Sequence[Operation]) -> None:
        ids = {book_id for operation in operations for book_id in _ids(operation)}
        if ids:
            for row in await self._connection.execute(
                self._statements.get_books, {"ids": self._statements.keys(sorted(ids))}
            ):
                self._books[row.id] = BookRecord._make(row)

    def _decide(self, operation: Operation) -> _Created | Written | Exception:
        try:
            match operation:
                case CreateBooks():
                    return self._decide_create(operation)
                case UpdateBooks():
                    return self._decide_update(operation)
                case DeleteBooks():
                    return self._decide_delete(operation)
                case CompleteSearchTexts(ids):
                    self._changed.update(book_id for book_id in ids if book_id in self._books)
                    return []
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
        self._calls.append([creation for _, creation in new])
        return _Created(create.drafts, creations)

    def _decide_update(self, operation: UpdateBooks) -> Written:
        self._require_present(operation.updates)
        changed: dict[int, BookRecord] = {}
        changes: list[Change | _Creation] = []
        results: Written = []
        outdated: list[int] = []
        for book_id, new, etag in operation.updates:
            record = changed.get(book_id) or self._books[book_id]
            if etag and etag != record.etag:
                outdated.append(book_id)
                continue
            new_values = {field: value for field, value in new._asdict().items() if value is not None}
            updated = record._replace(**new_values)
            if updated != record:
                # The new etag must differ even if the clock stands still or goes back.
                updated = updated._replace(update_time=max(self._now, record.update_time + 1))
                changed[book_id] = updated
                changes.append(Change(ChangeType.UPDATED, updated, record, time=self._now))
            results.append(updated)
        if outdated:
            raise EtagMismatch(outdated[0], ids=dict.fromkeys(outdated))
        self._books |= changed
        self._changed |= changed.keys()
        self._calls.append(changes)
        return results

    def _decide_delete(self, operation: DeleteBooks) -> Written:
        self._require_present(operation.versions)
        outdated = [book_id for book_id, etag in operation.versions if etag and etag != self._books[book_id].etag]
        if outdated:
            raise EtagMismatch(outdated[0], ids=outdated)
        deleted = [self._books.pop(book_id) for book_id, _ in operation.versions]
        ids = {record.id for record in deleted}
        self._changed -= ids
        self._deleted |= ids
        self._calls.append([Change(ChangeType.DELETED, record, time=self._now) for record in deleted])
        return []

    def _require_present(self, books: Sequence[BookUpdate | BookVersion]) -> None:
        """Raise `BookNotFound` with the books that do not exist, or that earlier operations have deleted."""
        missing = [each.book_id for each in books if each.book_id not in self._books]
        if missing:
            raise BookNotFound(dict.fromkeys(missing))

    async def _insert(self) -> None:
        if not self._new:
            return
        if self._statements.insert_books is None:
            await self._insert_into_sqlite()
        else:
            await self._insert_books(self._statements.insert_books)
            await self._insert_requests()

    async def _insert_into_sqlite(self) -> None:
        first_id = await next_book_id(self._connection)
        records: list[BookRecord] = []
        requests: list[tuple[object, ...]] = []
        for book_id, (draft, creation) in enumerate(self._new, first_id):
            record = record_from_draft(draft, book_id=book_id, create_time=creation.create_time)
            creation.record = record
            records.append(record)
            if draft.request_id:
                requests.append((draft.request_id.hex, book_id, creation.digest, creation.create_time))
        await insert_records(self._connection, records, self._encode)
        await insert_requests(self._connection, requests)

    async def _insert_books(self, statement: Executable) -> None:
        rows = [_row(draft, create_time=self._now, update_time=self._now) for draft, _ in self._new]
        statements = self._statements
        ids: list[int] = []
        for packet in packets(self._connection, rows, values=_values):
            result = await self._connection.execute(statement, statements.rows(packet))
            ids += [row[0] for row in result]
        in_order = ids if statements.is_insert_ordered else sorted(ids)
        for (draft, creation), book_id in zip(self._new, in_order, strict=True):
            creation.book_id = book_id
            creation.record = record_from_draft(draft, book_id=book_id, create_time=creation.create_time)

    async def _insert_requests(self) -> None:
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
            # In a fixed order, so that two batches with the same keys cannot deadlock.
            for packet in packets(
                self._connection, sorted(requests, key=lambda row: str(row["request_id"])), values=_values
            ):
                await self._connection.execute(self._statements.insert_requests, self._statements.rows(packet))

    async def _update(self) -> None:
        changed = [self._books[book_id] for book_id in sorted(self._changed)]
        if changed:
            rows = [_row(book, book_id=book.id, update_time=book.update_time) for book in changed]
            if self._is_sqlite:
                rows = [{**row, **entry_columns(book, self._encode)} for row, book in zip(rows, changed, strict=True)]
            for packet in packets(self._connection, rows, values=_values):
                await self._statements.update_books(self._connection, packet)

    async def _delete(self) -> None:
        if self._deleted:
            await self._connection.execute(
                self._statements.delete_books, {"ids": self._statements.keys(sorted(self._deleted))}
            )

    def _change(self, made: Change | _Creation) -> Change:
        if isinstance(made, Change):
            return made
        assert made.record is not None  # noqa: S101  this batch has inserted it
        return Change(ChangeType.CREATED, made.record, time=made.create_time)


def _ids(operation: Operation) -> Iterable[int]:
    """Return the ids of the existing books that an operation affects."""
    match operation:
        case CreateBooks():
            return ()
        case UpdateBooks(updates):
            return (each.book_id for each in updates)
        case DeleteBooks(versions):
            return (each.book_id for each in versions)
        case CompleteSearchTexts(ids):
            return ids


def _row(book: BookDraft | BookRecord, **values: Any) -> Mapping[str, object]:
    """Return `values` with those of the columns that callers set."""
    for name in _SETTABLE:
        values[name] = getattr(book, name)
    for folded, name in _FOLDED:
        values[folded] = searchable_text(values[name])
    return values


def _values(row: Mapping[str, object]) -> Iterable[object]:
    return row.values()


def _digest(draft: BookDraft) -> bytes:
    """Return the digest of a draft, which distinguishes a retry from a reused idempotency key.

    Optional fields count only if they are set, so that adding one to the contract keeps earlier digests valid.
    """
    # Stored text contains no control characters, so NUL is an unambiguous separator.
    values = [str(value) for value in _required_values(draft)]
    values += [f"{name}={value}" for name in _OPTIONAL if (value := getattr(draft, name))]
    return sha256("\0".join(values).encode()).digest()
