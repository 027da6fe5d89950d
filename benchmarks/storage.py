"""The storage of the contenders: created, filled, and counted independently of the servers."""

import os
import shutil
import subprocess
from abc import ABC, abstractmethod
from collections.abc import Callable, Iterable, Iterator
from contextlib import contextmanager
from itertools import islice
from pathlib import Path
from typing import Any, Protocol

from sqlalchemy import Connection, Engine, Table, column, func, insert, make_url, select, table, text

from benchmarks.books import synthetic_books, varied_books
from benchmarks.contenders import tutorial
from benchmarks.contenders.rows import sync_engine
from benchmarks.errors import check
from benchmarks.grpc_calls import GrpcCalls
from benchmarks.pgbouncer import running_pgbouncer
from benchmarks.servers import BOOKSTORE, Tables, environment
from bookstore_grpc.dal.array_statements import arrays, insert_arrays
from bookstore_grpc.dal.folding import searchable_text
from bookstore_grpc.dal.migrations.search_index import create_search_index, drop_search_index
from bookstore_grpc.dal.models import Book
from bookstore_grpc.dal.records import BookRecord
from bookstore_grpc.dal.sqlite_entries import entry_columns
from bookstore_grpc.service.messages import entry_from_record

Advance = Callable[[int], object]  # called with the number of rows that were stored since the last call

_CHUNK = 10_000
_PGBOUNCER_CONNECTIONS = 20  # its default
# MariaDB rejects values for computed columns.
_STORED_COLUMNS = text(
    "SELECT table_name, group_concat(column_name) FROM information_schema.columns "
    "WHERE table_schema = :template AND is_generated = 'NEVER' GROUP BY table_name"
)
_BOOKS = table("books", column("id"), column("name"))


class Storage(Protocol):
    """The books of one server."""

    @property
    def url(self) -> str:
        """The database's URL, or "" without a database."""

    def count_books(self) -> int:
        """Count all books."""

    def count_named(self, prefix: str) -> int:
        """Count the books whose names start with a prefix."""


class DatabaseStorage:
    """Books in the table of a database."""

    def __init__(self, url: str) -> None:
        self.url = url
        self.engine = sync_engine(url)

    def count_books(self) -> int:
        """Count all books."""
        with self.engine.connect() as connection:
            return connection.execute(select(func.count()).select_from(_BOOKS)).scalar_one()

    def count_named(self, prefix: str) -> int:
        """Count the books whose names start with a prefix."""
        named = select(func.count()).select_from(_BOOKS).where(_BOOKS.c.name.startswith(prefix))
        with self.engine.connect() as connection:
            return connection.execute(named).scalar_one()

    def close(self) -> None:
        """Close the connections."""
        self.engine.dispose()


class ServerMemory:
    """Books in a server's memory, counted by paging through them."""

    url = ""

    def __init__(self, calls: GrpcCalls) -> None:
        self._calls = calls

    def count_books(self) -> int:
        """Count all books."""
        return sum(1 for _ in self._calls.walk())

    def count_named(self, prefix: str) -> int:
        """Count the books whose names start with a prefix."""
        return sum(book.name.startswith(prefix) for book in self._calls.walk())


class Databases(Protocol):
    """A kind of database with a filled template of each catalogue, from which copies are made."""

    name: str

    @contextmanager
    def copy(self, tables: Tables, size: int) -> Iterator[DatabaseStorage]:
        """Copy the template, created if it does not exist, and remove the copy at the end."""


class SQLite:
    """Files in a directory."""

    name = "SQLite"

    def __init__(self, folder: Path) -> None:
        self._folder = folder

    def filled(self, tables: Tables, size: int, *, advance: Advance = lambda rows: None) -> DatabaseStorage:
        """Return the template, read-only, created if it does not exist."""
        path = self._folder / f"{tables}-{size}.db"
        storage = DatabaseStorage(f"sqlite+aiosqlite:///{path}")
        if not path.exists():
            fill(storage, tables, size, advance=advance)
        return storage

    @contextmanager
    def copy(self, tables: Tables, size: int) -> Iterator[DatabaseStorage]:
        """Copy the template, and remove the copy at the end."""
        self.filled(tables, size).close()  # so that everything is in one file, without a WAL
        path = self._folder / "copy.db"
        shutil.copyfile(self._folder / f"{tables}-{size}.db", path)
        os.sync()  # otherwise the first commits would sync the copy
        storage = DatabaseStorage(f"sqlite+aiosqlite:///{path}")
        try:
            yield storage
        finally:
            storage.close()
            for leftover in self._folder.glob("copy.db*"):
                leftover.unlink()


class ServerDatabases(ABC):
    """Databases of a server, created for this run and dropped at its end. Existing databases are not touched."""

    name: str
    _select_version: str
    _drop: str

    def __init__(self, url: str) -> None:
        self._url = make_url(url)
        self._engine = sync_engine(url).execution_options(isolation_level="AUTOCOMMIT")
        self._prefix = f"bookstore_bench_{os.getpid()}"
        self._templates: list[str] = []

    def version(self) -> str:
        """Return the server's version."""
        with self._engine.connect() as connection:
            return str(connection.execute(text(self._select_version)).scalar_one())

    @contextmanager
    def copy(self, tables: Tables, size: int) -> Iterator[DatabaseStorage]:
        """Copy the template, created if it does not exist, and remove the copy at the end."""
        template = f"{self._prefix}_{tables}_{size}"
        if template not in self._templates:
            self._execute(f"CREATE DATABASE {template}")
            self._templates.append(template)
            fill(self._storage(template), tables, size)
        name = f"{self._prefix}_copy"
        storage = self._storage(name)
        try:
            self._copy(template, name)
            yield storage
        finally:
            storage.close()
            self._execute(self._drop.format(name))

    def close(self) -> None:
        """Drop the created databases."""
        for template in self._templates:
            self._execute(self._drop.format(template))
        self._engine.dispose()

    @abstractmethod
    def _copy(self, template: str, name: str) -> None:
        """Create a database with the tables and rows of another, to which nobody is connected."""

    def _storage(self, name: str) -> DatabaseStorage:
        return DatabaseStorage(self._url.set(database=name).render_as_string(hide_password=False))

    def _execute(self, *statements: str) -> None:
        with self._engine.connect() as connection:
            for statement in statements:
                connection.execute(text(statement))


class PostgreSQL(ServerDatabases):
    """Databases of a PostgreSQL server."""

    name = "PostgreSQL"
    _select_version = "SHOW server_version"
    _drop = "DROP DATABASE IF EXISTS {} WITH (FORCE)"

    def _copy(self, template: str, name: str) -> None:
        self._execute(f"CREATE DATABASE {name} TEMPLATE {template}")


class PooledPostgreSQL:
    """Databases of a PostgreSQL server that contenders use through PgBouncer, in transaction mode."""

    name = "PgBouncer"

    def __init__(self, postgresql: Databases, *, program: str) -> None:
        self._postgresql = postgresql
        self._program = program

    @contextmanager
    def copy(self, tables: Tables, size: int) -> Iterator[DatabaseStorage]:
        """Copy the template, created if it does not exist, and remove the copy at the end."""
        with (
            self._postgresql.copy(tables, size) as storage,
            running_pgbouncer(
                self._program, storage.url, pool_mode="transaction", server_connections=_PGBOUNCER_CONNECTIONS
            ) as through,
        ):
            storage.url = through  # for contenders only: the engine, which counts, stays connected to the server
            yield storage


class MariaDB(ServerDatabases):
    """Databases of a MariaDB server."""

    name = "MariaDB"
    _select_version = "SELECT version()"
    _drop = "DROP DATABASE IF EXISTS {}"

    def _copy(self, template: str, name: str) -> None:
        with self._engine.connect() as connection:
            tables = connection.execute(_STORED_COLUMNS, {"template": template}).all()
        self._execute(f"CREATE DATABASE {name}")
        for table_name, columns in tables:
            source, copy = f"{template}.{table_name}", f"{name}.{table_name}"
            self._execute(
                f"CREATE TABLE {copy} LIKE {source}",
                f"INSERT INTO {copy} ({columns}) SELECT {columns} FROM {source}",  # noqa: S608  all names are ours
                f"ANALYZE TABLE {copy}",  # now, so that the server does not do it during a measurement
            )


def fill(storage: DatabaseStorage, tables: Tables, size: int, *, advance: Advance = lambda rows: None) -> None:
    """Create the tables and store the synthetic books, building the indexes last."""
    if tables != "tutorial":
        _migrate(storage.url)
        books: Any = Book.__table__
    else:
        tutorial.Base.metadata.create_all(storage.engine)
        books = tutorial.Book.__table__
    with storage.engine.connect() as connection:
        if connection.dialect.name == "sqlite":
            connection.exec_driver_sql("PRAGMA synchronous = OFF")
        _insert(connection, books, varied_books(size) if tables == "varied" else synthetic_books(size), advance)
        connection.commit()
    if storage.engine.dialect.name == "postgresql":
        _prepare_statistics(storage.engine, size)
    storage.close()


def _migrate(url: str) -> None:
    said = subprocess.run([BOOKSTORE, "migrate"], env=environment(url), capture_output=True, text=True, check=False)
    check(said.returncode == 0, f"`bookstore migrate` failed:\n{said.stderr[-3_000:]}")


def _insert(connection: Connection, table: Table, books: Iterable[BookRecord], advance: Advance) -> None:
    indexes = sorted(table.indexes, key=lambda index: str(index.name))
    for index in indexes:
        index.drop(connection)
    searched = [column.name for column in table.columns if column.name.endswith("_folded")]
    dialect = connection.dialect.name

    def execute(statement: str) -> None:
        connection.execute(text(statement))

    if searched:
        drop_search_index(execute, dialect=dialect)
    rows = map(_row, books)
    names = {column.name for column in table.columns if column.info.get("only_on", dialect) == dialect}
    while chunk := [{name: row[name] for name in row.keys() & names} for row in islice(rows, _CHUNK)]:
        if dialect == "postgresql":  # by one statement, because triggers run after each
            connection.execute(insert_arrays(table, list(chunk[0])), arrays(chunk))
        else:
            connection.execute(insert(table), chunk)
        advance(len(chunk))
    for index in indexes:
        index.create(connection)
    if searched:
        create_search_index(execute, searched, dialect=dialect)


def _row(book: BookRecord) -> dict[str, object]:
    folded = {"name_folded": searchable_text(book.name), "author_folded": searchable_text(book.author)}
    return {**book._asdict(), **folded, **entry_columns(book, entry_from_record)}


def _prepare_statistics(engine: Engine, size: int) -> None:
    """Set the id sequence, and run VACUUM ANALYZE now, so that autovacuum does not run during a measurement."""
    with engine.connect().execution_options(isolation_level="AUTOCOMMIT") as connection:
        connection.execute(text("SELECT setval(pg_get_serial_sequence('books', 'id'), :size)"), {"size": size})
        connection.execute(text("VACUUM ANALYZE books"))
