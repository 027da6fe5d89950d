"""`bookstore export`: whole files, in the form that `import` reads."""

import csv
import json
import os
import stat
from pathlib import Path

import pytest

from tests.cli.conftest import Catalogue, numbered_rows

CLASSICS = Path(__file__).parents[2] / "examples/classics.csv"
ODD = [('a, "q"\u2028é', "B; C", -750), ("=1+1", "紫式部", 1008), ("\\", "'", 0)]


def test_csv_has_a_header_and_a_row_for_each_book(catalogue: Catalogue, tmp_path: Path) -> None:
    catalogue.store(ODD)
    path = tmp_path / "books.csv"

    finished = catalogue.run("export", path)

    assert finished == (0, "", "3 books exported.\n")
    assert path.read_bytes().decode() == (
        'name,author,release_year\r\n"a, ""q""\u2028é",B; C,-750\r\n=1+1,紫式部,1008\r\n\\,\',0\r\n'
    )


def test_json_lines_have_an_object_for_each_book(catalogue: Catalogue, tmp_path: Path) -> None:
    catalogue.store(ODD)
    path = tmp_path / "books.jsonl"

    catalogue.run("export", path)

    lines = path.read_bytes().decode().split("\n")
    assert [tuple(json.loads(line).values()) for line in lines[:-1]] == ODD
    assert list(json.loads(lines[0])) == ["name", "author", "release_year"]
    assert "紫式部" in lines[1]


@pytest.mark.parametrize("file_format", ["csv", "jsonl"])
def test_what_is_exported_comes_back_the_same(catalogue: Catalogue, file_format: str) -> None:
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
    assert exported.read_bytes().replace(b"\r\n", b"\n") == CLASSICS.read_bytes().replace(b"\r\n", b"\n")
    with CLASSICS.open(newline="", encoding="utf-8") as file:
        assert len(catalogue.rows()) == len(list(csv.DictReader(file)))


def test_filter_and_order_choose_and_sort(catalogue: Catalogue) -> None:
    catalogue.store(numbered_rows(20))

    finished = catalogue.run("export", "-", "--filter", "release_year < 3", "--order-by", "release_year desc")

    assert finished.output.splitlines()[1:] == [f"Book 00000{number},Anon,{number}" for number in (2, 1, 0)]
    assert finished.errors == "3 books exported.\n"


def test_an_empty_catalogue_is_a_header(catalogue: Catalogue) -> None:
    assert catalogue.run("export", "-") == (0, "name,author,release_year\r\n", "0 books exported.\n")
    assert catalogue.run("export", "-", "--format", "jsonl").output == ""


def test_a_new_export_takes_the_place_of_an_old_one(catalogue: Catalogue, tmp_path: Path) -> None:
    path = tmp_path / "books.csv"
    path.write_text("an older and longer export\n" * 100)
    catalogue.store(numbered_rows(1))

    catalogue.run("export", path)

    assert path.read_bytes() == b"name,author,release_year\r\nBook 000000,Anon,0\r\n"
    assert os.listdir(tmp_path) == ["books.csv"]


@pytest.mark.parametrize(
    "arguments",
    [
        pytest.param(("--server", "127.0.0.1:1"), id="no server"),
        pytest.param(("--filter", "price > 3"), id="a filter that is refused"),
    ],
)
def test_an_export_that_fails_leaves_the_old_file_as_it_was(
    catalogue: Catalogue, tmp_path: Path, arguments: tuple[str, ...]
) -> None:
    path = tmp_path / "books.csv"
    path.write_text("an older export\n")

    finished = catalogue.run("export", path, *arguments)

    assert finished.status == 1
    assert path.read_text() == "an older export\n"
    assert os.listdir(tmp_path) == ["books.csv"]


def test_an_export_that_fails_leaves_no_new_file(catalogue: Catalogue, tmp_path: Path) -> None:
    assert catalogue.run("export", tmp_path / "books.csv", "--server", "127.0.0.1:1").status == 1
    assert os.listdir(tmp_path) == []


def test_a_folder_that_is_not_there_is_told_in_a_sentence(catalogue: Catalogue, tmp_path: Path) -> None:
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
        assert os.read(reader, 1_000) == b"name,author,release_year\r\nBook 000000,Anon,0\r\n"
    finally:
        os.close(reader)


def test_a_link_goes_on_leading_to_its_file(catalogue: Catalogue, tmp_path: Path) -> None:
    (tmp_path / "link.csv").symlink_to(tmp_path / "books.csv")

    catalogue.run("export", tmp_path / "link.csv")

    assert (tmp_path / "link.csv").is_symlink()
    assert (tmp_path / "books.csv").read_bytes() == b"name,author,release_year\r\n"
