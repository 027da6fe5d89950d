"""How `bookstore import` reads the rows of a file: which are stored, and why the others are rejected."""

import csv
import io
import json
from pathlib import Path
from typing import Any

import pytest

from tests.cli.conftest import Catalogue, run_verb

HEADER = b"name,author,release_year\n"


def import_csv(catalogue: Catalogue, folder: Path, content: bytes, *flags: object) -> tuple[int, str]:
    path = folder / "books.csv"
    path.write_bytes(content)
    finished = catalogue.run("import", path, *flags)
    assert finished.output == ""
    return finished.status, finished.errors


@pytest.mark.parametrize(
    ("content", "stored"),
    [
        pytest.param(HEADER + b"Emma,Jane Austen,1815\n", [("Emma", "Jane Austen", 1815)], id="plain"),
        pytest.param(HEADER + b"Emma,Jane Austen,1815", [("Emma", "Jane Austen", 1815)], id="no newline at the end"),
        pytest.param(
            HEADER.replace(b"\n", b"\r\n") + b"Emma,Jane Austen,1815\r\n", [("Emma", "Jane Austen", 1815)], id="CRLF"
        ),
        pytest.param(b"release_year,name,author\n-8,N,A\n", [("N", "A", -8)], id="another order of columns"),
        pytest.param(b"shelf,name,x,author,release_year\n1,N,,A,5\n", [("N", "A", 5)], id="more columns"),
        pytest.param(b" Name ,AUTHOR,Release_Year\nN,A,5\n", [("N", "A", 5)], id="titles in capitals"),
        pytest.param(b"\xef\xbb\xbf" + HEADER + b"N,A,5\n", [("N", "A", 5)], id="byte order mark"),
        pytest.param(HEADER + b"\n\nN,A,5\n\n", [("N", "A", 5)], id="empty lines"),
        pytest.param(HEADER + b'"A ""q"", b","C, D",5\n', [('A "q", b', "C, D", 5)], id="quotes and commas"),
        pytest.param(HEADER + " N\u0301 ,\u3000A ,5\n".encode(), [("\u0143", "A", 5)], id="trimmed, normal form C"),
        pytest.param(HEADER + b"N,A, 5 \nN,A,+5\nN,A,-0\n", [("N", "A", 5)] * 2 + [("N", "A", 0)], id="years"),
        pytest.param(HEADER + b"N,A,5\nN,A,5\n", [("N", "A", 5)] * 2, id="two copies are two books"),
        pytest.param(HEADER, [], id="header only"),
    ],
)
def test_csv_is_read_in_its_usual_forms(
    catalogue: Catalogue, tmp_path: Path, content: bytes, stored: list[tuple[str, str, int]]
) -> None:
    status, errors = import_csv(catalogue, tmp_path, content)

    count = f"{len(stored)} book" + ("" if len(stored) == 1 else "s")
    assert (status, errors) == (0, f"{count} stored, {len(stored)} of them new; 0 rows rejected.\n")
    assert catalogue.rows() == stored


@pytest.mark.parametrize(
    ("row", "reason"),
    [
        ("N,A,", "release_year: is required"),
        ("N,A", "release_year: is required"),
        ("N,A,abc", "release_year: is 'abc', not a whole number"),
        ("N,A,1e3", "release_year: is '1e3', not a whole number"),
        ("N,A,18.5", "release_year: is '18.5', not a whole number"),
        ("N,A,1_000", "release_year: is '1_000', not a whole number"),
        ("N,A,１９８４", "release_year: is '１９８４', not a whole number"),
        ("N,A,10000", "release_year: is 10000, not between -5000 and 9999"),
        ("N,A,99999999999", "release_year: is 99999999999, out of range"),
        ("N,A," + "9" * 5_000, "release_year: is 99999999999999999999, out of range"),
        (",A,5", "name: is required"),
        ("N, ,5", "author: is required"),
        ("x" * 501 + ",A,5", "name: has 501 code points"),
        ("N\x00,A,5", "name: holds the control character U+0000"),
        ("N,A,5,6", "has 4 columns, more than the header's 3"),
        (",,", "name: is required and must hold more than white space; author: is required"),
    ],
    ids=lambda value: value[:30],
)
def test_an_invalid_row_is_rejected_with_line_and_reason_and_the_others_are_stored(
    catalogue: Catalogue, tmp_path: Path, row: str, reason: str
) -> None:
    content = HEADER + f"First,A,1\n{row}\nLast,A,3\n".encode()

    status, errors = import_csv(catalogue, tmp_path, content)

    assert status == 1
    assert f"Line 3: {reason}" in errors
    assert "2 books stored, 2 of them new; 1 row rejected." in errors
    assert [name for name, _, _ in catalogue.rows()] == ["First", "Last"]


@pytest.mark.parametrize(
    ("content", "expected"),
    [
        pytest.param(b"", "missing: name, author, release_year", id="empty"),
        pytest.param(b"name,author\nN,A\n", "missing: release_year", id="missing column"),
        pytest.param(b"name;author;release_year\nN;A;5\n", "missing: name", id="semicolons"),
        pytest.param(b"N,A,5\n", "missing: name", id="no header"),
        pytest.param(HEADER + b"caf\xe9,A,5\n", "not UTF-8", id="Latin-1"),
        pytest.param("name,author,release_year\nN,A,5\n".encode("utf-16"), "not UTF-8", id="UTF-16"),
        pytest.param(b"\x89PNG\r\n\x1a\n\x00\x00", "not UTF-8", id="a picture"),
    ],
)
def test_a_file_that_is_not_such_a_csv_file_is_an_error(
    catalogue: Catalogue, tmp_path: Path, content: bytes, expected: str
) -> None:
    status, errors = import_csv(catalogue, tmp_path, content)

    assert status == 1
    assert expected in errors
    assert catalogue.rows() == []


def test_lines_are_counted_as_an_editor_counts_them(catalogue: Catalogue, tmp_path: Path) -> None:
    content = HEADER + b'"A\nB","C\r\nD\n\n",5\n\nN,A,x\n"N\n",A,y\n,,\n'

    status, errors = import_csv(catalogue, tmp_path, content)

    assert status == 1
    assert [line.split(":")[0] for line in errors.splitlines()[:-1]] == ["Line 2", "Line 8", "Line 9", "Line 11"]


def test_a_quote_that_is_never_closed_is_one_rejected_row(catalogue: Catalogue, tmp_path: Path) -> None:
    status, errors = import_csv(catalogue, tmp_path, HEADER + b'N,A,5\n"never closed,A,5\nM,A,5\n')

    assert status == 1
    assert errors.startswith("Line 3: ")
    assert catalogue.rows() == [("N", "A", 5)]


def json_lines(*values: Any) -> bytes:
    return b"".join(json.dumps(value).encode() + b"\n" for value in values)


BOOK = {"name": "N", "author": "A", "release_year": 5}


@pytest.mark.parametrize(
    ("line", "reason"),
    [
        (b"{", "is not JSON"),
        (b"name,author,release_year", "is not JSON"),
        (b"[" * 100_000, "is not JSON"),
        (b"[]", "is not a JSON object"),
        (b"null", "is not a JSON object"),
        (b'"N"', "is not a JSON object"),
        (b"{}", "name: is required"),
        (json_lines(BOOK | {"name": 1984}), "name: is not text"),
        (json_lines(BOOK | {"name": ["N"]}), "name: is not text"),
        (json_lines(BOOK | {"name": None}), "name: is required"),
        (json_lines(BOOK | {"author": None}), "author: is required"),
        (json_lines(BOOK | {"author": "\ud800"}), "author: contains half of a surrogate pair"),
        (json_lines(BOOK | {"author": "\x00"}), "author: holds the control character U+0000"),
        (json_lines(BOOK | {"release_year": None}), "release_year: is required"),
        (json_lines(BOOK | {"release_year": 18.0}), "release_year: is '18.0', not a whole number"),
        (json_lines(BOOK | {"release_year": True}), "release_year: is 'True', not a whole number"),
        (json_lines(BOOK | {"release_year": []}), "release_year: is '[]', not a whole number"),
        (json_lines(BOOK | {"release_year": 99999999999}), "release_year: is 99999999999, out of range"),
        (b'{"name": "N", "author": "A", "release_year": NaN}', "release_year: is 'nan', not a whole number"),
        (b'{"name": "N", "author": "A", "release_year": ' + b"9" * 5_000 + b"}", ""),
    ],
    ids=lambda value: value[:40].decode() if isinstance(value, bytes) else "",
)
def test_an_invalid_line_of_json_is_rejected_and_the_others_are_stored(
    catalogue: Catalogue, tmp_path: Path, line: bytes, reason: str
) -> None:
    path, rejects = tmp_path / "books.jsonl", tmp_path / "rejects.csv"
    path.write_bytes(json_lines(BOOK) + line.rstrip() + b"\n" + json_lines(BOOK))

    finished = catalogue.run("import", path)
    again = catalogue.run("import", path, "--rejects", rejects)

    assert (finished.status, again.status) == (1, 1)
    assert f"Line 2: {reason}" in finished.errors
    assert "2 books stored, 2 of them new; 1 row rejected." in finished.errors
    assert catalogue.rows() == [("N", "A", 5)] * 2
    (row,) = csv.DictReader(io.StringIO(rejects.read_bytes().decode()))
    assert row["line"] == "2"
    assert row["reason"].startswith(reason)


def test_json_lines_are_read_in_their_usual_forms(catalogue: Catalogue, tmp_path: Path) -> None:
    path = tmp_path / "books.NDJSON"
    path.write_bytes(
        b"\xef\xbb\xbf"
        + json_lines({"shelf": 7} | BOOK)
        + b"\r\n  \n"
        + json_lines(BOOK | {"release_year": "-44"}).replace(b"\n", b"\r\n")
        + '{"author": "B", "release_year": 0, "name": "a\u2028b"}'.encode()
    )

    finished = catalogue.run("import", path)

    assert finished == (0, "", "3 books stored, 3 of them new; 0 rows rejected.\n")
    assert catalogue.rows() == [("N", "A", 5), ("N", "A", -44), ("a\u2028b", "B", 0)]


def test_the_suffix_or_the_flag_decides_the_format(catalogue: Catalogue, tmp_path: Path) -> None:
    path = tmp_path / "books.txt"
    path.write_bytes(json_lines(BOOK))

    unknown = catalogue.run("import", path)
    chosen = catalogue.run("import", path, "--format", "jsonl")

    assert unknown.status == 2
    assert "--format" in unknown.errors
    assert chosen.status == 0
    assert catalogue.rows() == [("N", "A", 5)]


def test_a_dash_is_standard_input(catalogue: Catalogue) -> None:
    as_csv = catalogue.run("import", "-", stdin=HEADER + b"N,A,5\n")
    as_json = catalogue.run("import", "-", "--format", "jsonl", stdin=json_lines(BOOK | {"name": "M"}))

    assert (as_csv.status, as_json.status) == (0, 0)
    assert catalogue.rows() == [("N", "A", 5), ("M", "A", 5)]


def test_a_folder_cannot_be_imported(tmp_path: Path) -> None:
    assert run_verb("import", tmp_path).status == 2
