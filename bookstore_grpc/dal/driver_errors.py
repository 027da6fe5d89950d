"""The one place where what drivers raise becomes a domain error: by code, never by text."""

import sqlite3
from collections.abc import Iterator
from contextlib import contextmanager

from sqlalchemy import exc

from bookstore_grpc.descriptors import named_exhaustion
from bookstore_grpc.errors import DatabaseUnavailable, StartupError

# fmt: off
_MARIADB_UNAVAILABLE: set[object] = {
    1021, 1114,  # disk or table full
    1040, 1041, 1203,  # too many connections, out of memory
    1044, 1045, 1049, 1129, 1130, 1698,  # access, no such database
    1142, 1143, 1226, 1227, 1370,  # rights on a table, a column and a routine, what an account may use up
    1820, 1862, 4151,  # a password that is too old, an account that is locked
    1053, 1158, 1159, 1160, 1161, 1927,  # shutdown, network, connection killed
    1205, 1290, 1836,  # lock wait, read-only
    1969,  # the statement took too long
    2002, 2003, 2005, 2006, 2013, 2014, 2055, 4031,  # the client's own: connecting and losing the connection
}
# fmt: on

# Which error codes mean that two transactions met, and which that the database cannot serve now. What stands in
# neither is a defect of ours.
_CONFLICT: dict[str, set[object]] = {
    # https://www.sqlite.org/rescode.html
    "sqlite": {1555, 2067},
    # https://www.postgresql.org/docs/current/errcodes-appendix.html
    "postgresql": {"23505", "40001", "40P01"},
    # https://mariadb.com/kb/en/mariadb-error-codes/
    "mariadb": {1062, 1213},
}
_UNAVAILABLE: dict[str, set[object]] = {
    # Primary codes: permission, busy, locked, read-only, interrupted, I/O, damaged, full, cannot open, protocol, no
    # database.
    "sqlite": {3, 5, 6, 8, 9, 10, 11, 13, 14, 15, 26},
    # Classes: connection, authorization, no such database, resources, operator intervention, system; then read-only
    # transaction, a right that is missing, a database that takes no connections, lock not available.
    "postgresql": {"08", "28", "3D", "53", "57", "58", "25006", "42501", "55000", "55P03"},
    "mariadb": _MARIADB_UNAVAILABLE,
}


class Conflict(DatabaseUnavailable):
    """A transaction met another one; run again from its start it will see what the other has done."""


@contextmanager
def translated_errors(dialect: str) -> Iterator[None]:
    """Turn what the driver of this database raises into `Conflict` and `DatabaseUnavailable`; leave the rest."""
    try:
        yield
    except (exc.DBAPIError, sqlite3.Error) as error:
        cause = error.orig if isinstance(error, exc.DBAPIError) else error
        codes = _codes(cause, dialect)
        if codes & _CONFLICT[dialect]:
            raise Conflict("The transaction met another one; try again.") from error
        if codes & _UNAVAILABLE[dialect] or getattr(error, "connection_invalidated", False):
            raise DatabaseUnavailable from named_exhaustion(error)
        raise
    except exc.TimeoutError as error:
        raise DatabaseUnavailable("Every connection to the database is busy; try again.") from error
    except OSError as error:
        if isinstance(error, TimeoutError) and not str(error):  # asyncio's, by which drivers end a wait
            error = TimeoutError("it did not answer in time")
        raise DatabaseUnavailable from named_exhaustion(error)


def driver_error(error: BaseException) -> BaseException:
    """Answer what the driver has raised, of which an error came to be; it says more. Else the error itself."""
    cause = error.__cause__
    return getattr(cause, "orig", None) or cause or error


@contextmanager
def startup_errors(description: str) -> Iterator[None]:
    """Turn what keeps the service from starting on the database so described into `StartupError`.

    It says what the driver found, which at the start is for the operator and never for a caller.
    """
    try:
        yield
    except DatabaseUnavailable as error:
        raise StartupError(f"Cannot use the database {description}: {driver_error(error)}.") from error
    except exc.SQLAlchemyError as error:
        raise StartupError(f"Cannot use the database {description}: {getattr(error, 'orig', error)}.") from error
    except (TypeError, ValueError) as error:
        raise StartupError(f"The database URL has an option that its driver does not take: {error}.") from error


def _codes(error: BaseException | None, dialect: str) -> set[object]:
    """Answer the codes under which an error of a driver may be listed: its own and its class's."""
    if dialect == "sqlite":
        code = getattr(error, "sqlite_errorcode", 0)
        return {code, code & 0xFF}
    if dialect == "postgresql":
        state = getattr(error, "sqlstate", None) or ""
        return {state, state[:2]}
    return set(error.args[:1]) if error else set()
