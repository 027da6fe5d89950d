"""The command against a real server on SQLite, which every test finds without books."""

import csv
import io
import json
import sqlite3
from collections.abc import Iterable, Iterator, Mapping
from contextlib import closing
from pathlib import Path
from typing import Any

import pytest

from tests.executable import Finished, run_bookstore, serving

FIELDS = ["name", "author", "release_year"]


class Catalogue:
    """A running server, and the command with its address in BOOKSTORE_SERVER."""

    def __init__(self, address: str, path: Path) -> None:
        self.address = address
        self._path = path

    def run(self, *arguments: object, stdin: bytes = b"", variables: Mapping[str, str] | None = None) -> Finished:
        return run_bookstore(*arguments, stdin=stdin, variables={"BOOKSTORE_SERVER": self.address, **(variables or {})})

    def succeed(self, *arguments: object, stdin: bytes = b"") -> str:
        """Run the command, which must end well and without a word on standard error; answer its output."""
        finished = self.run(*arguments, stdin=stdin)
        assert (finished.status, finished.errors) == (0, "")
        return finished.output

    def create(self, name: str, author: str = "Anon", release_year: int = 2000) -> dict[str, Any]:
        book = ("--name", name, "--author", author, "--release-year", release_year)
        (created,) = json.loads(self.succeed("create", *book, "--output", "json"))
        assert isinstance(created, dict)
        return created

    def store(self, rows: Iterable[tuple[str, str, int]]) -> None:
        self.run("import", "-", stdin=csv_bytes(rows))

    def rows(self) -> list[tuple[str, str, int]]:
        """What is stored, by id, as the database has it."""
        with closing(self._connection()) as connection:
            return connection.execute("SELECT name, author, release_year FROM books ORDER BY id").fetchall()

    def clear(self) -> None:
        with closing(self._connection()) as connection:
            connection.execute("DELETE FROM books")
            connection.execute("DELETE FROM create_requests")

    def _connection(self) -> sqlite3.Connection:
        return sqlite3.connect(self._path, timeout=30, isolation_level=None)


def csv_bytes(rows: Iterable[Iterable[object]]) -> bytes:
    text = io.StringIO(newline="")
    csv.writer(text).writerows([FIELDS, *rows])
    return text.getvalue().encode()


def numbered_rows(count: int) -> list[tuple[str, str, int]]:
    return [(f"Book {number:06}", "Anon", number % 2_000) for number in range(count)]


@pytest.fixture(scope="session")
def served_catalogue(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Catalogue]:
    folder = tmp_path_factory.mktemp("catalogue")
    with serving(f"sqlite+aiosqlite:///{folder}/bookstore.db", folder / "log") as server:
        yield Catalogue(server.address, folder / "bookstore.db")


@pytest.fixture
def catalogue(served_catalogue: Catalogue) -> Catalogue:
    served_catalogue.clear()
    return served_catalogue
