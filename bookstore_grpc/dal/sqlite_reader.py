"""Short reads of a SQLite file on the event loop's own thread: docs/decisions/0007."""

import sqlite3
from collections.abc import Callable, Hashable, Mapping, Sequence
from functools import lru_cache
from typing import Any

from sqlalchemy import Dialect, Select
from sqlalchemy.engine import URL
from sqlalchemy.sql.compiler import SQLCompiler
from sqlalchemy.util import LRUCache

# SQLite's virtual machine asks every so many steps whether to go on. A page of 1,000 books takes 10,000 to 25,000
# steps; 50,000 are about 2 ms, less than the messages of such a page take to build.
_STEPS = 2_000
_SPANS_OF_STEPS = 25
_STATEMENTS, _SHAPES = 256, 512
_BUSY_OR_INTERRUPTED = {sqlite3.SQLITE_BUSY, sqlite3.SQLITE_INTERRUPT}

Version = tuple[object, int]


class InlineReader:
    """Reads where the caller stands, without a hop to a thread, what takes at most about 2 ms.

    A hop costs several times what SQLite takes to find a book or a page. SQLAlchemy writes the SQL, once for all
    statements of a shape, and SQLite's own module runs it, for executing through SQLAlchemy costs as much again.
    Parameters and columns are numbers and texts, which need no conversion.
    """

    def __init__(self, url: URL, dialect: Dialect) -> None:
        self._url = url
        self._dialect = dialect
        self._connection: sqlite3.Connection | None = None
        self._spans = 0
        self._shapes: LRUCache[Hashable, tuple[SQLCompiler, list[str]]] = LRUCache(_SHAPES)
        self._compiled = lru_cache(_STATEMENTS)(self._compile)

    def rows(self, statement: Select[Any], parameters: Mapping[str, object] | None) -> Sequence[Any] | None:
        """Answer the rows of a statement, or None if it must be read elsewhere: it takes long, or has to wait.

        Raises `sqlite3.Error`.
        """
        compiled, values = self._compiled(statement)
        expanded = compiled.construct_expanded_state(values if parameters is None else {**values, **parameters})
        return self._fetch(expanded.statement, expanded.positional_parameters)

    def version(self) -> Version | None:
        """Answer what changes with every commit, or None where that would have to be waited for.

        Equal versions mean that nothing was committed in between, by whatever process
        (https://sqlite.org/pragma.html#pragma_data_version). Raises `sqlite3.Error`.
        """
        rows = self._fetch("PRAGMA data_version")
        # SQLite's number means nothing to another connection; and it is kept, so that no other can have its identity.
        return (self._connection, rows[0][0]) if rows else None

    def close(self) -> None:
        """Close the connection; the next read opens another."""
        if self._connection is not None:
            self._connection.close()
            self._connection = None

    def _compile(self, statement: Select[Any]) -> tuple[SQLCompiler, dict[str, object]]:
        """Answer the compiled statement, or one of the same shape, and the values that this one brings.

        Filters that differ only in their values share their SQL, as in SQLAlchemy's own engine.
        """
        key = statement._generate_cache_key()
        if key is None:
            raise TypeError("a statement that SQLAlchemy does not keep")
        shared = self._shapes.get(key.key)
        if shared is None:
            compiled = self._dialect.statement_compiler(self._dialect, statement, cache_key=key)
            shared = self._shapes[key.key] = (compiled, [bind.key for bind in key.bindparams])
        compiled, names = shared
        values = {
            name: bind.effective_value for name, bind in zip(names, key.bindparams, strict=True) if not bind.required
        }
        return compiled, values

    def _fetch(self, sql: str, parameters: Sequence[Any] = ()) -> Sequence[Any] | None:
        try:
            connection = self._connection or self._connect()
            self._spans = 0
            return connection.execute(sql, parameters).fetchall()
        except sqlite3.Error as error:
            # Also after an interruption: Python 3.11 does not give the statement back to its cache and would parse it
            # anew each time.
            self.close()
            if getattr(error, "sqlite_errorcode", 0) & 0xFF in _BUSY_OR_INTERRUPTED:
                return None
            raise

    def _connect(self) -> sqlite3.Connection:
        arguments, options = self._dialect.create_connect_args(self._url)
        connect: Callable[..., sqlite3.Connection] = sqlite3.connect  # its stub asks for more than a dialect tells
        connection = self._connection = connect(*arguments, **{**options, "timeout": 0, "isolation_level": None})
        connection.execute("PRAGMA query_only = ON")
        connection.set_progress_handler(self._takes_too_long, _STEPS)
        return connection

    def _takes_too_long(self) -> bool:
        self._spans += 1
        return self._spans > _SPANS_OF_STEPS
