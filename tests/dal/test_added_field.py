"""An optional text is added to books by the table of fields and a migration alone, on every database."""

import os
import shutil
import subprocess
import sys
from pathlib import Path

import pytest

import bookstore_grpc

_PACKAGE = Path(bookstore_grpc.__file__).parent

# What is inserted into dal/records.py, each before the first occurrence of the other.
_FIELD = [
    (
        '        Field("create_time"',
        '        Field("isbn", FieldType.TEXT, 17, is_settable=True, is_optional=True, is_searchable=True),\n',
    ),
    ("\n\nclass BookRecord(", '    isbn: str = ""\n'),
    ("\n    @property\n    def etag", '    isbn: str = ""\n'),
    ("\n\n@dataclass(frozen=True, eq=False)\nclass BookPage", "    isbn: str | None = None\n"),
]

_MIGRATION = '''
"""ISBNs."""

import sqlalchemy as sa
from alembic import op

from bookstore_grpc.dal.models import exact_string, exact_text

revision, down_revision = "0002", "0001"


def upgrade() -> None:
    op.add_column("books", sa.Column("isbn", exact_string(17), nullable=False, server_default=""))
    op.add_column("books", sa.Column("isbn_folded", exact_text(), nullable=False, server_default=""))
    op.create_index("ix_books_isbn", "books", ["isbn", "id"])
'''

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
    return await connection.run_sync(lambda sync: compare_metadata(MigrationContext.configure(sync), Base.metadata))


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
    await database.close()


asyncio.run(main())
"""


@pytest.fixture
def copy(tmp_path: Path) -> Path:
    """A copy of the package whose books have an ISBN."""
    package = tmp_path / "copy" / "bookstore_grpc"
    shutil.copytree(_PACKAGE, package, ignore=shutil.ignore_patterns("__pycache__"))
    records = package / "dal" / "records.py"
    text = records.read_text()
    for before, inserted in _FIELD:
        assert before in text
        text = text.replace(before, inserted + before, 1)
    records.write_text(text)
    (package / "dal" / "migrations" / "versions" / "0002_isbn.py").write_text(_MIGRATION.lstrip())
    return package.parent


def test_an_optional_text_is_added_by_the_table_of_fields_and_a_migration(copy: Path, fresh_url: str) -> None:
    (copy / "checks.py").write_text(_CHECKS)
    finished = subprocess.run(
        [sys.executable, "checks.py", fresh_url],
        cwd=copy,
        env={**os.environ, "PYTHONPATH": str(copy)},
        capture_output=True,
        text=True,
        timeout=60,
        check=False,
    )
    assert finished.returncode == 0, finished.stderr


def test_a_field_that_the_records_lack_is_named_at_import(copy: Path) -> None:
    records = copy / "bookstore_grpc" / "dal" / "records.py"
    records.write_text(records.read_text().replace('    isbn: str = ""\n', "", 1))
    finished = subprocess.run(
        [sys.executable, "-c", "import bookstore_grpc.dal.models"],
        cwd=copy,
        env={**os.environ, "PYTHONPATH": str(copy)},
        capture_output=True,
        text=True,
        timeout=60,
        check=False,
    )
    assert finished.returncode == 1
    assert "TypeError: BookDraft and FIELDS differ in isbn" in finished.stderr
