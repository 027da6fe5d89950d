"""BookDAL: one method for each operation on books. A read is one statement; writes go through group commit."""

import time
from collections.abc import AsyncGenerator, Awaitable, Callable, Sequence
from dataclasses import replace
from typing import NamedTuple, TypeVar

from sqlalchemy import ARRAY, BigInteger, any_, bindparam, delete, func, or_, select
from sqlalchemy.ext.asyncio import AsyncConnection

from bookstore_grpc.dal.book_loader import BookLoader
from bookstore_grpc.dal.change_feed import ChangeFeed
from bookstore_grpc.dal.database import Database
from bookstore_grpc.dal.group_commit import BatchEnd, GroupCommit
from bookstore_grpc.dal.models import FOLDED_COLUMNS, SELECT_BOOKS, Book, CreateRequest
from bookstore_grpc.dal.observer import DatabaseObserver
from bookstore_grpc.dal.page_cache import PageCache
from bookstore_grpc.dal.page_reader import PageReader
from bookstore_grpc.dal.purge import Purge, Purged
from bookstore_grpc.dal.records import (
    BookChanges,
    BookDraft,
    BookPage,
    BookRecord,
    BookTotal,
    BookUpdate,
    BookVersion,
    ChangePage,
    Encode,
)
from bookstore_grpc.dal.search_index import is_incomplete
from bookstore_grpc.dal.sqlite_entries import SELECT_WITHOUT_ENTRY, complete_entries
from bookstore_grpc.dal.watch import WatchStart
from bookstore_grpc.dal.write_batch import (
    BookWriteBatch,
    CompleteSearchTexts,
    CreateBooks,
    DeleteBooks,
    Operation,
    UpdateBooks,
    Written,
    summary_of_writes,
)
from bookstore_grpc.errors import BookNotFound
from bookstore_grpc.limits import (
    BATCH_MAX,
    CREATE_REQUEST_RETENTION_HOURS,
    PAGE_CACHE_MAX_BOOKS,
    WRITE_BATCH_MAX_BOOKS,
)

# A statement that examines so many books takes some milliseconds.
_IDS_PER_PORTION = 10_000
# Few, so that groups are large, but two, so that one can be sent while the response to the other is awaited.
_CONCURRENT_GROUPS_MAX = 2
_ENTRIES_MAX = 250
_MICROSECONDS_PER_HOUR = 3_600_000_000
_READ_SUMMARY = "SELECT books"
T = TypeVar("T")

# Built once: building a statement costs more than running it. Parameters are not named after columns, because
# SQLAlchemy reserves those names.
_GET = SELECT_BOOKS.where(Book.id == bindparam("book_id"))
_GET_MANY = SELECT_BOOKS.where(Book.id.in_(bindparam("ids", expanding=True)))
# PostgreSQL takes an array, so that one prepared statement serves groups of every size.
_GET_ARRAY = SELECT_BOOKS.where(Book.id == any_(bindparam("ids", type_=ARRAY(BigInteger))))
_GET_LAST_ID = select(func.max(Book.id)).where(Book.id > bindparam("book_id"))
_INCOMPLETE = select(Book.id).where(Book.id > bindparam("after_id"), Book.id <= bindparam("last_id")).order_by(Book.id)
_GET_OLD_REQUESTS = (
    select(CreateRequest.request_id).where(CreateRequest.create_time < bindparam("before")).limit(BATCH_MAX)
)
_DELETE_REQUESTS = delete(CreateRequest).where(CreateRequest.request_id.in_(bindparam("request_ids", expanding=True)))


class CompletedTexts(NamedTuple):
    """How many books of a portion had incomplete search texts, and the last id of the portion."""

    completed: int
    last_id: int


def microseconds_now() -> int:
    """Return the time in microseconds since 1970-01-01T00:00:00Z."""
    return time.time_ns() // 1_000


class BookDAL:
    """The books of a database. `clock` returns microseconds since 1970-01-01T00:00:00Z.

    `encode` is what pages have of each book instead of its record, and on SQLite is stored with it, so that a page is
    read without encoding it (docs/decisions/0028-stored-entries.md). `on_batch_committed` is called after each commit
    with the number of calls that it served, `on_changes_committed` after each that may have changed books. `observer`
    is notified of every read and write transaction.

    Every method may raise `DatabaseUnavailable`. A write that raises it has not happened, or its outcome is unknown; a
    create with an idempotency key can be retried safely.
    """

    def __init__(
        self,
        database: Database,
        *,
        encode: Encode | None = None,
        clock: Callable[[], int] = microseconds_now,
        on_batch_committed: Callable[[int], None] | None = None,
        on_changes_committed: Callable[[], None] | None = None,
        observer: DatabaseObserver | None = None,
    ) -> None:
        self._database = database
        self._encode = encode
        #: The feed of changes, for its figures.
        self.changes = ChangeFeed(database, on_committed=on_changes_committed)
        self._pages = PageReader(database, encode=encode, observed=self._observed)
        self._clock = clock
        self._on_batch_committed = on_batch_committed
        self._observer = observer
        incomplete = (is_incomplete(column, dialect=database.dialect) for column in FOLDED_COLUMNS.values())
        self._get_incomplete = _INCOMPLETE.where(or_(*incomplete))
        self._get_many = _GET_ARRAY if database.dialect == "postgresql" else _GET_MANY
        self._loader = BookLoader(self._books_by_id, concurrent_max=_CONCURRENT_GROUPS_MAX)
        self._page_cache = PageCache(max_books=PAGE_CACHE_MAX_BOOKS)
        self._writes: GroupCommit[AsyncConnection, Operation, Written] = GroupCommit(
            database.write,
            lambda connection: BookWriteBatch(connection, now=clock(), encode=encode),
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

        `request_id` is an idempotency key: if an earlier draft, possibly of the same call, created the same book with
        this key, that book is returned as it was created. Raises `RequestIdReused` if the key created a different book.
        """
        return await self._writes.submit(CreateBooks(drafts), size=len(drafts))

    async def get_book(self, book_id: int) -> BookRecord:
        """Return one book. Raises `BookNotFound`."""
        record = await self._observed(self._one_book(book_id))
        if record is None:
            raise BookNotFound([book_id])
        return record

    async def get_books(self, ids: Sequence[int]) -> list[BookRecord]:
        """Return books in the order of `ids`, including duplicates. Raises `BookNotFound` with all missing ids."""
        found = await self._observed(self._books_by_id(sorted(set(ids))))
        if missing := [book_id for book_id in dict.fromkeys(ids) if book_id not in found]:
            raise BookNotFound(missing)
        return [found[book_id] for book_id in ids]

    async def list_books(
        self, *, page_size: int, page_token: str, filter: str, order_by: str, include_total: bool = False
    ) -> BookPage:
        """Return a page of at most `page_size` books, fewer if their texts are long (keyset pagination).

        With `include_total` also the number of books on all pages, counted after the page was read. Raises
        `InvalidFilter`, `InvalidOrderBy`, `InvalidPageToken`, and `ResourceExhausted` if too many searches run.
        """
        key = (page_size, page_token, filter, order_by, include_total)
        version = self._database.version()
        page = self._page_cache.get(key, version)
        if page is None:
            page = await self._pages.read(page_size=page_size, page_token=page_token, filter=filter, order_by=order_by)
            if include_total:
                is_all = not page_token and not page.next_page_token
                page = replace(page, total=BookTotal(len(page.books)) if is_all else await self._pages.count(filter))
            self._page_cache.put(key, version, page)
        return page

    async def update_book(self, book_id: int, changes: BookChanges, *, etag: str = "") -> BookRecord:
        """Change a book and return it. If all values equal the stored ones, `update_time` does not change either.

        Raises `BookNotFound`, and `EtagMismatch` if `etag` is given and not the current one.
        """
        (record,) = await self.update_books([BookUpdate(book_id, changes, etag)])
        return record

    async def update_books(self, updates: Sequence[BookUpdate]) -> list[BookRecord]:
        """Change books, all or none, in sequence, and return each as its update left it.

        Raises `BookNotFound` with all missing ids, otherwise `EtagMismatch` with all books whose etag is another.
        """
        return await self._writes.submit(UpdateBooks(updates), size=len(updates))

    async def delete_book(self, book_id: int, *, etag: str = "") -> None:
        """Delete a book. Raises `BookNotFound`, and `EtagMismatch` if `etag` is given and not the current one."""
        await self.delete_books([BookVersion(book_id, etag)])

    async def delete_books(self, versions: Sequence[BookVersion]) -> None:
        """Delete different books, all or none.

        Raises `BookNotFound` with all missing ids, otherwise `EtagMismatch` with all books whose etag is another.
        """
        await self._writes.submit(DeleteBooks(versions), size=len(versions))

    async def purge_books(self, filter: str, *, seconds: float) -> Purged:
        """Delete the books that match, in portions, for at most about `seconds`, and return how many it deleted.

        If it is interrupted, what was deleted stays deleted. Raises `InvalidFilter`, and `ResourceExhausted` if too
        many searches run.
        """
        ends_at = time.monotonic() + seconds
        purge = Purge(
            self._database, filter, clock=self._clock, committed=self.changes.committed, observed=self._observed
        )
        return await purge.run(is_over=lambda: time.monotonic() >= ends_at)

    def watch_books(
        self, *, filter: str, resume_token: str = "", start: WatchStart = WatchStart.NOW, checkpoint_seconds: float
    ) -> AsyncGenerator[ChangePage]:
        """Yield the changes of the books that match a filter before or after them, in the order of their commits.

        The first page comes at once. A page without changes is a checkpoint; there is one after `checkpoint_seconds`
        without a page. With a `resume_token`, of a page of this or `list_book_changes`, `start` has no effect.

        Raises `InvalidFilter`, `InvalidResumeToken`, and `ResumeTokenExpired`, the latter also later if the caller is
        slower than changes are deleted. Raises `ResourceExhausted` if too many searches run.
        """
        return self.changes.watch(
            filter=filter, resume_token=resume_token, start=start, checkpoint_seconds=checkpoint_seconds
        )

    async def list_book_changes(self, *, page_size: int, page_token: str, filter: str) -> ChangePage:
        """Return at most `page_size` changes after a token, or the earliest that are kept.

        Raises `InvalidFilter`, `InvalidResumeToken` and `ResumeTokenExpired`.
        """
        return await self._observed(self.changes.page(page_size=page_size, page_token=page_token, filter=filter))

    async def forget_old_changes(self, *, kept_seconds: float) -> int:
        """Delete changes that are older than `kept_seconds`, at most `BATCH_MAX`, and return how many."""
        return await self.changes.trim(before=self._clock() - int(kept_seconds * 1_000_000))

    async def forget_old_create_requests(self) -> int:
        """Delete expired idempotency keys and return how many; 0 when none are left.

        At most `BATCH_MAX` per call, because on SQLite all other writes wait in the meantime.
        """
        before = self._clock() - CREATE_REQUEST_RETENTION_HOURS * _MICROSECONDS_PER_HOUR

        async def work(connection: AsyncConnection) -> int:
            rows = await connection.execute(_GET_OLD_REQUESTS, {"before": before})
            request_ids = [row.request_id for row in rows]
            await connection.execute(_DELETE_REQUESTS, {"request_ids": request_ids})
            return len(request_ids)

        return await self._database.write(work)

    async def complete_search_texts(self, *, after: int) -> CompletedTexts | None:
        """Complete what servers of the previous version have stored for searches: texts with diacritics only.

        To be called repeatedly, first with 0 and then with the last id of the previous portion, until it returns None.
        """
        rows = await self._database.read(_GET_LAST_ID, {"book_id": after})
        last_id = min(rows[0][0] or 0, after + _IDS_PER_PORTION)
        if last_id <= after:
            return None
        rows = await self._database.read(self._get_incomplete, {"after_id": after, "last_id": last_id}, is_search=True)
        ids = [row[0] for row in rows]
        for start in range(0, len(ids), BATCH_MAX):
            some = ids[start : start + BATCH_MAX]
            await self._writes.submit(CompleteSearchTexts(some), size=len(some))
        return CompletedTexts(len(ids), last_id)

    async def complete_entries(self) -> int:
        """Store the entries of books that have none, and return how many; 0 when none are left.

        Rows that a server of an older version writes have none. At most a few per call, because all other writes wait.
        """
        encode = self._encode
        if encode is None or not self._database.is_embedded:
            return 0
        if not await self._database.read(SELECT_WITHOUT_ENTRY, {"limit": 1}):
            return 0
        return await self._database.write(lambda connection: complete_entries(connection, encode, limit=_ENTRIES_MAX))

    async def _one_book(self, book_id: int) -> BookRecord | None:
        if not self._database.is_embedded:
            return await self._loader.get(book_id)
        rows = await self._database.read(_GET, {"book_id": book_id})
        return BookRecord._make(rows[0]) if rows else None

    async def _books_by_id(self, ids: Sequence[int]) -> dict[int, BookRecord]:
        rows = await self._database.read(self._get_many, {"ids": ids})
        return {row[0]: BookRecord._make(row) for row in rows}

    async def _observed(self, read: Awaitable[T], summary: str = _READ_SUMMARY) -> T:
        """Await a read, or a write outside of group commit, and notify the observer of it."""
        if self._observer is None:
            return await read
        started_ns = time.time_ns()
        error: BaseException | None = None
        try:
            return await read
        except BaseException as raised:
            error = raised
            raise
        finally:
            self._observer.read_ended(summary, started_ns, error)

    def _on_batch_end(self, batch: BatchEnd[Operation]) -> None:
        if batch.error is None:
            self.changes.committed()
            if self._on_batch_committed:
                self._on_batch_committed(len(batch.operations))
        if self._observer:
            summary = summary_of_writes(batch.operations)
            self._observer.batch_ended(summary, batch.contexts, batch.started_ns, batch.error)
