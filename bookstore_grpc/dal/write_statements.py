"""The statements of the write batch for each database, built once."""

from collections.abc import Awaitable, Callable, Mapping, Sequence
from functools import cache
from typing import Any, NamedTuple

from sqlalchemy import ColumnElement, Executable, bindparam, delete, insert, select, update
from sqlalchemy.dialects import mysql
from sqlalchemy.ext.asyncio import AsyncConnection
from sqlalchemy.sql.compiler import SQLCompiler

from bookstore_grpc.dal.array_statements import arrays, insert_arrays, is_any_of, update_arrays
from bookstore_grpc.dal.models import ENTRY, ENTRY_FIELDS, FOLDED_COLUMNS, SELECT_BOOKS, Book, CreateRequest
from bookstore_grpc.dal.records import FIELDS

_Rows = Sequence[Mapping[str, object]]

_BOOKS = Book.metadata.tables[Book.__tablename__]
_REQUESTS = Book.metadata.tables[CreateRequest.__tablename__]
_CHANGING = [
    *(field.name for field in FIELDS.values() if field.is_settable),
    *(column.key for column in FOLDED_COLUMNS.values()),
    "update_time",
]


class WriteStatements(NamedTuple):
    """The statements for one database.

    Selections take `request_ids` or `ids`, in the form that `keys` returns. The parameters of an INSERT are what `rows`
    makes of one mapping for each row. That of books returns their ids: in the order of the rows if `is_insert_ordered`,
    otherwise ascending with them. SQLite has none, because `sqlite_insert` chooses the ids. `update_books` takes rows
    that name the id `book_id`.
    """

    get_requests: Executable
    get_books: Executable
    insert_books: Executable | None
    insert_requests: Executable
    update_books: Callable[[AsyncConnection, _Rows], Awaitable[object]]
    delete_books: Executable
    rows: Callable[[_Rows], Any]
    keys: Callable[[Sequence[Any]], Sequence[Any]]
    is_insert_ordered: bool = False


def _selections(is_one_of: Callable[[Any, str], ColumnElement[bool]]) -> dict[str, Any]:
    requests = select(CreateRequest).with_only_columns(*_REQUESTS.columns)
    # Every batch locks rows in the order of their ids, so that two batches cannot deadlock.
    books = SELECT_BOOKS.order_by(Book.id).with_for_update()
    return {
        "get_requests": requests.where(is_one_of(CreateRequest.request_id, "request_ids")),
        "get_books": books.where(is_one_of(Book.id, "ids")),
        "delete_books": delete(Book).where(is_one_of(Book.id, "ids")),
    }


def _padded(keys: Sequence[Any]) -> Sequence[Any]:
    """Repeat the last key up to a power of two, so that few prepared statements suffice for batches of every size."""
    return [*keys, *[keys[-1]] * ((1 << (len(keys) - 1).bit_length()) - len(keys))]


_UPDATE = update(Book).where(Book.id == bindparam("book_id"))
_CHANGING_ON_SQLITE = [*_CHANGING, ENTRY.key, ENTRY_FIELDS.key]
# SQLite names the columns of VALUES itself.
_ROW = f"({', '.join('?' * (1 + len(_CHANGING_ON_SQLITE)))})"
_ASSIGNMENTS = ", ".join(f"{name} = given.column{index}" for index, name in enumerate(_CHANGING_ON_SQLITE, start=2))
_UPDATE_ARRAYS = update_arrays(_BOOKS, _CHANGING, keys={"book_id": _BOOKS.c.id})


async def _update_by_values(connection: AsyncConnection, rows: _Rows) -> None:
    """Execute one statement for all rows: after each statement SQLite would write its search index."""
    values = tuple(row[name] for row in rows for name in ("book_id", *_CHANGING_ON_SQLITE))
    await connection.exec_driver_sql(
        f"UPDATE books SET {_ASSIGNMENTS} FROM (VALUES {', '.join([_ROW] * len(rows))}) AS given "  # noqa: S608  constants
        "WHERE books.id = given.column1",
        values,
    )


async def _update_by_arrays(connection: AsyncConnection, rows: _Rows) -> None:
    await connection.execute(_UPDATE_ARRAYS, arrays(rows))


async def _update_in_block(connection: AsyncConnection, rows: _Rows) -> None:
    """Send all statements in one round trip, where MariaDB's driver would make one for each row."""
    compiled = _compiled_update()
    block = f"BEGIN NOT ATOMIC {'; '.join([compiled.string] * len(rows))}; END"
    await connection.exec_driver_sql(block, tuple(row[name] for row in rows for name in compiled.positiontup or ()))


@cache
def _compiled_update() -> SQLCompiler:
    return _UPDATE.compile(dialect=mysql.dialect(paramstyle="format"), column_keys=_CHANGING)


_BY_VALUES = WriteStatements(
    **_selections(lambda column, name: column.in_(bindparam(name, expanding=True))),
    insert_books=None,
    insert_requests=insert(CreateRequest),
    update_books=_update_by_values,
    rows=list,
    keys=_padded,
)
_BY_ARRAYS = WriteStatements(
    **_selections(is_any_of),
    insert_books=insert_arrays(_BOOKS, [*_CHANGING, "create_time"]).returning(Book.id),
    insert_requests=insert_arrays(_REQUESTS, _REQUESTS.columns.keys()),
    update_books=_update_by_arrays,
    rows=arrays,
    keys=list,
)
#: By the name of the dialect. PostgreSQL numbers the rows of an INSERT in their order.
WRITE_STATEMENTS = {
    "sqlite": _BY_VALUES,
    "postgresql": _BY_ARRAYS,
    "mariadb": _BY_VALUES._replace(
        insert_books=insert(Book).returning(Book.id, sort_by_parameter_order=True),
        is_insert_ordered=True,
        update_books=_update_in_block,
    ),
}
