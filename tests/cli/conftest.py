"""The client's verbs against a real server on SQLite, which every test finds without books.

The verbs run in the tests' process. Where being a process matters (signals, pipes, terminals), a test starts one.
"""

import csv
import io
import json
import os
import sqlite3
from collections.abc import Iterable, Iterator, Mapping
from contextlib import closing
from pathlib import Path
from typing import Any

import pytest
from click.testing import CliRunner

from bookstore_grpc.cli import main
from bookstore_grpc.client.book_fields import SETTABLE_FIELDS
from tests.executable import Finished, serving

FIELDS = ["name", "author", "release_year"]
# Empty in the books of these tests.
OPTIONAL_FIELDS = [field.name for field in SETTABLE_FIELDS if not field.is_required]


def run_verb(*arguments: object, stdin: bytes = b"", variables: Mapping[str, str] | None = None) -> Finished:
    """Run a verb of the client in this process. It may raise nothing but `SystemExit`."""
    without_settings = dict.fromkeys(name for name in os.environ if name.startswith("BOOKSTORE_"))
    result = CliRunner().invoke(
        main,
        [os.fsdecode(each if isinstance(each, bytes) else str(each)) for each in arguments],
        input=stdin,
        env=without_settings | {"GRPC_VERBOSITY": "NONE"} | dict(variables or {}),
        prog_name="bookstore",
        catch_exceptions=False,
    )
    return Finished(result.exit_code, result.stdout_bytes.decode(), result.stderr_bytes.decode())


class Catalogue:
    """A running server, and the command with its address in BOOKSTORE_SERVER."""

    def __init__(self, address: str, path: Path) -> None:
        self.address = address
        self.path = path

    def run(self, *arguments: object, stdin: bytes = b"", variables: Mapping[str, str] | None = None) -> Finished:
        return run_verb(*arguments, stdin=stdin, variables={"BOOKSTORE_SERVER": self.address, **(variables or {})})

    def succeed(self, *arguments: object, stdin: bytes = b"") -> str:
        """Run a verb, which must end with status 0 and an empty standard error. Return its output."""
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
        return sqlite3.connect(self.path, timeout=30, isolation_level=None)


def csv_bytes(rows: Iterable[Iterable[object]]) -> bytes:
    text = io.StringIO(newline="")
    csv.writer(text).writerows([FIELDS, *rows])
    return text.getvalue().encode()


def with_optional_columns(lines: str, *, end: str = "\r\n") -> str:
    """Add the columns of the optional fields to a header and rows of CSV."""
    header, *rows, rest = lines.split(end)
    return end.join([",".join([header, *OPTIONAL_FIELDS]), *(row + "," * len(OPTIONAL_FIELDS) for row in rows), rest])


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
