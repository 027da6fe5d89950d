"""The storage of the contenders: created, filled, and counted independently of the servers."""

import os
import shutil
import subprocess
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from itertools import islice
from pathlib import Path
from typing import Any, Protocol

from sqlalchemy import (
    URL,
    Connection,
    Engine,
    Table,
    column,
    create_engine,
    func,
    insert,
    make_url,
    select,
    table,
    text,
)

from benchmarks.books import synthetic_books
from benchmarks.contenders import tutorial
from benchmarks.errors import check
from benchmarks.grpc_calls import GrpcCalls
from benchmarks.servers import BOOKSTORE, Tables, environment
from bookstore_grpc.dal.casefold import fold_case
from bookstore_grpc.dal.models import Book
from bookstore_grpc.dal.records import BookRecord

Advance = Callable[[int], object]  # told how many rows more are stored

_CHUNK = 10_000
_SYNC_DRIVERS = {"sqlite": "sqlite+pysqlite", "postgresql": "postgresql+psycopg"}
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

    def filled(self, tables: Tables, size: int, *, advance: Advance = ...) -> DatabaseStorage:
        """Return the template, read-only, created if it does not exist."""

    @contextmanager
    def copy(self, tables: Tables, size: int) -> Iterator[DatabaseStorage]:
        """Copy the template, and remove the copy at the end."""


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
        self.filled(tables, size).close()  # whereupon all is in the one file
        path = self._folder / "copy.db"
        shutil.copyfile(self._folder / f"{tables}-{size}.db", path)
        os.sync()  # or the first commits would pay for the copy
        storage = DatabaseStorage(f"sqlite+aiosqlite:///{path}")
        try:
            yield storage
        finally:
            storage.close()
            for leftover in self._folder.glob("copy.db*"):
                leftover.unlink()


class PostgreSQL:
    """Databases of a server, created for this run and dropped at its end. Existing databases are not touched."""

    name = "PostgreSQL"

    def __init__(self, url: str) -> None:
        self._url = make_url(url)
        self._engine = sync_engine(url).execution_options(isolation_level="AUTOCOMMIT")
        self._prefix = f"bookstore_bench_{os.getpid()}"
        self._made: dict[str, DatabaseStorage] = {}

    def version(self) -> str:
        """Return the server's version."""
        with self._engine.connect() as connection:
            return str(connection.execute(text("SHOW server_version")).scalar_one())

    def filled(self, tables: Tables, size: int, *, advance: Advance = lambda rows: None) -> DatabaseStorage:
        """Return the template, read-only, created if it does not exist."""
        name = f"{self._prefix}_{tables}_{size}"
        if name not in self._made:
            self._execute(f"CREATE DATABASE {name}")
            self._made[name] = self._storage(name)
            fill(self._made[name], tables, size, advance=advance)
        return self._made[name]

    @contextmanager
    def copy(self, tables: Tables, size: int) -> Iterator[DatabaseStorage]:
        """Copy the template, and remove the copy at the end."""
        self.filled(tables, size).close()  # a template that is connected to cannot be copied
        name = f"{self._prefix}_copy"
        self._execute(f"CREATE DATABASE {name} TEMPLATE {self._prefix}_{tables}_{size}")
        storage = self._storage(name)
        try:
            yield storage
        finally:
            storage.close()
            self._execute(f"DROP DATABASE {name} WITH (FORCE)")

    def close(self) -> None:
        """Drop the created databases."""
        for name, storage in self._made.items():
            storage.close()
            self._execute(f"DROP DATABASE {name} WITH (FORCE)")
        self._engine.dispose()

    def _storage(self, name: str) -> DatabaseStorage:
        return DatabaseStorage(self._url.set(database=name).render_as_string(hide_password=False))

    def _execute(self, statement: str) -> None:
        with self._engine.connect() as connection:
            connection.execute(text(statement))


def sync_engine(url: str) -> Engine:
    """Return an engine with the driver of this process."""
    parsed: URL = make_url(url)
    return create_engine(parsed.set(drivername=_SYNC_DRIVERS[parsed.get_backend_name()]))


def fill(storage: DatabaseStorage, tables: Tables, size: int, *, advance: Advance) -> None:
    """Create the tables and store the synthetic books, building the indexes last."""
    if tables == "bookstore":
        _migrate(storage.url)
        books: Any = Book.__table__
    else:
        tutorial.Base.metadata.create_all(storage.engine)
        books = tutorial.Book.__table__
    with storage.engine.connect() as connection:
        if connection.dialect.name == "sqlite":
            connection.exec_driver_sql("PRAGMA synchronous = OFF")
        _insert(connection, books, size, advance)
        connection.commit()
    if storage.engine.dialect.name == "postgresql":
        _settle(storage.engine, size)
    storage.close()


def _migrate(url: str) -> None:
    said = subprocess.run([BOOKSTORE, "migrate"], env=environment(url), capture_output=True, text=True, check=False)
    check(said.returncode == 0, f"`bookstore migrate` failed:\n{said.stderr[-3_000:]}")


def _insert(connection: Connection, books: Table, size: int, advance: Advance) -> None:
    indexes = sorted(books.indexes, key=lambda index: str(index.name))
    for index in indexes:
        index.drop(connection)
    rows = (_row(book) for book in synthetic_books(size))
    names = {column.name for column in books.columns}
    while chunk := list(islice(rows, _CHUNK)):
        connection.execute(insert(books), [{name: row[name] for name in row.keys() & names} for row in chunk])
        advance(len(chunk))
    for index in indexes:
        index.create(connection)


def _row(book: BookRecord) -> dict[str, object]:
    return {**book._asdict(), "name_folded": fold_case(book.name), "author_folded": fold_case(book.author)}


def _settle(engine: Engine, size: int) -> None:
    """Continue ids after the books, and run ANALYZE now, so that autovacuum does not during a measurement."""
    with engine.connect().execution_options(isolation_level="AUTOCOMMIT") as connection:
        connection.execute(text("SELECT setval(pg_get_serial_sequence('books', 'id'), :size)"), {"size": size})
        connection.execute(text("VACUUM ANALYZE books"))
