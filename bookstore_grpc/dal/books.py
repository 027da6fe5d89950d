"""BookDAL: every operation on books, one method each. A read is one statement; writes are done in groups."""

import time
from collections.abc import Callable, Mapping, Sequence
from typing import Any

from sqlalchemy import Select, bindparam, delete, select
from sqlalchemy.ext.asyncio import AsyncConnection

from bookstore_grpc.dal.batching import Group, Groups
from bookstore_grpc.dal.database import Database
from bookstore_grpc.dal.models import SELECT_BOOKS, Book, CreateRequest
from bookstore_grpc.dal.observer import DatabaseObserver
from bookstore_grpc.dal.page_cache import KeptPages
from bookstore_grpc.dal.paging import (
    is_search,
    page_statement,
    page_token_from_record,
    parse_order_by,
    position_from_page_token,
)
from bookstore_grpc.dal.records import BookChanges, BookDraft, BookPage, BookRecord
from bookstore_grpc.dal.write_batch import (
    CreateBooks,
    DeleteBook,
    GroupOfWrites,
    Operation,
    UpdateBook,
    Written,
    summary_of_writes,
)
from bookstore_grpc.errors import BookNotFound
from bookstore_grpc.limits import (
    AUTHOR_MAX_CODE_POINTS,
    BATCH_MAX,
    CREATE_REQUEST_KEPT_HOURS,
    KEPT_PAGES_MAX_BOOKS,
    NAME_MAX_CODE_POINTS,
    PAGE_MAX_CODE_POINTS,
    WRITE_GROUP_MAX,
)

_MICROSECONDS_PER_HOUR = 3_600_000_000
_READ_SUMMARY = "SELECT books"

# Built once: building a statement costs more than running it. The parameters' names are not the columns', which
# SQLAlchemy keeps for itself.
_GET = SELECT_BOOKS.where(Book.id == bindparam("book_id"))
_GET_MANY = SELECT_BOOKS.where(Book.id.in_(bindparam("ids", expanding=True)))
_GET_OLD_REQUESTS = (
    select(CreateRequest.request_id).where(CreateRequest.create_time < bindparam("before")).limit(BATCH_MAX)
)
_DELETE_REQUESTS = delete(CreateRequest).where(CreateRequest.request_id.in_(bindparam("request_ids", expanding=True)))


def microseconds_now() -> int:
    """Answer the time in microseconds since 1970-01-01T00:00:00Z."""
    return time.time_ns() // 1_000


class BookDAL:
    """The books of a database. `clock` answers microseconds since 1970-01-01T00:00:00Z.

    `on_group_written` is told how many calls a transaction has served, `observer` of all that goes to the database
    for calls.
    Every method may raise `DatabaseUnavailable`; a write that did so has not happened, or may be retried with
    its request id.
    """

    def __init__(
        self,
        database: Database,
        *,
        clock: Callable[[], int] = microseconds_now,
        on_group_written: Callable[[int], None] | None = None,
        observer: DatabaseObserver | None = None,
    ) -> None:
        self._database = database
        self._clock = clock
        self._on_group_written = on_group_written
        self._observer = observer
        self._kept_pages = KeptPages(most=KEPT_PAGES_MAX_BOOKS)
        self._writes = Groups(
            self._write,
            at_once=database.groups_at_once,
            most=WRITE_GROUP_MAX,
            on_ended=self._tell_of_group,
            keeps_contexts=observer is not None,
        )

    async def create_book(self, draft: BookDraft) -> BookRecord:
        """Store a book. Raises `RequestIdReused` as `create_books` does."""
        (record,) = await self.create_books([draft])
        return record

    async def create_books(self, drafts: Sequence[BookDraft]) -> list[BookRecord]:
        """Store books, all or none, and answer them in order.

        A draft whose `request_id` has already made this book answers that book, as it was made; so do two
        drafts with one id here. Raises `RequestIdReused` if the id made another book.
        """
        return await self._writes.outcome(CreateBooks(drafts), size=len(drafts))

    async def get_book(self, book_id: int) -> BookRecord:
        """Answer one book. Raises `BookNotFound`."""
        rows = await self._read(_GET, {"book_id": book_id})
        if not rows:
            raise BookNotFound([book_id])
        return BookRecord._make(rows[0])

    async def get_books(self, ids: Sequence[int]) -> list[BookRecord]:
        """Answer books in the order of their ids, repeats repeated. Raises `BookNotFound` with all that are missing."""
        rows = await self._read(_GET_MANY, {"ids": sorted(set(ids))})
        found = {row[0]: BookRecord._make(row) for row in rows}
        if missing := [book_id for book_id in dict.fromkeys(ids) if book_id not in found]:
            raise BookNotFound(missing)
        return [found[book_id] for book_id in ids]

    async def list_books(self, *, page_size: int, page_token: str, filter: str, order_by: str) -> BookPage:
        """Answer a page of at most `page_size` books, fewer where their texts are long.

        Raises `InvalidFilter`, `InvalidOrderBy` and `InvalidPageToken`, and `ResourceExhausted` where too many search.
        """
        question = (page_size, page_token, filter, order_by)
        version = self._database.version()
        page = self._kept_pages.page(question, version)
        if page is None:
            page = await self._read_page(page_size=page_size, page_token=page_token, filter=filter, order_by=order_by)
            self._kept_pages.keep(question, version, page)
        return page

    async def update_book(self, book_id: int, changes: BookChanges, *, etag: str = "") -> BookRecord:
        """Change a book and answer it. Values that it already has change nothing, `update_time` included.

        Raises `BookNotFound`, and `EtagMismatch` if `etag` is given and not the current one.
        """
        (record,) = await self._writes.outcome(UpdateBook(book_id, changes, etag))
        return record

    async def delete_book(self, book_id: int, *, etag: str = "") -> None:
        """Delete a book. Raises `BookNotFound`, and `EtagMismatch` if `etag` is given and not the current one."""
        await self._writes.outcome(DeleteBook(book_id, etag))

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

    def _tell_of_group(self, group: Group[Operation], started_ns: int, error: BaseException | None) -> None:
        if self._on_group_written and error is None:
            self._on_group_written(len(group.members))
        if self._observer:
            summary = summary_of_writes(member.item for member in group.members)
            self._observer.group_ended(summary, group.callers(), started_ns, error)

    async def _write(self, group: Group[Operation]) -> list[Written | Exception]:
        async def work(connection: AsyncConnection) -> list[Written | Exception]:
            return await GroupOfWrites(connection, now=self._clock()).run(group)

        return await self._database.write(work)


def _first_that_fit(records: list[BookRecord]) -> list[BookRecord]:
    """Answer the records, from the first, whose texts fit into a page; at least one."""
    if len(records) * (NAME_MAX_CODE_POINTS + AUTHOR_MAX_CODE_POINTS) <= PAGE_MAX_CODE_POINTS:
        return records
    code_points = 0
    for count, record in enumerate(records):
        code_points += len(record.name) + len(record.author)
        if code_points > PAGE_MAX_CODE_POINTS and count:
            return records[:count]
    return records
