"""SQLAlchemy's statement cache key: statements that differ only in their values share one compilation.

SQLAlchemy uses it only within its own execution, and has no public interface for it. Tried on SQLAlchemy 2.1.0 and
2.1.9.
"""

from collections.abc import Hashable, Mapping, Sequence
from functools import lru_cache
from typing import Any

import sqlalchemy
from sqlalchemy import ClauseElement, Dialect, column, select
from sqlalchemy.dialects import sqlite
from sqlalchemy.sql.compiler import SQLCompiler
from sqlalchemy.util import LRUCache

from bookstore_grpc.errors import StartupError

_STATEMENTS_MAX, _SHAPES_MAX = 256, 512


class StatementCompiler:
    """Compiles statements for a dialect with positional parameters, and caches the compilations."""

    def __init__(self, dialect: Dialect) -> None:
        self._dialect = dialect
        self._shapes: LRUCache[Hashable, SQLCompiler] = LRUCache(_SHAPES_MAX)
        self._compiled = lru_cache(_STATEMENTS_MAX)(self._compile)

    @property
    def shapes(self) -> int:
        """The number of cached compilations."""
        return len(self._shapes)

    def compile(self, statement: ClauseElement, parameters: Mapping[str, object] | None) -> tuple[str, Sequence[Any]]:
        """Return the SQL of a statement and its parameters in order."""
        compiled, values = self._compiled(statement)
        if parameters:
            values = {**values, **parameters}
        if compiled.post_compile_params:  # of an IN, whose SQL depends on the number of values
            expanded = compiled.construct_expanded_state(values)
            return expanded.statement, expanded.positional_parameters
        processors: Mapping[str, Any] = compiled._bind_processors  # of types that no driver knows
        return compiled.string, [
            processors[name](values[name]) if name in processors else values[name]
            for name in compiled.positiontup or ()
        ]

    def _compile(self, statement: ClauseElement) -> tuple[SQLCompiler, Mapping[str, Any]]:
        """Return the compilation that a statement shares with others of its shape, and the values in the statement."""
        key = statement._generate_cache_key()
        if key is None:
            raise TypeError("SQLAlchemy has no cache key for this statement")
        compiled = self._shapes.get(key.key)
        if compiled is None:
            compiled = self._dialect.statement_compiler(self._dialect, statement, cache_key=key)
            self._shapes[key.key] = compiled
        return compiled, compiled.construct_params(extracted_parameters=key.bindparams, _check=False)


def check() -> None:
    """Raise `StartupError` unless two statements that differ in a value share a compilation and keep their values."""
    compiler = StatementCompiler(sqlite.dialect())
    name: Any = column("name")
    try:
        found = [tuple(compiler.compile(select(name).where(name == value), None)[1]) for value in ("one", "two")]
    except (AttributeError, LookupError, TypeError) as error:
        raise _unsupported() from error
    if found != [("one",), ("two",)] or compiler.shapes != 1:
        raise _unsupported()


def _unsupported() -> StartupError:
    return StartupError(f"SQLAlchemy {sqlalchemy.__version__} is not supported: its cache keys are different.")
