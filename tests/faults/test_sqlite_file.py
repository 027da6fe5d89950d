"""Faults of SQLite's file: a full disk, a read-only file, a lock of another process, damage."""

import asyncio
import os
import shutil
import signal
import sqlite3
import subprocess
import time
from collections.abc import Callable, Iterator
from contextlib import closing, suppress
from pathlib import Path
from typing import Any

import grpc
import pytest
from bookstore.v1 import books_pb2, books_pb2_grpc
from grpc_health.v1 import health_pb2, health_pb2_grpc

from tests.conftest import FAULTS_VARIABLE, require
from tests.dal.test_sqlite_wal import WAL_MAX_BYTES, grow_wal
from tests.e2e.conftest import Start
from tests.executable import Serving, run_bookstore, wait_until
from tests.faults.conftest import Figures
from tests.faults.load import Tally, load, lost_and_doubled, until_acknowledged
from tests.metrics import ask, number

pytestmark = pytest.mark.e2e

IS_LONG = os.environ.get(FAULTS_VARIABLE) == "long"


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


async def until_rejected(tally: Tally, count: int = 20) -> None:
    rejected = tally.rejections.total()
    async with asyncio.timeout(30):
        while tally.rejections.total() < rejected + count:  # noqa: ASYNC110  other tasks count it
            await asyncio.sleep(0.05)


async def check_reads_and_health(address: str) -> None:
    """Raise unless reads succeed and health is SERVING."""
    async with grpc.aio.insecure_channel(address) as channel:
        stub = books_pb2_grpc.BookServiceStub(channel)
        await stub.GetBook(books_pb2.GetBookRequest(id=1), timeout=10)
        await stub.ListBooks(books_pb2.ListBooksRequest(page_size=5), timeout=10)
        health: Any = health_pb2_grpc.HealthStub(channel)
        response = await health.Check(health_pb2.HealthCheckRequest(), timeout=10)
    assert response.status == health_pb2.HealthCheckResponse.SERVING


async def check_nothing_is_lost(server: Serving, tally: Tally, figures: Figures, **values: float | str) -> None:
    succeeded = len(tally.acknowledged)
    lost, doubled = await lost_and_doubled(server.address, tally)
    figures(database="sqlite", calls=tally.calls, succeeded=succeeded, lost=lost, doubled=doubled, **values)
    assert (lost, doubled) == (0, 0)
    assert tally.rejections.keys() == {grpc.StatusCode.UNAVAILABLE}
    assert "Traceback" not in server.log_text()
    assert await asyncio.to_thread(server.stop) == 0


@pytest.mark.parametrize("small_disk", [1, 2, 8, 40] if IS_LONG else [1, 40], indirect=True)
async def test_a_full_disk_fails_writes_and_loses_none(
    start: Start, small_disk: SmallDisk, is_long: bool, figures: Figures
) -> None:
    rounds = 5 if is_long else 1
    server = await asyncio.to_thread(start, small_disk.database_url)
    tally = Tally()
    slowest = 0.0
    async with load(server.address, tally, callers=8):
        await until_acknowledged(tally)
        for _ in range(rounds):
            small_disk.fill()
            await until_rejected(tally)
            await check_reads_and_health(server.address)
            small_disk.make_room()
            slowest = max(slowest, await until_acknowledged(tally))
    await check_nothing_is_lost(server, tally, figures, rounds=rounds, recovery_seconds=round(slowest, 2))


@pytest.mark.parametrize("small_disk", [1, 2] if IS_LONG else [1], indirect=True)
async def test_a_disk_filled_by_books_is_used_again_after_it_has_grown(
    start: Start, small_disk: SmallDisk, figures: Figures
) -> None:
    server = await asyncio.to_thread(start, small_disk.database_url)
    tally = Tally()
    async with load(server.address, tally, callers=8):
        await until_rejected(tally)
        used_by_books = os.stat(small_disk.folder / "bookstore.db").st_size
        used_by_log = os.stat(small_disk.folder / "bookstore.db-wal").st_size
        await check_reads_and_health(server.address)
        small_disk.grow(8)
        recovery = await until_acknowledged(tally)
    await check_nothing_is_lost(server, tally, figures, recovery_seconds=round(recovery, 2))
    # The books have filled it, not the WAL.
    assert used_by_books > used_by_log


class Guard:
    """Makes files read-only for everyone, root and processes that have them open included."""

    def __init__(self, files: list[Path]) -> None:
        require(os.geteuid() == 0 and shutil.which("chattr"), "needs root and chattr")
        self._files = files

    def __enter__(self) -> None:
        require(self._change("+i"), "this file system knows no chattr")

    def __exit__(self, *_: object) -> None:
        assert self._change("-i")

    def _change(self, change: str) -> bool:
        return subprocess.run(["chattr", change, *self._files], capture_output=True, check=False).returncode == 0


async def test_a_read_only_file_fails_writes_until_it_is_writable(
    start: Start, sqlite_url: str, sqlite_file: Path, figures: Figures
) -> None:
    server = await asyncio.to_thread(start, sqlite_url, "--metrics-listen", "127.0.0.1:0", "--workers", "2")
    tally = Tally()
    async with load(server.address, tally, callers=8):
        await until_acknowledged(tally)
        with Guard([sqlite_file, Path(f"{sqlite_file}-wal")]):
            await until_rejected(tally)
            await check_reads_and_health(server.address)
            state = "2 of 2 workers ready: worker 0: writes unavailable, worker 1: writes unavailable\n"
            wait_until(lambda: ask(server, "/readyz") == (200, state), "both workers report it")
            wait_until(lambda: number(server, "bookstore_database_writable") == 0, "the metric follows")
        recovery = await until_acknowledged(tally)
    await check_nothing_is_lost(server, tally, figures, recovery_seconds=round(recovery, 2))


async def test_read_only_shared_memory_may_end_the_server_and_loses_nothing(
    start: Start, sqlite_url: str, sqlite_file: Path, figures: Figures
) -> None:
    first = await asyncio.to_thread(start, sqlite_url)
    tally = Tally()
    async with load(first.address, tally, callers=8):
        await until_acknowledged(tally)
        with Guard([sqlite_file, Path(f"{sqlite_file}-wal"), Path(f"{sqlite_file}-shm")]):
            await until_rejected(tally)
            ended = first.process.poll()
    # The kernel sends it to a process that writes to a mapping of a file which cannot be written.
    assert ended in (None, -signal.SIGBUS)
    first.end()
    second = await asyncio.to_thread(start, sqlite_url)
    await check_nothing_is_lost(second, tally, figures)


@pytest.mark.parametrize("what", ["file", "folder"])
def test_a_read_only_file_or_folder_is_rejected_at_the_start(tmp_path: Path, what: str) -> None:
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


async def test_a_lock_of_another_process_delays_or_fails_writes_and_loses_none(
    start: Start, sqlite_url: str, sqlite_file: Path, is_long: bool, figures: Figures
) -> None:
    locked_seconds = 10.0 if is_long else 2.0
    server = await asyncio.to_thread(start, sqlite_url, "--database-timeout-seconds", "1")
    tally = Tally()
    async with load(server.address, tally, callers=8):
        await asyncio.sleep(0.3)
        with closing(sqlite3.connect(sqlite_file, isolation_level=None, timeout=30)) as connection:
            connection.execute("BEGIN IMMEDIATE")
            began = len(tally.acknowledged)
            async with grpc.aio.insecure_channel(server.address) as channel:
                stub = books_pb2_grpc.BookServiceStub(channel)
                give_up = time.monotonic() + locked_seconds
                while time.monotonic() < give_up:
                    await stub.ListBooks(books_pb2.ListBooksRequest(page_size=5), timeout=2)
                    await asyncio.sleep(0.1)
            assert len(tally.acknowledged) <= began + 8
            connection.execute("ROLLBACK")
        recovery = await until_acknowledged(tally)
    await check_nothing_is_lost(
        server,
        tally,
        figures,
        recovery_seconds=round(recovery, 2),
        slowest_seconds=round(tally.slowest_seconds, 2),
    )


@pytest.mark.parametrize("damage", ["overwritten", "truncated", "no database"])
def test_a_damaged_file_is_rejected_at_the_start_with_a_message(tmp_path: Path, damage: str) -> None:
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


async def test_the_wal_of_idle_workers_shrinks_when_a_long_reader_is_gone(
    start: Start, sqlite_url: str, sqlite_file: Path
) -> None:
    server = await asyncio.to_thread(start, sqlite_url, "--workers", "2", "--metrics-listen", "127.0.0.1:0")

    async def until_wal(is_reached: Callable[[float], bool]) -> None:
        async with asyncio.timeout(30):
            while not is_reached(  # noqa: ASYNC110  another process's
                await asyncio.to_thread(number, server, "bookstore_sqlite_wal_bytes")
            ):
                await asyncio.sleep(0.1)

    with closing(sqlite3.connect(sqlite_file, isolation_level=None)) as reader:
        reader.execute("BEGIN")
        reader.execute("SELECT count(*) FROM books").fetchone()
        await asyncio.to_thread(grow_wal, sqlite_file)
        await until_wal(lambda size: size == os.stat(f"{sqlite_file}-wal").st_size > WAL_MAX_BYTES)
    await until_wal(lambda size: size == 0)
    assert "Traceback" not in server.log_text()
