"""MariaDB's pages: of two statements that find them, each finds the same."""

from collections.abc import AsyncIterator, Callable
from typing import Any

import pytest

from bookstore_grpc.dal import page_statements
from bookstore_grpc.dal.books import BookDAL
from bookstore_grpc.dal.database import Database
from bookstore_grpc.dal.records import BookDraft, BookRecord
from tests.conftest import empty
from tests.dal.conftest import statements_of

pytestmark = pytest.mark.databases("mariadb")

_COUNT = 400
# Authors of whom some have the same beginning, longer than an index of a text could hold.
_LONG = "\U0001f4d6" * 990
_AUTHORS = [*(f"Author {number}" for number in range(60)), *(f"{_LONG}{number:02}" for number in range(20))]
_SORTS: dict[str, Callable[[BookRecord], Any]] = {
    "author": lambda book: (book.author, book.id),
    "author desc, id desc": lambda book: (_reversed(book.author), -book.id),
    "author desc": lambda book: (_reversed(book.author), book.id),
    "author, name desc": lambda book: (book.author, _reversed(book.name), book.id),
    "name": lambda book: (book.name, book.id),
    "name desc": lambda book: (_reversed(book.name), book.id),
    "release_year desc, author": lambda book: (-book.release_year, book.author, book.id),
}


def _reversed(text: str) -> list[int]:
    """Return a key that sorts texts, none of which is the beginning of another, the other way round."""
    return [-ord(character) for character in f"{text}\0"]


@pytest.fixture(scope="module")
async def stored(migrated_database: Database) -> list[BookRecord]:
    """Books, which their fields order differently."""
    await empty(migrated_database)
    drafts = [
        BookDraft(f"Book {number * 219 % _COUNT:03}", _AUTHORS[number * 7 % len(_AUTHORS)], number * 13 % 40)
        for number in range(_COUNT)
    ]
    return await BookDAL(migrated_database).create_books(drafts)


@pytest.fixture
async def reader(stored: list[BookRecord], database_url: str) -> AsyncIterator[Database]:
    """The database of the books, with its own connections."""
    database = Database(database_url, pool_size=2, timeout_seconds=10)
    yield database
    await database.close()


@pytest.fixture
def rows_examined(request: pytest.FixtureRequest, monkeypatch: pytest.MonkeyPatch) -> None:
    """Set after how many rows a statement gives up."""
    monkeypatch.setattr(page_statements, "_ROWS_EXAMINED", request.param)
    page_statements.page_attempts.cache_clear()
    request.addfinalizer(page_statements.page_attempts.cache_clear)  # noqa: PT021  after the value is restored


async def _walk(database: Database, filter: str, order_by: str) -> list[BookRecord]:
    books, token = BookDAL(database), ""
    found = []
    while True:
        page = await books.list_books(page_size=70, page_token=token, filter=filter, order_by=order_by)
        found += page.books
        token = page.next_page_token
        if not token:
            return found


@pytest.mark.parametrize("rows_examined", [1, 200], indirect=True)
@pytest.mark.parametrize("order_by", _SORTS)
@pytest.mark.usefixtures("rows_examined")
async def test_pages_are_the_same_whichever_statement_finds_them(
    reader: Database, stored: list[BookRecord], order_by: str, caplog: pytest.LogCaptureFixture
) -> None:
    is_found: dict[str, Callable[[BookRecord], bool]] = {
        "": lambda _: True,
        "book": lambda _: True,
        "name:11": lambda book: "11" in book.name,
        "author:nobody": lambda _: False,
        'author = "Author 7"': lambda book: book.author == "Author 7",
        'author > "Author 3" release_year < 20': lambda book: book.author > "Author 3" and book.release_year < 20,
        f'author = "{_LONG}*"': lambda book: book.author.startswith(_LONG),
        f'author != "{_LONG}07"': lambda book: book.author != f"{_LONG}07",
    }
    for filter, matches in is_found.items():
        expected = sorted((book for book in stored if matches(book)), key=_SORTS[order_by])
        assert await _walk(reader, filter, order_by) == expected, filter
    assert not [line for line in caplog.records if line.name == "asyncmy"]


async def test_a_search_that_examines_few_rows_is_one_statement(reader: Database) -> None:
    with statements_of(reader) as statements:
        assert len(await _walk(reader, 'author = "Author 7"', "name")) == 5
        assert await _walk(reader, 'author = "Author 7" name:nothing', "name") == []
    assert len(statements) == 2
