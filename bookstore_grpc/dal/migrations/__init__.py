"""Schema migrations, run by Alembic from within the package.

The previous version must work with the migrated tables, so that servers can be replaced one by one.
"""

from collections.abc import Callable, Iterator
from contextlib import contextmanager
from functools import cache
from io import StringIO
from pathlib import Path

import structlog
from alembic import command
from alembic.config import Config
from alembic.migration import MigrationContext
from alembic.script import ScriptDirectory
from sqlalchemy import Connection, Inspector, inspect, text
from sqlalchemy.engine import URL

from bookstore_grpc.dal.migrations.search_index import create_search_index
from bookstore_grpc.dal.models import FOLDED_COLUMNS
from bookstore_grpc.dal.server_checks import require_suitable
from bookstore_grpc.errors import DatabaseUnavailable

_log = structlog.stdlib.get_logger("bookstore_grpc.dal.migrations")

# The migration lock: of several servers started together one migrates, and the others wait.
# MariaDB's locks are global to the server, and their names have at most 64 characters.
_LOCK_NAME_SQL = "CONCAT('bookstore.migrations.', MD5(DATABASE()))"
_LOCK_KEY = 0x626F6F6B
_LOCK_SECONDS = 60
_WAITING = "waiting for another server's migration"

_VERSION_TABLE = "alembic_version"
# The columns of the first migration, which distinguish these tables from others of the same name.
_COLUMNS = {
    "books": {"id", "name", "author", "release_year", "create_time", "update_time"},
    "create_requests": {"request_id", "book_id", "digest", "create_time"},
}
# The tables of later migrations, which an interrupted one may leave.
_LATER_TABLES = ("book_counts", "book_changes", "change_log")
_OWN_DATABASE = "give this service its own database"


def upgrade(connection: Connection, revision: str = "head", *, on_locked: Callable[[], None] = lambda: None) -> str:
    """Migrate the tables to `revision`, and return the resulting revision.

    An unknown revision belongs to a newer version and is left unchanged. `on_locked` is called when the migration lock
    is held. Raises `DatabaseUnavailable` for the database of another program, and leaves it unchanged.
    """
    with _lock(connection):
        on_locked()
        current = current_revision(connection)
        if current is None or is_behind(current):
            command.upgrade(_config(connection=connection), revision)
            current = current_revision(connection)
        if current == newest_revision() and is_search_index_missing(connection):
            create_search_index(
                lambda statement: connection.execute(text(statement)),
                [column.key for column in FOLDED_COLUMNS.values()],
                dialect=connection.dialect.name,
            )
    return current or ""


def is_search_index_missing(connection: Connection) -> bool:
    """Return whether PostgreSQL has no search index, because its extension pg_trgm was missing."""
    if connection.dialect.name != "postgresql":
        return False
    return bool(connection.scalar(text("SELECT to_regclass('ix_books_search') IS NULL")))


def downgrade(connection: Connection, revision: str) -> None:
    """Migrate the tables back to `revision`. "base" drops them with their content."""
    with _lock(connection):
        command.downgrade(_config(connection=connection), revision)


def upgrade_sql(url: URL) -> str:
    """Return the SQL that creates the tables of the newest revision, without connecting."""
    output = StringIO()
    config = _config(url=url)
    config.output_buffer = output
    command.upgrade(config, "head", sql=True)
    return output.getvalue()


def current_revision(connection: Connection) -> str | None:
    """Return the revision of the tables, or None if there are no tables.

    Raises `DatabaseUnavailable` if the database is unsuitable, or if its tables belong to another program. Any program
    that uses Alembic has a table `alembic_version`, possibly with "0001", so the tables themselves are inspected.
    """
    require_suitable(connection)
    inspector = inspect(connection)
    revisions = MigrationContext.configure(connection).get_current_heads()
    present = [table for table in _COLUMNS if inspector.has_table(table)]
    foreign = [table for table in present if not _is_catalogue(inspector, table)]
    if revisions:
        missing = [table for table in _COLUMNS if table not in present or table in foreign]
        if missing or len(revisions) > 1:
            shown = ", ".join(map(repr, sorted(revisions)))
            why = f", because it has no table {missing[0]} of this service" if missing else ""
            raise DatabaseUnavailable(f"its {_VERSION_TABLE} {shown} is another program's{why}; {_OWN_DATABASE}")
        return revisions[0]
    has_version_table = inspector.has_table(_VERSION_TABLE)
    if has_version_table and present and not foreign:
        left = [*present, *filter(inspector.has_table, _LATER_TABLES)]
        raise DatabaseUnavailable(
            f"its migration is in progress, or was interrupted; if none is running, drop {' and '.join(left)} and "
            "run `bookstore migrate` again"
        )
    if present:
        raise DatabaseUnavailable(f"it has a table {present[0]} that no migration has created; {_OWN_DATABASE}")
    tables = [table for table in inspector.get_table_names() if not table.startswith("books_search")]
    if has_version_table and len(tables) > 1:
        raise DatabaseUnavailable(f"its table {_VERSION_TABLE} is another program's; {_OWN_DATABASE}")
    return None


def _is_catalogue(inspector: Inspector, table: str) -> bool:
    return _COLUMNS[table] <= {column["name"] for column in inspector.get_columns(table)}


def newest_revision() -> str:
    """Return the newest revision that this version knows."""
    return _script().get_current_head() or ""


def is_behind(revision: str) -> bool:
    """Return whether a revision is known and older than the newest one."""
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
        if not connection.scalar(text("SELECT pg_try_advisory_xact_lock(:key)"), {"key": _LOCK_KEY}):
            _log.info(_WAITING)
            connection.execute(text("SELECT pg_advisory_xact_lock(:key)"), {"key": _LOCK_KEY})
        yield
    elif connection.dialect.name == "mariadb":
        # MariaDB commits at every change of a table, so the lock cannot belong to a transaction.
        lock = text(f"SELECT GET_LOCK({_LOCK_NAME_SQL}, :seconds)")
        if connection.scalar(lock, {"seconds": 0}) != 1:
            _log.info(_WAITING)
            if connection.scalar(lock, {"seconds": _LOCK_SECONDS}) != 1:
                raise DatabaseUnavailable(f"another server has been migrating for {_LOCK_SECONDS} seconds; try again")
        try:
            yield
            # Tables are committed as they are created, but the revision is a row, which the next server must see.
            connection.execute(text("COMMIT"))
        finally:
            if not connection.invalidated:  # a lost connection has released the lock
                connection.execute(text(f"SELECT RELEASE_LOCK({_LOCK_NAME_SQL})"))
    else:
        yield  # SQLite's write transaction is the lock
