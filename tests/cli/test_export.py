"""`bookstore export`: whole files, in the form that `import` reads."""

import csv
import json
import os
import stat
from pathlib import Path

import pytest

from tests.cli.conftest import OPTIONAL_FIELDS, Catalogue, numbered_rows, with_optional_columns

CLASSICS = Path(__file__).parents[2] / "examples/classics.csv"
EMPTY = with_optional_columns("name,author,release_year\r\n")
FIRST = with_optional_columns("name,author,release_year\r\nBook 000000,Anon,0\r\n")  # of `numbered_rows`
ODD = [('a, "q"\u2028é', "B; C", -750), ("=1+1", "紫式部", 1008), ("\\", "'", 0)]


def test_csv_has_a_header_and_a_row_for_each_book(catalogue: Catalogue, tmp_path: Path) -> None:
    catalogue.store(ODD)
    path = tmp_path / "books.csv"

    finished = catalogue.run("export", path)

    assert finished == (0, "", "3 books exported.\n")
    assert path.read_bytes().decode() == with_optional_columns(
        'name,author,release_year\r\n"a, ""q""\u2028é",B; C,-750\r\n=1+1,紫式部,1008\r\n\\,\',0\r\n'
    )


def test_json_lines_have_an_object_for_each_book(catalogue: Catalogue, tmp_path: Path) -> None:
    catalogue.store(ODD)
    path = tmp_path / "books.jsonl"

    catalogue.run("export", path)

    lines = path.read_bytes().decode().split("\n")
    absent = ("",) * len(OPTIONAL_FIELDS)
    assert [tuple(json.loads(line).values()) for line in lines[:-1]] == [row + absent for row in ODD]
    assert list(json.loads(lines[0])) == ["name", "author", "release_year", *OPTIONAL_FIELDS]
    assert "紫式部" in lines[1]


@pytest.mark.parametrize("file_format", ["csv", "jsonl"])
def test_an_export_can_be_imported_unchanged(catalogue: Catalogue, file_format: str) -> None:
    catalogue.store(ODD + numbered_rows(2_100))
    first = catalogue.run("export", "-", "--format", file_format)
    catalogue.clear()

    assert catalogue.run("import", "-", "--format", file_format, stdin=first.output.encode()).status == 0

    assert catalogue.rows() == ODD + numbered_rows(2_100)
    assert catalogue.run("export", "-", "--format", file_format).output == first.output


def test_the_classics_survive_the_round_trip(catalogue: Catalogue, tmp_path: Path) -> None:
    exported = tmp_path / "books.csv"

    assert catalogue.run("import", CLASSICS).status == 0
    assert catalogue.run("export", exported).status == 0

    # In Git's text files lines end with LF, in CSV with CRLF.
    classics = CLASSICS.read_bytes().decode().replace("\r\n", "\n")
    assert exported.read_bytes().decode().replace("\r\n", "\n") == with_optional_columns(classics, end="\n")
    with CLASSICS.open(newline="", encoding="utf-8") as file:
        assert len(catalogue.rows()) == len(list(csv.DictReader(file)))


def test_filter_and_order_select_and_sort(catalogue: Catalogue) -> None:
    catalogue.store(numbered_rows(20))

    finished = catalogue.run("export", "-", "--filter", "release_year < 3", "--order-by", "release_year desc")

    rows = "".join(f"Book 00000{number},Anon,{number}\r\n" for number in (2, 1, 0))
    assert finished.output == with_optional_columns(f"name,author,release_year\r\n{rows}")
    assert finished.errors == "3 books exported.\n"


def test_an_empty_catalogue_is_a_header(catalogue: Catalogue) -> None:
    assert catalogue.run("export", "-") == (0, EMPTY, "0 books exported.\n")
    assert catalogue.run("export", "-", "--format", "jsonl").output == ""


def test_an_export_replaces_an_older_file(catalogue: Catalogue, tmp_path: Path) -> None:
    path = tmp_path / "books.csv"
    path.write_text("an older and longer export\n" * 100)
    catalogue.store(numbered_rows(1))

    catalogue.run("export", path)

    assert path.read_bytes().decode() == FIRST
    assert os.listdir(tmp_path) == ["books.csv"]


@pytest.mark.parametrize(
    "arguments",
    [
        pytest.param(("--server", "127.0.0.1:1"), id="no server"),
        pytest.param(("--filter", "price > 3"), id="a rejected filter"),
    ],
)
def test_a_failed_export_leaves_the_older_file_unchanged(
    catalogue: Catalogue, tmp_path: Path, arguments: tuple[str, ...]
) -> None:
    path = tmp_path / "books.csv"
    path.write_text("an older export\n")

    finished = catalogue.run("export", path, *arguments)

    assert finished.status == 1
    assert path.read_text() == "an older export\n"
    assert os.listdir(tmp_path) == ["books.csv"]


def test_a_failed_export_leaves_no_new_file(catalogue: Catalogue, tmp_path: Path) -> None:
    assert catalogue.run("export", tmp_path / "books.csv", "--server", "127.0.0.1:1").status == 1
    assert os.listdir(tmp_path) == []


def test_a_missing_folder_is_an_error(catalogue: Catalogue, tmp_path: Path) -> None:
    finished = catalogue.run("export", tmp_path / "none/books.csv")

    assert finished.status in (1, 2)
    assert "Error: " in finished.errors


def test_a_pipe_or_device_is_written_to_and_not_replaced(catalogue: Catalogue, tmp_path: Path) -> None:
    catalogue.store(numbered_rows(1))
    pipe = tmp_path / "pipe"
    os.mkfifo(pipe)
    reader = os.open(pipe, os.O_RDONLY | os.O_NONBLOCK)
    try:
        catalogue.run("export", pipe, "--format", "csv")
        assert stat.S_ISFIFO(pipe.stat().st_mode)
        assert os.read(reader, 1_000).decode() == FIRST
    finally:
        os.close(reader)


def test_an_export_to_a_link_writes_the_file_that_it_names(catalogue: Catalogue, tmp_path: Path) -> None:
    (tmp_path / "link.csv").symlink_to(tmp_path / "books.csv")

    catalogue.run("export", tmp_path / "link.csv")

    assert (tmp_path / "link.csv").is_symlink()
    assert (tmp_path / "books.csv").read_bytes().decode() == EMPTY
