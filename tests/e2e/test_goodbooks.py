"""Ten thousand real books are imported and exported without loss."""

import csv
import unicodedata
from pathlib import Path

import pytest

from tests.e2e.conftest import Start
from tests.executable import run_bookstore

pytestmark = [pytest.mark.e2e, pytest.mark.timeout(300)]


def rows(path: Path) -> list[list[str]]:
    with path.open(newline="", encoding="utf-8") as file:
        return list(csv.reader(file))[1:]


def stored_text(text: str) -> str:
    return unicodedata.normalize("NFC", text).strip()


def test_rows_are_stored_once_and_exported_unchanged(
    goodbooks: Path, any_database_url: str, start: Start, tmp_path: Path
) -> None:
    server = start(any_database_url, "--migrate")
    rejects, exported = tmp_path / "rejects.csv", tmp_path / "exported.csv"

    first = run_bookstore("import", goodbooks, "--rejects", rejects, "--server", server.address)
    second = run_bookstore("import", goodbooks, "--rejects", rejects, "--server", server.address)
    third = run_bookstore("export", exported, "--server", server.address)

    assert first == (1, "", "9,979 books stored, 9,979 of them new; 21 rows rejected.\n")
    assert second == (1, "", "9,979 books stored, 0 of them new; 21 rows rejected.\n")
    assert third == (0, "", "9,979 books exported.\n")
    given = rows(goodbooks)
    # Batches are in flight together, so they may be stored in another order.
    assert sorted(rows(exported)) == sorted(
        [stored_text(name), stored_text(author), year] for name, author, year in given if year.strip()
    )
    without_year = [row for row in given if not row[2].strip()]
    refused = rows(rejects)
    assert [row[2:] for row in refused] == without_year
    assert {row[1] for row in refused} == {"release_year: is required"}
    lines = goodbooks.read_text(encoding="utf-8").splitlines()
    assert all(row[2].split(",")[0][:10] in lines[int(row[0]) - 1] for row in refused)
    assert server.stop() == 0
