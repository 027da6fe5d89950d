"""What is SQLite's own: how it is opened, its lock, its file."""

import asyncio
import os
import sqlite3
from contextlib import closing
from pathlib import Path

import pytest
from sqlalchemy import exc, text

from bookstore_grpc.dal.books import BookDAL
from bookstore_grpc.dal.database import Database
from bookstore_grpc.dal.records import BookDraft
from bookstore_grpc.errors import DatabaseUnavailable
from tests.dal.conftest import move

_DRAFT = BookDraft("Dune", "Frank Herbert", 1965)


@pytest.fixture
def sqlite_timeout_seconds() -> float:
    return 0.2


async def test_writer_commits_through_a_log_and_to_the_disk(sqlite: Database) -> None:
    async with sqlite._writer.begin() as connection:
        found = {
            pragma: (await connection.execute(text(f"PRAGMA {pragma}"))).scalar_one()
            for pragma in ("journal_mode", "synchronous", "foreign_keys", "busy_timeout")
        }
    assert found == {"journal_mode": "wal", "synchronous": 2, "foreign_keys": 1, "busy_timeout": 200}


async def test_reader_and_prober_cannot_write(sqlite: Database) -> None:
    for engine in (sqlite._reader, sqlite._prober):
        async with engine.connect() as connection:
            with pytest.raises(exc.OperationalError, match="readonly"):
                await connection.execute(text("DELETE FROM books"))


async def test_writing_has_one_connection_and_reading_several(sqlite: Database) -> None:
    assert sqlite._writer.pool.size() == 1  # type: ignore[attr-defined]  # the queue's own method
    assert sqlite._reader.pool.size() == 2  # type: ignore[attr-defined]  # the queue's own method


async def test_transaction_takes_the_lock_at_its_beginning(sqlite: Database, path: Path) -> None:
    async with sqlite._writer.begin():
        with (
            closing(sqlite3.connect(path, timeout=0)) as other,
            pytest.raises(sqlite3.OperationalError, match="locked"),
        ):
            other.execute("BEGIN IMMEDIATE")


async def test_lock_that_is_held_elsewhere_is_unavailable_and_released_is_fine(sqlite: Database, path: Path) -> None:
    books = BookDAL(sqlite)
    with closing(sqlite3.connect(path, isolation_level=None)) as other:
        other.execute("BEGIN IMMEDIATE")
        for _ in range(2):
            with pytest.raises(DatabaseUnavailable):
                await books.create_book(_DRAFT)
        await sqlite.ping()
        assert (await books.list_books(page_size=5, page_token="", filter="", order_by="")).books == []
        other.execute("ROLLBACK")
        record = await books.create_book(_DRAFT)
    assert await books.get_book(record.id) == record


async def test_lock_released_in_time_lets_the_waiting_write_through(path: Path) -> None:
    database = Database(f"sqlite:///{path}", pool_size=2, timeout_seconds=30)
    await database.migrate()
    with closing(sqlite3.connect(path, isolation_level=None)) as other:
        other.execute("BEGIN IMMEDIATE")
        waiting = asyncio.create_task(BookDAL(database).create_book(_DRAFT))
        assert await asyncio.wait([waiting], timeout=0.1) == (set(), {waiting})
        other.execute("COMMIT")
        assert (await waiting).name == "Dune"
    await database.close()


async def test_reader_sees_what_was_committed_while_a_write_is_under_way(sqlite: Database) -> None:
    books = BookDAL(sqlite)
    record = await books.create_book(_DRAFT)
    async with sqlite._writer.begin() as connection:
        await connection.execute(text("DELETE FROM books"))
        assert await books.get_book(record.id) == record
        await connection.rollback()
    assert await books.get_book(record.id) == record


async def test_file_opened_read_only_can_be_read_and_not_written(sqlite: Database, path: Path) -> None:
    record = await BookDAL(sqlite).create_book(_DRAFT)
    database = Database(f"sqlite:///file:{path}?mode=ro&uri=true", pool_size=1, timeout_seconds=1)
    books = BookDAL(database)
    assert await books.get_book(record.id) == record
    await database.ping()
    with pytest.raises(DatabaseUnavailable):
        await books.create_book(_DRAFT)
    with pytest.raises(DatabaseUnavailable):
        await books.delete_book(record.id)
    assert await books.get_book(record.id) == record
    await database.close()


async def test_folder_that_does_not_exist_is_unavailable(tmp_path: Path) -> None:
    database = Database(f"sqlite:///{tmp_path}/missing/books.db", pool_size=1, timeout_seconds=1)
    for call in (database.ping, database.migrate, database.is_behind):
        with pytest.raises(DatabaseUnavailable):
            await call()
    await database.close()


async def test_file_that_is_not_a_database_is_unavailable_and_not_changed(path: Path) -> None:
    _write(path, "Call me Ishmael. " * 100)
    database = Database(f"sqlite:///{path}", pool_size=1, timeout_seconds=1)
    with pytest.raises(DatabaseUnavailable):
        await database.migrate()
    with pytest.raises(DatabaseUnavailable):
        await database.is_behind()
    await database.close()
    assert _read(path) == "Call me Ishmael. " * 100


@pytest.mark.parametrize("replaced", [False, True])
async def test_file_that_was_moved_is_noticed(sqlite: Database, path: Path, replaced: bool) -> None:
    await sqlite.ping()
    move(path, path.with_suffix(".old"))
    if replaced:
        _write(path, "")
    with pytest.raises(DatabaseUnavailable):
        await sqlite.ping()
    move(path.with_suffix(".old"), path)
    await sqlite.ping()


async def test_committed_book_is_there_for_another_process_at_once(sqlite: Database, path: Path) -> None:
    record = await BookDAL(sqlite).create_book(_DRAFT)
    with closing(sqlite3.connect(path)) as other:
        assert other.execute("SELECT id, name FROM books").fetchall() == [(record.id, "Dune")]


async def test_nothing_is_opened_before_the_first_call(path: Path) -> None:
    database = Database(f"sqlite:///{path}", pool_size=1, timeout_seconds=1)
    await database.close()
    assert os.listdir(path.parent) == []


# A test may block for a moment, which a server may not.


def _write(path: Path, text: str) -> None:
    path.write_text(text)


def _read(path: Path) -> str:
    return path.read_text()


async def test_write_to_a_file_that_was_removed_is_rejected(sqlite: Database, path: Path) -> None:
    os.remove(path)
    with pytest.raises(DatabaseUnavailable):
        await BookDAL(sqlite).create_book(_DRAFT)
