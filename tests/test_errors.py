"""The tree of errors: sentences to act on, and a reason for each that crosses the wire."""

import inspect
import re
from collections.abc import Iterator

import pytest

from bookstore_grpc import errors
from bookstore_grpc.errors import (
    BookNotFound,
    BookstoreError,
    DatabaseUnavailable,
    InvalidFilter,
    InvalidOrderBy,
    InvalidPageToken,
    InvalidRequest,
    MalformedMessage,
    Violation,
)


def _classes(root: type[BookstoreError] = BookstoreError) -> Iterator[type[BookstoreError]]:
    for cls in root.__subclasses__():
        if cls.__module__ == errors.__name__:
            yield cls
            yield from _classes(cls)


def test_docstring_draws_the_tree_as_it_is() -> None:
    drawn = re.findall(r"[├└]── (\w+)", inspect.getdoc(errors) or "")
    assert drawn == [cls.__name__ for cls in _classes()]


def test_docstring_names_the_reason_of_every_class_that_has_one() -> None:
    drawn = dict(re.findall(r"[├└]── (\w+) +([A-Z_, ]+)$", inspect.getdoc(errors) or "", re.MULTILINE))
    for cls in _classes():
        if cls.reason:
            assert cls.reason in drawn[cls.__name__].split(", ")


def test_one_violation_is_told_whole_and_more_are_counted() -> None:
    one = InvalidRequest([Violation("book.name", "is empty")])
    assert one.message == str(one) == "book.name: is empty."
    two = InvalidRequest([Violation("book.name", "is empty"), Violation("book.author", "is empty")])
    assert two.message == "book.name: is empty (and 1 more)."
    assert two.violations[1].field == "book.author"
    assert InvalidRequest(()).message == "The request is invalid."
    assert InvalidRequest((), message="As the server said.").message == "As the server said."


@pytest.mark.parametrize(
    ("ids", "message"),
    [
        ([7], "There is no book 7."),
        ([7, 8], "There are no books 7, 8."),
        (range(1, 13), "There are no books 1, 2, 3, 4, 5, 6, 7, 8, 9, 10 and 2 more."),
    ],
)
def test_missing_books_are_named_up_to_ten(ids: list[int], message: str) -> None:
    error = BookNotFound(ids)
    assert error.message == message
    assert error.ids == tuple(ids)


def test_errors_about_a_field_name_it() -> None:
    filter_error = InvalidFilter("is wrong (column 3)", column=3)
    assert (filter_error.column, filter_error.message) == (3, "filter: is wrong (column 3).")
    assert InvalidOrderBy("is wrong").message == "order_by: is wrong."
    assert InvalidPageToken("is damaged").message == "page_token: is damaged."
    assert "/x.Y/Z" in MalformedMessage("/x.Y/Z").message


def test_sentence_about_the_database_says_nothing_of_it() -> None:
    assert DatabaseUnavailable().message == "The database is unavailable; try again."
