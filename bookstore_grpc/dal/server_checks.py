"""Requirements on a database server, checked at start-up: its version and its encoding."""

from sqlalchemy import Connection, text

from bookstore_grpc.errors import DatabaseUnavailable

# SQLite and MariaDB have RETURNING since these versions, PostgreSQL has computed columns since this one.
_LEAST_VERSIONS = {"sqlite": (3, 35), "postgresql": (12,), "mariadb": (10, 5)}
_NAMES = {"sqlite": "SQLite", "postgresql": "PostgreSQL", "mariadb": "MariaDB"}


def require_suitable(connection: Connection) -> None:
    """Raise `DatabaseUnavailable` for a database that is too old, or that cannot store every Unicode text.

    MySQL, which has no RETURNING, is rejected by SQLAlchemy when it connects.
    """
    dialect = connection.dialect.name
    require_version(dialect, connection.dialect.server_version_info or ())
    # The migrations set MariaDB's character set for each table, and SQLite stores nothing but Unicode.
    if dialect == "postgresql":
        encoding = connection.scalar(text("SHOW server_encoding"))
        if encoding != "UTF8":
            raise DatabaseUnavailable(
                f"its encoding is {encoding}, which cannot hold every book; make it with ENCODING 'UTF8' and "
                "TEMPLATE template0"
            )


def require_version(dialect: str, version: tuple[int | str, ...]) -> None:
    """Raise `DatabaseUnavailable` for a version that cannot execute the statements of the DAL."""
    least = _LEAST_VERSIONS[dialect]
    if version[: len(least)] < least:
        shown, needed = (".".join(map(str, numbers)) for numbers in (version, least))
        raise DatabaseUnavailable(f"it is {_NAMES[dialect]} {shown}; this service needs {needed} or later")
