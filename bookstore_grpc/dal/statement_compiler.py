"""Compiles statements to what a driver executes."""

from collections.abc import Mapping, Sequence
from functools import lru_cache
from typing import Any, NamedTuple

from sqlalchemy import ClauseElement, Dialect
from sqlalchemy.sql.compiler import SQLCompiler

from bookstore_grpc.limits import CACHED_VALUES_MAX

_STATEMENTS_MAX = 512


class _Compiled(NamedTuple):
    """A compilation, the values in the statement, and what converts values of types that the driver does not know."""

    compiler: SQLCompiler
    values: Mapping[str, Any]
    processors: Mapping[str, Any]


class StatementCompiler:
    """Compiles statements for a dialect with positional parameters, and caches the compilations.

    A statement of each kind is to be built once: what differs from call to call are its parameters.
    """

    def __init__(self, dialect: Dialect) -> None:
        self._dialect = dialect
        self._compiled = lru_cache(_STATEMENTS_MAX)(self._compile)

    def compile(self, statement: ClauseElement, parameters: Mapping[str, object] | None) -> tuple[str, Sequence[Any]]:
        """Return the SQL of a statement and its parameters in order. Raises `KeyError` if one has no value."""
        is_large = parameters is not None and len(parameters) > CACHED_VALUES_MAX
        compiler, values, processors = (self._compile if is_large else self._compiled)(statement)
        if parameters:
            values = {**values, **parameters}
        if compiler.post_compile_params:  # of an IN, whose SQL depends on the number of values
            expanded = compiler.construct_expanded_state(values)
            return expanded.statement, expanded.positional_parameters
        return compiler.string, [
            processors[name](values[name]) if name in processors else values[name]
            for name in compiler.positiontup or ()
        ]

    def _compile(self, statement: ClauseElement) -> _Compiled:
        compiler = self._dialect.statement_compiler(self._dialect, statement)
        types = {name: bind.type.dialect_impl(self._dialect) for name, bind in compiler.binds.items()}
        processors = {name: type_.bind_processor(self._dialect) for name, type_ in types.items()}
        values = {name: bind.effective_value for name, bind in compiler.binds.items() if not bind.required}
        return _Compiled(compiler, values, {name: each for name, each in processors.items() if each})
