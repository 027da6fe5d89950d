"""A watch: the changes of the books that match a filter, from a start on, page by page and without an end.

A watch may first send the existing books. It reads them in portions, by id, each with the number of the last change at
that moment, from one statement. Before a portion it sends the changes, up to this number, of the books that it has
already sent. So what it has sent is at every moment what the database had, of the books up to some id, and no
transaction stays open (docs/decisions/0029-change-log.md).
"""

import math
import time
from collections.abc import AsyncGenerator, Callable, Mapping, Sequence
from contextlib import aclosing
from enum import Enum
from functools import lru_cache

from sqlalchemy import bindparam, select, true

from bookstore_grpc.dal.change_log import NEWEST, ChangeReader, Head, Position
from bookstore_grpc.dal.change_pages import Part, first_part, parts
from bookstore_grpc.dal.change_tail import ChangeTail
from bookstore_grpc.dal.database import Database
from bookstore_grpc.dal.filters import Filter, for_filter, parse_filter
from bookstore_grpc.dal.models import SELECT_BOOKS, Book, ChangeLog, Query
from bookstore_grpc.dal.records import BookRecord, Change, ChangePage, ChangeType, code_points_of_record
from bookstore_grpc.dal.resume_tokens import ResumePoint, token_from_resume_point
from bookstore_grpc.errors import DatabaseUnavailable
from bookstore_grpc.limits import CHANGES_READ_MAX, EXISTING_READ_MAX, PAGE_MAX_CODE_POINTS


class WatchStart(Enum):
    """Where a watch without a resume token starts: with later changes, the earliest one kept, or the existing books."""

    NOW = "now"
    EARLIEST = "earliest"
    EXISTING = "existing"


def is_wanted_by(filter: str) -> Callable[[Change], bool]:
    """Return whether a book matches a filter before or after a change. Raises `InvalidFilter`."""
    parsed, values = parse_filter(filter, dialect="sqlite")  # its conditions are those of the others, in fewer columns
    if parsed.is_empty:
        return lambda _change: True
    is_met = parsed.condition.is_met

    def is_wanted(change: Change) -> bool:
        return is_met(change.record, values) or (change.previous is not None and is_met(change.previous, values))

    return is_wanted


class Watch:
    """One watch from a resume point on. Raises `InvalidFilter`."""

    def __init__(
        self,
        database: Database,
        reader: ChangeReader,
        *,
        head: Head,
        point: ResumePoint,
        is_within_call: bool,
        filter: str,
        checkpoint_seconds: float,
    ) -> None:
        self._database = database
        self._reader = reader
        self._log_id = head.log_id
        self._point = point
        self._is_within_call = is_within_call
        self._filter = filter
        self._is_wanted = is_wanted_by(filter)
        self._checkpoint_seconds = checkpoint_seconds
        self._sent_at = time.monotonic()

    @property
    def number(self) -> int:
        """The number of the change up to which the watch has sent all."""
        return self._point.position.number

    async def pages(self, tail: ChangeTail) -> AsyncGenerator[ChangePage]:
        """Yield pages, the first one at once. A page without changes is a checkpoint.

        Within the changes of a call the first page has those that are left of it, because the caller already has a part
        of the call, and would take a checkpoint for its end.

        Raises `ResumeTokenExpired`, `InvalidResumeToken`, `ResourceExhausted` if too many searches run, and
        `DatabaseUnavailable`.
        """
        if self._is_within_call:
            self._sent_at = -math.inf  # if the filter has become another, and nothing is left: a checkpoint at once
        else:
            yield self._page(())
        if self._point.after_id is not None:
            async with aclosing(self._existing_pages(self._point.after_id, tail)) as pages:
                async for page in pages:
                    yield page
        while True:
            # No name keeps the page while a slow caller makes this generator wait.
            yield await self._next_page(tail)

    async def _next_page(self, tail: ChangeTail) -> ChangePage:
        """Return the next wanted changes, or a checkpoint. What does not fit is read again."""
        while True:
            position = self._point.position
            changes = tail.after(position.number)
            if changes is None:
                await tail.take_turn(count=CHANGES_READ_MAX)
                changes = await self._reader.read_after(position)
                if not changes:
                    raise DatabaseUnavailable  # it was read from a former primary, which is behind
            if changes:
                await tail.take_turn(count=len(changes))
                part = first_part(changes, is_wanted=self._is_wanted)
                self._point = ResumePoint(part.position)
                if part.changes:
                    return self._page(part.changes, continues=part.continues)
            else:
                await tail.wait_after(position.number, seconds=max(0, self._checkpoint_at() - time.monotonic()))
            if self._is_checkpoint_due():
                return self._page(())

    async def _existing_pages(self, after_id: int, tail: ChangeTail) -> AsyncGenerator[ChangePage]:
        parsed, values = parse_filter(self._filter, dialect=self._database.dialect)
        statement = for_filter(_existing_statement, parsed)(parsed)
        has_more = True
        while has_more:
            await tail.take_turn(count=EXISTING_READ_MAX)
            position, records = await self._existing(
                statement, {"after_id": after_id, **values}, is_search=not parsed.is_empty
            )
            if after_id:
                async for part in self._parts_up_to(position.number, after_id):
                    self._point = ResumePoint(part.position, after_id)
                    if part.changes or self._is_checkpoint_due():
                        yield self._page(part.changes, continues=part.continues)
            has_more = len(records) == EXISTING_READ_MAX
            for some in _that_fit_into_pages(records):
                after_id = some[-1].id
                self._point = ResumePoint(position, after_id)
                if has_more or some[-1] is not records[-1]:
                    yield self._page([Change(ChangeType.EXISTING, record) for record in some])
        self._point = ResumePoint(position)
        yield self._page([Change(ChangeType.EXISTING, record) for record in some] if records else ())

    async def _existing(
        self, statement: Query, parameters: Mapping[str, object], *, is_search: bool
    ) -> tuple[Position, list[BookRecord]]:
        """Return some existing books, and the position in the log at the moment when they were read."""
        rows = await self._database.read(statement, parameters, is_search=is_search)
        number, time, *_ = rows[0]
        return Position(number or 0, time or 0), [BookRecord._make(row[2:]) for row in rows if row[2] is not None]

    async def _parts_up_to(self, number: int, last_id: int) -> AsyncGenerator[Part]:
        """Yield the wanted changes of books up to an id, from the current position on up to a number."""

        def is_wanted(change: Change) -> bool:
            return change.record.id <= last_id and self._is_wanted(change)

        position = self._point.position
        if position.number > number:
            await self._reader.verify(position)  # raises if the database has lost it
            # The books were read from a former primary, which is behind.
            raise DatabaseUnavailable
        while position.number < number:
            changes = [each for each in await self._reader.read_after(position) if each.number <= number]
            if not changes:
                raise DatabaseUnavailable  # these were read from a former primary
            for part in parts(changes, is_wanted=is_wanted):
                yield part
            position = Position.of(changes[-1])

    def _page(self, changes: Sequence[Change], *, continues: bool = False) -> ChangePage:
        self._sent_at = time.monotonic()
        token = token_from_resume_point(self._point, log_id=self._log_id, filter=self._filter)
        return ChangePage(changes, token, continues=continues, is_existing_sent=self._point.after_id is None)

    def _checkpoint_at(self) -> float:
        return self._sent_at + self._checkpoint_seconds

    def _is_checkpoint_due(self) -> bool:
        return time.monotonic() >= self._checkpoint_at()


def _that_fit_into_pages(records: Sequence[BookRecord]) -> Sequence[Sequence[BookRecord]]:
    pages: list[list[BookRecord]] = []
    code_points = PAGE_MAX_CODE_POINTS
    for record in records:
        code_points += code_points_of_record(record)
        if code_points > PAGE_MAX_CODE_POINTS:
            pages.append([])
            code_points = code_points_of_record(record)
        pages[-1].append(record)
    return pages


@lru_cache(maxsize=128)
def _existing_statement(filter: Filter) -> Query:
    """Return the statement that reads the next books that match a filter, and the position at that moment.

    It returns one row without a book if there are none.
    """
    matching = SELECT_BOOKS.where(Book.id > bindparam("after_id"), filter.condition.sql())
    found = matching.order_by(Book.id).limit(EXISTING_READ_MAX).subquery()
    with_position = select(*NEWEST.c, *found.c).join_from(ChangeLog, NEWEST, true(), isouter=True)
    return with_position.join(found, true(), isouter=True).order_by(found.c.id)
