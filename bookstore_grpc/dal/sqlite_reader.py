"""Short reads of a SQLite file on the event loop's own thread (docs/decisions/0007-inline-reads.md)."""

import sqlite3
from collections.abc import Callable, Mapping, Sequence
from typing import Any

from sqlalchemy import Dialect, Select
from sqlalchemy.engine import URL

from bookstore_grpc.compat import sqlalchemy as sqlalchemy_compat

# SQLite calls the progress handler every so many steps of its virtual machine. A page of 1,000 books takes 10,000 to
# 25,000 steps; 50,000 take about 2 ms, less than encoding the messages of such a page.
_STEPS_PER_CALL = 2_000
_CALLS_MAX = 25
_BUSY_OR_INTERRUPTED = {sqlite3.SQLITE_BUSY, sqlite3.SQLITE_INTERRUPT}

Version = tuple[object, int]


class InlineReader:
    """Reads on the caller's own thread what takes at most about 2 ms.

    Handing a read to a thread costs several times what SQLite takes to find a book or a page. SQLAlchemy compiles the
    SQL, once for all statements of a shape, and the `sqlite3` module executes it, for SQLAlchemy's execution costs as
    much again. Parameters and columns are numbers and texts, which need no conversion.
    """

    def __init__(self, url: URL, dialect: Dialect) -> None:
        sqlalchemy_compat.check()
        self._url = url
        self._dialect = dialect
        self._compiler = sqlalchemy_compat.StatementCompiler(dialect)
        self._connection: sqlite3.Connection | None = None
        self._progress_calls = 0

    def rows(self, statement: Select[Any], parameters: Mapping[str, object] | None) -> Sequence[Any] | None:
        """Return the rows of a statement, or None if it must be read elsewhere: it takes long, or has to wait.

        Raises `sqlite3.Error`.
        """
        return self._fetch(*self._compiler.compile(statement, parameters))

    def version(self) -> Version | None:
        """Return a value that changes with every commit of any process, or None if that would have to wait.

        See https://sqlite.org/pragma.html#pragma_data_version. Raises `sqlite3.Error`.
        """
        rows = self._fetch("PRAGMA data_version")
        # The number has no meaning on another connection. The version keeps a reference to its connection, so that no
        # later one can have the same identity.
        return (self._connection, rows[0][0]) if rows else None

    def close(self) -> None:
        """Close the connection; the next read opens another."""
        if self._connection is not None:
            self._connection.close()
            self._connection = None

    def _fetch(self, sql: str, parameters: Sequence[Any] = ()) -> Sequence[Any] | None:
        try:
            connection = self._connection or self._connect()
            self._progress_calls = 0
            return connection.execute(sql, parameters).fetchall()
        except sqlite3.Error as error:
            # Also after an interruption: Python 3.11 does not return the statement to its cache, and would parse it
            # each time.
            self.close()
            if getattr(error, "sqlite_errorcode", 0) & 0xFF in _BUSY_OR_INTERRUPTED:
                return None
            raise

    def _connect(self) -> sqlite3.Connection:
        arguments, options = self._dialect.create_connect_args(self._url)
        connect: Callable[..., sqlite3.Connection] = sqlite3.connect  # its stub is stricter than what a dialect returns
        connection = self._connection = connect(*arguments, **{**options, "timeout": 0, "isolation_level": None})
        connection.execute("PRAGMA query_only = ON")
        connection.set_progress_handler(self._takes_too_long, _STEPS_PER_CALL)
        return connection

    def _takes_too_long(self) -> bool:
        self._progress_calls += 1
        return self._progress_calls > _CALLS_MAX
