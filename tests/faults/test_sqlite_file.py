"""What may befall SQLite's file: a full disk, no right to write, a lock of somebody else's, damage."""

import asyncio
import os
import sqlite3
import subprocess
import time
from collections.abc import Iterator
from contextlib import closing
from pathlib import Path

import grpc
import pytest
from bookstore.v1 import books_pb2, books_pb2_grpc

from tests.conftest import require
from tests.e2e.conftest import Start
from tests.executable import run_bookstore
from tests.faults.conftest import Figures
from tests.faults.load import Tally, load, lost_and_doubled

pytestmark = pytest.mark.e2e


@pytest.fixture
def small_disk(tmp_path: Path) -> Iterator[Path]:
    folder = tmp_path / "disk"
    folder.mkdir()
    mounted = subprocess.run(
        ["mount", "-t", "tmpfs", "-o", "size=40m", "bookstore-test", folder], capture_output=True, check=False
    )
    require(mounted.returncode == 0, "no small disk can be mounted here")
    try:
        yield folder
    finally:
        subprocess.run(["umount", "--lazy", folder], check=True)


async def test_a_full_disk_refuses_writes_and_loses_none(start: Start, small_disk: Path, figures: Figures) -> None:
    filler = small_disk / "filler"
    server = await asyncio.to_thread(start, f"sqlite+aiosqlite:///{small_disk}/bookstore.db")
    tally = Tally()
    async with load(server.address, tally, callers=8):
        await asyncio.sleep(0.2)
        with filler.open("wb", buffering=0) as file:
            try:
                while file.write(bytes(4_096)):
                    pass
            except OSError:
                pass
        async with asyncio.timeout(30):
            while not tally.refusals.total() > 20:  # noqa: ASYNC110  other tasks count it
                await asyncio.sleep(0.05)
        async with grpc.aio.insecure_channel(server.address) as channel:
            await books_pb2_grpc.BookServiceStub(channel).GetBook(books_pb2.GetBookRequest(id=1), timeout=10)
        filler.unlink()
        answered = len(tally.answered)
        async with asyncio.timeout(30):
            while len(tally.answered) == answered:  # noqa: ASYNC110  other tasks count it
                await asyncio.sleep(0.05)
    answered = len(tally.answered)
    lost, doubled = await lost_and_doubled(server.address, tally)

    figures(database="sqlite", calls=tally.calls, answered=answered, lost=lost, doubled=doubled)
    assert (lost, doubled) == (0, 0)
    assert tally.refusals.keys() == {grpc.StatusCode.UNAVAILABLE}
    assert "Traceback" not in server.log_text()


@pytest.mark.parametrize("what", ["file", "folder"])
def test_what_cannot_be_written_is_refused_at_the_start(tmp_path: Path, what: str) -> None:
    require(os.geteuid() == 0 and os.path.exists("/usr/bin/chattr"), "needs root and chattr")
    folder = tmp_path / "data"
    folder.mkdir()
    file = folder / "bookstore.db"
    url = f"sqlite+aiosqlite:///{file}"
    assert run_bookstore("migrate", "--database-url", url).status == 0
    guarded = file if what == "file" else folder
    if what == "folder":
        file.unlink()
    locked = subprocess.run(["chattr", "+i", guarded], capture_output=True, check=False)
    require(locked.returncode == 0, "this file system knows no chattr")
    try:
        finished = run_bookstore("serve", "--listen", "127.0.0.1:0", "--database-url", url)
    finally:
        subprocess.run(["chattr", "-i", guarded], check=True)
    assert finished.status == 1
    assert "Cannot use the database" in finished.errors


async def test_a_lock_of_somebody_else_delays_or_refuses_and_never_loses(
    start: Start, sqlite_url: str, sqlite_file: Path, is_long: bool, figures: Figures
) -> None:
    locked_seconds = 10.0 if is_long else 3.0
    server = await asyncio.to_thread(start, sqlite_url, "--database-timeout-seconds", "1")
    tally = Tally()
    async with load(server.address, tally, callers=8):
        await asyncio.sleep(0.3)
        with closing(sqlite3.connect(sqlite_file, isolation_level=None, timeout=30)) as connection:
            connection.execute("BEGIN IMMEDIATE")
            began = len(tally.answered)
            async with grpc.aio.insecure_channel(server.address) as channel:
                stub = books_pb2_grpc.BookServiceStub(channel)
                give_up = time.monotonic() + locked_seconds
                while time.monotonic() < give_up:
                    await stub.ListBooks(books_pb2.ListBooksRequest(page_size=5), timeout=2)
                    await asyncio.sleep(0.1)
            assert len(tally.answered) <= began + 8
            connection.execute("ROLLBACK")
        unlocked = time.monotonic()
        answered = len(tally.answered)
        async with asyncio.timeout(10):
            while len(tally.answered) == answered:  # noqa: ASYNC110  other tasks count it
                await asyncio.sleep(0.01)
        recovery = time.monotonic() - unlocked
    answered = len(tally.answered)
    lost, doubled = await lost_and_doubled(server.address, tally)
    figures(
        database="sqlite",
        calls=tally.calls,
        answered=answered,
        lost=lost,
        doubled=doubled,
        recovery_seconds=round(recovery, 2),
        slowest_seconds=round(tally.slowest_seconds, 2),
    )
    assert (lost, doubled) == (0, 0)
    assert tally.refusals.keys() == {grpc.StatusCode.UNAVAILABLE}


@pytest.mark.parametrize("damage", ["overwritten", "truncated", "no database"])
def test_a_damaged_file_is_refused_at_the_start_in_a_sentence(tmp_path: Path, damage: str) -> None:
    file = tmp_path / "bookstore.db"
    url = f"sqlite+aiosqlite:///{file}"
    assert run_bookstore("migrate", "--database-url", url).status == 0
    data = file.read_bytes()
    whole = {
        "overwritten": data[:100] + os.urandom(len(data) - 100),
        "truncated": data[: len(data) // 2],
        "no database": b"Dear diary, " * 1_000,
    }
    file.write_bytes(whole[damage])
    finished = run_bookstore("serve", "--listen", "127.0.0.1:0", "--database-url", url, seconds=20)
    assert finished.status == 1
    assert "Cannot use the database" in finished.errors
