"""The conditions of filters, in which every value is a parameter.

Conditions are trees that compare by content, so filters that differ only in their values have equal ones, and share the
statements made of them: building a statement takes longer than running most of them.
"""

from collections.abc import Callable, Hashable, Sequence
from dataclasses import dataclass
from operator import eq, ge, gt, le, lt, ne
from typing import Any

from sqlalchemy import ColumnElement, Integer, String, and_, bindparam, false, func, not_, or_, true
from sqlalchemy.ext.compiler import compiles
from sqlalchemy.orm import InstrumentedAttribute
from sqlalchemy.sql.compiler import SQLCompiler
from sqlalchemy.sql.functions import FunctionElement

from bookstore_grpc.dal.models import Book

_OPERATORS: dict[str, Callable[[Any, Any], Any]] = {"=": eq, "!=": ne, "<": lt, "<=": le, ">": gt, ">=": ge}

_Expression = ColumnElement[bool]


class Values(dict[str, object]):
    """Values by the names of their parameters."""

    def add(self, value: object) -> str:
        """Add a value and return the name of its parameter."""
        name = f"value_{len(self)}"
        self[name] = value
        return name


@dataclass(frozen=True, slots=True)
class Predicate:
    """What `build` returns for some arguments: columns of `Book`, operators, and for values the names of parameters."""

    build: Callable[..., _Expression]
    arguments: tuple[Hashable, ...]

    def sql(self) -> _Expression:
        """Return the SQL expression."""
        return self.build(*self.arguments)


@dataclass(frozen=True, slots=True)
class Not:
    """Is met if its condition is not."""

    condition: "Condition"

    def sql(self) -> _Expression:
        """Return the SQL expression."""
        return not_(self.condition.sql())


@dataclass(frozen=True, slots=True)
class AllOf:
    """Is met if all of its conditions are, and so if there are none."""

    conditions: tuple["Condition", ...]

    def sql(self) -> _Expression:
        """Return the SQL expression."""
        return and_(true(), *(each.sql() for each in self.conditions))


@dataclass(frozen=True, slots=True)
class AnyOf:
    """Is met if one of its conditions is, and so not if there are none."""

    conditions: tuple["Condition", ...]

    def sql(self) -> _Expression:
        """Return the SQL expression."""
        return or_(false(), *(each.sql() for each in self.conditions))


Condition = Predicate | Not | AllOf | AnyOf

ALWAYS: Condition = AllOf(())
NEVER: Condition = AnyOf(())


def all_of(conditions: Sequence[Condition]) -> Condition:
    """Return the condition that is met if all of some conditions are."""
    return conditions[0] if len(conditions) == 1 else AllOf(tuple(conditions))


def any_of(conditions: Sequence[Condition]) -> Condition:
    """Return the condition that is met if one of some conditions is."""
    return conditions[0] if len(conditions) == 1 else AnyOf(tuple(conditions))


def compares(column: str, operator: str, value: str) -> Condition:
    """Return the condition that a column compares to a value."""
    return Predicate(_compares, (column, operator, value))


def contains(column: str, text: str) -> Condition:
    """Return the condition that a text contains another."""
    return Predicate(_contains, (column, text))


def ends_with(column: str, text: str, *, length: str) -> Condition:
    """Return the condition that a text ends with another of a length."""
    return Predicate(_ends_with, (column, text, length))


def is_present(column: str) -> Condition:
    """Return the condition that a text is not empty."""
    return Predicate(_is_present, (column,))


def _compares(column: str, operator: str, value: str) -> _Expression:
    # A parameter of a comparison has the type of the column.
    comparison: _Expression = _OPERATORS[operator](_column(column), bindparam(value))
    return comparison


def _contains(column: str, text: str) -> _Expression:
    return _position(_column(column), bindparam(text, type_=String())) > 0


def _ends_with(column: str, text: str, length: str) -> _Expression:
    return _ending(_column(column), bindparam(length, type_=Integer())) == bindparam(text, type_=String())


def _is_present(column: str) -> _Expression:
    return _column(column) != ""


def _column(key: str) -> InstrumentedAttribute[Any]:
    column: InstrumentedAttribute[Any] = getattr(Book, key)
    return column


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
