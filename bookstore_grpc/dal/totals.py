"""The statements that count books: all of them, which triggers do, or those that match a filter, up to a limit."""

from functools import lru_cache
from typing import Any

from sqlalchemy import Select, case, func, null, select

from bookstore_grpc.dal.driver_reader import Rows
from bookstore_grpc.dal.filters import Filter
from bookstore_grpc.dal.models import Book, BookCount, Query
from bookstore_grpc.dal.page_statements import Attempt, always, attempt, matching_on_postgresql
from bookstore_grpc.dal.records import BookTotal
from bookstore_grpc.dal.search_index import FullTextLookup
from bookstore_grpc.limits import TOTAL_MAX

# Up to how many candidates of it are looked up.
_CANDIDATES_MAX = 4 * TOTAL_MAX

#: Reads the number of all books, or NULL if the database permits no triggers, which would keep it.
COUNT_ALL: Query = select(func.sum(BookCount.count))


@lru_cache(maxsize=128)
def count_matching(filter: Filter) -> tuple[Attempt, ...]:
    """Return attempts to count the books that match a filter, up to one more than `TOTAL_MAX`.

    If there are two, the first counts among the candidates of SQLite's search index, and gives up if they are many.
    Then reading the table finds enough books soon.
    """
    condition, lookup = filter.condition, filter.lookup
    among_all = attempt(lambda: _number_of(select(Book.id).where(condition.sql())), always)
    if lookup is None:
        return (among_all,)
    if not isinstance(lookup, FullTextLookup):
        return (attempt(lambda: _number_of(matching_on_postgresql(lookup, condition.sql())), always),)

    def among_candidates() -> Query:
        found = lookup.ids().limit(_CANDIDATES_MAX + 1).cte("found")
        are_many = select(func.count()).select_from(found).scalar_subquery() > _CANDIDATES_MAX
        matching = select(Book.id).where(Book.id.in_(select(*found.columns)), condition.sql())
        return select(case((are_many, null()), else_=_number_of(matching).scalar_subquery()))

    return (attempt(among_candidates, _if_counted), among_all)


def _number_of(books: Select[Any]) -> Select[Any]:
    return select(func.count()).select_from(books.limit(TOTAL_MAX + 1).subquery())


def _if_counted(rows: Rows, limit: int) -> Rows | None:
    ((count,),) = rows
    return None if count is None else rows


def total_of_all(rows: Rows) -> BookTotal | None:
    """Return the total that `COUNT_ALL` has read, or None if it is not kept."""
    ((count,),) = rows
    return None if count is None else BookTotal(int(count))  # PostgreSQL and MariaDB return a decimal number


def total_of_matching(rows: Rows) -> BookTotal:
    """Return the total that an attempt of `count_matching` has read."""
    ((count,),) = rows
    return BookTotal(min(count, TOTAL_MAX), is_exceeded=count > TOTAL_MAX)
