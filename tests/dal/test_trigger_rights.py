"""MariaDB with a binary log lets an ordinary account create no triggers: the service works, and counts otherwise."""

import re
import shutil
import tempfile
from collections.abc import AsyncIterator, Iterator
from pathlib import Path

import pytest

from bookstore_grpc.dal import totals
from bookstore_grpc.dal.books import BookDAL
from bookstore_grpc.dal.database import Database
from bookstore_grpc.dal.migrations import newest_revision
from bookstore_grpc.dal.records import BookDraft, BookTotal
from tests.conftest import LogLines
from tests.faults.database_servers import DatabaseServer, database_server

pytestmark = pytest.mark.mariadb

_OPERATIONS = Path(__file__).parents[2] / "docs/operations.md"


@pytest.fixture(scope="module")
def logging_server() -> Iterator[DatabaseServer]:
    """A server with a binary log, whose account has all rights on its database."""
    folder = Path(tempfile.mkdtemp(prefix="mariadb-"))
    try:
        with database_server("mariadb", folder, ["--log-bin=binlog", "--server-id=1"]) as server:
            server._query("REVOKE ALL ON *.* FROM bookstore@'127.0.0.1'")
            server._query("GRANT ALL ON bookstore.* TO bookstore@'127.0.0.1'")
            yield server
    finally:
        shutil.rmtree(folder, ignore_errors=True)


@pytest.fixture
async def logging_database(logging_server: DatabaseServer) -> AsyncIterator[Database]:
    logging_server._query("SET GLOBAL log_bin_trust_function_creators = 0")
    logging_server._query("DROP DATABASE bookstore; CREATE DATABASE bookstore")
    database = Database(logging_server.url, pool_size=2, timeout_seconds=10)
    yield database
    await database.close()


async def _total(database: Database) -> BookTotal | None:
    page = await BookDAL(database).list_books(page_size=1, page_token="", filter="", order_by="", include_total=True)
    return page.total


@pytest.fixture
def low_limit(monkeypatch: pytest.MonkeyPatch) -> Iterator[int]:
    monkeypatch.setattr(totals, "TOTAL_MAX", 3)
    totals.count_matching.cache_clear()
    yield 3
    totals.count_matching.cache_clear()


async def test_without_triggers_books_are_counted_up_to_the_limit(
    logging_database: Database, log_lines: LogLines, low_limit: int
) -> None:
    assert await logging_database.migrate() == newest_revision()
    (warning,) = [line for line in log_lines() if line["event"] == "number of books not kept: triggers not permitted"]
    assert "1419" in warning["cause"]
    await BookDAL(logging_database).create_books([BookDraft("N", "A", number) for number in range(5)])
    assert await _total(logging_database) == (low_limit, True)


@pytest.mark.usefixtures("low_limit")
async def test_the_statements_of_the_documentation_count_anew(
    logging_database: Database, logging_server: DatabaseServer
) -> None:
    await logging_database.migrate()
    books = BookDAL(logging_database)
    created = await books.create_books([BookDraft("N", "A", number) for number in range(5)])
    found = re.search(r"```sql\n-- MariaDB\n(.*?)```", _OPERATIONS.read_text(), re.DOTALL)
    assert found
    for _ in range(2):
        logging_server._query(f"USE bookstore; {found[1]}")
        assert await _total(logging_database) == (5, False)
    await books.create_books([BookDraft("N", "A", number) for number in range(3)])
    await books.delete_book(created[0].id)
    assert await _total(logging_database) == (7, False)
    logging_server._query(f"USE bookstore; TRUNCATE books; {found[1]}")
    await books.create_books([BookDraft("N", "A", number) for number in range(4)])
    assert await _total(logging_database) == (4, False)


@pytest.mark.usefixtures("low_limit")
async def test_a_server_that_trusts_accounts_lets_them_create_triggers(
    logging_database: Database, logging_server: DatabaseServer
) -> None:
    logging_server._query("SET GLOBAL log_bin_trust_function_creators = 1")
    await logging_database.migrate()
    await BookDAL(logging_database).create_books([BookDraft("N", "A", number) for number in range(5)])
    assert await _total(logging_database) == (5, False)
