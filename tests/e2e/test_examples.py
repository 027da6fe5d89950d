"""examples/keep_copy.py, run as its page says, against a real server: killed, started again, and left behind."""

import sqlite3
import subprocess
import sys
from collections.abc import Iterator
from contextlib import closing
from pathlib import Path

import pytest

from bookstore_grpc.client import BookstoreClient
from tests.executable import PATIENCE_SECONDS, Serving, environment, serving, wait_until

pytestmark = pytest.mark.e2e

PROGRAM = Path(__file__).parents[2] / "examples/keep_copy.py"

Row = tuple[int, str, str, int]


class Copying:
    """The program in a process of its own."""

    def __init__(self, path: Path, address: str) -> None:
        self._path = path
        self._errors = path.with_suffix(".errors")
        with self._errors.open("wb") as errors:
            self.process = subprocess.Popen(
                [sys.executable, PROGRAM, path], env=environment(BOOKSTORE_SERVER=address), stderr=errors
            )

    @property
    def errors(self) -> str:
        return self._errors.read_text()

    def rows(self) -> list[Row]:
        if not self._path.exists():
            return []
        with closing(sqlite3.connect(self._path, timeout=PATIENCE_SECONDS)) as database:
            tables = database.execute("SELECT name FROM sqlite_master WHERE name = 'books'").fetchall()
            return database.execute(f"SELECT {COLUMNS} FROM books ORDER BY id").fetchall() if tables else []

    def wait_for(self, rows: list[Row]) -> None:
        def has_rows() -> bool:
            assert self.process.poll() is None, self.errors
            return self.rows() == rows

        wait_until(has_rows, f"the copy has {rows}")

    def kill(self) -> None:
        self.process.kill()
        self.process.wait()


COLUMNS = "id, name, author, release_year"


@pytest.fixture
def server(tmp_path: Path) -> Iterator[Serving]:
    with serving(f"sqlite+aiosqlite:///{tmp_path}/bookstore.db", tmp_path / "log") as server:
        yield server


def stored(tmp_path: Path) -> list[Row]:
    with closing(sqlite3.connect(tmp_path / "bookstore.db")) as database:
        return database.execute(f"SELECT {COLUMNS} FROM books ORDER BY id").fetchall()


async def create(client: BookstoreClient, *names: str) -> list[int]:
    return [(await client.create_book(name=name, author="A", release_year=1)).id for name in names]


async def test_a_copy_is_in_step_after_it_was_killed_and_after_its_position_has_expired(
    server: Serving, tmp_path: Path
) -> None:
    async with BookstoreClient(server.address) as client:
        one, two, three = await create(client, "One", "Two", "Three")
        copying = Copying(tmp_path / "copy.db", server.address)
        try:
            copying.wait_for(stored(tmp_path))

            await create(client, "Four")
            await client.update_book(one, name="Uno")
            await client.delete_book(two)
            copying.wait_for(stored(tmp_path))

            copying.kill()
            await client.delete_book(three)
            await create(client, "Five")
            assert copying.rows() != stored(tmp_path)
            copying = Copying(tmp_path / "copy.db", server.address)
            copying.wait_for(stored(tmp_path))
            assert copying.errors == ""

            copying.kill()
            await client.delete_book(one)
            await create(client, "Six")
            expire_changes(tmp_path)
            copying = Copying(tmp_path / "copy.db", server.address)
            copying.wait_for(stored(tmp_path))
            await create(client, "Seven")
            copying.wait_for(stored(tmp_path))
            assert copying.errors.startswith("Starting over: The changes after this resume token")
        finally:
            copying.kill()

    assert [name for _, name, _, _ in stored(tmp_path)] == ["Four", "Five", "Six", "Seven"]


async def test_a_copy_of_nothing_loses_what_is_gone(server: Serving, tmp_path: Path) -> None:
    """Also where no change ever follows the existing books, of which there are none."""
    async with BookstoreClient(server.address) as client:
        (only,) = await create(client, "Only")
        copying = Copying(tmp_path / "copy.db", server.address)
        try:
            copying.wait_for(stored(tmp_path))
            copying.kill()
            await client.delete_book(only)
            with closing(sqlite3.connect(tmp_path / "copy.db", isolation_level=None)) as database:
                database.execute("UPDATE position SET resume_token = 'of another database'")
            copying = Copying(tmp_path / "copy.db", server.address)
            copying.wait_for([])
        finally:
            copying.kill()


def expire_changes(tmp_path: Path) -> None:
    """Delete all changes but the last, as the server does after --changes-kept-hours."""
    with closing(sqlite3.connect(tmp_path / "bookstore.db", timeout=30, isolation_level=None)) as database:
        database.execute("DELETE FROM book_changes WHERE number < (SELECT max(number) FROM book_changes)")
