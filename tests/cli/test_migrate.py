"""`bookstore migrate`, and `--sql`, which prints the statements instead."""

import sqlite3
from contextlib import closing
from pathlib import Path

import pytest

from tests.executable import run_bookstore


def table_names(path: Path) -> set[str]:
    with closing(sqlite3.connect(path)) as connection:
        return {name for (name,) in connection.execute("SELECT name FROM sqlite_master WHERE type = 'table'")}


def test_migrate_creates_the_tables_and_prints_their_revision(tmp_path: Path) -> None:
    url = f"sqlite+aiosqlite:///{tmp_path}/new.db"

    first = run_bookstore("migrate", "--database-url", url)
    second = run_bookstore("migrate", variables={"BOOKSTORE_DATABASE_URL": url})

    assert first.status == 0
    assert first.output.startswith("The tables are at revision ")
    assert first == second
    assert {"books", "create_requests"} <= table_names(tmp_path / "new.db")


def test_sql_builds_the_tables_that_migrate_creates(tmp_path: Path) -> None:
    printed = run_bookstore("migrate", "--sql", cwd=tmp_path)
    with closing(sqlite3.connect(tmp_path / "by-sql.db")) as connection:
        connection.executescript(printed.output)
    run_bookstore("migrate", "--database-url", f"sqlite+aiosqlite:///{tmp_path}/migrated.db")

    assert (printed.status, printed.errors) == (0, "")
    assert table_names(tmp_path / "by-sql.db") == table_names(tmp_path / "migrated.db")
    assert not (tmp_path / "bookstore.db").exists()


@pytest.mark.parametrize("scheme", ["postgresql+asyncpg", "mariadb+asyncmy"])
def test_sql_needs_no_database(scheme: str) -> None:
    printed = run_bookstore(
        "migrate", "--sql", variables={"BOOKSTORE_DATABASE_URL": f"{scheme}://u:hunter2@127.0.0.1:1/x"}
    )

    assert (printed.status, printed.errors) == (0, "")
    assert "CREATE TABLE books" in printed.output
    assert "hunter2" not in printed.output


def test_a_missing_folder_is_an_error(tmp_path: Path) -> None:
    finished = run_bookstore("migrate", "--database-url", f"sqlite+aiosqlite:///{tmp_path}/none/new.db")

    assert finished.status == 1
    assert finished.errors.startswith("Error: Cannot use the database ")
