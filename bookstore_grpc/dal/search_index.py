"""The search index: finds the few books that may match a filter, of which its condition then decides.

It contains the trigrams of the folded texts: on SQLite in the FTS5 table `books_search`, on PostgreSQL in GIN indexes
of the extension pg_trgm. Triggers and indexes keep it in step with the books, whoever writes them. MariaDB has none
(docs/decisions/0025-search-index.md).
"""

import re
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any, NamedTuple

from sqlalchemy import ColumnElement, LargeBinary, Select, and_, bindparam, cast, column, func, not_, select, table
from sqlalchemy.orm import InstrumentedAttribute

from bookstore_grpc.dal.conditions import Condition, Values, all_of, any_of, is_like
from bookstore_grpc.dal.folding import SEPARATOR
from bookstore_grpc.dal.models import Book

_TRIGRAM = 3
# More of them find hardly fewer books, and each has to be looked up.
_TRIGRAMS_PER_NEEDLE = 4

_SEARCH = table("books_search", column("rowid"), column("books_search"))
# pg_trgm extracts no trigram from anything else, and would then read the whole index.
_WORD = re.compile(r"[^\W_]{3}")
# What a pattern of LIKE would take for a sign of its own.
_SIGN = re.compile("([/%_])")


class Needle(NamedTuple):
    """The books with a folded text in one of some columns."""

    text: str
    columns: tuple[str, ...]


class Indexed(NamedTuple):
    """The books of a condition on a column that has an index of its own."""

    condition: Condition


class InAll(NamedTuple):
    """The books that are in all parts."""

    parts: tuple["Candidates", ...]


class InAny(NamedTuple):
    """The books that are in any part."""

    parts: tuple["Candidates", ...]


#: A set of books that an index finds. None stands for all books.
Candidates = Needle | Indexed | InAll | InAny


@dataclass(frozen=True, slots=True)
class Lookup:
    """How indexes find candidates: by an expression of FTS5's MATCH, a parameter, and by conditions on `Book`."""

    match: str | None
    conditions: tuple[Condition, ...]

    def ids(self) -> Select[Any]:
        """Return the selection of the ids of all candidates, and maybe of other books."""
        ids = [select(Book.id).where(condition.sql()) for condition in self.conditions]
        if self.match:
            ids.append(select(_SEARCH.c.rowid).where(_SEARCH.c.books_search.op("MATCH")(bindparam(self.match))))
        first, *rest = ids
        return first if not rest else select(first.union(*rest).subquery().columns[0])


def needle(text: str, columns: Sequence[str], *, dialect: str) -> Candidates | None:
    """Return the books with a folded text in one of the columns, or None if the index does not find them."""
    is_indexed = {"sqlite": len(text) >= _TRIGRAM, "postgresql": _WORD.search(text) is not None}.get(dialect, False)
    return Needle(text, tuple(columns)) if is_indexed else None


def in_all(parts: Sequence[Candidates | None]) -> Candidates | None:
    """Return the books that are in all parts."""
    found = tuple(part for part in parts if part is not None)
    return InAll(found) if len(found) > 1 else found[0] if found else None


def in_any(parts: Sequence[Candidates | None]) -> Candidates | None:
    """Return the books that are in any part."""
    found = tuple(part for part in parts if part is not None)
    if len(found) < len(parts):
        return None
    return InAny(found) if len(found) > 1 else found[0]


def lookup(candidates: Candidates, values: Values, *, dialect: str) -> Lookup:
    """Return how to find candidates, and add the values of the parameters for it."""
    if dialect == "postgresql":
        return Lookup(None, (_condition(candidates, values),))
    match, others = _lookups(candidates)
    return Lookup(values.add(match) if match else None, others)


def is_incomplete(column: InstrumentedAttribute[str], *, dialect: str) -> ColumnElement[bool]:
    """Return the condition that a server of the previous version has stored a folded text (`searchable_text`)."""
    is_sqlite = dialect == "sqlite"
    length = func.length(cast(column, LargeBinary)) if is_sqlite else func.octet_length(column)
    code_points = func.length(column) if is_sqlite else func.char_length(column)
    return and_(length != code_points, not_(column.contains(SEPARATOR)))


def _condition(candidates: Candidates, values: Values) -> Condition:
    match candidates:
        case Needle(text, columns):
            pattern = values.add("%" + _SIGN.sub(r"/\1", text) + "%")
            return any_of([is_like(column, pattern) for column in columns])
        case Indexed(condition):
            return condition
        case InAll(parts):
            return all_of([_condition(part, values) for part in parts])
        case InAny(parts):
            return any_of([_condition(part, values) for part in parts])


class _Lookups(NamedTuple):
    """Where to look candidates up: by an expression of FTS5's MATCH if that is not "", and by other indexes."""

    match: str
    others: tuple[Condition, ...] = ()


def _lookups(candidates: Candidates) -> _Lookups:
    match candidates:
        case Needle(text):
            return _Lookups(_match(text))
        case Indexed(condition):
            return _Lookups("", (condition,))
        case InAny(parts):
            found = [_lookups(part) for part in parts]
            expressions = [each.match for each in found if each.match]
            return _Lookups(_joined(" OR ", expressions), tuple(other for each in found for other in each.others))
        case InAll(parts):
            found = [_lookups(part) for part in parts]
            expressions = [each.match for each in found if not each.others]
            # An intersection with other indexes is left to the condition of the filter.
            return _Lookups(_joined(" AND ", expressions)) if expressions else found[0]


def _joined(operator: str, expressions: Sequence[str]) -> str:
    return f"({operator.join(expressions)})" if len(expressions) > 1 else "".join(expressions)


def _match(text: str) -> str:
    """Return the expression for the trigrams of a text. FTS5 has no phrases in an index with `detail=none`."""
    starts = range(len(text) - _TRIGRAM + 1)
    step = -(-len(starts) // _TRIGRAMS_PER_NEEDLE)
    trigrams = dict.fromkeys(text[start : start + _TRIGRAM] for start in starts[::step])
    return _joined(" AND ", [f'"{trigram.replace(chr(34), 2 * chr(34))}"' for trigram in trigrams])
