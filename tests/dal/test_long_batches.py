"""Batches of the longest books, which have more bytes and parameters than a database takes in one statement."""

import asyncio
import shutil
import tempfile
import uuid
from collections.abc import AsyncIterator, Iterator
from pathlib import Path

import pytest

from bookstore_grpc.dal.books import BookDAL
from bookstore_grpc.dal.database import Database
from bookstore_grpc.dal.driver_errors import driver_error
from bookstore_grpc.dal.records import BookChanges, BookDraft
from bookstore_grpc.errors import DatabaseUnavailable
from bookstore_grpc.limits import (
    AUTHOR_MAX_CODE_POINTS,
    BATCH_MAX,
    MARIADB_PACKET_MIN_BYTES,
    NAME_MAX_CODE_POINTS,
    RELEASE_YEAR_MAX,
)
from tests.dal.conftest import execute
from tests.faults.database_servers import DatabaseServer, database_server


def longest(count: int) -> list[BookDraft]:
    """Books of the most bytes, all of which MariaDB's driver has to escape or that take four."""
    return [
        BookDraft(
            f"{number:04}" + "𝄞" * (NAME_MAX_CODE_POINTS - 4),
            "'\\" * (AUTHOR_MAX_CODE_POINTS // 2),
            RELEASE_YEAR_MAX,
            uuid.uuid4(),
        )
        for number in range(count)
    ]


async def check_batches(books: BookDAL) -> None:
    drafts = longest(BATCH_MAX)
    first, small, second = await asyncio.gather(
        books.create_books(drafts),
        books.create_book(BookDraft("Dune", "Frank Herbert", 1965, uuid.uuid4())),
        books.create_books(longest(BATCH_MAX)),
    )
    assert [record.name for record in first] == [draft.name for draft in drafts]
    assert small.name == "Dune"
    assert len(second) == BATCH_MAX
    assert await books.create_books(drafts) == first
    assert await books.get_books([record.id for record in first]) == first
    changed = await asyncio.gather(*(books.update_book(record.id, BookChanges(name="Dune")) for record in first))
    assert {record.name for record in changed} == {"Dune"}


async def test_batches_of_the_longest_books_are_stored_in_order(database: Database) -> None:
    await check_batches(BookDAL(database))


@pytest.fixture(scope="module")
def own_mariadb() -> Iterator[DatabaseServer]:
    folder = Path(tempfile.mkdtemp(prefix="packets-"))
    try:
        with database_server("mariadb", folder) as server:
            yield server
    finally:
        shutil.rmtree(folder, ignore_errors=True)


@pytest.fixture
async def with_short_packets(own_mariadb: DatabaseServer) -> AsyncIterator[Database]:
    """A database whose connections, from the next on, take only the shortest packets that do."""
    database = Database(own_mariadb.url, pool_size=2, timeout_seconds=10)
    await database.migrate()
    await execute(database, f"SET GLOBAL max_allowed_packet = {MARIADB_PACKET_MIN_BYTES}")
    database._pool_invalidation.invalidate()
    yield database
    await database.close()


@pytest.mark.e2e
@pytest.mark.mariadb
async def test_mariadb_with_short_packets_stores_batches_too(with_short_packets: Database) -> None:
    await check_batches(BookDAL(with_short_packets))


@pytest.mark.e2e
@pytest.mark.mariadb
async def test_mariadb_with_packets_too_short_for_a_call_is_an_error(with_short_packets: Database) -> None:
    await execute(with_short_packets, f"SET GLOBAL max_allowed_packet = {MARIADB_PACKET_MIN_BYTES // 2}")
    with_short_packets._pool_invalidation.invalidate()
    with pytest.raises(DatabaseUnavailable) as caught:
        await BookDAL(with_short_packets).create_book(BookDraft("Dune", "Frank Herbert", 1965))
    assert "max_allowed_packet is 65536, and at least 131072 bytes" in str(driver_error(caught.value))
