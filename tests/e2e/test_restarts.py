"""Servers are restarted and replaced under the calls of one client: no call fails, and none takes effect twice."""

import asyncio
import signal
import sqlite3
import subprocess
import time
from contextlib import closing
from pathlib import Path

import pytest

from bookstore_grpc.client import BookstoreClient
from bookstore_grpc.errors import EtagMismatch
from tests.e2e.conftest import Start
from tests.every_call import Callers
from tests.executable import BOOKSTORE, Serving, environment, run_bookstore, wait_until

pytestmark = pytest.mark.e2e

UNDER_LOAD_SECONDS = 0.3
# A call's deadline, shorter than the interruption of imports and exports, which retry for six times as long.
OUTAGE_SECONDS = 3
TIMEOUT = ("--timeout-seconds", "2.5")


async def replace(start: Start, server: Serving, url: str, *arguments: str) -> Serving:
    server.process.send_signal(signal.SIGTERM)
    assert await asyncio.to_thread(server.wait) == 0
    return await asyncio.to_thread(start, url, "--listen", server.address, *arguments)


async def test_no_call_fails_while_the_only_server_is_restarted(start: Start, sqlite_url: str) -> None:
    server = await asyncio.to_thread(start, sqlite_url)

    async def restart() -> None:
        nonlocal server
        for _ in range(2):
            await asyncio.sleep(UNDER_LOAD_SECONDS)
            server = await replace(start, server, sqlite_url)
        await asyncio.sleep(UNDER_LOAD_SECONDS)

    async with BookstoreClient(server.address, timeout_seconds=30) as client:
        callers = Callers(client)
        await callers.call_while(restart())
        await callers.check()


async def test_no_call_fails_while_two_servers_are_replaced_in_turn(start: Start, sqlite_url: str) -> None:
    flags = ("--drain-delay-seconds", "0.5")
    servers = [await asyncio.to_thread(start, sqlite_url, *flags) for _ in range(2)]

    async def replace_each() -> None:
        for place, server in enumerate(servers):
            await asyncio.sleep(UNDER_LOAD_SECONDS)
            servers[place] = await replace(start, server, sqlite_url, *flags)
            # The other one only stops when the client has connected to this one again.
            await asyncio.to_thread(wait_until, servers[place].calls, "the client has connected again")

    async with BookstoreClient(f"ipv4:{','.join(server.address for server in servers)}", timeout_seconds=30) as client:
        callers = Callers(client)
        await callers.call_while(replace_each())
        await callers.check()


async def test_an_outdated_etag_is_rejected_after_a_restart(start: Start, sqlite_url: str) -> None:
    server = await asyncio.to_thread(start, sqlite_url)
    async with BookstoreClient(server.address, timeout_seconds=30) as client:
        book = await client.create_book(name="N", author="A", release_year=1)
        await client.update_book(book.id, name="New")
        await replace(start, server, sqlite_url)
        with pytest.raises(EtagMismatch):
            await client.update_book(book.id, name="Newer", etag=book.etag)


def write_rows(path: Path, count: int) -> None:
    lines = ["name,author,release_year", *(f"Book {number},Anon,{number % 2_000}" for number in range(count))]
    path.write_text("\n".join(lines) + "\n")


@pytest.mark.thorough
@pytest.mark.parametrize("number", [signal.SIGTERM, signal.SIGKILL], ids=["term", "kill"])
def test_an_import_continues_after_an_outage_longer_than_a_calls_deadline(
    start: Start, sqlite_url: str, sqlite_file: Path, tmp_path: Path, number: signal.Signals
) -> None:
    path, rows = tmp_path / "books.csv", 6_000
    write_rows(path, rows)
    server = start(sqlite_url)
    command: list[str | Path] = [BOOKSTORE, "import", path, "--server", server.address, *TIMEOUT]
    process = subprocess.Popen(command, stderr=subprocess.PIPE, env=environment())
    try:
        wait_until(lambda: stored_count(sqlite_file), "the import has stored books")
        server.process.send_signal(number)
        server.wait()
        start_after(OUTAGE_SECONDS, start, sqlite_url, server.address)
        errors = process.communicate(timeout=60)[1].decode()
    finally:
        process.kill()

    assert process.returncode == 0, errors
    assert f"{rows:,} books stored, {rows:,} of them new; 0 rows rejected." in errors
    assert stored_count(sqlite_file) == rows


def stored_count(file: Path) -> int:
    with closing(sqlite3.connect(file, timeout=30)) as connection:
        return int(connection.execute("SELECT count(*) FROM books").fetchone()[0])


def start_after(seconds: float, start: Start, url: str, address: str) -> Serving:
    time.sleep(seconds)
    return start(url, "--listen", address)


def test_an_export_continues_after_an_outage_longer_than_a_calls_deadline(
    start: Start, sqlite_url: str, tmp_path: Path
) -> None:
    path, rows = tmp_path / "books.csv", 6_000
    write_rows(path, rows)
    server = start(sqlite_url)
    assert run_bookstore("import", path, "--server", server.address).status == 0
    command: list[str | Path] = [BOOKSTORE, "export", "-", "--format", "csv", "--server", server.address, *TIMEOUT]
    process = subprocess.Popen(command, bufsize=0, stdout=subprocess.PIPE, stderr=subprocess.PIPE, env=environment())
    try:
        assert process.stdout is not None
        head = process.stdout.read(1_000)  # it waits for its reader, and has read the first page
        server.stop()
        start_after(OUTAGE_SECONDS, start, sqlite_url, server.address)
        output, errors = process.communicate(timeout=60)
    finally:
        process.kill()

    assert process.returncode == 0, errors
    assert (head + output).decode().splitlines() == path.read_text().splitlines()
