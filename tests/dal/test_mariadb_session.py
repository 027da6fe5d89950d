"""A MariaDB server's own defaults make no difference: the session sets what the statements need."""

import shutil
import tempfile
import uuid
from collections.abc import AsyncIterator, Iterator
from pathlib import Path

import pytest
from sqlalchemy import text

from bookstore_grpc.dal.books import BookDAL
from bookstore_grpc.dal.database import Database
from bookstore_grpc.dal.records import BookChanges, BookDraft
from bookstore_grpc.limits import NAME_MAX_CODE_POINTS
from tests.faults.database_servers import DatabaseServer, database_server

pytestmark = pytest.mark.mariadb

_ENGINES = "SELECT DISTINCT engine FROM information_schema.tables WHERE table_schema = 'bookstore'"
_DEFAULTS: dict[str, dict[str, object]] = {
    "not strict": {"sql_mode": "''"},
    "no backslash escapes": {"sql_mode": "'NO_BACKSLASH_ESCAPES'"},
    "other syntax": {"sql_mode": "'ANSI_QUOTES,PIPES_AS_CONCAT,IGNORE_SPACE,HIGH_NOT_PRECEDENCE'"},
    "other values": {"sql_mode": "'EMPTY_STRING_IS_NULL,PAD_CHAR_TO_FULL_LENGTH,SIMULTANEOUS_ASSIGNMENT,TRADITIONAL'"},
    "Oracle": {"sql_mode": "'ORACLE'"},
    "SQL Server": {"sql_mode": "'MSSQL'"},
    "statements of the operator": {
        "init_connect": "'SET NAMES latin1, sql_mode = ''NO_BACKSLASH_ESCAPES'', autocommit = 0'"
    },
    "no autocommit": {"autocommit": 0},
    "connections end at COMMIT": {"completion_type": 2},
    "small results": {"sql_select_limit": 1, "max_join_size": 1},
    "small sorts": {"sort_buffer_size": 1_024, "max_sort_length": 64},
    "short statements": {"max_statement_time": 0.000001},
    "no transactions": {"default_storage_engine": "Aria"},
    "dirty reads": {"tx_isolation": "'READ-UNCOMMITTED'"},
    "no quotes": {"sql_quote_show_create": 0},
    "Latin": {"character_set_server": "latin1", "collation_connection": "latin1_german2_ci"},
}


@pytest.fixture(scope="module")
def own_server() -> Iterator[DatabaseServer]:
    """A server whose global variables may be set, and whose account has no right that bypasses `init_connect`."""
    folder = Path(tempfile.mkdtemp(prefix="mariadb-"))
    try:
        with database_server("mariadb", folder) as server:
            server._query("REVOKE ALL ON *.* FROM bookstore@'127.0.0.1'")
            server._query("GRANT ALL ON bookstore.* TO bookstore@'127.0.0.1'")
            yield server
    finally:
        shutil.rmtree(folder, ignore_errors=True)


@pytest.fixture(params=_DEFAULTS)
async def own_database(own_server: DatabaseServer, request: pytest.FixtureRequest) -> AsyncIterator[Database]:
    """An empty database on a server with other defaults."""
    own_server._query("DROP DATABASE bookstore; CREATE DATABASE bookstore")
    own_server._query(
        "SET GLOBAL " + ", ".join(f"{name} = {value}" for name, value in _DEFAULTS[request.param].items())
    )
    database = Database(own_server.url, pool_size=2, timeout_seconds=10, statement_seconds=10)
    yield database
    await database.close()
    own_server._query("SET GLOBAL " + ", ".join(f"{name} = DEFAULT" for name in _DEFAULTS[request.param]))


async def test_other_defaults_of_the_server_change_nothing(own_database: Database) -> None:
    await own_database.migrate()
    async with own_database._prober.connect() as connection:
        assert (await connection.execute(text(_ENGINES))).scalars().all() == ["InnoDB"]
    books = BookDAL(own_database)
    texts = ["\\' \\\" \\\\ \\0 || %s `x`", "ends with \\", "\u66f8" * NAME_MAX_CODE_POINTS]
    # So many that bytes that the driver escapes occur in the digests, which the retry compares.
    drafts = [BookDraft(texts[n % 3], f"{texts[n % 2]} {n:02}", n, uuid.UUID(int=n)) for n in range(40)]
    stored = await books.create_books(drafts)
    assert [book[1:4] for book in stored] == [draft[:3] for draft in drafts]
    assert await books.create_books(drafts) == stored
    assert await books.get_books([book.id for book in stored]) == stored
    page = await books.list_books(page_size=50, page_token="", filter='name = "*\u66f8"', order_by="author desc")
    assert page.books == sorted(stored[2::3], key=lambda book: book.author, reverse=True)
    async with own_database._writer.connect() as connection:
        await connection.execute(text("DELETE FROM books"))
        assert await books.get_book(stored[0].id) == stored[0]
    changed = await books.update_book(stored[0].id, BookChanges(name=texts[1]))
    assert await books.get_book(changed.id) == changed
    await books.delete_book(changed.id)
    await own_database.ping()
