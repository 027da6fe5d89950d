"""A purge: deletes the books that match a filter, in short transactions between those of other writes."""

import asyncio
import time
from collections.abc import Awaitable, Callable, Sequence
from functools import lru_cache
from typing import Any, NamedTuple

from sqlalchemy import bindparam, func, select
from sqlalchemy.ext.asyncio import AsyncConnection

from bookstore_grpc.dal.change_log import log_changes
from bookstore_grpc.dal.database import Database
from bookstore_grpc.dal.filters import Filter, for_filter, parse_filter
from bookstore_grpc.dal.models import Book, Query
from bookstore_grpc.dal.records import BookRecord, Change, ChangeType
from bookstore_grpc.dal.write_statements import WRITE_STATEMENTS
from bookstore_grpc.limits import (
    PURGE_PORTION_FIRST,
    PURGE_PORTION_MAX,
    PURGE_PORTION_SECONDS,
    PURGE_READ_MAX,
)

_VERSION_COLUMNS: Sequence[Any] = (Book.id, Book.update_time)
_HIGHEST_ID: Query = select(func.max(Book.id))
_DELETE_SUMMARY = "DELETE books"


class Purged(NamedTuple):
    """What a purge has done: how many books it deleted, and whether it ended before it had deleted all that match."""

    deleted: int
    is_interrupted: bool


class _Version(NamedTuple):
    """A book that matched the filter when it had this time of its last change."""

    book_id: int
    update_time: int


class Purge:
    """Deletes the books that match a filter. Raises `InvalidFilter`.

    `clock` and `observed` are those of `BookDAL`, and `committed` is called after each portion. The books are found by
    reads, which may take long and keep no write waiting, and deleted by their ids in portions. A book that has changed
    in between may no longer match: it is not deleted, but looked for again.
    """

    def __init__(
        self,
        database: Database,
        filter: str,
        *,
        clock: Callable[[], int],
        committed: Callable[[], None] = lambda: None,
        observed: Callable[..., Awaitable[Any]],
    ) -> None:
        self._database = database
        self._clock = clock
        self._committed = committed
        self._observed = observed
        parsed, self._values = parse_filter(filter, dialect=database.dialect)
        self._find = for_filter(_find, parsed)(parsed)
        self._statements = WRITE_STATEMENTS[database.dialect]
        self._portion = PURGE_PORTION_FIRST

    async def run(self, *, is_over: Callable[[], bool]) -> Purged:
        """Delete books up to the highest id at the start, or until the time `is_over`."""
        ((highest,),) = await self._observed(self._database.read(_HIGHEST_ID))
        after, count = 0, 0
        while not is_over():
            position = {"after": after, "highest": highest or 0, "limit": PURGE_READ_MAX, **self._values}
            rows = await self._observed(self._database.read(self._find, position, is_search=True))
            if not rows:
                return Purged(count, is_interrupted=False)
            found = [_Version(*row) for row in rows]
            deleted, after = await self._delete_all(found, is_over=is_over)
            count += deleted
            if len(rows) < PURGE_READ_MAX and after == found[-1].book_id:
                return Purged(count, is_interrupted=False)
        return Purged(count, is_interrupted=True)

    async def _delete_all(self, found: Sequence[_Version], *, is_over: Callable[[], bool]) -> tuple[int, int]:
        """Delete books while there is time. Returns how many, and the id after which to look for more."""
        done = count = 0
        first_changed: int | None = None
        while done < len(found) and not (done and is_over()):
            portion = found[done : done + self._portion]
            deleted = await self._delete(portion)
            done += len(portion)
            count += len(deleted)
            if first_changed is None:
                first_changed = next((each.book_id for each in portion if each.book_id not in deleted), None)
        return count, found[done - 1].book_id if first_changed is None else first_changed - 1

    async def _delete(self, portion: Sequence[_Version]) -> set[int]:
        """Delete the books of a portion that have not changed, in one transaction, and return their ids."""
        began = time.monotonic()

        async def delete(connection: AsyncConnection) -> set[int]:
            nonlocal began
            began = time.monotonic()
            keys = self._statements.keys([each.book_id for each in portion])
            found = map(BookRecord._make, await connection.execute(self._statements.get_books, {"ids": keys}))
            expected = set(portion)
            unchanged = [record for record in found if _Version(record.id, record.update_time) in expected]
            ids = [record.id for record in unchanged]
            if ids:
                await connection.execute(self._statements.delete_books, {"ids": self._statements.keys(ids)})
                now = self._clock()
                await log_changes(connection, [[Change(ChangeType.DELETED, record, time=now) for record in unchanged]])
            return set(ids)

        deleted: set[int] = await self._observed(self._database.write(delete), _DELETE_SUMMARY)
        self._committed()
        seconds = time.monotonic() - began
        self._adapt(len(portion), seconds)
        # SQLite's lock has no queue: another process, which tries it again and again, must find it free.
        await asyncio.sleep(seconds if self._database.is_embedded else 0)
        return deleted

    def _adapt(self, count: int, seconds: float) -> None:
        """Set the size of the next portion by the time that one of `count` books has taken."""
        ideal = int(count * PURGE_PORTION_SECONDS / max(seconds, 1e-6))
        self._portion = max(1, min(ideal, 2 * self._portion, PURGE_PORTION_MAX))


@lru_cache(maxsize=128)
def _find(filter: Filter) -> Query:
    """Return the statement that finds the next books, in the order of their ids."""
    within = Book.id > bindparam("after"), Book.id <= bindparam("highest")
    found = select(*_VERSION_COLUMNS).where(*within, filter.condition.sql())
    return found.order_by(Book.id).limit(bindparam("limit"))
