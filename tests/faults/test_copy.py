"""The copy that an example keeps equals the table, whatever was killed on the way: it, a server or the database."""

import asyncio
import random
import sqlite3
import subprocess
import sys
import time
from collections.abc import Iterator
from contextlib import closing, contextmanager, suppress
from pathlib import Path

import pytest

from tests.e2e.conftest import Start
from tests.executable import environment, wait_until
from tests.faults.conftest import Figures
from tests.faults.database_servers import DatabaseServer
from tests.faults.watches import Servers
from tests.history.recording import connections, stored_books
from tests.history.writers import Stubs, Writers

pytestmark = [pytest.mark.e2e, pytest.mark.timeout(4_500)]

PROGRAM = Path(__file__).parents[2] / "examples/keep_copy.py"
LONG_SECONDS = 3_600
CALLS = 100

Values = tuple[int, str, str, int]


class KeptCopy:
    """The example in a process of its own, and the file where it keeps its copy."""

    def __init__(self, file: Path, server: str) -> None:
        self._file = file
        self._server = server
        self._process: subprocess.Popen[bytes] | None = None

    def start(self) -> None:
        log = self._file.with_name("log-copy")
        with log.open("ab") as errors:
            self._process = subprocess.Popen(
                [sys.executable, PROGRAM, self._file],
                stderr=errors,
                env=environment(BOOKSTORE_SERVER=self._server),
            )

    def kill(self) -> None:
        if self._process is not None:
            self._process.kill()
            self._process.wait()

    def books(self) -> set[Values]:
        with closing(sqlite3.connect(self._file)) as database:
            return set(database.execute("SELECT id, name, author, release_year FROM books"))

    def has(self, name: str) -> bool:
        assert self._process is not None
        assert self._process.poll() is None, "the program has ended"
        with suppress(sqlite3.OperationalError), closing(sqlite3.connect(self._file)) as database:
            return bool(database.execute("SELECT 1 FROM books WHERE name = ?", (name,)).fetchall())
        return False  # there are no tables yet


@contextmanager
def kept_copy(file: Path, server: str) -> Iterator[KeptCopy]:
    copy = KeptCopy(file, server)
    copy.start()
    try:
        yield copy
    finally:
        copy.kill()


async def table(stubs: Stubs) -> set[Values]:
    return {(book.id, book.name, book.author, book.release_year) for book in await stored_books(stubs[0])}


def seconds_until_copied(copy: KeptCopy, name: str) -> float:
    began = time.monotonic()
    wait_until(lambda: copy.has(name), "the copy has everything")
    return time.monotonic() - began


async def test_a_copy_equals_the_table_whatever_is_killed(
    start: Start, own_database: DatabaseServer, tmp_path: Path, is_long: bool, figures: Figures
) -> None:
    servers = await asyncio.to_thread(Servers, start, own_database.url)

    async def kill_copy() -> None:
        copy.kill()
        copy.start()

    async def kill_database() -> None:
        # What MariaDB has shown and not yet stored is lost, so that the program may have to start over.
        await asyncio.to_thread(own_database.kill)
        await asyncio.to_thread(own_database.start)

    faults = [kill_copy, servers.kill_one, kill_database, servers.stop_one]
    ends = time.monotonic() + (LONG_SECONDS if is_long else 0)
    rounds = 0
    slowest = 0.0
    with kept_copy(tmp_path / "copy.db", f"ipv4:{','.join(servers.addresses)}") as copy:
        async with connections(servers.addresses) as stubs:
            writers = Writers(stubs, random.Random(own_database.kind))
            while rounds < len(faults) or time.monotonic() < ends:
                async with writers.writing():
                    await writers.until_acknowledged(CALLS)
                    await faults[rounds % len(faults)]()
                    if rounds % len(faults) == 0:  # more books than that would be deleted all the time
                        await writers.create_long_books()
                    await writers.until_acknowledged(CALLS)
                rounds += 1
                writers.writes.clear()
                last = f"Last of round {rounds}"
                await writers.create_last_book(last)
                slowest = max(slowest, await asyncio.to_thread(seconds_until_copied, copy, last))
                assert copy.books() == await table(stubs)
    figures(
        database=own_database.kind,
        rounds=rounds,
        calls=writers.calls,
        succeeded=writers.acknowledged,
        recovery_seconds=round(slowest, 2),
        differences=0,
    )
