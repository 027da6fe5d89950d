"""Copies of a SQLite database that others read and write meanwhile: one file each, whole and checked."""

import ctypes
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

# 4 MB: long enough to cost little between two steps, short enough that an interruption is heard at once.
_STEP_PAGES = 1_024
_CHECK_STEPS = 100_000
_INSTEAD = {"postgresql": "pg_dump", "mariadb": "mariadb-dump"}
# What SQLite takes for a part of the database beside which it lies.
_LOGS = ("-wal", "-journal")
# The database is only read, so these tell of the copy.
_CANNOT_WRITE = {sqlite3.SQLITE_FULL, sqlite3.SQLITE_IOERR_WRITE, sqlite3.SQLITE_IOERR_TRUNCATE}
# What link(2) says where there are no hard links.
_NO_HARD_LINKS = {errno.EPERM, errno.EOPNOTSUPP, errno.ENOSYS}
# fcntl.h and stdio.h of Linux; see renameat2(2).
_AT_FDCWD, _RENAME_NOREPLACE = -100, 1


def copy_database(url: URL, path: Path, *, force: bool, timeout_seconds: float, on_progress: Progress) -> int:
    """Copy a SQLite database, as it is when this begins, to a file, and answer how many books are in it.

    `path` appears when the copy is whole, checked and on the disk; an older file, or one that has come meanwhile, gives
    way only by `force`, and only then a link is followed.
    `on_progress` is told the pages done and all pages. Raises `StartupError`, and whatever `on_progress` raises.
    """
    backend = url.get_backend_name()
    if backend in _INSTEAD:
        raise StartupError(f"`bookstore backup` copies SQLite files. Back up this database with {_INSTEAD[backend]}.")
    target = Path(os.path.realpath(path))
    with (
        startup_errors(f"sqlite {url.database}"),
        translated_errors(backend),
        closing(_connected(url, timeout_seconds)) as source,
    ):
        # Without a transaction of its own the copy would begin again with every commit of others, and never end
        # (https://sqlite.org/c3ref/backup_finish.html). With SQLite's log it keeps nobody waiting.
        source.execute("BEGIN")
        if source.execute("SELECT 1 FROM sqlite_master WHERE name = 'books'").fetchone() is None:
            raise StartupError(f"{url.database} holds no catalogue: it has no table of books.")
        original = Path(source.execute("PRAGMA database_list").fetchone()[2])
        if path.is_symlink() and not force:
            raise StartupError(f"{path} is a link, to {target}; name that file, or use --force.")
        _check_target(target, original, force=force)
        try:
            # Beside the target, so that taking its name is one step; with it goes what SQLite puts beside the copy.
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
        except FileExistsError as error:
            raise _in_the_way(target) from error
        except OSError as error:
            raise StartupError(f"Cannot write {path}: {error.strerror}.") from error
        except sqlite3.OperationalError as error:
            if error.sqlite_errorcode in _CANNOT_WRITE:
                raise StartupError(f"Cannot write {path}: {error}.") from error
            raise
    return books


def _connected(url: URL, timeout_seconds: float) -> sqlite3.Connection:
    (name,), options = url.get_dialect()().create_connect_args(url)
    if not options.get("uri"):
        if not os.path.exists(name):
            raise StartupError(f"There is no database {url.database}; --database-url names another.")
        name = f"file:{quote(name)}?mode=rw"  # else SQLite would make the file, should it go now
    connect: Callable[..., sqlite3.Connection] = sqlite3.connect  # its stub asks for more than a dialect tells
    return connect(name, **{**options, "uri": True, "timeout": timeout_seconds, "isolation_level": None})


def _check_target(target: Path, original: Path, *, force: bool) -> None:
    if target.exists():
        if not target.is_file() or target.samefile(original):
            raise StartupError(f"{target} cannot be replaced by a backup; choose another name.")
        if not force:
            raise _in_the_way(target)
    for log in _LOGS:
        if os.path.lexists(f"{target}{log}"):
            raise StartupError(
                f"{target}{log} would be taken for a part of the backup; remove it, or choose another name."
            )


def _in_the_way(target: Path) -> StartupError:
    return StartupError(f"{target} is there already; --force replaces it.")


def _move_to_new(part: Path, target: Path) -> None:
    """Give a file its name in one step. Raises `FileExistsError` where something has it, and then leaves that alone."""
    try:
        os.link(part, target)
    except OSError as error:
        if error.errno not in _NO_HARD_LINKS:
            raise
        _rename_to_new(part, target)
    else:
        part.unlink()


def _rename_to_new(part: Path, target: Path) -> None:
    """Rename where a file system has no hard links, as FAT; Python itself has no way to do it without replacing."""
    libc = ctypes.CDLL(None, use_errno=True)
    if libc.renameat2(_AT_FDCWD, os.fsencode(part), _AT_FDCWD, os.fsencode(target), _RENAME_NOREPLACE):
        number = ctypes.get_errno()
        raise OSError(number, os.strerror(number))


def _copy(source: sqlite3.Connection, part: Path, on_progress: Progress) -> int:
    with closing(sqlite3.connect(part, isolation_level=None)) as copy:
        copy.execute("PRAGMA journal_mode = OFF")
        copy.execute("PRAGMA synchronous = OFF")
        source.backup(
            copy, pages=_STEP_PAGES, progress=lambda _status, remaining, total: on_progress(total - remaining, total)
        )
        source.execute("ROLLBACK")
        # The copy says of itself, as the original does, that it has a log; without, it can be read also where nothing
        # can be written. The server turns the log on.
        copy.execute("PRAGMA journal_mode = DELETE")
        _check(copy)
        return int(copy.execute("SELECT count(*) FROM books").fetchone()[0])


def _check(copy: sqlite3.Connection) -> None:
    # Between the steps Python looks for signals. Its exception cannot leave from there, but ends the statement.
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
