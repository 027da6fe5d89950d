"""Backups of a SQLite database that is in use. A backup is a single, complete and verified file."""

import errno
import os
import shutil
import sqlite3
import tempfile
from collections.abc import Callable
from contextlib import closing
from pathlib import Path
from urllib.parse import quote

from sqlalchemy.engine import URL

from bookstore_grpc.dal.driver_errors import startup_errors, translated_errors
from bookstore_grpc.errors import StartupError

Progress = Callable[[int, int], None]

# 4 MB: large enough for efficient steps, small enough that an interruption takes effect immediately.
_STEP_PAGES = 1_024
_CHECK_STEPS = 100_000
_BACKUP_COMMANDS = {"postgresql": "pg_dump", "mariadb": "mariadb-dump"}
# Suffixes of files that SQLite treats as part of the database of the same name.
_LOG_SUFFIXES = ("-wal", "-journal")
# The original is only read, so these errors concern the copy.
_CANNOT_WRITE = {sqlite3.SQLITE_FULL, sqlite3.SQLITE_IOERR_WRITE, sqlite3.SQLITE_IOERR_TRUNCATE}
# The errors of link(2) on a file system without hard links.
_NO_HARD_LINKS = {errno.EPERM, errno.EOPNOTSUPP, errno.ENOSYS}


def copy_database(url: URL, path: Path, *, force: bool, timeout_seconds: float, on_progress: Progress) -> int:
    """Copy the current state of a SQLite database to a file, and return the number of books in it.

    `path` appears when the copy is complete, verified and synced to disk. An existing file, even one created in the
    meantime, is replaced only with `force`, and only then is a symbolic link followed. `on_progress` receives the
    numbers of copied pages and of all pages. Raises `StartupError`, and whatever `on_progress` raises.
    """
    backend = url.get_backend_name()
    if backend in _BACKUP_COMMANDS:
        raise StartupError(
            f"`bookstore backup` copies SQLite files. Back up this database with {_BACKUP_COMMANDS[backend]}."
        )
    target = Path(os.path.realpath(path))
    with (
        startup_errors(f"sqlite {url.database}"),
        translated_errors(backend),
        closing(_connect(url, timeout_seconds)) as source,
    ):
        # Without a transaction the copy would restart at every commit by others, and might never end
        # (https://sqlite.org/c3ref/backup_finish.html). In WAL mode the transaction does not block writers.
        source.execute("BEGIN")
        if source.execute("SELECT 1 FROM sqlite_master WHERE name = 'books'").fetchone() is None:
            raise StartupError(f"{url.database} is not a catalogue: it has no table of books.")
        original = Path(source.execute("PRAGMA database_list").fetchone()[2])
        if path.is_symlink() and not force:
            raise StartupError(f"{path} is a symbolic link to {target}; name that file, or use --force.")
        _check_target(target, original, force=force)
        try:
            return _write_copy(source, original, target, force=force, on_progress=on_progress)
        except FileExistsError as error:
            raise _already_exists(target) from error
        except OSError as error:
            raise StartupError(f"Cannot write {path}: {error.strerror}.") from error
        except sqlite3.OperationalError as error:
            if error.sqlite_errorcode in _CANNOT_WRITE:
                raise StartupError(f"Cannot write {path}: {error}.") from error
            raise


def _write_copy(source: sqlite3.Connection, original: Path, target: Path, *, force: bool, on_progress: Progress) -> int:
    # In the target's directory, so that the move is atomic. SQLite's temporary files are removed with the directory.
    with tempfile.TemporaryDirectory(prefix=f".{target.name}.", dir=target.parent) as folder:
        part = Path(folder, "part")
        books = _copy(source, part, on_progress)
        shutil.copymode(original, part)
        _sync(part)
        if force:
            part.replace(target)
        else:
            _move_to_new(part, target)
        _sync(target.parent)
    return books


def _connect(url: URL, timeout_seconds: float) -> sqlite3.Connection:
    (name,), options = url.get_dialect()().create_connect_args(url)
    if not options.get("uri"):
        if not os.path.exists(name):
            raise StartupError(f"There is no database {url.database}; --database-url names another.")
        name = f"file:{quote(name)}?mode=rw"  # does not create the file if it disappears now
    connect: Callable[..., sqlite3.Connection] = sqlite3.connect  # its stub is stricter than what a dialect returns
    return connect(name, **{**options, "uri": True, "timeout": timeout_seconds, "isolation_level": None})


def _check_target(target: Path, original: Path, *, force: bool) -> None:
    if target.exists():
        if not target.is_file() or target.samefile(original):
            raise StartupError(f"{target} cannot be replaced by a backup; choose another name.")
        if not force:
            raise _already_exists(target)
    for suffix in _LOG_SUFFIXES:
        if os.path.lexists(f"{target}{suffix}"):
            raise StartupError(
                f"SQLite would treat {target}{suffix} as part of the backup; remove it, or choose another name."
            )


def _already_exists(target: Path) -> StartupError:
    return StartupError(f"{target} already exists; --force replaces it.")


def _move_to_new(part: Path, target: Path) -> None:
    """Move a file atomically to an unused name. Raises `FileExistsError` if the name is in use."""
    try:
        os.link(part, target)
    except OSError as error:
        if error.errno not in _NO_HARD_LINKS:
            raise
        _rename_to_new(part, target)
    else:
        part.unlink()


def _rename_to_new(part: Path, target: Path) -> None:
    """Move a file to an unused name on a file system without hard links, such as FAT.

    rename(2) would replace an existing file, so an empty file is created first to reserve the name.
    """
    target.touch(exist_ok=False)
    try:
        part.replace(target)
    except OSError:
        target.unlink()
        raise


def _copy(source: sqlite3.Connection, part: Path, on_progress: Progress) -> int:
    with closing(sqlite3.connect(part, isolation_level=None)) as copy:
        copy.execute("PRAGMA journal_mode = OFF")
        copy.execute("PRAGMA synchronous = OFF")
        source.backup(
            copy, pages=_STEP_PAGES, progress=lambda _status, remaining, total: on_progress(total - remaining, total)
        )
        source.execute("ROLLBACK")
        # Like the original the copy is in WAL mode, and so could not be read on a read-only medium. The server turns
        # WAL mode on again.
        copy.execute("PRAGMA journal_mode = DELETE")
        _check(copy)
        return int(copy.execute("SELECT count(*) FROM books").fetchone()[0])


def _check(copy: sqlite3.Connection) -> None:
    # Python handles signals when SQLite calls the handler. An exception cannot propagate, but interrupts the statement.
    copy.set_progress_handler(lambda: 0, _CHECK_STEPS)
    try:
        (found,) = copy.execute("PRAGMA integrity_check(1)").fetchone()
    except sqlite3.OperationalError as error:
        if error.sqlite_errorcode == sqlite3.SQLITE_INTERRUPT:
            raise KeyboardInterrupt from error
        raise
    if found != "ok":
        raise StartupError(f"The database is damaged ({found}); no backup was made.")


def _sync(path: Path) -> None:
    descriptor = os.open(path, os.O_RDONLY)
    try:
        os.fsync(descriptor)
    finally:
        os.close(descriptor)
