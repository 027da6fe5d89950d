"""A page costs what it holds, wherever it lies: the databases find it through an index."""

from collections.abc import AsyncIterator, Awaitable, Callable
from functools import partial
from pathlib import Path
from typing import Any

import pytest
from sqlalchemy import text
from sqlalchemy.engine import make_url

from bookstore_grpc.dal import page_statements
from bookstore_grpc.dal.books import BookDAL
from bookstore_grpc.dal.database import Database
from bookstore_grpc.dal.filters import parse_filter
from bookstore_grpc.dal.page_statements import page_attempts
from bookstore_grpc.dal.paging import (
    page_token_from_record,
    parse_order_by,
    position_from_page_token,
)
from bookstore_grpc.dal.records import FIELDS, BookDraft, BookRecord
from tests.conftest import new_database
from tests.dal.conftest import execute

_COUNT = 5_000

_EXPLAIN = {"sqlite": "EXPLAIN QUERY PLAN", "postgresql": "EXPLAIN", "mariadb": "EXPLAIN"}
_ANALYZE = {"sqlite": "ANALYZE", "postgresql": "ANALYZE books", "mariadb": "ANALYZE TABLE books"}


@pytest.fixture(scope="module")
async def library(database_url: str, tmp_path_factory: pytest.TempPathFactory) -> AsyncIterator[Database]:
    """Five thousand books, which their fields order differently, and statistics about them."""
    folder: Path = tmp_path_factory.mktemp("plans")
    async for url in new_database(make_url(database_url).get_backend_name(), folder):
        database = Database(url, pool_size=2, timeout_seconds=10)
        await database.migrate()
        books = BookDAL(database, clock=partial(next, iter(range(_COUNT))))
        for start in range(0, _COUNT, 100):
            await books.create_books([_draft(number) for number in range(start, start + 100)])
        await execute(database, _ANALYZE[database.dialect])
        yield database
        await database.close()


def _draft(number: int) -> BookDraft:
    return BookDraft(
        f"Book {number * 7919 % _COUNT:05}",
        f"Author {number * 6101 % _COUNT // 3:05}",
        number * 4409 % _COUNT // 5,
    )


async def _plan(database: Database, statement: Any) -> list[dict[str, Any]]:
    dialect = database._prober.dialect
    compiled = statement.compile(dialect=dialect)
    values = compiled.construct_params()
    # As the driver gets them: a sort key as bytes.
    convert = {name: compiled._bind_processors.get(name, lambda value: value) for name in values}
    parameters = tuple(convert[name](values[name]) for name in compiled.positiontup)
    async with database._prober.connect() as connection:
        rows = await connection.exec_driver_sql(f"{_EXPLAIN[database.dialect]} {compiled}", parameters)
        return [dict(row) for row in rows.mappings()]


def _assert_finds_through_an_index(database: Database, plan: list[dict[str, Any]]) -> None:
    match database.dialect:
        case "sqlite":
            steps = [row["detail"] for row in plan]
            assert steps[0].startswith("SEARCH books USING")
            assert not any(step.startswith("SCAN") for step in steps)
        case "postgresql":
            steps = [row["QUERY PLAN"] for row in plan]
            assert any("Index Cond" in step for step in steps), steps
            assert not any("Seq Scan" in step for step in steps), steps
        case _:
            (row,) = plan
            assert row["type"] in ("range", "ref", "const"), row
            assert row["key"], row


async def _middle(database: Database, order_by: str) -> BookRecord:
    page = await BookDAL(database).list_books(
        page_size=1, page_token="", filter="release_year = 500", order_by=order_by
    )
    (record,) = page.books
    assert isinstance(record, BookRecord)
    return record


@pytest.mark.parametrize("direction", ["asc", "desc"])
@pytest.mark.parametrize("field", FIELDS)
async def test_page_deep_in_an_order_is_found_through_an_index(library: Database, field: str, direction: str) -> None:
    order = parse_order_by(f"{field} {direction}" + (", id desc" if direction == "desc" and field != "id" else ""))
    token = page_token_from_record(await _middle(library, ""), filter="", order=order)
    position = position_from_page_token(token, filter="", order=order)
    parsed, _ = parse_filter("", dialect=library.dialect)
    ((statement, _),) = page_attempts(parsed, order, dialect=library.dialect, continued=True)
    plan = await _plan(library, statement().params(limit=51, **position))
    _assert_finds_through_an_index(library, plan)


@pytest.mark.parametrize(
    "filter",
    [
        'name = "Book 02500"',
        'name = "Book 025*"',
        'author = "Author 00500"',
        'author = "Author 0050*"',
        "id = 2500",
        "release_year = 500",
        "create_time = 1970-01-01T00:00:00.000025Z",
    ],
)
async def test_few_books_are_found_through_an_index(library: Database, filter: str) -> None:
    parsed, values = parse_filter(filter, dialect=library.dialect)
    ((statement, _),) = page_attempts(parsed, parse_order_by("id"), dialect=library.dialect, continued=False)
    page = await BookDAL(library).list_books(page_size=1_000, page_token="", filter=filter, order_by="")
    assert 1 <= len(page.books) <= 100
    _assert_finds_through_an_index(library, await _plan(library, statement().params(limit=51, **values)))


async def _rows_read(database: Database) -> int:
    async with database._reader.connect() as connection:
        rows = await connection.execute(text("SHOW SESSION STATUS LIKE 'Handler_read%'"))
        return sum(int(value) for _, value in rows)


@pytest.fixture
async def rows_read_for_page(library: Database) -> AsyncIterator[Callable[..., Awaitable[int]]]:
    """Count the rows that MariaDB reads for a page of ten books, on a connection of its own."""
    url = library.url.render_as_string(hide_password=False)
    database = Database(url, pool_size=1, timeout_seconds=10)

    async def count(**request: Any) -> int:
        before = await _rows_read(database)
        of_the_status = await _rows_read(database) - before
        page = await BookDAL(database).list_books(page_size=10, **{"page_token": "", "filter": "", **request})
        assert len(page.books) == 10
        return await _rows_read(database) - before - 2 * of_the_status

    yield count
    await database.close()


@pytest.mark.databases("mariadb")
@pytest.mark.parametrize("filter", ["", "book"])
@pytest.mark.parametrize(
    "order_by", ["author", "author desc", "author, name", "name desc", "release_year desc, author"]
)
async def test_mariadb_reads_few_rows_for_a_page_in_any_order(
    library: Database, rows_read_for_page: Callable[..., Awaitable[int]], order_by: str, filter: str
) -> None:
    assert await rows_read_for_page(filter=filter, order_by=order_by) < 200
    middle = await _middle(library, "")
    token = page_token_from_record(middle, filter=filter, order=parse_order_by(order_by))
    assert await rows_read_for_page(filter=filter, order_by=order_by, page_token=token) < 200


@pytest.mark.databases("mariadb")
@pytest.mark.parametrize("filter", ["name:77", 'name:77 author > "Author 0"', "name:77 release_year < 5000"])
@pytest.mark.parametrize("order_by", ["author", "author desc", "name desc"])
async def test_mariadb_reads_the_table_once_for_a_search_that_finds_few(
    rows_read_for_page: Callable[..., Awaitable[int]], order_by: str, filter: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(page_statements, "_ROWS_EXAMINED", 200)
    page_statements.page_attempts.cache_clear()
    read = await rows_read_for_page(filter=filter, order_by=order_by)
    page_statements.page_attempts.cache_clear()
    assert _COUNT <= read < _COUNT + 300
