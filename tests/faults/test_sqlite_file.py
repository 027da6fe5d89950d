"""What may befall SQLite's file: a full disk, no right to write, a lock of somebody else's, damage."""

import asyncio
import os
import shutil
import signal
import sqlite3
import subprocess
import time
from collections.abc import Iterator
from contextlib import closing, suppress
from pathlib import Path
from typing import Any

import grpc
import pytest
from bookstore.v1 import books_pb2, books_pb2_grpc
from grpc_health.v1 import health_pb2, health_pb2_grpc

from tests.conftest import require
from tests.e2e.conftest import Start
from tests.executable import Serving, run_bookstore
from tests.faults.conftest import Figures
from tests.faults.load import Tally, load, lost_and_doubled

pytestmark = pytest.mark.e2e


class SmallDisk:
    """A disk in memory of so many megabytes."""

    def __init__(self, folder: Path, megabytes: int) -> None:
        self.folder = folder
        self.database_url = f"sqlite+aiosqlite:///{folder}/bookstore.db"
        self._filler = folder / "filler"
        self.mounted = self._mount(f"size={megabytes}m")

    def fill(self) -> None:
        with self._filler.open("wb", buffering=0) as file, suppress(OSError):
            while file.write(bytes(4_096)):
                pass

    def make_room(self) -> None:
        self._filler.unlink()

    def grow(self, megabytes: int) -> None:
        assert self._mount(f"remount,size={megabytes}m")

    def _mount(self, options: str) -> bool:
        command = ["mount", "-t", "tmpfs", "-o", options, "bookstore-test", str(self.folder)]
        return subprocess.run(command, capture_output=True, check=False).returncode == 0


@pytest.fixture
def small_disk(request: pytest.FixtureRequest, tmp_path: Path) -> Iterator[SmallDisk]:
    folder = tmp_path / "disk"
    folder.mkdir()
    disk = SmallDisk(folder, request.param)
    require(disk.mounted, "no small disk can be mounted here")
    try:
        yield disk
    finally:
        subprocess.run(["umount", "--lazy", folder], check=True)


async def until_refused(tally: Tally, count: int = 20) -> None:
    refused = tally.refusals.total()
    async with asyncio.timeout(30):
        while tally.refusals.total() < refused + count:  # noqa: ASYNC110  other tasks count it
            await asyncio.sleep(0.05)


async def until_answered(tally: Tally, count: int = 20) -> float:
    """Wait until so many more creates are answered, and answer how long it took to the first."""
    began, answered = time.monotonic(), len(tally.answered)
    first = 0.0
    async with asyncio.timeout(30):
        while len(tally.answered) < answered + count:
            await asyncio.sleep(0.01)
            first = first or (time.monotonic() - began) * (len(tally.answered) > answered)
    return first


async def check_reads_and_health(address: str) -> None:
    """Raise unless books are read and health says so."""
    async with grpc.aio.insecure_channel(address) as channel:
        stub = books_pb2_grpc.BookServiceStub(channel)
        await stub.GetBook(books_pb2.GetBookRequest(id=1), timeout=10)
        await stub.ListBooks(books_pb2.ListBooksRequest(page_size=5), timeout=10)
        health: Any = health_pb2_grpc.HealthStub(channel)
        answer = await health.Check(health_pb2.HealthCheckRequest(), timeout=10)
    assert answer.status == health_pb2.HealthCheckResponse.SERVING


async def check_nothing_is_lost(server: Serving, tally: Tally, figures: Figures, **values: float | str) -> None:
    answered = len(tally.answered)
    lost, doubled = await lost_and_doubled(server.address, tally)
    figures(database="sqlite", calls=tally.calls, answered=answered, lost=lost, doubled=doubled, **values)
    assert (lost, doubled) == (0, 0)
    assert tally.refusals.keys() == {grpc.StatusCode.UNAVAILABLE}
    assert "Traceback" not in server.log_text()
    assert await asyncio.to_thread(server.stop) == 0


@pytest.mark.parametrize("small_disk", [1, 2, 8, 40], indirect=True)
async def test_a_full_disk_refuses_writes_and_loses_none(
    start: Start, small_disk: SmallDisk, is_long: bool, figures: Figures
) -> None:
    rounds = 5 if is_long else 1
    server = await asyncio.to_thread(start, small_disk.database_url)
    tally = Tally()
    slowest = 0.0
    async with load(server.address, tally, callers=8):
        await until_answered(tally)
        for _ in range(rounds):
            small_disk.fill()
            await until_refused(tally)
            await check_reads_and_health(server.address)
            small_disk.make_room()
            slowest = max(slowest, await until_answered(tally))
    await check_nothing_is_lost(server, tally, figures, rounds=rounds, recovery_seconds=round(slowest, 2))


@pytest.mark.parametrize("small_disk", [1, 2], indirect=True)
async def test_a_disk_full_of_books_is_used_again_when_it_has_grown(
    start: Start, small_disk: SmallDisk, figures: Figures
) -> None:
    server = await asyncio.to_thread(start, small_disk.database_url)
    tally = Tally()
    async with load(server.address, tally, callers=8):
        await until_refused(tally)
        used_by_books = os.stat(small_disk.folder / "bookstore.db").st_size
        used_by_log = os.stat(small_disk.folder / "bookstore.db-wal").st_size
        await check_reads_and_health(server.address)
        small_disk.grow(8)
        recovery = await until_answered(tally)
    await check_nothing_is_lost(server, tally, figures, recovery_seconds=round(recovery, 2))
    # It is the books that have filled it, not the log in front of them.
    assert used_by_books > used_by_log


class Guard:
    """Takes the right to write to files from everyone, the root included, and from those who have them open too."""

    def __init__(self, files: list[Path]) -> None:
        require(os.geteuid() == 0 and shutil.which("chattr"), "needs root and chattr")
        self._files = files

    def __enter__(self) -> None:
        require(self._change("+i"), "this file system knows no chattr")

    def __exit__(self, *_: object) -> None:
        assert self._change("-i")

    def _change(self, change: str) -> bool:
        return subprocess.run(["chattr", change, *self._files], capture_output=True, check=False).returncode == 0


async def test_a_file_that_can_no_longer_be_written_refuses_writes_until_it_can(
    start: Start, sqlite_url: str, sqlite_file: Path, figures: Figures
) -> None:
    server = await asyncio.to_thread(start, sqlite_url)
    tally = Tally()
    async with load(server.address, tally, callers=8):
        await until_answered(tally)
        with Guard([sqlite_file, Path(f"{sqlite_file}-wal")]):
            await until_refused(tally)
            await check_reads_and_health(server.address)
        recovery = await until_answered(tally)
    await check_nothing_is_lost(server, tally, figures, recovery_seconds=round(recovery, 2))


async def test_shared_memory_that_can_no_longer_be_written_may_end_the_server_and_loses_nothing(
    start: Start, sqlite_url: str, sqlite_file: Path, figures: Figures
) -> None:
    first = await asyncio.to_thread(start, sqlite_url)
    tally = Tally()
    async with load(first.address, tally, callers=8):
        await until_answered(tally)
        with Guard([sqlite_file, Path(f"{sqlite_file}-wal"), Path(f"{sqlite_file}-shm")]):
            await until_refused(tally)
            ended = first.process.poll()
    # The kernel has no other way to tell who writes to memory that a file system has taken back.
    assert ended in (None, -signal.SIGBUS)
    first.end()
    second = await asyncio.to_thread(start, sqlite_url)
    await check_nothing_is_lost(second, tally, figures)


@pytest.mark.parametrize("what", ["file", "folder"])
def test_what_cannot_be_written_is_refused_at_the_start(tmp_path: Path, what: str) -> None:
    require(os.geteuid() == 0 and shutil.which("chattr"), "needs root and chattr")
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
        recovery = await until_answered(tally)
    await check_nothing_is_lost(
        server,
        tally,
        figures,
        recovery_seconds=round(recovery, 2),
        slowest_seconds=round(tally.slowest_seconds, 2),
    )


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
