"""The INSERTs of the write batch on SQLite: ids that the caller chooses, and all rows in one call of the driver.

While a statement runs, other threads have the interpreter, and a driver's `executemany` takes it back for each row. So
the rows are the parameters of one statement. There is one of each power of two, which leaves out rows that are NULL.
"""

from collections.abc import Iterable, Sequence
from functools import cache
from operator import attrgetter
from typing import NamedTuple

from sqlalchemy.ext.asyncio import AsyncConnection

from bookstore_grpc.dal.folding import searchable_text
from bookstore_grpc.dal.models import ENTRY, ENTRY_FIELDS, FOLDED_COLUMNS, Book, CreateRequest
from bookstore_grpc.dal.records import BookRecord, Encode
from bookstore_grpc.dal.sqlite_entries import FIELDS_OF_ENTRY

# SQLite's limit on parameters is 32,766 by default.
_ROWS_MAX = 1_024
# The counter of AUTOINCREMENT, which SQLite raises to the highest id of an INSERT.
_HIGHEST_ID = (
    "SELECT max(coalesce((SELECT seq FROM sqlite_sequence WHERE name = 'books'), 0), "
    "coalesce((SELECT max(id) FROM books), 0))"
)
_searchable = attrgetter(*FOLDED_COLUMNS)

_Row = Sequence[object]


class _Target(NamedTuple):
    """A table and its columns in the order of the values of a row, the first of which are not NULL."""

    table: str
    columns: tuple[str, ...]


_BOOKS = _Target(
    Book.__tablename__,
    (*BookRecord._fields, *(column.key for column in FOLDED_COLUMNS.values()), ENTRY.key, ENTRY_FIELDS.key),
)
_REQUESTS = _Target(CreateRequest.__tablename__, ("request_id", "book_id", "digest", "create_time"))


async def next_book_id(connection: AsyncConnection) -> int:
    """Return the id of the next book. No other transaction takes it, because only one can write."""
    (highest,) = (await connection.exec_driver_sql(_HIGHEST_ID)).one()
    return int(highest) + 1


async def insert_records(connection: AsyncConnection, records: Iterable[BookRecord], encode: Encode | None) -> None:
    """Insert books with their ids, and with their entries if they can be encoded."""
    rows = [
        (*record, *map(searchable_text, _searchable(record)), encode(record) if encode else None, FIELDS_OF_ENTRY)
        for record in records
    ]
    await _insert(connection, _BOOKS, rows)


async def insert_requests(connection: AsyncConnection, rows: Sequence[_Row]) -> None:
    """Insert idempotency keys: of each its digits, the id of its book, the digest and the time of the create."""
    await _insert(connection, _REQUESTS, rows)


async def _insert(connection: AsyncConnection, target: _Target, rows: Sequence[_Row]) -> None:
    for start in range(0, len(rows), _ROWS_MAX):
        some = rows[start : start + _ROWS_MAX]
        size = 1 << (len(some) - 1).bit_length()
        values = [value for row in some for value in row]
        values += [None] * ((size - len(some)) * len(target.columns))
        await connection.exec_driver_sql(_statement(target, size), tuple(values))


@cache
def _statement(target: _Target, rows: int) -> str:
    row = f"({', '.join('?' * len(target.columns))})"
    parts = [f"INSERT INTO {target.table} ({', '.join(target.columns)})"]
    values = f"VALUES {', '.join([row] * rows)}"
    parts += [values] if rows == 1 else ["SELECT * FROM (", values, ") WHERE column1 IS NOT NULL"]
    return " ".join(parts)
