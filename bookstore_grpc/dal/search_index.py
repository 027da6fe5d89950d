"""The search index: finds the few books that may match a filter, of which its condition then decides.

It contains the trigrams of the folded texts: on SQLite in the FTS5 table `books_search`, on PostgreSQL in a GIN index
of the extension pg_trgm. Triggers and the index keep it in step with the books, whoever writes them. MariaDB has none
(docs/decisions/0025-search-index.md).
"""

import re
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any, NamedTuple

from sqlalchemy import (
    ColumnElement,
    LargeBinary,
    Select,
    String,
    and_,
    bindparam,
    cast,
    column,
    func,
    literal_column,
    not_,
    select,
    table,
)
from sqlalchemy.orm import InstrumentedAttribute

from bookstore_grpc.dal.conditions import Condition, Values, all_of, any_of
from bookstore_grpc.dal.folding import SEPARATOR
from bookstore_grpc.dal.models import FOLDED_COLUMNS, Book
from bookstore_grpc.dal.records import BookRecord

_TRIGRAM = 3
# More of them find hardly fewer books, and each has to be looked up.
_TRIGRAMS_PER_NEEDLE = 4

_SEARCH = table("books_search", column("rowid"), column("books_search"))
# pg_trgm extracts no trigram from anything else, and would then read the whole index.
_WORD = re.compile(r"[^\W_]{3}")
# Of a shorter text all trigrams are looked up on PostgreSQL, because fewer than three could be without overlaps.
_SHORT = 3 * _TRIGRAM
# What a pattern of LIKE takes for a sign of its own.
_SIGN, _ESCAPED = re.compile(r"([\\%_])"), r"\\\1"
# The expression of PostgreSQL's index. A parameter in it would make it another one.
_SEARCHED_TEXT: ColumnElement[str] = literal_column(
    f"({' || chr(10) || '.join(f'books.{key}' for key in sorted(column.key for column in FOLDED_COLUMNS.values()))})",
    String(),
)


class Needle(NamedTuple):
    """The books with a folded text somewhere in their texts."""

    text: str


class Indexed(NamedTuple):
    """The books of a condition on a column that has an index of its own."""

    condition: Condition


class InAll(NamedTuple):
    """The books that are in all parts."""

    parts: tuple["Candidates", ...]


class InAny(NamedTuple):
    """The books that are in any part."""

    parts: tuple["Candidates", ...]


#: A set of books that indexes find. None stands for all books.
Candidates = Needle | Indexed | InAll | InAny


@dataclass(frozen=True, slots=True)
class FullTextLookup:
    """How SQLite finds candidates: by an expression of FTS5's MATCH, which is a parameter, and by other indexes."""

    match: str
    others: tuple[Condition, ...]

    def ids(self) -> Select[Any]:
        """Return the selection of the ids of all candidates."""
        by_text = select(_SEARCH.c.rowid).where(_SEARCH.c.books_search.op("MATCH")(bindparam(self.match)))
        if not self.others:
            return by_text
        by_others = (select(Book.id).where(other.sql()) for other in self.others)
        return select(by_text.union(*by_others).subquery().columns[0])


#: How a database finds candidates. PostgreSQL chooses the indexes for a condition.
Lookup = FullTextLookup | Condition


def needle(text: str, *, dialect: str) -> Candidates | None:
    """Return the books with a folded text somewhere in their texts, or None if the index does not find them."""
    match dialect:
        case "sqlite":
            is_indexed = len(text) >= _TRIGRAM
        case "postgresql":
            is_indexed = _WORD.search(text) is not None
        case _:
            is_indexed = False
    return Needle(text) if is_indexed else None


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


def lookup(candidates: Candidates | None, values: Values, *, dialect: str) -> Lookup | None:
    """Return how to find candidates, or None if the search index has no part in it. Adds the values for it."""
    if candidates is None or not _has_needle(candidates):
        return None
    if dialect == "postgresql":
        return _condition(candidates, values)
    match, others = _full_text(candidates)
    return FullTextLookup(values.add(match), others)


def is_incomplete(column: InstrumentedAttribute[str], *, dialect: str) -> ColumnElement[bool]:
    """Return the condition that a server of the previous version has stored a folded text (`searchable_text`)."""
    is_sqlite = dialect == "sqlite"
    length = func.length(cast(column, LargeBinary)) if is_sqlite else func.octet_length(column)
    code_points = func.length(column) if is_sqlite else func.char_length(column)
    return and_(length != code_points, not_(column.contains(SEPARATOR)))


def _has_needle(candidates: Candidates) -> bool:
    match candidates:
        case InAll(parts) | InAny(parts):
            return any(map(_has_needle, parts))
        case _:
            return isinstance(candidates, Needle)


def _condition(candidates: Candidates, values: Values) -> Condition:
    match candidates:
        case Needle(text):
            return _IsLike(values.add(_pattern(text)))
        case Indexed(condition):
            return condition
        case InAll(parts):
            return all_of([_condition(part, values) for part in parts])
        case InAny(parts):
            return any_of([_condition(part, values) for part in parts])


@dataclass(frozen=True, slots=True)
class _IsLike:
    """Is met if the searched texts are like a pattern."""

    value: str

    def sql(self) -> ColumnElement[bool]:
        """Return the SQL expression."""
        return _SEARCHED_TEXT.like(bindparam(self.value, type_=String()))

    def is_met(self, _book: BookRecord, _values: Mapping[str, Any]) -> bool:
        """Return True: every book is a candidate, of which the condition of the filter decides."""
        return True


def _pattern(text: str) -> str:
    """Return a pattern of LIKE for texts that contain a short text, or some trigrams of a long one in their order."""
    if len(text) < _SHORT:
        return f"%{_SIGN.sub(_ESCAPED, text)}%"
    return f"%{'%'.join(_some(_WORD.findall(text)))}%"


class _FullText(NamedTuple):
    """An expression of FTS5's MATCH, "" if there is none, and conditions that other indexes look up."""

    match: str
    others: tuple[Condition, ...] = ()


def _full_text(candidates: Candidates) -> _FullText:
    match candidates:
        case Needle(text):
            return _FullText(_match(text))
        case Indexed(condition):
            return _FullText("", (condition,))
        case InAny(parts):
            found = [_full_text(part) for part in parts]
            expressions = [each.match for each in found if each.match]
            return _FullText(_joined(" OR ", expressions), tuple(other for each in found for other in each.others))
        case InAll(parts):
            found = [_full_text(part) for part in parts if _has_needle(part)]
            expressions = [each.match for each in found if not each.others]
            # An intersection with other indexes is left to the condition of the filter.
            return _FullText(_joined(" AND ", expressions)) if expressions else found[0]


def _joined(operator: str, expressions: Sequence[str]) -> str:
    return f"({operator.join(expressions)})" if len(expressions) > 1 else "".join(expressions)


def _match(text: str) -> str:
    """Return the expression for some trigrams of a text. FTS5 has no phrases in an index with `detail=none`."""
    trigrams = [text[start : start + _TRIGRAM] for start in range(len(text) - _TRIGRAM + 1)]
    quoted = (f'"{trigram.replace(chr(34), 2 * chr(34))}"' for trigram in dict.fromkeys(_some(trigrams)))
    return _joined(" AND ", list(quoted))


def _some(trigrams: Sequence[str]) -> list[str]:
    """Return the trigrams of a text to look up, from all over it."""
    count = min(len(trigrams), _TRIGRAMS_PER_NEEDLE)
    return [trigrams[index * len(trigrams) // count] for index in range(count)]
