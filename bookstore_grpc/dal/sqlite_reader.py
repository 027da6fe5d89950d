"""Short reads of a SQLite file on the event loop's own thread (docs/decisions/0007-inline-sqlite-reads.md)."""

import math
import sqlite3
import time
from collections.abc import Callable, Mapping, Sequence
from typing import Any

from sqlalchemy import ClauseElement, Dialect
from sqlalchemy.engine import URL

from bookstore_grpc.dal.sqlite_file import SqliteFile
from bookstore_grpc.dal.statement_compiler import StatementCompiler

# SQLite calls the progress handler after this many steps of its virtual machine. A page of 1,000 books takes 10,000 to
# 25,000 steps; 50,000 take about 2 ms, less than encoding the messages of such a page.
_STEPS_PER_CALL = 2_000
_CALLS_MAX = 25
# A read may be of a file that was removed or replaced this long ago. A write checks the file itself.
_FILE_CHECK_SECONDS = 0.01
_BUSY_OR_INTERRUPTED = {sqlite3.SQLITE_BUSY, sqlite3.SQLITE_INTERRUPT}

Version = tuple[object, int]


class InlineReader:
    """Runs reads of up to about 2 ms on the caller's thread (inline reads).

    A thread switch costs several times what SQLite needs to find a book or a page. SQLAlchemy compiles the SQL, and the
    `sqlite3` module executes it, because executing it with SQLAlchemy would double the cost. Parameters and columns are
    numbers and texts, which need no conversion.

    Every method that reads raises `sqlite3.Error`, and what `file` raises once it is no longer the remembered one.
    """

    def __init__(self, url: URL, dialect: Dialect, file: SqliteFile) -> None:
        self._url = url
        self._file = file
        self._file_checked_at = -math.inf
        self._dialect = dialect
        self.compile = StatementCompiler(dialect).compile
        self._connection: sqlite3.Connection | None = None
        self._progress_calls = 0

    def rows(self, statement: ClauseElement, parameters: Mapping[str, object] | None) -> Sequence[Any] | None:
        """Return the rows of a statement, or None if it must run in a thread, because it takes long or has to wait."""
        return self._fetch(*self.compile(statement, parameters))

    def version(self) -> Version | None:
        """Return a value that changes with every commit of any process, or None if that would have to wait.

        See https://sqlite.org/pragma.html#pragma_data_version.
        """
        rows = self._fetch("PRAGMA data_version")
        # The number is meaningful only for its connection. The version keeps a reference to the connection, so that no
        # later connection can have the same identity.
        return (self._connection, rows[0][0]) if rows else None

    def close(self) -> None:
        """Close the connection; the next read opens another."""
        if self._connection is not None:
            self._connection.close()
            self._connection = None

    def _fetch(self, sql: str, parameters: Sequence[Any] = ()) -> Sequence[Any] | None:
        try:
            # Before a new connection too, because SQLite would create a missing file.
            if self._connection is None or time.monotonic() > self._file_checked_at + _FILE_CHECK_SECONDS:
                self._file.require_same()
                self._file_checked_at = time.monotonic()
            connection = self._connection or self._connect()
            self._progress_calls = 0
            return connection.execute(sql, parameters).fetchall()
        except sqlite3.Error as error:
            # Also after an interruption: Python 3.11 would not return the statement to its cache, and so parse it again
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
