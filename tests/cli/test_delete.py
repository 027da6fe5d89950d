"""`bookstore delete`: by ids, all or none, and by a filter after a confirmation."""

import os
import pty
import sqlite3
from collections.abc import Iterator
from contextlib import closing, contextmanager

import pytest

from tests.cli.conftest import Catalogue, numbered_rows
from tests.cli.terminals import read_terminal
from tests.executable import PATIENCE_SECONDS, end_process, start_bookstore

NO_BOOK = 2**40


def test_several_books_are_deleted_by_their_ids(catalogue: Catalogue) -> None:
    ids = [catalogue.create(name)["id"] for name in ("One", "Two", "Three")]

    assert catalogue.succeed("delete", ids[2], ids[0], ids[2]) == "2 books deleted.\n"
    assert [name for name, *_ in catalogue.rows()] == ["Two"]


def test_if_a_book_is_missing_none_is_deleted(catalogue: Catalogue) -> None:
    book = catalogue.create("One")

    finished = catalogue.run("delete", book["id"], NO_BOOK, NO_BOOK + 1)

    assert (finished.status, finished.output) == (1, "")
    assert f"There are no books {NO_BOOK}, {NO_BOOK + 1}. [BOOK_NOT_FOUND]" in finished.errors
    assert len(catalogue.rows()) == 1


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        ((), "Give either the ids of books, or --filter."),
        ((1, "--filter", "id > 0", "--yes"), "Give either the ids of books, or --filter."),
        ((1, 2, "--etag", "x"), "--etag is for one ID."),
        (("--filter", "id > 0", "--yes", "--etag", "x"), "--etag is for one ID."),
        (("--filter", "id > 0"), "--yes deletes without asking"),
        (range(1, 1_002), "At most 1,000 books"),
    ],
)
def test_contradictory_arguments_are_rejected(
    catalogue: Catalogue, arguments: tuple[object, ...], message: str
) -> None:
    catalogue.create("One")

    finished = catalogue.run("delete", *arguments)

    assert finished.status == 2
    assert message in finished.errors
    assert len(catalogue.rows()) == 1


def test_the_books_that_match_a_filter_are_deleted(catalogue: Catalogue) -> None:
    catalogue.store(numbered_rows(2_500))

    assert catalogue.succeed("delete", "--filter", "release_year < 1000", "--yes") == "1,500 books deleted.\n"
    assert len(catalogue.rows()) == 1_000
    assert catalogue.succeed("delete", "--filter", "release_year < 1000", "--yes") == "No book matches.\n"
    assert catalogue.succeed("delete", "--filter", "id > 0", "--yes") == "1,000 books deleted.\n"


@pytest.mark.parametrize(("filter", "reason"), [("name =", "INVALID_FILTER"), (" ", "INVALID_FIELD")])
def test_an_invalid_filter_deletes_nothing(catalogue: Catalogue, filter: str, reason: str) -> None:
    catalogue.create("One")

    finished = catalogue.run("delete", "--filter", filter, "--yes")

    assert (finished.status, finished.output) == (1, "")
    assert reason in finished.errors
    assert "Not finished" not in finished.errors
    assert len(catalogue.rows()) == 1


@contextmanager
def _refusing_deletes_beyond(path: os.PathLike[str], year: int) -> Iterator[None]:
    """Make the database fail to delete books of a later year, as one whose disk is full."""
    with closing(sqlite3.connect(path, timeout=30, isolation_level=None)) as connection:
        connection.execute(
            f"CREATE TRIGGER refuse BEFORE DELETE ON books WHEN OLD.release_year > {year} "
            "BEGIN SELECT RAISE(ABORT, 'refused'); END"
        )
        try:
            yield
        finally:
            connection.execute("DROP TRIGGER refuse")


def test_a_failure_reports_how_to_continue(catalogue: Catalogue) -> None:
    catalogue.store(numbered_rows(300))

    with _refusing_deletes_beyond(catalogue.path, 200):
        finished = catalogue.run("delete", "--filter", "id > 0", "--yes")

    assert finished.status == 1
    assert finished.output == ""
    assert "Not finished: " in finished.errors
    assert "The same command continues." in finished.errors
    assert 0 < len(catalogue.rows()) < 300
    left = len(catalogue.rows())
    assert catalogue.succeed("delete", "--filter", "id > 0", "--yes") == f"{left} books deleted.\n"


def on_a_terminal(catalogue: Catalogue, *arguments: object, answer: str) -> tuple[int, str]:
    """Run the command on a terminal, enter `answer` when it asks, and return its status and all that it shows."""
    terminal, command_end = pty.openpty()
    try:
        with open(command_end, "r+b", buffering=0) as shown_on:
            variables = {"BOOKSTORE_SERVER": catalogue.address, "TERM": "xterm"}
            process = start_bookstore(*arguments, stdin=shown_on, stdout=shown_on, stderr=shown_on, variables=variables)
        try:
            shown = ""
            is_answered = False
            while data := read_terminal(terminal):
                shown += data.decode()
                if "[y/N]" in shown and not is_answered:
                    os.write(terminal, f"{answer}\n".encode())
                    is_answered = True
            return process.wait(PATIENCE_SECONDS), shown
        finally:
            end_process(process)
    finally:
        os.close(terminal)


def test_on_a_terminal_it_shows_some_of_the_books_and_asks(catalogue: Catalogue) -> None:
    catalogue.store(numbered_rows(1_250))

    status, shown = on_a_terminal(catalogue, "delete", "--filter", "release_year >= 50", answer="n")

    assert status == 1
    for number in range(50, 60):
        assert f"Book {number:06}" in shown
    assert "Book 000060" not in shown
    assert "These are the first 10 of 1,200 books." in shown
    assert "Delete 1,200 books? [y/N]" in shown
    assert len(catalogue.rows()) == 1_250

    status, shown = on_a_terminal(catalogue, "delete", "--filter", "release_year >= 50", answer="y")

    assert status == 0
    assert "Deleting  [" in shown
    assert "100%" in shown
    assert "1,200 books deleted." in shown
    assert len(catalogue.rows()) == 50


def test_on_a_terminal_a_single_book_is_shown_without_a_remark(catalogue: Catalogue) -> None:
    catalogue.create("The only one")

    status, shown = on_a_terminal(catalogue, "delete", "--filter", "id > 0", answer="y")

    assert status == 0
    assert "The only one" in shown
    assert "first" not in shown
    assert "Delete 1 book? [y/N]" in shown
    assert "1 book deleted." in shown
