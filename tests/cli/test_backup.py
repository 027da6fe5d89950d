"""`bookstore backup` on files that nobody serves: what it refuses, what it leaves behind, what it shows."""

import os
import signal
import sqlite3
import stat
import subprocess
import threading
from collections.abc import Callable
from contextlib import closing
from pathlib import Path

import pytest
from sqlalchemy.engine import make_url

from bookstore_grpc.dal.sqlite_backup import _rename_to_new, copy_database
from bookstore_grpc.errors import StartupError
from tests.cli.test_progress import errors_on_a_terminal
from tests.executable import BOOKSTORE, PATIENCE_SECONDS, Finished, environment, run_bookstore, wait_until

_NUMBERED = """
WITH RECURSIVE numbers(n) AS (SELECT 1 UNION ALL SELECT n + 1 FROM numbers WHERE n < ?)
INSERT INTO books (name, author, release_year, create_time, update_time, name_folded, author_folded)
SELECT 'Book ' || (n * 7919 % 1000003), 'Anon', 2000, n, n, 'book ' || (n * 7919 % 1000003), 'anon' FROM numbers
"""


def store_numbered(path: Path, count: int) -> None:
    with closing(sqlite3.connect(path, isolation_level=None)) as connection:
        connection.execute(_NUMBERED, [count])


@pytest.fixture
def path(tmp_path: Path) -> Path:
    """A database with 1,000 books."""
    path = tmp_path / "bookstore.db"
    assert run_bookstore("migrate", "--database-url", f"sqlite+aiosqlite:///{path}").status == 0
    store_numbered(path, 1_000)
    return path


@pytest.fixture
def folder(tmp_path: Path) -> Path:
    """Where the copies go, and nothing else."""
    folder = tmp_path / "copies"
    folder.mkdir()
    return folder


def run_backup(path: Path, *arguments: object) -> Finished:
    return run_bookstore("backup", *arguments, "--database-url", f"sqlite+aiosqlite:///{path}")


def rows(path: Path) -> list[tuple[object, ...]]:
    with closing(sqlite3.connect(path)) as connection:
        return connection.execute("SELECT * FROM books ORDER BY id").fetchall()


def test_a_copy_is_one_file_that_holds_every_book(path: Path, folder: Path) -> None:
    path.chmod(0o640)

    assert run_backup(path, folder / "copy.db") == (0, f"1,000 books in {folder}/copy.db.\n", "")

    assert os.listdir(folder) == ["copy.db"]
    assert stat.S_IMODE((folder / "copy.db").stat().st_mode) == 0o640
    (folder / "copy.db").chmod(0o400)
    folder.chmod(0o500)
    with closing(sqlite3.connect(f"file:{folder}/copy.db?mode=ro", uri=True)) as connection:
        assert connection.execute("PRAGMA journal_mode").fetchone() == ("delete",)
        assert connection.execute("PRAGMA integrity_check").fetchall() == [("ok",)]
    folder.chmod(0o700)
    assert os.listdir(folder) == ["copy.db"]
    assert rows(folder / "copy.db") == rows(path)


def test_an_older_file_gives_way_only_by_force(path: Path, folder: Path) -> None:
    copy = folder / "copy.db"
    copy.write_text("older")

    refused = run_backup(path, copy)
    assert refused == (1, "", f"Error: {copy} is there already; --force replaces it.\n")
    assert copy.read_text() == "older"

    assert run_backup(path, copy, "--force").status == 0
    assert rows(copy) == rows(path)


def test_a_link_is_followed_only_by_force(path: Path, folder: Path, tmp_path: Path) -> None:
    elsewhere = tmp_path / "elsewhere.db"
    (folder / "copy.db").symlink_to(elsewhere)

    refused = run_backup(path, folder / "copy.db")
    told = f"Error: {folder}/copy.db is a link, to {elsewhere}; name that file, or use --force.\n"
    assert refused == (1, "", told)
    assert not elsewhere.exists()

    assert run_backup(path, folder / "copy.db", "--force").status == 0
    assert (folder / "copy.db").is_symlink()
    assert rows(elsewhere) == rows(path)


@pytest.mark.parametrize("kind", ["file", "link"])
def test_what_appears_during_the_copy_is_left_alone(path: Path, folder: Path, tmp_path: Path, kind: str) -> None:
    target = folder / "copy.db"

    def come_in_between(_done: int, _total: int) -> None:
        if kind == "file":
            target.write_text("somebody else's")
        elif not target.is_symlink():
            target.symlink_to(tmp_path / "elsewhere.db")

    with pytest.raises(StartupError, match="is there already; --force replaces it"):
        copy(path, target, on_progress=come_in_between)
    assert os.listdir(folder) == ["copy.db"]
    assert not (tmp_path / "elsewhere.db").exists()
    if kind == "file":
        assert target.read_text() == "somebody else's"


def test_where_there_are_no_hard_links_a_name_is_taken_in_one_step_too(tmp_path: Path) -> None:
    part, target = tmp_path / "part", tmp_path / "target"
    part.write_text("new")
    _rename_to_new(part, target)
    assert (part.exists(), target.read_text()) == (False, "new")
    part.write_text("newer")
    with pytest.raises(FileExistsError):
        _rename_to_new(part, target)
    assert (part.read_text(), target.read_text()) == ("newer", "new")


def test_the_database_itself_is_not_replaced(path: Path, folder: Path) -> None:
    link = folder / "link.db"
    link.symlink_to(path)
    before = path.read_bytes()

    for name in (path, link):
        refused = run_backup(path, name, "--force")
        assert refused.status == 1
        assert "cannot be replaced by a backup" in refused.errors

    assert path.read_bytes() == before


@pytest.mark.parametrize("log", ["-wal", "-journal"])
def test_a_log_that_another_database_left_is_not_taken_for_the_copys(path: Path, folder: Path, log: str) -> None:
    (folder / f"copy.db{log}").write_bytes(b"")

    refused = run_backup(path, folder / "copy.db")

    assert refused.status == 1
    assert f"copy.db{log} would be taken for a part of the backup" in refused.errors
    assert os.listdir(folder) == [f"copy.db{log}"]


def test_a_database_that_is_not_there_is_told_and_not_made(tmp_path: Path, folder: Path) -> None:
    refused = run_backup(tmp_path / "none.db", folder / "copy.db")

    assert refused == (1, "", f"Error: There is no database {tmp_path}/none.db; --database-url names another.\n")
    assert not (tmp_path / "none.db").exists()
    assert os.listdir(folder) == []


def test_a_database_of_something_else_is_refused(tmp_path: Path, folder: Path) -> None:
    with closing(sqlite3.connect(tmp_path / "other.db")) as connection:
        connection.execute("CREATE TABLE birds (name TEXT)")
    (tmp_path / "text.db").write_text("no database at all" * 100)

    without_tables = run_backup(tmp_path / "other.db", folder / "copy.db")
    no_database = run_backup(tmp_path / "text.db", folder / "copy.db")

    assert "holds no catalogue" in without_tables.errors
    assert "file is not a database" in no_database.errors
    assert (without_tables.status, no_database.status) == (1, 1)
    assert os.listdir(folder) == []


def test_a_damaged_database_makes_no_backup(path: Path, folder: Path) -> None:
    # A book is then called otherwise in its row than in the index, which no plain reading notices.
    damaged = path.read_bytes().replace(b"Book 7919Anon", b"Book 7910Anon", 1)
    assert damaged != path.read_bytes()
    path.write_bytes(damaged)

    refused = run_backup(path, folder / "copy.db")

    assert refused.status == 1
    assert refused.errors.startswith("Error: The database is damaged (row ")
    assert os.listdir(folder) == []


def test_a_full_disk_is_told_and_leaves_nothing_behind(path: Path, folder: Path) -> None:
    # In blocks of 512 bytes. The shell sets it and not Python's fork, which gRPC's threads would not survive.
    limited = ["sh", "-c", 'ulimit -f 200 && exec "$@"', "sh"]
    finished = subprocess.run(
        [*limited, BOOKSTORE, "backup", folder / "copy.db", "--database-url", f"sqlite+aiosqlite:///{path}"],
        env=environment(),
        capture_output=True,
        text=True,
        timeout=PATIENCE_SECONDS,
        check=False,
    )

    assert finished.returncode == 1
    assert finished.stderr.startswith(f"Error: Cannot write {folder}/copy.db: ")
    assert os.listdir(folder) == []


def test_a_folder_that_is_not_there_is_told(path: Path, tmp_path: Path) -> None:
    refused = run_backup(path, tmp_path / "none/copy.db")

    assert refused == (1, "", f"Error: Cannot write {tmp_path}/none/copy.db: No such file or directory.\n")


@pytest.mark.parametrize(
    ("url", "instead"),
    [("postgresql://u:hunter2@h/b", "pg_dump"), ("mariadb://u:hunter2@h/b", "mariadb-dump")],
)
def test_other_databases_have_their_own_tools(url: str, instead: str, folder: Path) -> None:
    refused = run_bookstore("backup", folder / "copy.db", variables={"BOOKSTORE_DATABASE_URL": url})

    assert refused.status == 1
    assert instead in refused.errors
    assert "hunter2" not in refused.errors


@pytest.mark.parametrize("number", [signal.SIGINT, signal.SIGTERM])
def test_an_interrupted_copy_leaves_nothing_behind(path: Path, folder: Path, number: signal.Signals) -> None:
    with closing(sqlite3.connect(path)) as connection:
        connection.execute("CREATE TABLE ballast AS SELECT zeroblob(200000000)")
    process = subprocess.Popen(
        [BOOKSTORE, "backup", folder / "copy.db", "--database-url", f"sqlite+aiosqlite:///{path}"],
        env=environment(),
        stderr=subprocess.PIPE,
        text=True,
    )
    wait_until(lambda: os.listdir(folder) or process.poll() is not None, "the copy has begun")
    process.send_signal(number)
    _, errors = process.communicate(timeout=PATIENCE_SECONDS)

    assert (process.returncode, errors) == (1, "\nAborted!\n")
    assert os.listdir(folder) == []


def test_an_interruption_is_heard_during_the_check(path: Path, folder: Path) -> None:
    store_numbered(path, 300_000)

    def interrupt_soon(done: int, total: int) -> None:
        if done == total:
            threading.Timer(0.05, signal.raise_signal, [signal.SIGINT]).start()

    with pytest.raises(KeyboardInterrupt) as raised:
        copy(path, folder / "copy.db", on_progress=interrupt_soon)
    assert isinstance(raised.value.__cause__, sqlite3.OperationalError)

    assert os.listdir(folder) == []


def test_a_copy_ends_though_somebody_commits_all_the_time_and_nobody_waits_for_it(path: Path, folder: Path) -> None:
    store_numbered(path, 100_000)
    before = rows(path)
    steps = 0
    with closing(sqlite3.connect(path, isolation_level=None, timeout=0)) as writer:

        def write(_done: int, _total: int) -> None:
            nonlocal steps
            steps += 1
            assert steps < 100
            writer.execute("UPDATE books SET release_year = release_year + 1 WHERE id = 1")

        assert copy(path, folder / "copy.db", on_progress=write) == 101_000

    assert steps > 2
    assert rows(folder / "copy.db") == before


def test_progress_is_shown_on_a_terminal(path: Path, folder: Path) -> None:
    shown = errors_on_a_terminal(
        "backup", folder / "copy.db", "--database-url", f"sqlite+aiosqlite:///{path}", server="-"
    )

    assert "Copying  [" in shown
    assert "100%" in shown


def copy(path: Path, target: Path, *, on_progress: Callable[[int, int], None]) -> int:
    url = make_url(f"sqlite+aiosqlite:///{path}")
    return copy_database(url, target, force=False, timeout_seconds=5, on_progress=on_progress)
