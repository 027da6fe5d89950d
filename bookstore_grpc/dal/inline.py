"""Short reads of a SQLite file on the event loop's own thread: docs/decisions/0007."""

import sqlite3
from collections.abc import Callable, Mapping, Sequence
from functools import lru_cache
from typing import Any

from sqlalchemy import Dialect, Select
from sqlalchemy.engine import URL
from sqlalchemy.sql.compiler import SQLCompiler

# SQLite's virtual machine asks every so many steps whether to go on. A page of 1,000 books takes 10,000 to 25,000
# steps; 50,000 are about 2 ms, less than the messages of such a page take to build.
_STEPS = 2_000
_SPANS_OF_STEPS = 25
_BUSY_OR_INTERRUPTED = {sqlite3.SQLITE_BUSY, sqlite3.SQLITE_INTERRUPT}


class InlineReader:
    """Reads where the caller stands, without a hop to a thread, what takes at most about 2 ms.

    A hop costs several times what SQLite takes to find a book or a page. SQLAlchemy writes the SQL, once for each
    statement, and SQLite's own module runs it, for executing through SQLAlchemy costs as much again. Parameters and
    columns are numbers and texts, which need no conversion.
    """

    def __init__(self, url: URL, dialect: Dialect) -> None:
        self._url = url
        self._dialect = dialect
        self._connection: sqlite3.Connection | None = None
        self._spans = 0

    def rows(self, statement: Select[Any], parameters: Mapping[str, object] | None) -> Sequence[Any] | None:
        """Answer the rows of a statement, or None if it must be read elsewhere: it takes long, or has to wait.

        Raises `sqlite3.Error`.
        """
        expanded = _compiled(statement, self._dialect).construct_expanded_state(dict(parameters or {}))
        try:
            connection = self._connection or self._connect()
            self._spans = 0
            return connection.execute(expanded.statement, expanded.positional_parameters).fetchall()
        except sqlite3.Error as error:
            # Also after an interruption: Python 3.11 does not give the statement back to its cache and would parse it
            # anew each time.
            self.close()
            if getattr(error, "sqlite_errorcode", 0) & 0xFF in _BUSY_OR_INTERRUPTED:
                return None
            raise

    def close(self) -> None:
        """Close the connection; the next read opens another."""
        if self._connection is not None:
            self._connection.close()
            self._connection = None

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


@lru_cache(maxsize=256)
def _compiled(statement: Select[Any], dialect: Dialect) -> SQLCompiler:
    compiled = statement.compile(dialect=dialect)
    assert isinstance(compiled, SQLCompiler)  # noqa: S101  what every statement but DDL becomes
    return compiled
