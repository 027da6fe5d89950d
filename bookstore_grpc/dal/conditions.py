"""The conditions of filters, in which every value is a parameter, as SQL and for a book in memory.

Conditions are trees that compare by content, so filters that differ only in their values have equal ones, and share the
statements made of them: building a statement takes longer than running most of them.
"""

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from functools import lru_cache
from operator import attrgetter, eq, ge, gt, le, lt, ne
from typing import Any, Protocol

from sqlalchemy import ColumnElement, Integer, String, and_, bindparam, false, func, not_, or_, true
from sqlalchemy.ext.compiler import compiles
from sqlalchemy.orm import InstrumentedAttribute
from sqlalchemy.sql.compiler import SQLCompiler
from sqlalchemy.sql.functions import FunctionElement

from bookstore_grpc.dal.folding import searchable_text
from bookstore_grpc.dal.models import Book
from bookstore_grpc.dal.records import FIELDS, BookRecord, Field

# Folded texts in memory, for all watchers with a filter.
_FOLDED_MAX = 1_024
_OPERATORS: dict[str, Callable[[Any, Any], Any]] = {"=": eq, "!=": ne, "<": lt, "<=": le, ">": gt, ">=": ge}

_Expression = ColumnElement[bool]


class Values(dict[str, object]):
    """Values by the names of their parameters."""

    def add(self, value: object) -> str:
        """Add a value and return the name of its parameter."""
        name = f"value_{len(self)}"
        self[name] = value
        return name


class Condition(Protocol):
    """What a book meets or does not. It is hashable. `column` is a key of `Book`, `value` the name of a parameter."""

    def sql(self) -> _Expression:
        """Return the SQL expression."""
        ...

    def is_met(self, book: BookRecord, values: Mapping[str, Any]) -> bool:
        """Return whether a book meets it, given the values of the parameters: the same as the SQL expression."""
        ...


@dataclass(frozen=True, slots=True)
class Not:
    """Is met if its condition is not."""

    condition: Condition

    def sql(self) -> _Expression:
        """Return the SQL expression."""
        return not_(self.condition.sql())

    def is_met(self, book: BookRecord, values: Mapping[str, Any]) -> bool:
        """Return whether a book meets it."""
        return not self.condition.is_met(book, values)


@dataclass(frozen=True, slots=True)
class AllOf:
    """Is met if all of its conditions are, and so if there are none."""

    conditions: tuple[Condition, ...]

    def sql(self) -> _Expression:
        """Return the SQL expression."""
        return and_(true(), *(each.sql() for each in self.conditions))

    def is_met(self, book: BookRecord, values: Mapping[str, Any]) -> bool:
        """Return whether a book meets it."""
        return all(each.is_met(book, values) for each in self.conditions)


@dataclass(frozen=True, slots=True)
class AnyOf:
    """Is met if one of its conditions is, and so not if there are none."""

    conditions: tuple[Condition, ...]

    def sql(self) -> _Expression:
        """Return the SQL expression."""
        return or_(false(), *(each.sql() for each in self.conditions))

    def is_met(self, book: BookRecord, values: Mapping[str, Any]) -> bool:
        """Return whether a book meets it."""
        return any(each.is_met(book, values) for each in self.conditions)


@dataclass(frozen=True, slots=True)
class Compares:
    """Is met if a column compares to a value."""

    column: str
    operator: str
    value: str

    def sql(self) -> _Expression:
        """Return the SQL expression, in which the parameter has the type of the column."""
        comparison: _Expression = _OPERATORS[self.operator](_column(self.column), bindparam(self.value))
        return comparison

    def is_met(self, book: BookRecord, values: Mapping[str, Any]) -> bool:
        """Return whether a book meets it."""
        return bool(_OPERATORS[self.operator](_value(book, self.column), values[self.value]))


@dataclass(frozen=True, slots=True)
class Contains:
    """Is met if a text contains another."""

    column: str
    value: str

    def sql(self) -> _Expression:
        """Return the SQL expression."""
        return _position(_column(self.column), bindparam(self.value, type_=String())) > 0

    def is_met(self, book: BookRecord, values: Mapping[str, Any]) -> bool:
        """Return whether a book meets it."""
        return values[self.value] in _value(book, self.column)


@dataclass(frozen=True, slots=True)
class EndsWith:
    """Is met if a text ends with another, whose length is a value too."""

    column: str
    value: str
    length: str

    def sql(self) -> _Expression:
        """Return the SQL expression."""
        end = _ending(_column(self.column), bindparam(self.length, type_=Integer()))
        return end == bindparam(self.value, type_=String())

    def is_met(self, book: BookRecord, values: Mapping[str, Any]) -> bool:
        """Return whether a book meets it."""
        return bool(_value(book, self.column).endswith(values[self.value]))


@dataclass(frozen=True, slots=True)
class IsPresent:
    """Is met if a text is not empty."""

    column: str

    def sql(self) -> _Expression:
        """Return the SQL expression."""
        return _column(self.column) != ""

    def is_met(self, book: BookRecord, values: Mapping[str, Any]) -> bool:
        """Return whether a book meets it."""
        return bool(_value(book, self.column))


ALWAYS: Condition = AllOf(())
NEVER: Condition = AnyOf(())


def all_of(conditions: Sequence[Condition]) -> Condition:
    """Return the condition that is met if all of some conditions are."""
    return conditions[0] if len(conditions) == 1 else AllOf(tuple(conditions))


def any_of(conditions: Sequence[Condition]) -> Condition:
    """Return the condition that is met if one of some conditions is."""
    return conditions[0] if len(conditions) == 1 else AnyOf(tuple(conditions))


def _column(key: str) -> InstrumentedAttribute[Any]:
    column: InstrumentedAttribute[Any] = getattr(Book, key)
    return column


def _value(book: BookRecord, key: str) -> Any:
    """Return the value of a column, as the database would compute it."""
    compute = _COMPUTED.get(key)
    return compute(book) if compute else getattr(book, key)


def _computed(name: str, field: Field) -> Mapping[str, Callable[[BookRecord], Any]]:
    """Return how to compute the columns that belong to a field. A sort key orders as its text does."""
    value_of = attrgetter(name)
    return {
        f"{name}_folded": lambda book: _folded(value_of(book)),
        f"{name}_head": lambda book: value_of(book)[: field.head_code_points],
        f"{name}_sort_key": value_of,
    }


_COMPUTED = {column: compute for name, field in FIELDS.items() for column, compute in _computed(name, field).items()}
_folded = lru_cache(_FOLDED_MAX)(searchable_text)


class _position(FunctionElement[int]):  # noqa: N801  reads as the SQL function it is
    """The position of one text in another, from 1, by exact comparison; 0 if it is absent."""

    type = Integer()
    inherit_cache = True


@compiles(_position)
def _compile_position(element: _position, compiler: SQLCompiler, **options: Any) -> str:
    name = "strpos" if compiler.dialect.name == "postgresql" else "instr"
    return f"{name}({compiler.process(element.clauses, **options)})"


class _ending(FunctionElement[str]):  # noqa: N801  reads as the SQL function it is
    """The given number of code points at the end of a text, or the whole text if it is shorter."""

    type = String()
    inherit_cache = True


@compiles(_ending)
def _compile_ending(element: _ending, compiler: SQLCompiler, **options: Any) -> str:
    return f"right({compiler.process(element.clauses, **options)})"


@compiles(_ending, "sqlite")
def _compile_ending_for_sqlite(element: _ending, compiler: SQLCompiler, **options: Any) -> str:
    column, length = element.clauses
    return compiler.process(func.substr(column, -length), **options)
