"""BookDAL: one method for each operation on books. A read is one statement; writes go through group commit."""

import time
from collections.abc import Callable, Mapping, Sequence
from operator import itemgetter
from typing import Any

from sqlalchemy import Select, bindparam, delete, select
from sqlalchemy.ext.asyncio import AsyncConnection

from bookstore_grpc.dal.database import Database
from bookstore_grpc.dal.group_commit import BatchEnd, GroupCommit
from bookstore_grpc.dal.models import SELECT_BOOKS, Book, CreateRequest
from bookstore_grpc.dal.observer import DatabaseObserver
from bookstore_grpc.dal.page_cache import PageCache
from bookstore_grpc.dal.paging import (
    is_search,
    page_statement,
    page_token_from_record,
    parse_order_by,
    position_from_page_token,
)
from bookstore_grpc.dal.records import FIELDS, BookChanges, BookDraft, BookPage, BookRecord, FieldType
from bookstore_grpc.dal.write_batch import (
    BookWriteBatch,
    CreateBooks,
    DeleteBook,
    Operation,
    UpdateBook,
    Written,
    summary_of_writes,
)
from bookstore_grpc.errors import BookNotFound
from bookstore_grpc.limits import (
    BATCH_MAX,
    CREATE_REQUEST_RETENTION_HOURS,
    PAGE_CACHE_MAX_BOOKS,
    PAGE_MAX_CODE_POINTS,
    WRITE_BATCH_MAX_BOOKS,
)

_MICROSECONDS_PER_HOUR = 3_600_000_000
_READ_SUMMARY = "SELECT books"
_TEXTS_MAX_CODE_POINTS = sum(field.max_code_points for field in FIELDS.values())
_TEXTS = [itemgetter(index) for index, name in enumerate(BookRecord._fields) if FIELDS[name].type is FieldType.TEXT]


# Built once: building a statement costs more than running it. Parameters are not named after columns, because
# SQLAlchemy reserves those names.
_GET = SELECT_BOOKS.where(Book.id == bindparam("book_id"))
_GET_MANY = SELECT_BOOKS.where(Book.id.in_(bindparam("ids", expanding=True)))
_GET_OLD_REQUESTS = (
    select(CreateRequest.request_id).where(CreateRequest.create_time < bindparam("before")).limit(BATCH_MAX)
)
_DELETE_REQUESTS = delete(CreateRequest).where(CreateRequest.request_id.in_(bindparam("request_ids", expanding=True)))


def microseconds_now() -> int:
    """Return the time in microseconds since 1970-01-01T00:00:00Z."""
    return time.time_ns() // 1_000


class BookDAL:
    """The books of a database. `clock` returns microseconds since 1970-01-01T00:00:00Z.

    `on_batch_committed` is called with the number of calls that a transaction served, `observer` for every access to
    the database that serves calls.
    Every method may raise `DatabaseUnavailable`. A write that did so has not happened, or its outcome is unknown; with
    a request id it can be retried safely.
    """

    def __init__(
        self,
        database: Database,
        *,
        clock: Callable[[], int] = microseconds_now,
        on_batch_committed: Callable[[int], None] | None = None,
        observer: DatabaseObserver | None = None,
    ) -> None:
        self._database = database
        self._clock = clock
        self._on_batch_committed = on_batch_committed
        self._observer = observer
        self._page_cache = PageCache(max_books=PAGE_CACHE_MAX_BOOKS)
        self._writes: GroupCommit[AsyncConnection, Operation, Written] = GroupCommit(
            database.write,
            lambda connection: BookWriteBatch(connection, now=clock()),
            batches_max=database.writing_connections,
            size_max=WRITE_BATCH_MAX_BOOKS,
            on_batch_end=self._on_batch_end,
            keeps_contexts=observer is not None,
        )

    async def create_book(self, draft: BookDraft) -> BookRecord:
        """Store a book. Raises `RequestIdReused` as `create_books` does."""
        (record,) = await self.create_books([draft])
        return record

    async def create_books(self, drafts: Sequence[BookDraft]) -> list[BookRecord]:
        """Store books, all or none, and return them in order.

        `request_id` is an idempotency key: a draft whose id has already created this book returns that book as it was
        created, also within one call. Raises `RequestIdReused` if the id created a different book.
        """
        return await self._writes.submit(CreateBooks(drafts), size=len(drafts))

    async def get_book(self, book_id: int) -> BookRecord:
        """Return one book. Raises `BookNotFound`."""
        rows = await self._read(_GET, {"book_id": book_id})
        if not rows:
            raise BookNotFound([book_id])
        return BookRecord._make(rows[0])

    async def get_books(self, ids: Sequence[int]) -> list[BookRecord]:
        """Return books in the order of `ids`, duplicates included. Raises `BookNotFound` with all missing ids."""
        rows = await self._read(_GET_MANY, {"ids": sorted(set(ids))})
        found = {row[0]: BookRecord._make(row) for row in rows}
        if missing := [book_id for book_id in dict.fromkeys(ids) if book_id not in found]:
            raise BookNotFound(missing)
        return [found[book_id] for book_id in ids]

    async def list_books(self, *, page_size: int, page_token: str, filter: str, order_by: str) -> BookPage:
        """Return a page of at most `page_size` books, fewer if their texts are long.

        Raises `InvalidFilter`, `InvalidOrderBy`, `InvalidPageToken`, or `ResourceExhausted` if too many searches run.
        """
        key = (page_size, page_token, filter, order_by)
        version = self._database.version()
        page = self._page_cache.get(key, version)
        if page is None:
            page = await self._read_page(page_size=page_size, page_token=page_token, filter=filter, order_by=order_by)
            self._page_cache.put(key, version, page)
        return page

    async def update_book(self, book_id: int, changes: BookChanges, *, etag: str = "") -> BookRecord:
        """Change a book and return it. Values equal to the stored ones change nothing, `update_time` included.

        Raises `BookNotFound`, and `EtagMismatch` if `etag` is given and not the current one.
        """
        (record,) = await self._writes.submit(UpdateBook(book_id, changes, etag))
        return record

    async def delete_book(self, book_id: int, *, etag: str = "") -> None:
        """Delete a book. Raises `BookNotFound`, and `EtagMismatch` if `etag` is given and not the current one."""
        await self._writes.submit(DeleteBook(book_id, etag))

    async def forget_old_create_requests(self) -> int:
        """Delete some expired request ids and return how many; 0 when none are left.

        At most `BATCH_MAX` at a time, because on SQLite all other writes wait meanwhile.
        """
        before = self._clock() - CREATE_REQUEST_RETENTION_HOURS * _MICROSECONDS_PER_HOUR

        async def work(connection: AsyncConnection) -> int:
            rows = await connection.execute(_GET_OLD_REQUESTS, {"before": before})
            request_ids = [row.request_id for row in rows]
            await connection.execute(_DELETE_REQUESTS, {"request_ids": request_ids})
            return len(request_ids)

        return await self._database.write(work)

    async def _read_page(self, *, page_size: int, page_token: str, filter: str, order_by: str) -> BookPage:
        order = parse_order_by(order_by)
        position = position_from_page_token(page_token, filter=filter, order=order) if page_token else {}
        statement = page_statement(filter, order, dialect=self._database.dialect, continued=bool(position))
        parameters = {"limit": page_size + 1, **position}
        rows = await self._read(statement, parameters, is_search=is_search(filter, order))
        books = _first_that_fit([BookRecord._make(row) for row in rows[:page_size]])
        if len(books) == len(rows):
            return BookPage(books, "")
        return BookPage(books, page_token_from_record(books[-1], filter=filter, order=order))

    async def _read(
        self, statement: Select[Any], parameters: Mapping[str, object], *, is_search: bool = False
    ) -> Sequence[Sequence[Any]]:
        if self._observer is None:
            return await self._database.read(statement, parameters, is_search=is_search)
        started_ns = time.time_ns()
        error: BaseException | None = None
        try:
            return await self._database.read(statement, parameters, is_search=is_search)
        except BaseException as raised:
            error = raised
            raise
        finally:
            self._observer.read_ended(_READ_SUMMARY, started_ns, error)

    def _on_batch_end(self, batch: BatchEnd[Operation]) -> None:
        if self._on_batch_committed and batch.error is None:
            self._on_batch_committed(len(batch.operations))
        if self._observer:
            summary = summary_of_writes(batch.operations)
            self._observer.batch_ended(summary, batch.contexts, batch.started_ns, batch.error)


def _first_that_fit(records: list[BookRecord]) -> list[BookRecord]:
    """Return the leading records whose texts fit into a page; at least one."""
    if len(records) * _TEXTS_MAX_CODE_POINTS <= PAGE_MAX_CODE_POINTS:
        return records
    if sum(sum(map(len, map(text_of, records))) for text_of in _TEXTS) <= PAGE_MAX_CODE_POINTS:
        return records
    code_points = 0
    for count, record in enumerate(records):
        code_points += sum(len(text_of(record)) for text_of in _TEXTS)
        if code_points > PAGE_MAX_CODE_POINTS and count:
            return records[:count]
    return records
