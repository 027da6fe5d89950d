"""What a database has to be to hold the catalogue, found out at the start and not by some call later."""

from sqlalchemy import Connection, text

from bookstore_grpc.errors import DatabaseUnavailable

# SQLite and MariaDB answer the ids of new rows (RETURNING) since these, PostgreSQL computes columns since this one.
_LEAST_VERSIONS = {"sqlite": (3, 35), "postgresql": (12,), "mariadb": (10, 5)}
_NAMES = {"sqlite": "SQLite", "postgresql": "PostgreSQL", "mariadb": "MariaDB"}


def require_suitable(connection: Connection) -> None:
    """Raise `DatabaseUnavailable` for a database that is too old, or that cannot hold every text.

    MySQL, which has no RETURNING, is found out by SQLAlchemy when it connects.
    """
    dialect = connection.dialect.name
    require_version(dialect, connection.dialect.server_version_info or ())
    # MariaDB's tables name their character set themselves, and SQLite knows nothing but Unicode.
    if dialect == "postgresql":
        encoding = connection.scalar(text("SHOW server_encoding"))
        if encoding != "UTF8":
            raise DatabaseUnavailable(
                f"its encoding is {encoding}, which cannot hold every book; make it with ENCODING 'UTF8' and "
                "TEMPLATE template0"
            )


def require_version(dialect: str, version: tuple[int | str, ...]) -> None:
    """Raise `DatabaseUnavailable` for a version that lacks what the statements need."""
    least = _LEAST_VERSIONS[dialect]
    if version[: len(least)] < least:
        shown, needed = (".".join(map(str, numbers)) for numbers in (version, least))
        raise DatabaseUnavailable(f"it is {_NAMES[dialect]} {shown}; this service needs {needed} or later")
