"""The history of the tables, run by Alembic from inside the package.

A migration must leave tables that the version before can live with, so that servers can be replaced one by one.
"""

from collections.abc import Iterator
from contextlib import contextmanager
from functools import cache
from io import StringIO
from pathlib import Path

from alembic import command
from alembic.config import Config
from alembic.migration import MigrationContext
from alembic.script import ScriptDirectory
from sqlalchemy import Connection, text
from sqlalchemy.engine import URL

from bookstore_grpc.errors import DatabaseUnavailable

# Held while migrating, so that of several servers started together one migrates and the others wait.
_LOCK_NAME = "bookstore.migrations"
_LOCK_KEY = 0x626F6F6B
_LOCK_SECONDS = 60


def upgrade(connection: Connection, revision: str = "head") -> str:
    """Bring the tables to `revision` and answer the revision they then have.

    A revision that is unknown here comes from a newer version and stays.
    """
    with _lock(connection):
        current = current_revision(connection)
        if current is None or is_behind(current):
            command.upgrade(_config(connection=connection), revision)
            current = current_revision(connection)
    return current or ""


def downgrade(connection: Connection, revision: str) -> None:
    """Take the tables back to `revision`; "base" is the time before the first. What they held is lost."""
    with _lock(connection):
        command.downgrade(_config(connection=connection), revision)


def upgrade_sql(url: URL) -> str:
    """Answer the SQL that builds the newest tables from nothing, without connecting."""
    output = StringIO()
    config = _config(url=url)
    config.output_buffer = output
    command.upgrade(config, "head", sql=True)
    return output.getvalue()


def current_revision(connection: Connection) -> str | None:
    """Answer the revision that the tables have; None where there are none."""
    return MigrationContext.configure(connection).get_current_revision()


def newest_revision() -> str:
    """Answer the newest revision that this version knows."""
    return _script().get_current_head() or ""


def is_behind(revision: str) -> bool:
    """Tell whether a revision is an older one of this version's."""
    return revision in _known_revisions() and revision != newest_revision()


@cache
def _script() -> ScriptDirectory:
    return ScriptDirectory(str(Path(__file__).parent))


@cache
def _known_revisions() -> frozenset[str]:
    return frozenset(script.revision for script in _script().walk_revisions())


def _config(**attributes: object) -> Config:
    config = Config(attributes=attributes)
    config.set_main_option("script_location", str(Path(__file__).parent).replace("%", "%%"))
    config.set_main_option("path_separator", "os")
    return config


@contextmanager
def _lock(connection: Connection) -> Iterator[None]:
    if connection.dialect.name == "postgresql":
        connection.execute(text(f"SET LOCAL lock_timeout = '{_LOCK_SECONDS}s'"))
        connection.execute(text("SELECT pg_advisory_xact_lock(:key)"), {"key": _LOCK_KEY})
        yield
    elif connection.dialect.name == "mariadb":
        # MariaDB commits at every change of a table, so a transaction cannot hold the lock.
        lock = text("SELECT GET_LOCK(:name, :seconds)")
        if connection.scalar(lock, {"name": _LOCK_NAME, "seconds": _LOCK_SECONDS}) != 1:
            raise DatabaseUnavailable(f"Another server has been migrating for {_LOCK_SECONDS} seconds; try again.")
        try:
            yield
        finally:
            connection.execute(text("SELECT RELEASE_LOCK(:name)"), {"name": _LOCK_NAME})
    else:
        yield  # SQLite's writing transaction is the lock.
