"""Fixtures of the DAL's tests: databases of a test's own, tricky books, and the statements that were sent."""

from collections.abc import AsyncIterator, Awaitable, Callable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import pytest
from sqlalchemy import event, text
from sqlalchemy.engine import make_url
from sqlalchemy.ext.asyncio import AsyncConnection

from bookstore_grpc.dal.books import BookDAL
from bookstore_grpc.dal.database import Database
from bookstore_grpc.dal.records import BookRecord
from tests.conftest import empty, new_database
from tests.dal.tricky_books import TRICKY_BOOKS, store_tricky_books

StatementCounter = Callable[[], Any]


@pytest.fixture
def kind(database_url: str) -> str:
    return make_url(database_url).get_backend_name()


@pytest.fixture
async def fresh_url(kind: str, tmp_path: Path) -> AsyncIterator[str]:
    """The URL of an empty database that no other test uses."""
    async for url in new_database(kind, tmp_path):
        yield url


@pytest.fixture
async def fresh_database(fresh_url: str) -> AsyncIterator[Database]:
    """A database without tables that no other test uses."""
    database = Database(fresh_url, pool_size=3, timeout_seconds=10)
    yield database
    await database.close()


@pytest.fixture
async def own_database(fresh_database: Database) -> Database:
    """A migrated database that no other test uses."""
    await fresh_database.migrate()
    return fresh_database


@pytest.fixture
def path(tmp_path: Path) -> Path:
    """Where `sqlite` has its file."""
    return tmp_path / "books.db"


@pytest.fixture
def sqlite_timeout_seconds() -> float:
    """How long `sqlite` waits for its lock; a module may have its own."""
    return 10


@pytest.fixture
async def sqlite(path: Path, sqlite_timeout_seconds: float) -> AsyncIterator[Database]:
    """A migrated SQLite database that no other test uses, for what is SQLite's own."""
    database = Database(f"sqlite:///{path}", pool_size=2, timeout_seconds=sqlite_timeout_seconds)
    await database.migrate()
    yield database
    await database.close()


@pytest.fixture
async def twin(database: Database, database_url: str) -> AsyncIterator[Database]:
    """The same database as `database` with connections of its own, as another server process has."""
    database = Database(database_url, pool_size=5, timeout_seconds=10)
    yield database
    await database.close()


@pytest.fixture(scope="module")
async def shelf(migrated_database: Database) -> list[BookRecord]:
    """The tricky books as they are stored; a module that uses this must not use `database`."""
    await empty(migrated_database)
    stored = await store_tricky_books(migrated_database)
    assert len(stored) == len(TRICKY_BOOKS)
    return stored


@pytest.fixture(scope="module")
def shelf_books(shelf: list[BookRecord], migrated_database: Database) -> BookDAL:
    return BookDAL(migrated_database)


def move(path: Path, target: Path) -> None:
    """Rename a file, which for a moment blocks the loop; a test may do that and a server may not."""
    path.rename(target)


#: Filters, each with the keys of the books that it finds.
FilterCases = list[tuple[str, set[str]]]


async def found_by(books: BookDAL, keys: Mapping[str, str], filter: str) -> set[str]:
    """Return which of all books a filter finds. `keys` has the key of each book by its name."""
    page = await books.list_books(page_size=1_000, page_token="", filter=filter, order_by="")
    return {keys[book.name] for book in page.books}


async def assert_filters_find(books: BookDAL, keys: Mapping[str, str], cases: FilterCases) -> None:
    assert [(filter, await found_by(books, keys, filter)) for filter, _ in cases] == cases


async def count_rows(database: Database) -> tuple[int, int]:
    """Return how many books and how many create requests are stored."""

    async def count(connection: AsyncConnection) -> tuple[int, int]:
        books = (await connection.execute(text("SELECT count(*) FROM books"))).scalar_one()
        requests = (await connection.execute(text("SELECT count(*) FROM create_requests"))).scalar_one()
        return books, requests

    return await database.write(count)


async def execute(database: Database, *statements: str) -> None:
    """Run statements in one transaction."""

    async def work(connection: AsyncConnection) -> None:
        for statement in statements:
            await connection.execute(text(statement))

    await database.write(work)


#: The first words of the statements that write to the log of changes. On MariaDB they are one block.
LOG = {"sqlite": ["INSERT"], "postgresql": ["SELECT"], "mariadb": ["DECLARE"]}


def kinds(statements: Sequence[str]) -> list[str]:
    """Return the first word of each statement."""
    return [statement.split()[0] for statement in statements]


Work = Callable[[AsyncConnection], Awaitable[Any]]


@contextmanager
def statements_of(database: Database) -> Iterator[list[str]]:
    """Collect the statements sent to a database meanwhile.

    Less the BEGIN of SQLite, that of a block of MariaDB, and the question whether anybody has committed,
    which reads no table.
    """
    statements: list[str] = []

    def collect(_connection: Any, _cursor: Any, statement: str, _parameters: Any, _context: Any, _many: bool) -> None:
        collect_inline(statement)

    def collect_inline(statement: str) -> None:
        is_of_search_index = "'main'." in statement  # SQLite's own
        if statement not in ("BEGIN IMMEDIATE", "PRAGMA data_version") and not is_of_search_index:
            statements.append(statement.removeprefix("BEGIN NOT ATOMIC "))

    engines = [engine.sync_engine for engine in (database._reader, database._writer, database._prober)]
    for engine in engines:
        event.listen(engine, "before_cursor_execute", collect)
    inline = database._inline_reader
    if inline:
        inline.close()
        (inline._connection or inline._connect()).set_trace_callback(collect_inline)
        read = database._rows_in_thread

        async def collect_and_read(sql: str, parameters: Sequence[object]) -> Any:
            collect_inline(sql)
            return await read(sql, parameters)

        database._rows_in_thread = collect_and_read  # type: ignore[method-assign]
    else:
        fetch = database._driver_reader.fetch

        async def collect_and_fetch(connection: Any, sql: str, parameters: Sequence[object]) -> Any:
            collect_inline(sql)
            return await fetch(connection, sql, parameters)

        database._driver_reader.fetch = collect_and_fetch
    try:
        yield statements
    finally:
        if inline:
            inline.close()
            database._rows_in_thread = read  # type: ignore[method-assign]
        else:
            database._driver_reader.fetch = fetch
        for engine in engines:
            event.remove(engine, "before_cursor_execute", collect)
