"""On a terminal, and only there, long work shows how far it is."""

import os
import pty
import subprocess
from pathlib import Path

from tests.cli.conftest import Catalogue, csv_bytes, numbered_rows
from tests.executable import BOOKSTORE, PATIENCE_SECONDS, environment


def errors_on_a_terminal(*arguments: object, server: str) -> str:
    """Run the command with a terminal as its standard error, and answer what is shown there."""
    terminal, command_end = pty.openpty()
    try:
        process = subprocess.Popen(
            [BOOKSTORE, *map(str, arguments)],
            stdin=subprocess.DEVNULL,
            stdout=subprocess.DEVNULL,
            stderr=command_end,
            env=environment(BOOKSTORE_SERVER=server, TERM="xterm"),
        )
        os.close(command_end)
        shown = b""
        while data := _read(terminal):
            shown += data
        assert process.wait(PATIENCE_SECONDS) == 0
        return shown.decode()
    finally:
        os.close(terminal)


def _read(terminal: int) -> bytes:
    try:
        return os.read(terminal, 4_096)
    except OSError:  # on Linux this is how a terminal whose other end is closed tells it
        return b""


def test_an_import_shows_a_bar_that_fills(catalogue: Catalogue, tmp_path: Path) -> None:
    path = tmp_path / "books.csv"
    path.write_bytes(csv_bytes(numbered_rows(2_500)))

    shown = errors_on_a_terminal("import", path, server=catalogue.address)

    assert "Importing  [" in shown
    assert "100%" in shown
    assert shown.endswith("2,500 books stored, 2,500 of them new; 0 rows rejected.\r\n")


def test_an_export_shows_a_count_that_is_wiped_away(catalogue: Catalogue, tmp_path: Path) -> None:
    catalogue.store(numbered_rows(2_500))

    shown = errors_on_a_terminal("export", tmp_path / "books.csv", server=catalogue.address)

    assert "Exporting  1,000 books" in shown
    assert "Exporting  2,000 books" in shown
    assert shown.endswith("\r\x1b[K2,500 books exported.\r\n")


def test_elsewhere_there_is_none(catalogue: Catalogue, tmp_path: Path) -> None:
    imported = catalogue.run("import", "-", stdin=csv_bytes(numbered_rows(2_500)))
    exported = catalogue.run("export", tmp_path / "books.csv")

    assert imported.errors == "2,500 books stored, 2,500 of them new; 0 rows rejected.\n"
    assert exported.errors == "2,500 books exported.\n"
