"""`bookstore backup` of files that no server uses: what it rejects, which files it leaves, what it prints."""

import os
import shutil
import signal
import sqlite3
import stat
import subprocess
import sys
import threading
from collections.abc import Callable
from contextlib import closing
from pathlib import Path

import pytest
from sqlalchemy.engine import make_url

from bookstore_grpc.dal.sqlite_backup import _rename_to_new, copy_database
from bookstore_grpc.errors import StartupError
from tests.cli.test_progress import errors_on_a_terminal
from tests.executable import (
    BOOKSTORE,
    PATIENCE_SECONDS,
    Finished,
    end_process,
    environment,
    run_bookstore,
    start_bookstore,
    wait_until,
)

_NUMBERED = """
WITH RECURSIVE numbers(n) AS (SELECT 1 UNION ALL SELECT n + 1 FROM numbers WHERE n < ?)
INSERT INTO books (name, author, release_year, create_time, update_time, name_folded, author_folded)
SELECT 'Book ' || (n * 7919 % 1000003), 'Anon', 2000, n, n, 'book ' || (n * 7919 % 1000003), 'anon' FROM numbers
"""


def store_numbered(path: Path, count: int) -> None:
    with closing(sqlite3.connect(path, isolation_level=None)) as connection:
        connection.execute(_NUMBERED, [count])


@pytest.fixture(scope="session")
def template(tmp_path_factory: pytest.TempPathFactory) -> Path:
    path = tmp_path_factory.mktemp("template") / "bookstore.db"
    assert run_bookstore("migrate", "--database-url", f"sqlite+aiosqlite:///{path}").status == 0
    store_numbered(path, 1_000)
    return path


@pytest.fixture
def path(template: Path, tmp_path: Path) -> Path:
    """A database with 1,000 books."""
    return Path(shutil.copy(template, tmp_path / "bookstore.db"))


@pytest.fixture
def folder(tmp_path: Path) -> Path:
    """A folder for the copies."""
    folder = tmp_path / "copies"
    folder.mkdir()
    return folder


def run_backup(path: Path, *arguments: object) -> Finished:
    return run_bookstore("backup", *arguments, "--database-url", f"sqlite+aiosqlite:///{path}")


def rows(path: Path) -> list[tuple[object, ...]]:
    with closing(sqlite3.connect(path)) as connection:
        return connection.execute("SELECT * FROM books ORDER BY id").fetchall()


def test_a_backup_is_one_file_with_every_book(path: Path, folder: Path) -> None:
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


def test_an_existing_file_is_replaced_only_by_force(path: Path, folder: Path) -> None:
    copy = folder / "copy.db"
    copy.write_text("older")

    rejected = run_backup(path, copy)
    assert rejected == (1, "", f"Error: {copy} already exists; --force replaces it.\n")
    assert copy.read_text() == "older"

    assert run_backup(path, copy, "--force").status == 0
    assert rows(copy) == rows(path)


def test_a_link_is_followed_only_by_force(path: Path, folder: Path, tmp_path: Path) -> None:
    elsewhere = tmp_path / "elsewhere.db"
    (folder / "copy.db").symlink_to(elsewhere)

    rejected = run_backup(path, folder / "copy.db")
    message = f"Error: {folder}/copy.db is a symbolic link to {elsewhere}; name that file, or use --force.\n"
    assert rejected == (1, "", message)
    assert not elsewhere.exists()

    assert run_backup(path, folder / "copy.db", "--force").status == 0
    assert (folder / "copy.db").is_symlink()
    assert rows(elsewhere) == rows(path)


@pytest.mark.parametrize("kind", ["file", "link"])
def test_a_file_that_appears_during_the_copy_is_not_replaced(
    path: Path, folder: Path, tmp_path: Path, kind: str
) -> None:
    target = folder / "copy.db"

    def create_target(_done: int, _total: int) -> None:
        if kind == "file":
            target.write_text("somebody else's")
        elif not target.is_symlink():
            target.symlink_to(tmp_path / "elsewhere.db")

    with pytest.raises(StartupError, match="already exists; --force replaces it"):
        copy(path, target, on_progress=create_target)
    assert os.listdir(folder) == ["copy.db"]
    assert not (tmp_path / "elsewhere.db").exists()
    if kind == "file":
        assert target.read_text() == "somebody else's"


def test_without_hard_links_a_file_is_moved_to_a_free_name_in_one_step(tmp_path: Path) -> None:
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
        with pytest.raises(StartupError, match="cannot be replaced by a backup"):
            copy(path, name, force=True)

    assert path.read_bytes() == before


@pytest.mark.parametrize("log", ["-wal", "-journal"])
def test_the_log_of_another_database_with_the_copys_name_is_an_error(path: Path, folder: Path, log: str) -> None:
    (folder / f"copy.db{log}").write_bytes(b"")

    with pytest.raises(StartupError, match=f"copy.db{log} as part of the backup"):
        copy(path, folder / "copy.db")
    assert os.listdir(folder) == [f"copy.db{log}"]


def test_a_missing_database_is_an_error_and_is_not_created(tmp_path: Path, folder: Path) -> None:
    rejected = run_backup(tmp_path / "none.db", folder / "copy.db")

    assert rejected == (1, "", f"Error: There is no database {tmp_path}/none.db; --database-url names another.\n")
    assert not (tmp_path / "none.db").exists()
    assert os.listdir(folder) == []


def test_a_file_without_a_catalogue_is_an_error(tmp_path: Path, folder: Path) -> None:
    with closing(sqlite3.connect(tmp_path / "other.db")) as connection:
        connection.execute("CREATE TABLE birds (name TEXT)")
    (tmp_path / "text.db").write_text("no database at all" * 100)

    with pytest.raises(StartupError, match="is not a catalogue"):
        copy(tmp_path / "other.db", folder / "copy.db")
    with pytest.raises(StartupError, match="file is not a database"):
        copy(tmp_path / "text.db", folder / "copy.db")
    assert os.listdir(folder) == []


def test_a_damaged_database_is_not_backed_up(path: Path, folder: Path) -> None:
    # A name in a row then differs from that in the index, which a read does not detect.
    damaged = path.read_bytes().replace(b"Book 7919Anon", b"Book 7910Anon", 1)
    assert damaged != path.read_bytes()
    path.write_bytes(damaged)

    with pytest.raises(StartupError, match=r"^The database is damaged \(row "):
        copy(path, folder / "copy.db")
    assert os.listdir(folder) == []


def test_a_full_disk_is_an_error_and_leaves_no_file(path: Path, folder: Path) -> None:
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


def test_a_missing_folder_is_an_error(path: Path, tmp_path: Path) -> None:
    with pytest.raises(StartupError) as raised:
        copy(path, tmp_path / "none/copy.db")

    assert raised.value.message == f"Cannot write {tmp_path}/none/copy.db: No such file or directory."


@pytest.mark.parametrize(
    ("url", "instead"),
    [("postgresql://u:hunter2@h/b", "pg_dump"), ("mariadb://u:hunter2@h/b", "mariadb-dump")],
)
def test_for_other_databases_their_own_tool_is_named(url: str, instead: str, folder: Path) -> None:
    rejected = run_bookstore("backup", folder / "copy.db", variables={"BOOKSTORE_DATABASE_URL": url})

    assert rejected.status == 1
    assert instead in rejected.errors
    assert "hunter2" not in rejected.errors


@pytest.mark.parametrize("number", [signal.SIGINT, signal.SIGTERM])
def test_an_interrupted_copy_leaves_no_file(path: Path, folder: Path, tmp_path: Path, number: signal.Signals) -> None:
    with closing(sqlite3.connect(path)) as connection:
        connection.execute("CREATE TABLE ballast AS SELECT zeroblob(200000000)")
    with (tmp_path / "errors").open("wb") as errors:
        url = f"sqlite+aiosqlite:///{path}"
        process = start_bookstore("backup", folder / "copy.db", "--database-url", url, stdout=errors, stderr=errors)
    try:
        wait_until(lambda: list(folder.glob(".*/part")) or process.poll() is not None, "the copy has begun")
        process.send_signal(number)
        status = process.wait(PATIENCE_SECONDS)
    finally:
        end_process(process)

    assert (status, (tmp_path / "errors").read_text()) == (1, "\nAborted!\n")
    assert os.listdir(folder) == []


def test_an_interruption_takes_effect_during_the_check(path: Path, folder: Path) -> None:
    store_numbered(path, 100_000)

    checking = threading.get_ident()

    def interrupt_the_check() -> None:
        wait_until(lambda: sys._current_frames()[checking].f_code.co_name == "_check", "the copy is checked")
        signal.raise_signal(signal.SIGINT)

    interrupter = threading.Thread(target=interrupt_the_check)

    def interrupt_after_the_copy(done: int, total: int) -> None:
        if done == total:
            interrupter.start()

    with pytest.raises(KeyboardInterrupt) as raised:
        copy(path, folder / "copy.db", on_progress=interrupt_after_the_copy)
    interrupter.join()
    assert isinstance(raised.value.__cause__, sqlite3.OperationalError)

    assert os.listdir(folder) == []


def test_continual_commits_do_not_prolong_a_copy_which_blocks_none_of_them(path: Path, folder: Path) -> None:
    store_numbered(path, 60_000)
    before = rows(path)
    steps = 0
    with closing(sqlite3.connect(path, isolation_level=None, timeout=0)) as writer:

        def write(_done: int, _total: int) -> None:
            nonlocal steps
            steps += 1
            assert steps < 100
            writer.execute("UPDATE books SET release_year = release_year + 1 WHERE id = 1")

        assert copy(path, folder / "copy.db", on_progress=write) == 61_000

    assert steps > 2
    assert rows(folder / "copy.db") == before


def test_progress_is_shown_on_a_terminal(path: Path, folder: Path) -> None:
    shown = errors_on_a_terminal(
        "backup", folder / "copy.db", "--database-url", f"sqlite+aiosqlite:///{path}", server="-"
    )

    assert "Copying  [" in shown
    assert "100%" in shown


def copy(
    path: Path,
    target: Path,
    *,
    force: bool = False,
    on_progress: Callable[[int, int], None] = lambda _done, _total: None,
) -> int:
    url = make_url(f"sqlite+aiosqlite:///{path}")
    return copy_database(url, target, force=force, timeout_seconds=5, on_progress=on_progress)
