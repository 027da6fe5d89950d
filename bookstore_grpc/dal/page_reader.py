"""Reads the pages of ListBooks, and how many books there are on all of them."""

from collections.abc import Awaitable, Callable, Mapping, Sequence
from contextlib import suppress
from operator import itemgetter

from bookstore_grpc.dal.database import Database
from bookstore_grpc.dal.driver_errors import StatementAborted
from bookstore_grpc.dal.driver_reader import Rows
from bookstore_grpc.dal.filters import for_filter, parse_filter
from bookstore_grpc.dal.page_statements import Attempt, entry_statement, is_search, page_attempts
from bookstore_grpc.dal.paging import (
    page_token_from_record,
    page_token_from_values,
    parse_order_by,
    position_from_page_token,
)
from bookstore_grpc.dal.records import FIELDS, BookPage, BookRecord, BookTotal, Encode, FieldType
from bookstore_grpc.dal.totals import COUNT_ALL, count_matching, total_of_all, total_of_matching
from bookstore_grpc.limits import PAGE_MAX_CODE_POINTS

_TEXTS_MAX_CODE_POINTS = sum(field.max_code_points for field in FIELDS.values())
_TEXTS = [itemgetter(index) for index, name in enumerate(BookRecord._fields) if FIELDS[name].type is FieldType.TEXT]


class PageReader:
    """Reads pages from a database. `encode` is that of `BookDAL`, and `observed` awaits each read."""

    def __init__(
        self, database: Database, *, encode: Encode | None, observed: Callable[[Awaitable[Rows]], Awaitable[Rows]]
    ) -> None:
        self._database = database
        self._encode = encode
        self._observed = observed
        self._reads_entries = encode is not None and database.is_embedded

    async def read(self, *, page_size: int, page_token: str, filter: str, order_by: str) -> BookPage:
        """Return a page. Raises what `BookDAL.list_books` does."""
        order = parse_order_by(order_by)
        position = position_from_page_token(page_token, filter=filter, order=order) if page_token else {}
        parsed, values = parse_filter(filter, dialect=self._database.dialect)
        attempts = for_filter(page_attempts, parsed)(
            parsed, order, dialect=self._database.dialect, continued=bool(position)
        )
        limit = page_size + 1
        parameters = {"limit": limit, **values, **position}
        reads_much = is_search(parsed, order)
        if self._reads_entries and len(attempts) == 1:
            statement = for_filter(entry_statement, parsed)(parsed, order, continued=bool(position))
            rows = await self._observed(self._database.read(statement, parameters, is_search=reads_much))
            entries = [row[0] for row in rows[:page_size]]
            if _are_entries_of_a_page(entries):
                if len(rows) < limit:
                    return BookPage(entries, "")
                return BookPage(entries, page_token_from_values(rows[page_size - 1][1:], filter=filter, order=order))
        rows = await self._read_until_complete(attempts, parameters, limit=limit, is_search=reads_much)
        records = _first_that_fit([BookRecord._make(row) for row in rows[:page_size]])
        books = [self._encode(record) for record in records] if self._encode else records
        if len(records) == len(rows):
            return BookPage(books, "")
        return BookPage(books, page_token_from_record(records[-1], filter=filter, order=order))

    async def count(self, filter: str) -> BookTotal:
        """Return how many books match a filter. Raises `InvalidFilter`."""
        parsed, values = parse_filter(filter, dialect=self._database.dialect)
        if parsed.is_empty:
            total = total_of_all(await self._observed(self._database.read(COUNT_ALL)))
            if total:
                return total
        attempts = for_filter(count_matching, parsed)(parsed)
        return total_of_matching(await self._read_until_complete(attempts, values, is_search=True))

    async def _read_until_complete(
        self,
        attempts: Sequence[Attempt],
        parameters: Mapping[str, object],
        *,
        limit: int = 0,
        is_search: bool,
    ) -> Rows:
        # SQLite's full-text index cannot be interrupted after some steps.
        is_inline = len(attempts) == 1
        for attempt in attempts[:-1]:
            with suppress(StatementAborted):
                read = self._database.read(attempt.statement(), parameters, is_search=is_search, is_inline=is_inline)
                rows = attempt.complete(await self._observed(read), limit)
                if rows is not None:
                    return rows
        last = self._database.read(attempts[-1].statement(), parameters, is_search=is_search, is_inline=is_inline)
        return await self._observed(last)


def _are_entries_of_a_page(entries: Sequence[bytes | None]) -> bool:
    """Return whether none is missing, and all fit into a page: a text has at most as many code points as bytes."""
    return None not in entries and sum(map(len, entries)) <= PAGE_MAX_CODE_POINTS  # type: ignore[arg-type]


def _first_that_fit(records: list[BookRecord]) -> list[BookRecord]:
    """Return the leading records whose texts fit into a page, but at least one."""
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
