"""`bookstore list`: which books, how many of them, and how they are shown."""

import fcntl
import json
import os
import unicodedata
from pathlib import Path

import pytest

from tests.cli.conftest import Catalogue, numbered_rows, with_optional_columns
from tests.executable import PATIENCE_SECONDS, end_process, run_bookstore, start_bookstore


def names(output: str) -> list[str]:
    return [book["name"] for book in json.loads(output)]


def test_an_empty_list_is_an_empty_table_array_or_csv(catalogue: Catalogue) -> None:
    assert catalogue.succeed("list").split() == ["ID", "NAME", "AUTHOR", "YEAR"]
    assert catalogue.succeed("list", "--output", "json") == "[]\n"
    header = "id,name,author,release_year,create_time,update_time,etag\n"
    assert catalogue.succeed("list", "--output", "csv") == with_optional_columns(header, end="\n")


def test_without_flags_the_first_page_is_shown_with_a_hint_on_standard_error(
    catalogue: Catalogue,
) -> None:
    catalogue.store(numbered_rows(60))

    finished = catalogue.run("list")

    assert finished.status == 0
    assert len(finished.output.splitlines()) == 1 + 50
    assert finished.errors == "These are the first 50 of 60 books; use --all or --limit N for more.\n"


def test_a_page_with_all_books_has_no_hint(catalogue: Catalogue) -> None:
    catalogue.store(numbered_rows(50))

    assert len(catalogue.succeed("list").splitlines()) == 1 + 50


@pytest.mark.parametrize(
    ("arguments", "count"),
    [
        (("--limit", 1), 1),
        (("--limit", 60), 60),
        (("--limit", 1_100), 1_100),
        (("--limit", 5_000), 1_200),
        (("--limit", 7, "--page-size", 3), 7),
        (("--all",), 1_200),
        (("--all", "--page-size", 500), 1_200),
    ],
    ids=lambda value: " ".join(map(str, value)) if isinstance(value, tuple) else "",
)
def test_limit_and_all_decide_how_many_books_are_printed(
    catalogue: Catalogue, arguments: tuple[object, ...], count: int
) -> None:
    rows = numbered_rows(1_200)
    catalogue.store(rows)

    listed = names(catalogue.succeed("list", *arguments, "--output", "json"))

    assert listed == [name for name, _, _ in rows[:count]]


def test_the_page_size_is_the_number_of_books_on_the_first_page(catalogue: Catalogue) -> None:
    catalogue.store(numbered_rows(5))

    finished = catalogue.run("list", "--page-size", 2, "--output", "json")

    assert names(finished.output) == ["Book 000000", "Book 000001"]
    assert "first 2 of 5 books;" in finished.errors


def test_filter_and_order_select_and_sort(catalogue: Catalogue) -> None:
    catalogue.store([("Nana", "Émile Zola", 1880), ("Germinal", "ÉMILE ZOLA", 1885), ("Emma", "Jane Austen", 1815)])

    listed = catalogue.succeed(
        "list", "--filter", "author:émile", "--order-by", "release_year desc", "--output", "json"
    )

    assert names(listed) == ["Germinal", "Nana"]


def columns(text: str) -> int:
    """The columns that a text takes on a terminal."""
    shown = [character for character in text if not unicodedata.combining(character)]
    return sum(2 if unicodedata.east_asian_width(character) in "WF" else 1 for character in shown)


@pytest.mark.parametrize(
    "name",
    [
        "x" * 500,
        "x" * 44,
        "x" * 45,
        "紅樓夢" * 20,
        "紅" * 22,
        "x" + "紅" * 22,
        "e\u0323\u0302" * 60,
        "q\u0323" * 44,
        "家族👨‍👩‍👧" * 30,
    ],
    ids=["long", "fits", "one too long", "wide", "wide fits", "wide cut in half", "normal form C", "marks", "emoji"],
)
def test_columns_are_aligned_whatever_the_name(catalogue: Catalogue, name: str) -> None:
    catalogue.store([(name, "AUTHOR", 1_999)])

    header, row = catalogue.succeed("list").splitlines()

    before, _, after = row.rpartition("AUTHOR")
    assert columns(before.replace("\u200d", "")) == header.index("AUTHOR")
    assert after.split() == ["1999"]


def test_a_long_text_is_truncated_with_an_ellipsis_in_the_table_only(catalogue: Catalogue) -> None:
    catalogue.store([("x" * 500, "y" * 1_000, 1)])

    row = catalogue.succeed("list").splitlines()[1].split()

    assert row[1:] == ["x" * 43 + "…", "y" * 29 + "…", "1"]
    assert names(catalogue.succeed("list", "--output", "json")) == ["x" * 500]
    assert "y" * 1_000 in catalogue.succeed("list", "--output", "csv")


@pytest.mark.parametrize("verb", ["list --all", "list --all --output json", "list --all --output csv", "export -"])
def test_a_closed_pipe_ends_a_verb_without_an_error(catalogue: Catalogue, tmp_path: Path, verb: str) -> None:
    catalogue.store(numbered_rows(1_000))  # more than the pipe and the buffers hold
    reading, writing = os.pipe()
    fcntl.fcntl(writing, fcntl.F_SETPIPE_SZ, 4_096)
    with open(reading, "rb", buffering=0) as reader, (tmp_path / "errors").open("wb") as errors:
        with open(writing, "wb") as pipe:
            process = start_bookstore(
                *verb.split(),
                stdout=pipe,
                stderr=errors,
                variables={"BOOKSTORE_SERVER": catalogue.address},
                start_method="fork" if "list" in verb else "exec",  # an export reconfigures the interpreter's stream
            )
        try:
            assert reader.read(10)
            reader.close()
            process.wait(PATIENCE_SECONDS)
        finally:
            end_process(process)

    assert (tmp_path / "errors").read_text() in ("", "1,000 books exported.\n")


def test_output_that_has_no_room_is_reported(catalogue: Catalogue, tmp_path: Path) -> None:
    catalogue.store(numbered_rows(10))
    with open("/dev/full", "wb") as full, (tmp_path / "errors").open("wb") as errors:
        variables = {"BOOKSTORE_SERVER": catalogue.address}
        process = start_bookstore("list", stdout=full, stderr=errors, variables=variables)
        try:
            assert process.wait(PATIENCE_SECONDS) == 1
        finally:
            end_process(process)

    written = (tmp_path / "errors").read_text()
    assert "No space left on device" in written
    assert "Traceback" not in written


def test_a_terminal_without_unicode_gets_no_traceback(catalogue: Catalogue) -> None:
    catalogue.store([("紅樓夢", "曹雪芹", 1791)])

    finished = run_bookstore("list", variables={"BOOKSTORE_SERVER": catalogue.address, "PYTHONIOENCODING": "ascii"})

    assert "1791" in finished.output
