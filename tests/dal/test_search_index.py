"""The search index finds what matches, whoever wrote it, and no search that it can answer reads the whole table."""

import re
from collections.abc import AsyncIterator
from pathlib import Path

import pytest
from hypothesis import given
from hypothesis import strategies as st
from sqlalchemy import event, text
from sqlalchemy.engine import make_url
from sqlalchemy.ext.asyncio import create_async_engine

from bookstore_grpc.dal import migrations
from bookstore_grpc.dal.books import BookDAL
from bookstore_grpc.dal.database import Database
from bookstore_grpc.dal.filters import parse_filter
from bookstore_grpc.dal.folding import fold_case
from bookstore_grpc.dal.page_statements import page_attempts
from bookstore_grpc.dal.paging import parse_order_by
from bookstore_grpc.dal.records import BookChanges, BookDraft
from bookstore_grpc.dal.search_index import _pattern
from tests.conftest import new_database
from tests.dal.conftest import execute

_INSERT = (
    "INSERT INTO books (name, author, release_year, create_time, update_time, name_folded, author_folded) "
    "VALUES ('{name}', '{author}', 1985, 1, 1, '{name_folded}', '{author_folded}')"
)


def _insert(name: str, author: str) -> str:
    """Return the INSERT of a server of the previous version."""
    return _INSERT.format(name=name, author=author, name_folded=fold_case(name), author_folded=fold_case(author))


async def _names(database: Database, filter: str) -> list[str]:
    page = await BookDAL(database).list_books(page_size=50, page_token="", filter=filter, order_by="name")
    return [book.name for book in page.books]


async def test_what_a_server_of_the_previous_version_writes_is_found(database: Database) -> None:
    await execute(database, _insert("Love in the Time of Cholera", "Garcia"), _insert("Nana", "Zola"))
    assert await _names(database, "cholera") == await _names(database, "garci") == ["Love in the Time of Cholera"]
    update = "UPDATE books SET name = 'Germinal', name_folded = 'germinal', update_time = 2 WHERE name = 'Nana'"
    await execute(database, update)
    assert await _names(database, "nana") == []
    assert await _names(database, "author:zola germ") == ["Germinal"]
    await execute(database, "DELETE FROM books WHERE author = 'Zola'")
    assert await _names(database, "germinal") == []


async def _complete(books: BookDAL) -> int:
    completed = after = 0
    while portion := await books.complete_search_texts(after=after):
        completed, after = completed + portion.completed, portion.last_id
    return completed


async def test_its_diacritics_are_folded_by_the_next_pass_which_changes_nothing_else(database: Database) -> None:
    books = BookDAL(database)
    await execute(database, _insert("Cien años de soledad", "García Márquez"), _insert("Emma", "Austen"))
    mine = await books.create_book(BookDraft("Jane Eyre", "Charlotte Brontë", 1847))
    (theirs,) = (await books.list_books(page_size=5, page_token="", filter='name = "Cien*"', order_by="")).books
    assert await _names(database, "Brontë") == await _names(database, "bronte") == ["Jane Eyre"]
    assert await _names(database, "garcia") == []
    assert await _names(database, "garcía") == await _names(database, "SOLEDAD") == ["Cien años de soledad"]

    assert await _complete(books) == 1
    for filter in ("garcia", "GARCÍA", "anos", "author:marquez"):
        assert await _names(database, filter) == ["Cien años de soledad"]
    assert await books.get_books([mine.id, theirs.id]) == [mine, theirs]
    assert await _complete(books) == 0


async def test_a_book_that_is_changed_and_deleted_within_a_batch_is_not_completed(database: Database) -> None:
    books = BookDAL(database)
    await execute(database, _insert("Añil", "A"))
    (book,) = (await books.list_books(page_size=5, page_token="", filter="", order_by="")).books
    await books.update_book(book.id, BookChanges(name="Ébano"))
    assert await _complete(books) == 0
    assert await _names(database, "ebano") == ["Ébano"]
    await books.delete_book(book.id)
    assert await _complete(books) == 0


@pytest.fixture(scope="module")
async def library(database_url: str, tmp_path_factory: pytest.TempPathFactory) -> AsyncIterator[Database]:
    """Twenty thousand books, of which a word finds few, and statistics about them."""
    folder: Path = tmp_path_factory.mktemp("library")
    async for url in new_database(make_url(database_url).get_backend_name(), folder):
        database = Database(url, pool_size=2, timeout_seconds=10)
        await database.migrate()
        books = BookDAL(database)
        for start in range(0, 20_000, 1_000):
            drafts = [BookDraft(f"Name {n:05}", f"Author {n:05}", n % 900) for n in range(start, start + 1_000)]
            await books.create_books(drafts)
        await execute(database, {"sqlite": "ANALYZE", "postgresql": "ANALYZE books"}[database.dialect])
        yield database
        await database.close()


@pytest.mark.databases("sqlite", "postgresql")
@pytest.mark.parametrize("order_by", ["", "name", "author desc, id desc", "release_year", "author, name"])
@pytest.mark.parametrize(
    ("filter", "count"),
    [
        ("01234", 1),
        ("author:01234", 1),
        ("name:0123 release_year > 3", 12),
        ('name = "*0123*"', 12),
        ("name:0123 OR name:0456", 24),
        ("0123", 34),
        ("nothing", 0),
        ("name:0123 -name:5", 11),
    ],
)
async def test_an_indexed_search_reads_no_other_book(library: Database, filter: str, count: int, order_by: str) -> None:
    parsed, values = parse_filter(filter, dialect=library.dialect)
    statement, _ = page_attempts(parsed, parse_order_by(order_by), dialect=library.dialect, continued=False)[0]
    plan = await _plan(library, statement().params(limit=51, **values))
    indexes = ("books_search VIRTUAL TABLE INDEX",) if library.dialect == "sqlite" else ("ix_books_search",)
    assert any(index in line for line in plan for index in indexes), plan
    assert not any(line.split(" USING ")[0] == "SCAN books" or "Seq Scan on books" in line for line in plan), plan
    attempts = await _attempts_of(library, filter, order_by)
    assert attempts == 1
    page = await BookDAL(library).list_books(page_size=100, page_token="", filter=filter, order_by=order_by)
    assert len(page.books) == count


async def _plan(database: Database, statement: object) -> list[str]:
    explain = {"sqlite": "EXPLAIN QUERY PLAN ", "postgresql": "EXPLAIN "}[database.dialect]
    lines: list[str] = []
    compiled = statement.compile(dialect=database._prober.dialect)  # type: ignore[attr-defined]
    values = compiled.construct_params()
    async with database._prober.connect() as connection:
        if database.dialect == "postgresql":  # which otherwise reads a small table
            await connection.exec_driver_sql("SET enable_seqscan = off")
        rows = await connection.exec_driver_sql(explain + str(compiled), tuple(values[n] for n in compiled.positiontup))
        lines = [str(row[-1]).strip() for row in rows]
    return lines


async def _attempts_of(database: Database, filter: str, order_by: str) -> int:
    reads = []
    read = database.read

    async def counted(*arguments: object, **options: object) -> object:
        reads.append(arguments)
        return await read(*arguments, **options)  # type: ignore[arg-type]

    database.read = counted  # type: ignore[method-assign,assignment]
    try:
        await BookDAL(database).list_books(page_size=50, page_token="", filter=filter, order_by=order_by)
    finally:
        database.read = read  # type: ignore[method-assign]
    return len(reads)


_texts = st.text(st.sampled_from("abcé1 _%\\*"), max_size=25)


@given(before=_texts, text=_texts, after=_texts)
def test_a_text_around_another_is_like_its_pattern(before: str, text: str, after: str) -> None:
    pattern = _pattern(text)
    parts = re.findall(r"\\(.)|(%)|(.)", pattern)
    expression = "".join(".*" if sign else re.escape(escaped or other) for escaped, sign, other in parts)
    assert re.fullmatch(expression, before + text + after)


@pytest.mark.databases("sqlite")
async def test_a_library_without_full_text_index_is_rejected(
    fresh_database: Database, monkeypatch: pytest.MonkeyPatch
) -> None:
    def hide(_connection: object, _cursor: object, statement: str, *rest: object) -> tuple[str, object]:
        return statement.replace("'fts5'", "'nothing'"), rest[0]

    event.listen(fresh_database._writer.sync_engine, "before_cursor_execute", hide, retval=True)
    with pytest.raises(Exception, match="has no FTS5, the full-text index"):
        await fresh_database.migrate()


@pytest.mark.databases("postgresql")
async def test_without_the_extension_searches_work_and_the_indexes_are_created_later(
    own_database: Database, database_url: str
) -> None:
    url = own_database.url
    await execute(own_database, "DROP EXTENSION pg_trgm CASCADE")
    assert await own_database.is_search_index_missing()
    await BookDAL(own_database).create_book(BookDraft("Dune", "Herbert", 1965))
    assert await _names(own_database, "une") == ["Dune"]

    name = f"limited_{url.database}"[:60]
    admin = create_async_engine(url, isolation_level="AUTOCOMMIT")
    async with admin.connect() as connection:
        await connection.execute(text(f"CREATE ROLE {name} LOGIN"))
        await connection.execute(text(f"GRANT ALL ON SCHEMA public TO {name}"))
        for table in ("books", "create_requests", "alembic_version"):
            await connection.execute(text(f"ALTER TABLE {table} OWNER TO {name}"))
    limited = Database(url.set(username=name).render_as_string(hide_password=False), pool_size=1, timeout_seconds=10)
    try:
        assert await limited.migrate() == migrations.newest_revision()
        assert await limited.is_search_index_missing()
        await execute(own_database, "CREATE EXTENSION pg_trgm")
        assert await limited.migrate() == migrations.newest_revision()
        assert not await limited.is_search_index_missing()
        assert await _names(limited, "une") == ["Dune"]
    finally:
        await limited.close()
        async with admin.connect() as connection:
            await connection.execute(text(f"REASSIGN OWNED BY {name} TO CURRENT_USER"))
            await connection.execute(text(f"DROP OWNED BY {name}"))
            await connection.execute(text(f"DROP ROLE {name}"))
        await admin.dispose()
