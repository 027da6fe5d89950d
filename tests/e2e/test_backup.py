"""A backup of a catalogue under writes, and restoring it by the commands of docs/operations.md."""

import asyncio
import re
import sqlite3
import subprocess
import time
from contextlib import closing
from pathlib import Path

import pytest
from bookstore.v1 import books_pb2

from bookstore_grpc.client import BookstoreClient
from bookstore_grpc.errors import BookNotFound
from tests.cli.test_backup import store_numbered
from tests.e2e.conftest import Start
from tests.executable import run_bookstore

pytestmark = pytest.mark.e2e

WRITERS = 8
# Enough for a copy in several steps.
STORED_BEFORE = 60_000
OPERATIONS = Path(__file__).parents[2] / "docs/operations.md"


class Writing:
    """Callers that create books continuously."""

    def __init__(self, client: BookstoreClient) -> None:
        self.acknowledged: dict[int, books_pb2.Book] = {}
        self.slowest_seconds = 0.0
        self._client = client
        self._tasks = [asyncio.create_task(self._create(writer)) for writer in range(WRITERS)]

    async def _create(self, writer: int) -> None:
        while True:
            began = time.monotonic()
            book = await self._client.create_book(name=f"By {writer}", author="Anon", release_year=2000)
            self.slowest_seconds = max(self.slowest_seconds, time.monotonic() - began)
            self.acknowledged[book.id] = book

    async def until(self, count: int) -> None:
        while len(self.acknowledged) < count:
            await asyncio.wait(self._tasks, timeout=0.01)
            assert not any(task.done() for task in self._tasks)

    async def end(self) -> None:
        for task in self._tasks:
            task.cancel()
        await asyncio.gather(*self._tasks, return_exceptions=True)


async def test_a_backup_under_load_is_complete_and_can_be_served(
    start: Start, sqlite_url: str, sqlite_file: Path, tmp_path: Path
) -> None:
    server = await asyncio.to_thread(start, sqlite_url)
    await asyncio.to_thread(store_numbered, sqlite_file, STORED_BEFORE)
    backup = tmp_path / "copies/backup.db"
    backup.parent.mkdir()
    async with BookstoreClient(server.address) as client:
        writing = Writing(client)
        await writing.until(50)
        before = dict(writing.acknowledged)
        done = await asyncio.to_thread(run_bookstore, "backup", backup, "--database-url", sqlite_url)
        during = len(writing.acknowledged) - len(before)
        await writing.until(len(writing.acknowledged) + 50)
        await writing.end()

    assert done.status == 0, done.errors
    assert during > 0
    assert writing.slowest_seconds < 2
    with closing(sqlite3.connect(backup)) as connection:
        assert connection.execute("PRAGMA integrity_check").fetchall() == [("ok",)]
        (count,) = connection.execute("SELECT count(*) FROM books").fetchone()
    assert done.output == f"{count:,} books in {backup}.\n"
    assert STORED_BEFORE + len(before) <= count < STORED_BEFORE + len(writing.acknowledged)
    assert [path.name for path in backup.parent.iterdir()] == ["backup.db"]

    restored = await asyncio.to_thread(start, f"sqlite+aiosqlite:///{backup}")
    async with BookstoreClient(restored.address) as client:
        assert await client.get_books(list(before)) == list(before.values())
        await client.create_book(name="New", author="Anon", release_year=2000)
    assert await asyncio.to_thread(restored.stop) == 0


async def test_the_documented_restore_gives_the_backup_and_nothing_newer(
    start: Start, sqlite_url: str, sqlite_file: Path, tmp_path: Path
) -> None:
    server = await asyncio.to_thread(start, sqlite_url)
    async with BookstoreClient(server.address) as client:
        kept = [await client.create_book(name=f"Kept {number}", author="Anon", release_year=1) for number in range(9)]
        page = await client.list_page(order_by="name", page_size=4)
        backup = await asyncio.to_thread(run_bookstore, "backup", tmp_path / "backup.db", "--database-url", sqlite_url)
        assert backup.status == 0, backup.errors
        lost = await client.create_book(name="Lost", author="Anon", release_year=1)
        await client.update_book(kept[0].id, name="Renamed")
    server.end()
    assert sqlite_file.with_name(f"{sqlite_file.name}-wal").stat().st_size > 0

    await asyncio.to_thread(_restore_as_documented, tmp_path)

    server = await asyncio.to_thread(start, sqlite_url)
    async with BookstoreClient(server.address) as client:
        assert [book async for book in client.list_books()] == kept
        rest = await client.list_page(order_by="name", page_token=page.next_page_token)
        assert [*page.books, *rest.books] == kept
        with pytest.raises(BookNotFound):
            await client.get_book(lost.id)
        assert (await client.update_book(kept[0].id, release_year=2, etag=kept[0].etag)).release_year == 2
    assert server.stop() == 0


def _restore_as_documented(folder: Path) -> None:
    """Run the commands between stopping the service and starting it, with both files in one folder."""
    (block,) = re.findall(r"<!-- restore:.*?-->\n```console\n(.*?)```", OPERATIONS.read_text(), re.DOTALL)
    first, *commands, last = re.findall(r"^\$ (.*)$", block, re.MULTILINE)
    assert "stop bookstore" in first
    assert "start bookstore" in last
    assert commands
    for command in commands:
        here = re.sub(r"sudo |/var/lib/bookstore/|/var/backups/|-o bookstore -g bookstore ", "", command)
        subprocess.run(here, shell=True, cwd=folder, check=True, timeout=10)
