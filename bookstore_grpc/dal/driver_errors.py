"""The table from driver errors to domain errors: by code, never by text."""

import sqlite3
from collections.abc import Iterator
from contextlib import contextmanager
from functools import cache

from sqlalchemy import exc

from bookstore_grpc.errors import DatabaseUnavailable, StartupError
from bookstore_grpc.net.file_descriptors import named_exhaustion

# fmt: off
_POSTGRESQL_UNAVAILABLE: set[object] = {
    "08", "28", "3D", "53", "57", "58", "XX",  # connection, authorization, no database, resources, operator, system
    "25P03", "25P04",  # a transaction that took too long
    "3F000", "42P01",  # the schema or the tables were dropped, as in a restore
    "42501", "55000", "55P03",  # a missing right, a database that accepts no connections, lock not available
    "P0001",  # an operator's trigger rejects the write
}
# The prepared statement is unknown, has been prepared by another client of a pooler, or has other columns since a
# migration. A new connection prepares it anew.
_POSTGRESQL_STALE_STATEMENT = {"26000", "42P05", "0A000"}
_MARIADB_UNAVAILABLE: set[object] = {
    1021, 1114,  # disk or table full
    1015, 1016, 1017, 1023, 1024, 1026, 1028, 1030, 1878,  # a file that cannot be opened, read, written or sorted in
    1034, 1035, 1194, 1195, 1712, 1932,  # a table or an index is damaged
    1036, 1223,  # a table that is read-only, or locked for reads
    1037, 1038, 1135, 1206, 1637,  # out of memory, threads, locks or transactions
    1047,  # a Galera node without quorum
    1040, 1041, 1203,  # too many connections, out of memory
    1044, 1045, 1049, 1129, 1130, 1698,  # access, no such database
    1142, 1143, 1226, 1227, 1370,  # rights on a table, a column and a routine, resource limits of an account
    1820, 1862, 4151,  # an expired password, a locked account
    1053, 1152, 1158, 1159, 1160, 1161, 1184, 1317, 1927,  # shutdown, network, connection or statement killed
    1146,  # the tables were dropped, as in a restore
    1644,  # an operator's trigger rejects the write
    1205,  # lock wait
    1969,  # the statement took too long
    2002, 2003, 2005, 2006, 2012, 2013, 2014, 2026, 2055, 4031,  # the client's own: connecting, losing the connection
    9001,  # ProxySQL: no backend
}
# fmt: on

# The codes of conflicts between transactions, and those of an unavailable database. Any other code is a defect of this
# service.
_CONFLICT: dict[str, set[object]] = {
    # https://www.sqlite.org/rescode.html
    "sqlite": {1555, 2067},
    # https://www.postgresql.org/docs/current/errcodes-appendix.html
    "postgresql": {"23505", "40001", "40P01"},
    # https://mariadb.com/kb/en/mariadb-error-codes/
    "mariadb": {1020, 1062, 1213, 1412},
}
_UNAVAILABLE: dict[str, set[object]] = {
    # Primary codes: permission, busy, locked, no memory, read-only, interrupted, I/O, damaged, full, cannot open,
    # protocol, no database.
    "sqlite": {3, 5, 6, 7, 8, 9, 10, 11, 13, 14, 15, 26},
    "postgresql": _POSTGRESQL_UNAVAILABLE,
    "mariadb": _MARIADB_UNAVAILABLE,
}

# Of those, the code of a statement that MariaDB has aborted while it sorted.
_ABORTED: dict[str, set[object]] = {"sqlite": set(), "postgresql": set(), "mariadb": {1028}}

# The codes of a lost connection, which a new one can replace: closed by the server because it was idle, by an
# administrator, or by a network failure.
_LOST: dict[str, set[object]] = {
    "sqlite": set(),
    "postgresql": {"08", "57P01", "57P02", "57P05", *_POSTGRESQL_STALE_STATEMENT},
    "mariadb": {1053, 1158, 1159, 1160, 1161, 1927, 2006, 2013, 2055, 4031},
}

# The codes of a write that was rejected because the server, such as a standby, or the session is read-only. A new
# connection may lead to the new primary.
_READ_ONLY: dict[str, set[object]] = {
    "sqlite": set(),
    "postgresql": {"25006"},
    "mariadb": {1290, 1792, 1836},
}


class Conflict(DatabaseUnavailable):
    """A transaction conflicted with another. Retried from its start, it sees what the other has committed."""


class ConnectionLost(DatabaseUnavailable):
    """The connection was lost. What had not been committed has not happened."""


class ReadOnly(DatabaseUnavailable):
    """The server or the session is read-only. Nothing was written."""

    def __init__(self, message: str = "The database is read-only at the moment; try again.") -> None:
        super().__init__(message)


class StatementAborted(DatabaseUnavailable):
    """MariaDB aborted a statement that sorts, because it examined too many rows, or the disk failed."""


@contextmanager
def translated_errors(dialect: str) -> Iterator[None]:
    """Translate driver errors into `DatabaseUnavailable` or a subclass. Other errors are raised unchanged."""
    try:
        yield
    except error_types(dialect) as error:
        cause = error.orig if isinstance(error, exc.DBAPIError) else error
        codes = _codes(cause, dialect)
        if codes & _CONFLICT[dialect]:
            raise Conflict("The transaction conflicted with another one; try again.") from error
        if codes & _READ_ONLY[dialect]:
            raise ReadOnly from error
        if getattr(error, "connection_invalidated", False) or has_lost_connection(cause, dialect):
            raise ConnectionLost from error
        if codes & _ABORTED[dialect]:
            raise StatementAborted from error
        if codes & _UNAVAILABLE[dialect]:
            raise DatabaseUnavailable from named_exhaustion(error)
        raise
    except exc.TimeoutError as error:
        raise DatabaseUnavailable("Every connection to the database is busy; try again.") from error
    except OSError as error:
        if isinstance(error, TimeoutError) and not str(error):  # asyncio's, raised through the driver
            error = TimeoutError(clause(error))
        kind = ConnectionLost if has_lost_connection(error, dialect) else DatabaseUnavailable
        raise kind from named_exhaustion(error)


@cache
def error_types(dialect: str) -> tuple[type[Exception], ...]:
    """Return the exceptions of SQLAlchemy and of a driver. Drivers are extras, so they are imported when needed."""
    types: tuple[type[Exception], ...] = (exc.DBAPIError, exc.EmulatedDBAPIException, sqlite3.Error)
    if dialect == "postgresql":
        import asyncpg  # type: ignore[import-untyped]

        return *types, asyncpg.PostgresError, asyncpg.InterfaceError
    if dialect == "mariadb":
        from asyncmy.errors import MySQLError

        return *types, MySQLError
    return types


def has_lost_connection(error: BaseException | None, dialect: str) -> bool:
    """Return whether a driver error means that an established connection is lost."""
    if isinstance(error, OSError):
        # Timeouts of the kernel have an errno; those of asyncio and of drivers have none.
        is_timeout = isinstance(error, TimeoutError) and error.errno is not None
        return is_timeout or (isinstance(error, ConnectionError) and not isinstance(error, ConnectionRefusedError))
    return bool(_codes(error, dialect) & _LOST[dialect])


def is_read_only(error: BaseException | None, dialect: str) -> bool:
    """Return whether a driver error means that the server or the session is read-only."""
    return bool(_codes(error, dialect) & _READ_ONLY[dialect])


def driver_error(error: BaseException) -> BaseException:
    """Return the driver error that an error was translated from, which is more specific; otherwise the error itself."""
    cause = error.__cause__
    return getattr(cause, "orig", None) or cause or error


@contextmanager
def startup_errors(description: str) -> Iterator[None]:
    """Translate database errors at the start into `StartupError`. `description` names the database in its message.

    The message includes the driver's, which is only for the operator and never sent to callers.
    """
    try:
        yield
    except DatabaseUnavailable as error:
        raise StartupError(f"Cannot use the database {description}: {clause(driver_error(error))}.") from error
    except exc.SQLAlchemyError as error:
        cause = clause(getattr(error, "orig", error))
        raise StartupError(f"Cannot use the database {description}: {cause}.") from error


def clause(error: BaseException) -> str:
    """Return the text of an error as a part of a sentence."""
    if str(error) or not isinstance(error, OSError):
        return str(error).rstrip(".")
    return "it did not respond in time" if isinstance(error, TimeoutError) else "it closed the connection"


def _codes(error: BaseException | None, dialect: str) -> set[object]:
    """Return the codes under which a driver error may be listed: its own and that of its class."""
    if dialect == "sqlite":
        code = getattr(error, "sqlite_errorcode", 0)
        return {code, code & 0xFF}
    if dialect == "postgresql":
        state = getattr(error, "sqlstate", None) or ""
        return {state, state[:2]}
    return set(error.args[:1]) if error else set()
