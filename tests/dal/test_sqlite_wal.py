"""The write-ahead log (WAL) shrinks when the reader that has let it grow is gone."""

import sqlite3
from collections.abc import Iterator
from contextlib import closing
from pathlib import Path

import pytest

from bookstore_grpc.dal.books import BookDAL
from bookstore_grpc.dal.database import Database
from bookstore_grpc.dal.records import BookDraft

_DRAFT = BookDraft("Dune", "Frank Herbert", 1965)
_MEGABYTE = 2**20
WAL_MAX_BYTES = 32_768_000  # while there is space on the disk


@pytest.fixture
def sqlite_timeout_seconds() -> float:
    """Longer than a test may take: none waits for a lock."""
    return 60


@pytest.fixture
def reader(sqlite: Database, path: Path) -> Iterator[sqlite3.Connection]:
    """A reader whose snapshot is older than a long WAL."""
    with closing(sqlite3.connect(path, isolation_level=None)) as connection:
        connection.execute("BEGIN")
        connection.execute("SELECT count(*) FROM books").fetchone()
        grow_wal(path)
        assert is_long(sqlite)
        yield connection


def is_long(sqlite: Database) -> bool:
    return (sqlite.wal_bytes() or 0) > WAL_MAX_BYTES


def grow_wal(path: Path) -> None:
    with closing(sqlite3.connect(path, isolation_level=None)) as writer:
        writer.execute("PRAGMA wal_autocheckpoint = 0")
        writer.execute("CREATE TABLE filler (content BLOB)")
        for _ in range(WAL_MAX_BYTES // _MEGABYTE + 8):
            writer.execute("INSERT INTO filler VALUES (zeroblob(?))", (_MEGABYTE,))


async def test_an_idle_server_truncates_it_once_the_reader_is_gone(
    sqlite: Database, reader: sqlite3.Connection
) -> None:
    await sqlite.truncate_wal()
    assert is_long(sqlite)
    assert reader.execute("SELECT count(*) FROM sqlite_master WHERE name = 'filler'").fetchone() == (0,)
    reader.execute("ROLLBACK")
    await sqlite.truncate_wal()
    assert sqlite.wal_bytes() == 0
    assert reader.execute("SELECT sum(length(content)) FROM filler").fetchone()[0] > WAL_MAX_BYTES


async def test_a_writing_server_truncates_it_by_itself(sqlite: Database, reader: sqlite3.Connection) -> None:
    books = BookDAL(sqlite)
    await books.create_book(_DRAFT)
    reader.execute("ROLLBACK")
    await books.create_book(_DRAFT)  # its checkpoint copies everything
    await books.create_book(_DRAFT)  # it starts at the beginning of the WAL
    assert sqlite.wal_bytes() == WAL_MAX_BYTES


async def test_truncating_it_does_not_wait_for_a_writer(
    sqlite: Database, reader: sqlite3.Connection, path: Path
) -> None:
    reader.execute("ROLLBACK")
    with closing(sqlite3.connect(path, isolation_level=None)) as writer:
        writer.execute("BEGIN IMMEDIATE")
        await sqlite.truncate_wal()
        assert is_long(sqlite)
        writer.execute("ROLLBACK")
    await sqlite.truncate_wal()
    assert sqlite.wal_bytes() == 0


async def test_a_wal_of_ordinary_length_is_left_alone(sqlite: Database) -> None:
    await BookDAL(sqlite).create_book(_DRAFT)
    before = sqlite.wal_bytes()
    await sqlite.truncate_wal()
    assert sqlite.wal_bytes() == before
    assert before


async def test_it_is_found_behind_a_symbolic_link(tmp_path: Path, sqlite: Database, path: Path) -> None:
    link = tmp_path / "link.db"
    link.symlink_to(path)
    await BookDAL(sqlite).create_book(_DRAFT)
    linked = Database(f"sqlite:///{link}", pool_size=1, timeout_seconds=1)
    assert linked.wal_bytes() == sqlite.wal_bytes()
    await linked.close()


async def test_without_its_file_nothing_is_done(sqlite: Database, path: Path) -> None:
    path.unlink()  # noqa: ASYNC240  a test may block for a moment
    await sqlite.truncate_wal()
    assert not path.exists()  # noqa: ASYNC240
