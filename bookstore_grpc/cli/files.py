"""Opens the files of `import` and `export`: seekable input, the rejects file, and output replaced atomically."""

import os
import shutil
import sys
import tempfile
from collections.abc import Iterator
from contextlib import contextmanager, suppress
from io import BufferedRandom, BufferedReader
from typing import IO

import click

SeekableFile = BufferedReader | BufferedRandom


@contextmanager
def seekable_file(path: str) -> Iterator[SeekableFile]:
    """Open a file, or "-" for standard input, that is read twice: for its digest and for its rows."""
    if path != "-":
        with open(path, "rb") as file:
            yield file
        return
    with tempfile.TemporaryFile() as spool:
        shutil.copyfileobj(sys.stdin.buffer, spool)
        spool.seek(0)
        yield spool


@contextmanager
def rejects_file(path: str | None) -> Iterator[IO[str] | None]:
    """Open the file for rejected rows, or yield None without a path."""
    if path is None:
        yield None
        return
    # Half of a surrogate pair, a reason to reject a row, must not fail the import when the row is written here.
    with _writable(path, errors="backslashreplace") as file:
        yield file


@contextmanager
def atomic_file(path: str) -> Iterator[IO[str]]:
    """Open a file that appears, or replaces an older one, only when it is complete. "-" is standard output."""
    if path == "-":
        sys.stdout.reconfigure(encoding="utf-8", newline="")  # type: ignore[union-attr]  # a TextIOWrapper in a command
        yield sys.stdout
        sys.stdout.flush()
        return
    target = os.path.realpath(path)
    if os.path.exists(target) and not os.path.isfile(target):
        with _writable(target) as file:  # a device or a pipe
            yield file
        return
    part = f"{target}.part"
    try:
        with _writable(part) as file:
            yield file
            file.flush()
            os.fsync(file.fileno())
        os.replace(part, target)
    except BaseException:
        with suppress(OSError):
            os.remove(part)
        raise


def _writable(path: str, *, errors: str = "strict") -> IO[str]:
    try:
        return open(path, "w", encoding="utf-8", newline="", errors=errors)
    except OSError as error:
        raise click.ClickException(f"Cannot write {path}: {error.strerror}.") from error
