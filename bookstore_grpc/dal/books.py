"""BookDAL: every statement about books, one method for each operation, each method one transaction."""

import time
from collections.abc import Callable, Sequence
from hashlib import sha256
from uuid import UUID

from sqlalchemy import bindparam, delete, insert, select, update
from sqlalchemy.ext.asyncio import AsyncConnection

from bookstore_grpc.dal.caseless import fold_case
from bookstore_grpc.dal.database import Database
from bookstore_grpc.dal.models import FIELDS, Book, CreateRequest
from bookstore_grpc.dal.paging import (
    page_statement,
    page_token_from_record,
    parse_order_by,
    position_from_page_token,
)
from bookstore_grpc.dal.records import BookChanges, BookDraft, BookPage, BookRecord
from bookstore_grpc.errors import BookNotFound, EtagMismatch, RequestIdReused
from bookstore_grpc.limits import BATCH_MAX, CREATE_REQUEST_KEPT_HOURS, PAGE_MAX_CODE_POINTS

_MICROSECONDS_PER_HOUR = 3_600_000_000

# Built once: building a statement costs more than running it. The parameters' names are not the columns', which
# SQLAlchemy keeps for itself.
_SELECT = select(*(FIELDS[field] for field in BookRecord._fields))
_GET = _SELECT.where(Book.id == bindparam("book_id"))
_GET_LOCKED = _GET.with_for_update()
_GET_MANY = _SELECT.where(Book.id.in_(bindparam("ids", expanding=True)))
_INSERT = insert(Book).returning(Book.id)
_INSERT_IN_ORDER = insert(Book).returning(Book.id, sort_by_parameter_order=True)
_UPDATE = update(Book).where(Book.id == bindparam("book_id"))
_DELETE = delete(Book).where(Book.id == bindparam("book_id"))
_GET_REQUESTS = select(
    CreateRequest.request_id, CreateRequest.book_id, CreateRequest.digest, CreateRequest.create_time
).where(CreateRequest.request_id.in_(bindparam("request_ids", expanding=True)))
_INSERT_REQUEST = insert(CreateRequest)
_GET_OLD_REQUESTS = (
    select(CreateRequest.request_id).where(CreateRequest.create_time < bindparam("before")).limit(BATCH_MAX)
)
_DELETE_REQUESTS = delete(CreateRequest).where(CreateRequest.request_id.in_(bindparam("request_ids", expanding=True)))


def microseconds_now() -> int:
    """Answer the time in microseconds since 1970-01-01T00:00:00Z."""
    return time.time_ns() // 1_000


class BookDAL:
    """The books of a database. `clock` answers microseconds since 1970-01-01T00:00:00Z.

    Every method may raise `DatabaseUnavailable`; a write that did so has not happened, or may be retried with
    its request id.
    """

    def __init__(self, database: Database, *, clock: Callable[[], int] = microseconds_now) -> None:
        self._database = database
        self._clock = clock

    async def create_book(self, draft: BookDraft) -> BookRecord:
        """Store a book. Raises `RequestIdReused` as `create_books` does."""
        (record,) = await self.create_books([draft])
        return record

    async def create_books(self, drafts: Sequence[BookDraft]) -> list[BookRecord]:
        """Store books, all or none, and answer them in order.

        A draft whose `request_id` has already made this book answers that book, as it was made; so do two
        drafts with one id here. Raises `RequestIdReused` if the id made another book.
        """
        # What one request id stands for, and each draft that has none, is stored once.
        keys = [draft.request_id or index for index, draft in enumerate(drafts)]

        async def work(connection: AsyncConnection) -> list[BookRecord]:
            made = await self._records_made_before(connection, drafts)
            new = {key: draft for key, draft in zip(keys, drafts, strict=True) if key not in made}
            made |= zip(new, await self._insert(connection, list(new.values())), strict=True)
            return [made[key] for key in keys]

        return await self._database.write(work)

    async def get_book(self, book_id: int) -> BookRecord:
        """Answer one book. Raises `BookNotFound`."""
        rows = await self._database.read(_GET, {"book_id": book_id})
        if not rows:
            raise BookNotFound([book_id])
        return BookRecord._make(rows[0])

    async def get_books(self, ids: Sequence[int]) -> list[BookRecord]:
        """Answer books in the order of their ids, repeats repeated. Raises `BookNotFound` with all that are missing."""
        rows = await self._database.read(_GET_MANY, {"ids": sorted(set(ids))})
        found = {row[0]: BookRecord._make(row) for row in rows}
        if missing := [book_id for book_id in dict.fromkeys(ids) if book_id not in found]:
            raise BookNotFound(missing)
        return [found[book_id] for book_id in ids]

    async def list_books(self, *, page_size: int, page_token: str, filter: str, order_by: str) -> BookPage:
        """Answer a page of at most `page_size` books, fewer where their texts are long.

        Raises `InvalidFilter`, `InvalidOrderBy` and `InvalidPageToken`.
        """
        order = parse_order_by(order_by)
        position = position_from_page_token(page_token, filter=filter, order=order) if page_token else {}
        statement = page_statement(filter, order, dialect=self._database.dialect, continued=bool(position))
        rows = await self._database.read(statement, {"limit": page_size + 1, **position})
        books = _first_that_fit([BookRecord._make(row) for row in rows[:page_size]])
        if len(books) == len(rows):
            return BookPage(books, "")
        return BookPage(books, page_token_from_record(books[-1], filter=filter, order=order))

    async def update_book(self, book_id: int, changes: BookChanges, *, etag: str = "") -> BookRecord:
        """Change a book and answer it. Values that it already has change nothing, `update_time` included.

        Raises `BookNotFound`, and `EtagMismatch` if `etag` is given and not the current one.
        """

        async def work(connection: AsyncConnection) -> BookRecord:
            record = await _locked(connection, book_id, etag)
            new_values = {field: value for field, value in changes._asdict().items() if value is not None}
            changed = record._replace(**new_values)
            if changed == record:
                return record
            # A clock may stand still or go back; the etag must differ all the same.
            changed = changed._replace(update_time=max(self._clock(), record.update_time + 1))
            await connection.execute(_UPDATE, {"book_id": book_id, **_stored_values(changed)})
            return changed

        return await self._database.write(work)

    async def delete_book(self, book_id: int, *, etag: str = "") -> None:
        """Delete a book. Raises `BookNotFound`, and `EtagMismatch` if `etag` is given and not the current one."""

        async def work(connection: AsyncConnection) -> None:
            await _locked(connection, book_id, etag)
            await connection.execute(_DELETE, {"book_id": book_id})

        await self._database.write(work)

    async def forget_old_create_requests(self) -> int:
        """Delete some of what replays no longer need, and answer how many; 0 when there is nothing left to delete.

        A portion at a time, because on SQLite the other writes wait.
        """
        before = self._clock() - CREATE_REQUEST_KEPT_HOURS * _MICROSECONDS_PER_HOUR

        async def work(connection: AsyncConnection) -> int:
            rows = await connection.execute(_GET_OLD_REQUESTS, {"before": before})
            request_ids = [row.request_id for row in rows]
            await connection.execute(_DELETE_REQUESTS, {"request_ids": request_ids})
            return len(request_ids)

        return await self._database.write(work)

    async def _records_made_before(
        self, connection: AsyncConnection, drafts: Sequence[BookDraft]
    ) -> dict[UUID | int, BookRecord]:
        by_request_id: dict[UUID, BookDraft] = {}
        for draft in drafts:
            if draft.request_id and by_request_id.setdefault(draft.request_id, draft) != draft:
                raise _request_id_reused(draft)
        made: dict[UUID | int, BookRecord] = {}
        if by_request_id:
            for row in await connection.execute(_GET_REQUESTS, {"request_ids": list(by_request_id)}):
                draft = by_request_id[row.request_id]
                if row.digest != _digest(draft):
                    raise _request_id_reused(draft)
                made[row.request_id] = _new_record(row.book_id, draft, row.create_time)
        return made

    async def _insert(self, connection: AsyncConnection, drafts: Sequence[BookDraft]) -> list[BookRecord]:
        if not drafts:
            return []
        now = self._clock()
        records = [_new_record(0, draft, now) for draft in drafts]
        values = [{"create_time": now, **_stored_values(record)} for record in records]
        # SQLite numbers the rows of one INSERT in their order; elsewhere SQLAlchemy sees to it that they are.
        statement = _INSERT if self._database.is_embedded else _INSERT_IN_ORDER
        ids = [row[0] for row in await connection.execute(statement, values)]
        if self._database.is_embedded:
            ids.sort()
        records = [record._replace(id=book_id) for record, book_id in zip(records, ids, strict=True)]
        requests = [
            {
                "request_id": draft.request_id,
                "book_id": record.id,
                "digest": _digest(draft),
                "create_time": now,
            }
            for draft, record in zip(drafts, records, strict=True)
            if draft.request_id
        ]
        if requests:
            # In one order for all, so that two batches with the same ids wait for each other only one way round.
            await connection.execute(_INSERT_REQUEST, sorted(requests, key=lambda request: str(request["request_id"])))
        return records


async def _locked(connection: AsyncConnection, book_id: int, etag: str) -> BookRecord:
    """Read a book that nobody else changes until this transaction ends."""
    row = (await connection.execute(_GET_LOCKED, {"book_id": book_id})).one_or_none()
    if row is None:
        raise BookNotFound([book_id])
    record = BookRecord._make(row)
    if etag and etag != record.etag:
        raise EtagMismatch(f"Book {book_id} has changed since it was read; read it again and repeat the change.")
    return record


def _new_record(book_id: int, draft: BookDraft, now: int) -> BookRecord:
    return BookRecord(book_id, draft.name, draft.author, draft.release_year, now, now)


def _stored_values(record: BookRecord) -> dict[str, object]:
    """Answer the columns that a change of a book may change."""
    return {
        "name": record.name,
        "author": record.author,
        "release_year": record.release_year,
        "update_time": record.update_time,
        "name_folded": fold_case(record.name),
        "author_folded": fold_case(record.author),
    }


def _digest(draft: BookDraft) -> bytes:
    # Stored text holds no control characters, so NUL keeps the fields apart.
    return sha256(f"{draft.name}\0{draft.author}\0{draft.release_year}".encode()).digest()


def _request_id_reused(draft: BookDraft) -> RequestIdReused:
    return RequestIdReused(f"The request_id {draft.request_id} was already used for another book; make a new one.")


def _first_that_fit(records: list[BookRecord]) -> list[BookRecord]:
    """Answer the records, from the first, whose texts fit into a page; at least one."""
    code_points = 0
    for count, record in enumerate(records):
        code_points += len(record.name) + len(record.author)
        if code_points > PAGE_MAX_CODE_POINTS and count:
            return records[:count]
    return records
