"""Short reads of a SQLite file on the event loop's own thread: what they may do, and what goes to a thread instead."""

import asyncio
import sqlite3
import time
from collections.abc import Iterator
from contextlib import closing, contextmanager
from pathlib import Path
from typing import Any

import pytest
from sqlalchemy import event

from bookstore_grpc.dal.books import _GET, _GET_MANY, BookDAL
from bookstore_grpc.dal.database import Database
from bookstore_grpc.dal.filters import parse_filter
from bookstore_grpc.dal.page_statements import entry_statement, page_attempts
from bookstore_grpc.dal.paging import parse_order_by
from bookstore_grpc.dal.records import BookChanges, BookDraft
from bookstore_grpc.dal.totals import count_matching
from bookstore_grpc.errors import BookNotFound, DatabaseUnavailable
from bookstore_grpc.limits import CACHED_VALUES_MAX
from tests.dal.conftest import move
from tests.dal.tricky_books import store_tricky_books

_DRAFT = BookDraft("Dune", "Frank Herbert", 1965)
_MANY = 30_000


@pytest.fixture
def books(sqlite: Database) -> BookDAL:
    return BookDAL(sqlite)


@pytest.fixture
def many(sqlite: Database, path: Path) -> None:
    """So many books that a read of all takes more steps than an inline one may."""
    with closing(sqlite3.connect(path)) as connection:
        connection.execute(
            "WITH RECURSIVE numbers(n) AS (SELECT 1 UNION ALL SELECT n + 1 FROM numbers WHERE n < ?) "
            "INSERT INTO books (name, author, release_year, create_time, update_time, name_folded, author_folded) "
            "SELECT 'Book ' || n, 'Anon', n % 2000, n, n, 'book ' || n, 'anon' FROM numbers",
            (_MANY,),
        )
        connection.commit()


@contextmanager
def threaded_reads(database: Database) -> Iterator[list[int]]:
    """Collect the moments at which a read went to a thread."""
    reads: list[int] = []

    def note(*_: object) -> None:
        reads.append(time.monotonic_ns())

    engine = database._reader.sync_engine
    event.listen(engine, "checkout", note)
    yield reads
    event.remove(engine, "checkout", note)


def connections_in_use(database: Database) -> Any:
    return database._reader.pool.checkedout()  # type: ignore[attr-defined]  # the queue's own method


def is_anyone_reading(path: Path) -> bool:
    """Return whether an open transaction blocks a checkpoint of the WAL."""
    with closing(sqlite3.connect(path, timeout=0)) as connection:
        busy, *_ = connection.execute("PRAGMA wal_checkpoint(TRUNCATE)").fetchone()
    return bool(busy)


async def find(books: BookDAL, filter: str, *, page_size: int = 1_000, order_by: str = "") -> list[int]:
    page = await books.list_books(page_size=page_size, page_token="", filter=filter, order_by=order_by)
    return [book.id for book in page.books]


async def test_short_reads_need_no_thread_however_many_they_are(sqlite: Database, books: BookDAL) -> None:
    stored = await books.create_books([_DRAFT] * 1_000)
    ids = [record.id for record in stored]
    with threaded_reads(sqlite) as reads:
        for _ in range(10_000):
            assert await books.get_book(ids[0]) == stored[0]
        for _ in range(20):
            assert await find(books, "", order_by="name desc, id") == ids
            assert await books.get_books(ids) == stored
        assert reads == []


@pytest.mark.usefixtures("many")
async def test_read_of_many_steps_runs_in_a_thread(sqlite: Database, books: BookDAL) -> None:
    with threaded_reads(sqlite) as reads:
        assert await find(books, "zq") == []
        assert await find(books, f'name = "Book {_MANY}"') == [_MANY]
        assert len(reads) == 1
        assert await find(books, "99") == [n for n in range(1, _MANY + 1) if "99" in str(n)]
        assert await find(books, "ok", page_size=3, order_by="release_year desc, name") == [11_999, 13_999, 15_999]
        assert len(reads) == 2  # an index finds the few at once
    assert connections_in_use(sqlite) == 0


@pytest.mark.usefixtures("many")
async def test_others_go_on_while_a_long_read_is_under_way(sqlite: Database, books: BookDAL) -> None:
    long = [asyncio.create_task(find(books, "zq AND qz AND zz")) for _ in range(4)]
    await asyncio.sleep(0)
    reads = 0
    while not all(task.done() for task in long):
        assert (await books.get_book(1)).name == "Book 1"
        reads += 1
        await asyncio.sleep(0)
    assert reads > 5
    assert await asyncio.gather(*long) == [[]] * 4


@pytest.mark.usefixtures("many")
async def test_long_read_keeps_nothing_open(sqlite: Database, books: BookDAL, path: Path) -> None:
    assert await find(books, "zq") == []
    assert not is_anyone_reading(path)
    await books.get_book(1)
    assert not is_anyone_reading(path)


@pytest.mark.usefixtures("many")
async def test_long_read_that_is_cancelled_leaves_nothing_behind(sqlite: Database, books: BookDAL, path: Path) -> None:
    for turns in [*range(0, 12), 20, 50, 100]:
        tasks = [asyncio.create_task(find(books, "zq")) for _ in range(3)]
        for _ in range(turns):
            await asyncio.sleep(0)
        for task in tasks:
            task.cancel()
        await asyncio.wait(tasks)
        assert (await books.get_book(1)).name == "Book 1"
    async with asyncio.timeout(30):
        while connections_in_use(sqlite):  # noqa: ASYNC110  a pool sets no event
            await asyncio.sleep(0.01)
    assert not is_anyone_reading(path)
    assert await asyncio.gather(*(find(books, "zq") for _ in range(3))) == [[]] * 3


async def test_inline_reader_cannot_write(sqlite: Database, books: BookDAL) -> None:
    record = await books.create_book(_DRAFT)
    await books.get_book(record.id)
    assert sqlite._inline_reader
    assert sqlite._inline_reader._connection
    with pytest.raises(sqlite3.OperationalError, match="readonly"):
        sqlite._inline_reader._connection.execute("DELETE FROM books")


@pytest.mark.parametrize("journal", ["wal", "delete"])
async def test_file_that_another_holds_is_waited_for(sqlite: Database, path: Path, journal: str) -> None:
    record = await BookDAL(sqlite).create_book(_DRAFT)
    await sqlite.close()
    patient = Database(f"sqlite:///{path}", pool_size=2, timeout_seconds=30)
    hasty = Database(f"sqlite:///{path}", pool_size=2, timeout_seconds=0.2)
    with closing(sqlite3.connect(path, isolation_level=None)) as other:
        assert other.execute(f"PRAGMA journal_mode = {journal}").fetchall() == [(journal,)]
        other.execute("PRAGMA locking_mode = EXCLUSIVE")
        other.execute("BEGIN EXCLUSIVE")
        waiting = asyncio.create_task(BookDAL(patient).get_book(record.id))
        with pytest.raises(DatabaseUnavailable):
            await BookDAL(hasty).get_book(record.id)
        assert not waiting.done()
        other.execute("ROLLBACK")
    assert await waiting == record
    for database in (patient, hasty):
        with threaded_reads(database) as reads:
            assert await BookDAL(database).get_book(record.id) == record
            assert reads == []
        await database.close()


async def test_reads_see_writes_that_were_just_acknowledged(books: BookDAL) -> None:
    for year in range(40):
        record = await books.create_book(_DRAFT)
        assert await books.get_book(record.id) == record
        changed = await books.update_book(record.id, BookChanges(release_year=year))
        assert await books.get_book(record.id) == changed
        assert await find(books, f"id = {record.id} AND release_year = {year}") == [record.id]
        if year % 2:
            await books.delete_book(record.id)
            with pytest.raises(BookNotFound):
                await books.get_book(record.id)
            assert await books.get_books([]) == []


async def test_book_that_another_process_changed_is_read_as_it_is(books: BookDAL, path: Path) -> None:
    record = await books.create_book(_DRAFT)
    assert await books.get_book(record.id) == record
    with closing(sqlite3.connect(path)) as other:
        other.execute("UPDATE books SET release_year = 7")
        assert await books.get_book(record.id) == record
        other.commit()
        assert await books.get_book(record.id) == record._replace(release_year=7)


async def test_inline_and_threaded_reads_return_the_same(sqlite: Database) -> None:
    stored = await store_tricky_books(sqlite)
    filters = ["", "a", 'author:"e" OR name:"ß"', "release_year < 0", f"id = {2**63 - 1}", "NOT name:'%'"]
    filters += ['create_time > "1970-01-01T00:00:00Z"', f"release_year > {2**31 - 1}"]
    assert sqlite._inline_reader
    for filter in filters:
        for order_by in ("", "author desc, name", "release_year, create_time desc", "update_time desc, author"):
            order = parse_order_by(order_by)
            parsed, values = parse_filter(filter, dialect="sqlite")
            statement = page_attempts(parsed, order, dialect="sqlite", continued=False)[0].statement()
            parameters = {"limit": 50, **values}
            assert sqlite._inline_reader.rows(statement, parameters) == await sqlite._rows_in_thread(
                *sqlite._inline_reader.compile(statement, parameters)
            )
    for ids in ([], [stored[0].id], [record.id for record in stored], [2**62]):
        assert sqlite._inline_reader.rows(_GET_MANY, {"ids": ids}) == await sqlite._rows_in_thread(
            *sqlite._inline_reader.compile(_GET_MANY, {"ids": ids})
        )
    assert sqlite._inline_reader.rows(_GET, {"book_id": stored[-1].id}) == [stored[-1]]


# A test may block for a moment, which a server may not.


def _read(path: Path) -> bytes:
    return path.read_bytes()


def _write(path: Path, content: bytes) -> None:
    path.write_bytes(content)


def _is_there(path: Path) -> bool:
    return path.exists()


@pytest.mark.parametrize("header_length", [0, 100])
async def test_damaged_file_is_unavailable_until_it_is_whole_again(
    sqlite: Database, path: Path, header_length: int
) -> None:
    record = await BookDAL(sqlite).create_book(_DRAFT)
    await sqlite.close()
    whole = _read(path)
    database = Database(f"sqlite:///{path}", pool_size=2, timeout_seconds=1)
    _write(path, whole[:header_length] + b"\xff" * (len(whole) - header_length))
    for _ in range(2):
        with pytest.raises(DatabaseUnavailable):
            await BookDAL(database).get_book(record.id)
    _write(path, whole)
    assert await BookDAL(database).get_book(record.id) == record
    await database.close()


async def test_file_that_was_away_is_read_again_once_it_is_back(sqlite: Database, path: Path) -> None:
    books = BookDAL(sqlite)
    record = await books.create_book(_DRAFT)
    assert await books.get_book(record.id) == record
    move(path, path.with_suffix(".old"))
    with pytest.raises(DatabaseUnavailable):
        await sqlite.ping()
    move(path.with_suffix(".old"), path)
    assert await books.get_book(record.id) == record
    changed = await books.update_book(record.id, BookChanges(release_year=1))
    assert await books.get_book(record.id) == changed


async def test_file_that_is_missing_at_the_first_read_is_unavailable_and_not_recreated(
    sqlite: Database, path: Path
) -> None:
    record = await BookDAL(sqlite).create_book(_DRAFT)
    await sqlite._writer.dispose()
    move(path, path.with_suffix(".old"))
    with pytest.raises(DatabaseUnavailable):
        await BookDAL(sqlite).get_book(record.id)
    assert not _is_there(path)
    move(path.with_suffix(".old"), path)
    assert await BookDAL(sqlite).get_book(record.id) == record


async def test_reader_that_opens_again_does_not_create_a_file_that_was_just_moved(
    sqlite: Database, books: BookDAL, path: Path
) -> None:
    record = await books.create_book(_DRAFT)
    await books.get_book(record.id)
    assert sqlite._inline_reader
    sqlite._inline_reader.close()
    move(path, path.with_suffix(".old"))
    with pytest.raises(DatabaseUnavailable):
        await books.get_book(record.id)
    assert not _is_there(path)


async def test_closed_reader_opens_again_and_close_twice_does_no_harm(sqlite: Database, books: BookDAL) -> None:
    record = await books.create_book(_DRAFT)
    assert sqlite._inline_reader
    for _ in range(2):
        assert await books.get_book(record.id) == record
        sqlite._inline_reader.close()
        sqlite._inline_reader.close()


@pytest.mark.parametrize(
    ("filters", "found"),
    [
        (('author = "A"', 'author = "B"'), ({"Apple", "Ax"}, {"Bx"})),
        (('name = "*x"', 'name = "*le"'), ({"Ax", "Bx"}, {"Apple"})),
        (("name:ap", "name:b"), ({"Apple"}, {"Bx"})),
        (("release_year > 1 name < B", "release_year > 2 name < C"), ({"Ax"}, {"Bx"})),
    ],
)
async def test_filters_that_differ_in_their_values_share_their_statement_and_not_their_results(
    books: BookDAL, filters: tuple[str, str], found: tuple[set[str], set[str]]
) -> None:
    await books.create_books([BookDraft("Apple", "A", 1), BookDraft("Ax", "A", 2), BookDraft("Bx", "B", 3)])
    for filter, expected in zip(filters, found, strict=True):
        page = await books.list_books(page_size=50, page_token="", filter=filter, order_by="")
        assert {record.name for record in page.books} == expected
    first, second = (parse_filter(filter, dialect="sqlite")[0] for filter in filters)
    order = parse_order_by("id")
    attempts = page_attempts(first, order, dialect="sqlite", continued=False)
    assert attempts is page_attempts(second, order, dialect="sqlite", continued=False)


async def test_statements_of_a_filter_with_many_values_are_not_cached(sqlite: Database, books: BookDAL) -> None:
    assert sqlite._inline_reader
    compiled = sqlite._inline_reader.compile.__self__._compiled  # type: ignore[attr-defined]
    sizes = []
    for filter in ("a", " ".join(f"many{number}" for number in range(CACHED_VALUES_MAX))):
        await books.list_books(page_size=1, page_token="", filter=filter, order_by="", include_total=True)
        caches = (page_attempts, entry_statement, count_matching, compiled)
        sizes.append([cache.cache_info().currsize for cache in caches])
    assert sizes[0] == sizes[1]
