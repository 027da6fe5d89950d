"""Statements of PostgreSQL whose parameters are arrays, so that one prepared statement serves any number of rows."""

from collections.abc import Mapping, Sequence
from typing import Any

from sqlalchemy import (
    ARRAY,
    Column,
    ColumnElement,
    Insert,
    String,
    Table,
    TableValuedAlias,
    Text,
    Update,
    any_,
    bindparam,
    func,
    insert,
    select,
    update,
)
from sqlalchemy.types import TypeEngine

_POSITION = "position"


def is_any_of(column: ColumnElement[Any], parameter: str) -> ColumnElement[bool]:
    """Return the condition that a column has one of the values of an array parameter."""
    return column == any_(bindparam(parameter, type_=ARRAY(_plain(column.type))))


def insert_arrays(table: Table, columns: Sequence[str]) -> Insert:
    """Return an INSERT of rows in the order of the arrays, so that generated keys ascend."""
    rows = _unnested({name: table.c[name] for name in columns})
    ordered = select(*(rows.c[name] for name in columns)).order_by(rows.c[_POSITION])
    return insert(table).from_select(list(columns), ordered)


def update_arrays(table: Table, columns: Sequence[str], *, keys: Mapping[str, Column[Any]]) -> Update:
    """Return an UPDATE of columns of the rows whose key columns have the values of the parameters named in `keys`."""
    rows = _unnested({name: table.c[name] for name in columns} | dict(keys))
    matches = [column == rows.c[parameter] for parameter, column in keys.items()]
    return update(table).where(*matches).values({name: rows.c[name] for name in columns})


def arrays(rows: Sequence[Mapping[str, object]]) -> Mapping[str, object]:
    """Return the parameters of `insert_arrays` and `update_arrays` from one mapping for each row."""
    return {_parameter(name): [row[name] for row in rows] for name in rows[0]}


def _unnested(columns: Mapping[str, Column[Any]]) -> TableValuedAlias:
    values = [bindparam(_parameter(name), type_=ARRAY(_plain(column.type))) for name, column in columns.items()]
    return func.unnest(*values).table_valued(*columns, with_ordinality=_POSITION, name="given").render_derived()


def _plain(type_: TypeEngine[Any]) -> TypeEngine[Any]:
    # A parameter is cast to its type, and a cast to a VARCHAR with a length would truncate.
    return Text() if isinstance(type_, String) else type_


def _parameter(name: str) -> str:
    # SQLAlchemy reserves the names of the columns for parameters of its own.
    return f"{name}_values"
