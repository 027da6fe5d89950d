"""Driver errors to domain errors, in one table: by code, never by text."""

import sqlite3
from collections.abc import Iterator
from contextlib import contextmanager

from sqlalchemy import exc

from bookstore_grpc.errors import DatabaseUnavailable, StartupError
from bookstore_grpc.net.file_descriptors import named_exhaustion

# fmt: off
_POSTGRESQL_UNAVAILABLE: set[object] = {
    "08", "28", "3D", "53", "57", "58", "XX",  # connection, authorization, no database, resources, operator, system
    "25006", "25P03", "25P04",  # a transaction that may only read, or took too long
    "3F000", "42P01",  # the schema or the tables were dropped, as in a restore
    "42501", "55000", "55P03",  # a right that is missing, a database that takes no connections, lock not available
    "P0001",  # a trigger of the operator's rejects the write
}
_MARIADB_UNAVAILABLE: set[object] = {
    1021, 1114,  # disk or table full
    1015, 1016, 1017, 1023, 1024, 1026, 1028, 1030, 1878,  # a file that cannot be opened, read, written or sorted in
    1034, 1035, 1194, 1195, 1712, 1932,  # a table or an index is damaged
    1036, 1223, 1792,  # a table, a server or a transaction that is read-only
    1037, 1038, 1135, 1206, 1637,  # out of memory, threads, locks or transactions
    1047,  # a Galera node without quorum
    1040, 1041, 1203,  # too many connections, out of memory
    1044, 1045, 1049, 1129, 1130, 1698,  # access, no such database
    1142, 1143, 1226, 1227, 1370,  # rights on a table, a column and a routine, resource limits of an account
    1820, 1862, 4151,  # an expired password, a locked account
    1053, 1152, 1158, 1159, 1160, 1161, 1184, 1317, 1927,  # shutdown, network, connection or statement killed
    1146,  # the tables were dropped, as in a restore
    1644,  # a trigger of the operator's rejects the write
    1205, 1290, 1836,  # lock wait, read-only
    1969,  # the statement took too long
    2002, 2003, 2005, 2006, 2012, 2013, 2014, 2026, 2055, 4031,  # the client's own: connecting, losing the connection
    9001,  # of ProxySQL: no backend
}
# fmt: on

# The codes of a conflict between transactions, and those of a database that cannot serve now. Any other code is a
# defect of this service.
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

# Of those, the codes of a lost connection, which a new one can replace: closed by the server as idle, by an
# administrator, or by the network.
_LOST: dict[str, set[object]] = {
    "sqlite": set(),
    "postgresql": {"08", "57P01", "57P02", "57P05"},
    "mariadb": {1053, 1158, 1159, 1160, 1161, 1927, 2006, 2013, 2055, 4031},
}


class Conflict(DatabaseUnavailable):
    """A transaction conflicted with another; retried from its start it sees what the other has committed."""


class ConnectionLost(DatabaseUnavailable):
    """The connection was lost. What had not been committed has not happened."""


@contextmanager
def translated_errors(dialect: str) -> Iterator[None]:
    """Translate what the driver of this database raises into `DatabaseUnavailable` or a subclass; pass on the rest."""
    try:
        yield
    except (exc.DBAPIError, sqlite3.Error) as error:
        cause = error.orig if isinstance(error, exc.DBAPIError) else error
        codes = _codes(cause, dialect)
        if codes & _CONFLICT[dialect]:
            raise Conflict("The transaction met another one; try again.") from error
        if getattr(error, "connection_invalidated", False) or has_lost_connection(cause, dialect):
            raise ConnectionLost from error
        if codes & _UNAVAILABLE[dialect]:
            raise DatabaseUnavailable from named_exhaustion(error)
        raise
    except exc.TimeoutError as error:
        raise DatabaseUnavailable("Every connection to the database is busy; try again.") from error
    except OSError as error:
        if isinstance(error, TimeoutError) and not str(error):  # asyncio's, which drivers pass on
            error = TimeoutError("it did not respond in time")
        kind = ConnectionLost if has_lost_connection(error, dialect) else DatabaseUnavailable
        raise kind from named_exhaustion(error)


def has_lost_connection(error: BaseException | None, dialect: str) -> bool:
    """Return whether an error of a driver means that an established connection is lost."""
    if isinstance(error, OSError):
        # A timeout of the kernel has a number; one of asyncio or of a driver has none.
        is_timeout = isinstance(error, TimeoutError) and error.errno is not None
        return is_timeout or (isinstance(error, ConnectionError) and not isinstance(error, ConnectionRefusedError))
    return bool(_codes(error, dialect) & _LOST[dialect])


def driver_error(error: BaseException) -> BaseException:
    """Return the driver's error from which an error was translated, which says more; else the error itself."""
    cause = error.__cause__
    return getattr(cause, "orig", None) or cause or error


@contextmanager
def startup_errors(description: str) -> Iterator[None]:
    """Translate what keeps the service from starting on the database so described into `StartupError`.

    Its message includes the driver's, which is for the operator and never for a caller.
    """
    try:
        yield
    except DatabaseUnavailable as error:
        raise StartupError(f"Cannot use the database {description}: {_clause(driver_error(error))}.") from error
    except exc.SQLAlchemyError as error:
        cause = _clause(getattr(error, "orig", error))
        raise StartupError(f"Cannot use the database {description}: {cause}.") from error


def _clause(error: BaseException) -> str:
    return str(error).rstrip(".")


def _codes(error: BaseException | None, dialect: str) -> set[object]:
    """Return the codes under which an error of a driver may be listed: its own and its class's."""
    if dialect == "sqlite":
        code = getattr(error, "sqlite_errorcode", 0)
        return {code, code & 0xFF}
    if dialect == "postgresql":
        state = getattr(error, "sqlstate", None) or ""
        return {state, state[:2]}
    return set(error.args[:1]) if error else set()
