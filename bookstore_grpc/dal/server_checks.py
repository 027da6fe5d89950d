"""Requirements on a database server, checked at start-up: its version and its encoding."""

from typing import Any

from sqlalchemy import Connection, text

from bookstore_grpc.errors import DatabaseUnavailable

# RETURNING needs these versions of SQLite and MariaDB, computed columns this one of PostgreSQL.
_LEAST_VERSIONS = {"sqlite": (3, 35), "postgresql": (12,), "mariadb": (10, 5)}
_NAMES = {"sqlite": "SQLite", "postgresql": "PostgreSQL", "mariadb": "MariaDB"}


def require_suitable(connection: Connection) -> None:
    """Raise `DatabaseUnavailable` for a database that is too old, or that cannot store every Unicode text."""
    dialect = connection.dialect.name
    require_version(dialect, connection.dialect.server_version_info or ())
    if dialect == "sqlite" and not connection.scalar(
        text("SELECT count(*) FROM pragma_module_list WHERE name = 'fts5'")
    ):
        raise DatabaseUnavailable(
            "its library has no FTS5, the full-text index; use a Python whose sqlite3 module has it"
        )
    # The migrations set MariaDB's character set for each table, and SQLite stores nothing but Unicode.
    if dialect == "postgresql":
        encoding = connection.scalar(text("SHOW server_encoding"))
        if encoding != "UTF8":
            raise DatabaseUnavailable(
                f"its encoding is {encoding}, which cannot store every book; create it with ENCODING 'UTF8' and "
                "TEMPLATE template0"
            )


def require_version(dialect: str, version: tuple[int | str, ...]) -> None:
    """Raise `DatabaseUnavailable` for a version that cannot execute the statements of the DAL."""
    least = _LEAST_VERSIONS[dialect]
    if version[: len(least)] < least:
        shown, needed = (".".join(map(str, numbers)) for numbers in (version, least))
        raise DatabaseUnavailable(f"it is {_NAMES[dialect]} {shown}; this service needs {needed} or later")


async def require_mariadb(connection: Any) -> None:
    """Raise `DatabaseUnavailable` for a connection of asyncmy to MySQL."""
    if "MariaDB" in connection.get_server_info():
        return
    # A proxy such as ProxySQL greets with a version of its own.
    async with connection.cursor() as cursor:
        await cursor.execute("SELECT VERSION()")
        (version,) = await cursor.fetchone()
    if "MariaDB" not in version:
        raise DatabaseUnavailable from ValueError(
            f"it is MySQL {version}, and MariaDB is needed: MySQL has no INSERT ... RETURNING; use MariaDB 10.5 or "
            "later, or PostgreSQL"
        )
