"""An optional text is added to books by the table of fields and a migration alone, on every database."""

import sys
from pathlib import Path

import pytest

from tests.added_field import add_to_table, copied, run_in

_CHECKS = """
import asyncio
import sys
from uuid import uuid4

from alembic.autogenerate import compare_metadata
from alembic.migration import MigrationContext

from bookstore_grpc.dal.books import BookDAL
from bookstore_grpc.dal.database import Database
from bookstore_grpc.dal.models import Base
from bookstore_grpc.dal.records import BookChanges, BookDraft
from bookstore_grpc.errors import RequestIdReused


async def differences(connection):
    def compare(sync):
        dialect = sync.dialect.name
        options = {
            "compare_type": True,
            "compare_server_default": True,
            "include_object": lambda item, *_: item.info.get("only_on", dialect) == dialect,
            "include_name": lambda name, *_: "books_search" not in (name or ""),
        }
        return compare_metadata(MigrationContext.configure(sync, opts=options), Base.metadata)

    return await connection.run_sync(compare)


async def main():
    database = Database(sys.argv[1], pool_size=2, timeout_seconds=10)
    await database.migrate()
    assert await database.write(differences) == []
    books = BookDAL(database)

    async def names(filter="", order_by="", page_size=50):
        found, token = "", None
        while token != "":
            page = await books.list_books(
                page_size=page_size, page_token=token or "", filter=filter, order_by=order_by
            )
            found += "".join(record.name for record in page.books)
            token = page.next_page_token
        return found

    b = BookDraft("B", "b", 2, uuid4(), isbn="978-X")
    stored = await books.create_books([BookDraft("A", "a", 1), b, BookDraft("C", "c", 3, isbn="979-Y")])
    assert [record.isbn for record in stored] == ["", "978-X", "979-Y"]
    assert await books.get_books([record.id for record in stored]) == stored
    assert await books.create_book(b) == stored[1]
    try:
        await books.create_book(b._replace(isbn=""))
    except RequestIdReused:
        pass
    else:
        raise AssertionError("another book by the same request id")

    assert await names("isbn:x") == await names("978") == await names('isbn = "978-X"') == "B"
    assert await names('isbn = "97*"') == await names("isbn:*") == "BC"
    assert await names("NOT isbn:*") == await names('isbn = ""') == "A"
    assert await names('isbn > "978-X"') == "C"
    assert await names(order_by="isbn desc", page_size=1) == "CBA"
    assert await names(order_by="isbn", page_size=2) == "ABC"

    cleared = await books.update_book(stored[1].id, BookChanges(isbn=""))
    assert (cleared.isbn, cleared.name) == ("", "B")
    assert await books.get_book(cleared.id) == cleared
    assert await names("isbn:*") == "C"
    if database.is_embedded:
        await check_entries(database)
    await database.close()


async def check_entries(database):
    # A page has the field of a book that a server of the version before has updated and encoded.
    books = BookDAL(database, encode=lambda record: repr(record).encode())
    page = {"page_size": 50, "page_token": "", "filter": 'author = "encoded"', "order_by": ""}
    record = await books.create_book(BookDraft("D", "encoded", 4, isbn="979-Z"))
    assert (await books.list_books(**page)).books == [repr(record).encode()]

    async def update(connection):
        await connection.exec_driver_sql(
            "UPDATE books SET name = 'E', name_folded = 'e', update_time = update_time + 1, entry = x'00', "
            "entry_fields = 6 WHERE author = 'encoded'"
        )

    await database.write(update)
    changed = record._replace(name="E", update_time=record.update_time + 1)
    assert (await books.list_books(**page)).books == [repr(changed).encode()]
    changed = await books.update_book(record.id, BookChanges(isbn=""))
    await database.write(update)
    assert (await books.list_books(**page)).books == [bytes(1)]


asyncio.run(main())
"""


@pytest.fixture
def copy(tmp_path: Path) -> Path:
    """A copy of the package whose books have an ISBN."""
    copy = copied(tmp_path / "copy", "bookstore_grpc")
    add_to_table(copy)
    return copy


def test_an_optional_text_is_added_by_the_table_of_fields_and_a_migration(copy: Path, fresh_url: str) -> None:
    (copy / "checks.py").write_text(_CHECKS)
    finished = run_in(copy, sys.executable, "checks.py", fresh_url, PYTHONPATH=str(copy))
    assert finished.returncode == 0, finished.stderr


def test_a_field_that_the_records_lack_is_named_at_import(copy: Path) -> None:
    records = copy / "bookstore_grpc" / "dal" / "records.py"
    records.write_text(records.read_text().replace('    isbn: str = ""\n', "", 1))
    finished = run_in(copy, sys.executable, "-c", "import bookstore_grpc.dal.models", PYTHONPATH=str(copy))
    assert finished.returncode == 1
    assert "TypeError: BookDraft and FIELDS differ in isbn" in finished.stderr
