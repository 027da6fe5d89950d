"""The statements that read a page: one through the index of its order, or for a search the fastest ones first."""

from collections.abc import Callable, Sequence
from functools import cache, lru_cache
from typing import Any, NamedTuple

from sqlalchemy import (
    CTE,
    Column,
    ColumnElement,
    FromClause,
    Integer,
    Select,
    and_,
    bindparam,
    func,
    null,
    or_,
    select,
    true,
    tuple_,
    union_all,
)
from sqlalchemy.orm import InstrumentedAttribute
from sqlalchemy.sql.visitors import replacement_traverse

from bookstore_grpc.dal.conditions import Condition
from bookstore_grpc.dal.driver_reader import Rows
from bookstore_grpc.dal.filters import Filter, for_filter
from bookstore_grpc.dal.models import COLUMNS, ENTRY, SELECT_BOOKS, Book, Query, head_column, ordered_column
from bookstore_grpc.dal.paging import OrderTerm
from bookstore_grpc.dal.records import BookRecord
from bookstore_grpc.dal.search_index import FullTextLookup, Lookup

# Up to how many candidates of the search index are sorted (on PostgreSQL, of those that match): this many, and so many
# more for each book of the page. With a million books, reading along the index of the order finds a page of more of
# them as soon.
_CANDIDATES = 7_500
_CANDIDATES_PER_BOOK = 25
# How many rows along the index of the order may be read in vain before all candidates are sorted.
_ROWS_IN_ORDER = 20_000
# How many rows MariaDB may examine through indexes before it reads the whole table instead. If none of them is in
# memory, that takes half as long as reading a table of a million.
_ROWS_EXAMINED = 10_000
# The last row of a statement that has not given up.
_END = select(*(null() for _ in BookRecord._fields))
# Those of SQLite and PostgreSQL.
_COLUMNS = [column for column in Book.__table__.columns if "only_on" not in column.info]


class Attempt(NamedTuple):
    """A statement, and what returns the page's rows from those read with a limit, or None if it has given up.

    The statement is built when it is first needed. Its parameters are `limit`, the values of the filter and, on a later
    page, those of a position. It may also raise `StatementAborted`.
    """

    statement: Callable[[], Query]
    complete: Callable[[Rows, int], Rows | None]


def attempt(build: Callable[[], Query], complete: Callable[[Rows, int], Rows | None]) -> Attempt:
    """Return an attempt whose statement is built once."""
    return Attempt(cache(build), complete)


def always(rows: Rows, limit: int) -> Rows | None:
    """Return the rows of a statement that never gives up."""
    return rows


def _if_ended(rows: Rows, limit: int) -> Rows | None:
    # PostgreSQL may execute the parts of a UNION in parallel.
    books = [row for row in rows if row[0] is not None]
    return books if len(books) < len(rows) else None


def _if_full(rows: Rows, limit: int) -> Rows | None:
    return rows if len(rows) == limit else None


def is_search(filter: Filter, order: tuple[OrderTerm, ...]) -> bool:
    """Return whether reading a page may scan the table: it has a filter, or an order without an index.

    Each index covers one field and the id, in the same direction.
    """
    return not filter.is_empty or len(order) > 2 or len({term.descending for term in order}) > 1


@lru_cache(maxsize=128)
def page_attempts(
    filter: Filter, order: tuple[OrderTerm, ...], *, dialect: str, continued: bool
) -> tuple[Attempt, ...]:
    """Return what to read a page with: each attempt but the first is for when the one before it has given up.

    The last one never does.
    """
    keys = [_Key(name, column, term.descending) for term in order for name, column in _columns(term.field, dialect)]
    after = _after(keys, dialect=dialect) if continued else true()
    condition = filter.condition.sql()
    if filter.lookup:
        return _through_search_index(filter.lookup, keys, condition, after)
    if dialect == "mariadb" and is_search(filter, order) and order[0].field != "id":
        return _on_mariadb(keys, condition, after)
    return (attempt(lambda: _page(SELECT_BOOKS, keys, condition, after), always),)


@lru_cache(maxsize=128)
def entry_statement(filter: Filter, order: tuple[OrderTerm, ...], *, continued: bool) -> Query:
    """Return the statement of a page on SQLite, if there is one, that reads of each book its entry and its order."""
    ((statement, _),) = for_filter(page_attempts, filter)(filter, order, dialect="sqlite", continued=continued)
    columns: list[Any] = [ENTRY, *(COLUMNS[term.field] for term in order)]
    read: Select[Any] = statement().with_only_columns(*columns)  # type: ignore[union-attr]  # it is no union
    return read


class _Key(NamedTuple):
    """A column to order by."""

    name: str
    column: InstrumentedAttribute[Any] | ColumnElement[Any]
    descending: bool


def _columns(field: str, dialect: str) -> list[tuple[str, InstrumentedAttribute[Any]]]:
    # If an index covers only the head of a text, the order starts with the head, so that the index is used.
    head = head_column(field, dialect=dialect)
    return [*([(f"{field}_head", head)] if head is not None else []), (field, ordered_column(field, dialect=dialect))]


def _page(select: Select[Any], keys: Sequence[_Key], *conditions: ColumnElement[bool]) -> Select[Any]:
    order = (key.column.desc() if key.descending else key.column.asc() for key in keys)
    return select.where(*conditions).order_by(*order).limit(bindparam("limit"))


def _through_search_index(
    lookup: Lookup, keys: Sequence[_Key], condition: ColumnElement[bool], after: ColumnElement[bool]
) -> tuple[Attempt, ...]:
    """Return three attempts: sort what the index finds if it is little, read along the order, and sort all of it.

    Many candidates fill a page soon, unless most of them do not match, or are at the other end of the order.
    """
    if isinstance(lookup, FullTextLookup):
        few, sorted_all = _on_sqlite(lookup, keys, condition, after)
    else:
        few, sorted_all = _on_postgresql(lookup, keys, condition, after)
    return (
        attempt(few, _if_ended),
        attempt(lambda: _page_of_first_rows(keys, condition, after), _if_full),
        attempt(sorted_all, always),
    )


_Builders = tuple[Callable[[], Query], Callable[[], Query]]


def _on_sqlite(
    lookup: FullTextLookup, keys: Sequence[_Key], condition: ColumnElement[bool], after: ColumnElement[bool]
) -> _Builders:
    """Return what builds the first attempt, which counts the candidates before it reads them, and the last one."""

    def page_of(ids: Select[Any], *conditions: ColumnElement[bool]) -> Select[Any]:
        return _page(SELECT_BOOKS, keys, Book.id.in_(ids), *conditions, condition, after)

    def few() -> Query:
        return _if_few(lookup.ids(), lambda found, is_all: page_of(select(*found.columns), is_all))

    return few, lambda: page_of(lookup.ids())


def _on_postgresql(
    lookup: Condition, keys: Sequence[_Key], condition: ColumnElement[bool], after: ColumnElement[bool]
) -> _Builders:
    """Return what builds the first attempt, which counts the books that match, and the last one."""
    names = dict.fromkeys([*BookRecord._fields, *(key.name for key in keys)])
    matching = matching_on_postgresql(lookup, condition, after, names=list(names))

    def page_of(rows: FromClause, *conditions: ColumnElement[bool]) -> Select[Any]:
        return _page(_books_of(rows), [key._replace(column=rows.columns[key.name]) for key in keys], *conditions)

    return lambda: _if_few(matching, page_of), lambda: page_of(matching.subquery("matches"))


def _if_few(rows: Select[Any], page_of: Callable[[CTE, ColumnElement[bool]], Select[Any]]) -> Query:
    """Return the page of rows, with an end, or no row at all if there are many rows."""
    most: ColumnElement[int] = bindparam("limit", type_=Integer()) * _CANDIDATES_PER_BOOK + _CANDIDATES
    found = rows.limit(most + 1).cte("found").prefix_with("MATERIALIZED")
    is_all = select(func.count()).select_from(found).scalar_subquery() <= most
    return union_all(select(page_of(found, is_all).subquery()), _END.where(is_all))


def matching_on_postgresql(
    lookup: Condition, *conditions: ColumnElement[bool], names: Sequence[str] = ("id",)
) -> Select[Any]:
    """Return the selection of the candidates that meet conditions, with some columns.

    PostgreSQL reads a candidate to see whether it is one, so it had better be read only once.
    """
    # By itself, because it would be planned for the few rows of a limit.
    candidates = select(*_COLUMNS).where(lookup.sql()).cte("candidates").prefix_with("MATERIALIZED")
    matching = select(*(candidates.columns[name] for name in names))
    return matching.where(*(_of(candidates, condition) for condition in conditions))


def _page_of_first_rows(
    keys: Sequence[_Key], condition: ColumnElement[bool], after: ColumnElement[bool]
) -> Select[Any]:
    """Return a selection of those of the first rows that meet the condition, in their order."""
    rows = _page(select(*_COLUMNS), keys, after).limit(_ROWS_IN_ORDER).subquery()
    # Ordered again, SQLite would examine all of them before it returned the first.
    return _books_of(rows).where(_of(rows, condition)).limit(bindparam("limit"))


def _books_of(rows: FromClause) -> Select[Any]:
    return select(*(rows.columns[name] for name in BookRecord._fields))


def _of(rows: FromClause, condition: ColumnElement[bool]) -> ColumnElement[bool]:
    """Return a condition on books as one on rows that have their columns."""

    def column_of_rows(element: Any, **_options: Any) -> Any:
        return rows.columns[element.key] if isinstance(element, Column) else None

    return replacement_traverse(condition, {}, column_of_rows)


def _on_mariadb(
    keys: Sequence[_Key], condition: ColumnElement[bool], after: ColumnElement[bool]
) -> tuple[Attempt, ...]:
    """Return an attempt that uses indexes but gives up after some rows, and one that reads the whole table.

    MariaDB reads along the index of an order as if every row matched the filter, and takes a range of an index however
    long it is. It finds these rows in random places of the table, which takes much longer than reading all of it if
    they are many (docs/decisions/0003-author-head.md).
    """

    def limited() -> Query:
        page = _page(source, keys, condition, after).with_statement_hint(f"ROWS EXAMINED {_ROWS_EXAMINED}")
        # It leaves out the rest of a UNION once it has given up.
        return union_all(page, _END)

    has_index = len(keys) == 2 and keys[0].descending == keys[1].descending
    source = SELECT_BOOKS if has_index else _books_of_first_values(keys, condition, after)
    return (
        attempt(limited, _if_ended),
        attempt(lambda: _page(SELECT_BOOKS.with_hint(Book, "USE INDEX ()"), keys, condition, after), always),
    )


def _books_of_first_values(
    keys: Sequence[_Key], condition: ColumnElement[bool], after: ColumnElement[bool]
) -> Select[Any]:
    """Return a selection of the books whose first key is that of one of the first rows of the page.

    The page is among them. PostgreSQL and SQLite sort only rows with equal first keys by themselves.
    """
    first = keys[0].column
    found = _page(select(first.label("value")), keys[:1], condition, after).subquery()
    values = select(found.c.value).distinct().subquery()
    return SELECT_BOOKS.select_from(values.join(Book, first == values.c.value)).prefix_with("STRAIGHT_JOIN")


def _after(keys: Sequence[_Key], *, dialect: str) -> ColumnElement[bool]:
    columns = [key.column for key in keys]
    values = [bindparam(f"after_{key.name}", type_=key.column.type) for key in keys]
    directions = {key.descending for key in keys}
    # A row comparison is one index range on SQLite and PostgreSQL. MariaDB finds ranges only in ANDs and ORs.
    if len(directions) == 1 and dialect != "mariadb":
        row, position = tuple_(*columns), tuple_(*values)
        return row < position if directions == {True} else row > position
    condition: ColumnElement[bool] | None = None
    for key, value in reversed(list(zip(keys, values, strict=True))):
        beyond = key.column < value if key.descending else key.column > value
        condition = beyond if condition is None else or_(beyond, and_(key.column == value, condition))
    first, value = keys[0], values[0]
    bound = first.column <= value if first.descending else first.column >= value  # redundant, but an index range
    return and_(bound, condition)  # type: ignore[arg-type]  # there is always at least one key, the id
