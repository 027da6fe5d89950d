"""On a terminal, and only there, long operations show their progress."""

import os
import pty
from pathlib import Path

from tests.cli.conftest import Catalogue, csv_bytes, numbered_rows
from tests.cli.terminals import read_terminal
from tests.executable import PATIENCE_SECONDS, end_process, start_bookstore


def errors_on_a_terminal(*arguments: object, server: str) -> str:
    """Run the command with a terminal as its standard error, and return what is shown there."""
    terminal, command_end = pty.openpty()
    try:
        with open(os.devnull, "wb") as output, open(command_end, "wb", buffering=0) as errors:
            variables = {"BOOKSTORE_SERVER": server, "TERM": "xterm"}
            process = start_bookstore(*arguments, stdout=output, stderr=errors, variables=variables)
        try:
            shown = b""
            while data := read_terminal(terminal):
                shown += data
            assert process.wait(PATIENCE_SECONDS) == 0
        finally:
            end_process(process)
        return shown.decode()
    finally:
        os.close(terminal)


def test_an_import_shows_a_bar_that_fills(catalogue: Catalogue, tmp_path: Path) -> None:
    path = tmp_path / "books.csv"
    path.write_bytes(csv_bytes(numbered_rows(2_500)))

    shown = errors_on_a_terminal("import", path, server=catalogue.address)

    assert "Importing  [" in shown
    assert "100%" in shown
    assert shown.endswith("2,500 books stored, 2,500 of them new; 0 rows rejected.\r\n")


def test_an_export_shows_a_count_that_is_erased_at_the_end(catalogue: Catalogue, tmp_path: Path) -> None:
    catalogue.store(numbered_rows(2_500))

    shown = errors_on_a_terminal("export", tmp_path / "books.csv", server=catalogue.address)

    assert "Exporting  1,000 books" in shown
    assert "Exporting  2,000 books" in shown
    assert shown.endswith("\r\x1b[K2,500 books exported.\r\n")


def test_without_a_terminal_there_is_no_progress(catalogue: Catalogue, tmp_path: Path) -> None:
    imported = catalogue.run("import", "-", stdin=csv_bytes(numbered_rows(2_500)))
    exported = catalogue.run("export", tmp_path / "books.csv")

    assert imported.errors == "2,500 books stored, 2,500 of them new; 0 rows rejected.\n"
    assert exported.errors == "2,500 books exported.\n"
