"""The tree of errors: sentences to act on, and a reason for each that crosses the wire."""

import copy
import inspect
import multiprocessing
import pickle
import re
from collections.abc import Callable
from concurrent.futures import ProcessPoolExecutor
from pathlib import Path
from typing import Any

import pytest

from bookstore_grpc import errors
from bookstore_grpc.errors import (
    BookNotFound,
    BookstoreError,
    DatabaseUnavailable,
    EtagMismatch,
    InvalidFilter,
    InvalidOrderBy,
    InvalidPageToken,
    InvalidRequest,
    MalformedMessage,
    RequestIdReused,
    Rule,
    Violation,
)
from tests.every_error import every_class, made

CONTRACT = Path(__file__).parents[1] / "protos/bookstore/v1/books.proto"


def test_docstring_draws_the_tree_as_it_is() -> None:
    drawn = re.findall(r"[├└]── (\w+)", inspect.getdoc(errors) or "")
    assert drawn == [cls.__name__ for cls in every_class()]


def test_docstring_names_the_reason_of_every_class_that_has_one() -> None:
    drawn = dict(re.findall(r"[├└]── (\w+) +([A-Z_, ]+)$", inspect.getdoc(errors) or "", re.MULTILINE))
    for cls in every_class():
        if cls.reason:
            assert cls.reason in drawn[cls.__name__].split(", ")


def test_one_violation_is_the_message_and_more_are_counted() -> None:
    one = InvalidRequest([Violation("book.name", "is empty", Rule.REQUIRED)])
    assert one.message == str(one) == "book.name: is empty."
    two = InvalidRequest(
        [Violation("book.name", "is empty", Rule.REQUIRED), Violation("book.author", "is empty", Rule.REQUIRED)]
    )
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


def test_the_id_of_a_create_is_distinguished_from_that_of_the_call() -> None:
    error = RequestIdReused("6f1e4c2a-58b1-4d0b-9c57-0e1f2a3b4c5d")
    assert "CreateBookRequest.request_id 6f1e4c2a-58b1-4d0b-9c57-0e1f2a3b4c5d" in error.message
    assert error.metadata == {"create_request_id": error.create_request_id}
    assert error.request_id is None


def test_the_contract_lists_every_rule_and_no_other() -> None:
    (listed,) = re.findall(r"has its own reason: (.*?)Future versions", CONTRACT.read_text(), re.DOTALL)
    assert re.findall(r"`([A-Z_]+)`", listed) == list(Rule)
    assert all(re.fullmatch("[A-Z][A-Z0-9_]{0,61}[A-Z0-9]", rule) for rule in Rule)  # as google/rpc/error_details.proto


class OfAnotherPackage(EtagMismatch):
    """What a program may derive: a constructor of its own, with what it must be given, and another base."""

    def __init__(self, *, shelf: str, book_id: int) -> None:
        super().__init__(book_id)
        self.shelf = shelf


class Late(errors.DeadlineExceeded, TimeoutError):
    def __init__(self, *, seconds: float) -> None:
        super().__init__()
        self.seconds = seconds


def _of_every_class() -> list[BookstoreError]:
    classes: list[type[BookstoreError]] = [BookstoreError, *every_class()]
    return [*map(made, classes), OfAnotherPackage(shelf="C", book_id=7), Late(seconds=1.5)]


def _pickled(protocol: int) -> Callable[[Any], Any]:
    return lambda error: pickle.loads(pickle.dumps(error, protocol))


@pytest.mark.parametrize(
    "duplicate",
    [copy.copy, copy.deepcopy, *map(_pickled, range(pickle.HIGHEST_PROTOCOL + 1))],
    ids=["copy", "deepcopy", *map("protocol {}".format, range(pickle.HIGHEST_PROTOCOL + 1))],
)
@pytest.mark.parametrize("error", _of_every_class(), ids=lambda error: type(error).__name__)
def test_an_error_is_copied_and_pickled_with_all_that_it_says(
    error: BookstoreError, duplicate: Callable[[BookstoreError], BookstoreError]
) -> None:
    error.request_id = "the-call"
    error.reason = "AS_THE_SERVER_SAID"
    error.add_note("while testing")
    copied = duplicate(error)
    assert type(copied) is type(error)
    assert copied is not error
    assert (str(copied), copied.args, vars(copied)) == (str(error), error.args, vars(error))


class OfSlots(BookstoreError):
    """One whose attributes are not all in its `__dict__`."""

    __slots__ = ("shelf",)

    def __init__(self, *, shelf: str) -> None:
        super().__init__("Not there.")
        self.shelf = shelf


@pytest.mark.parametrize("duplicate", [copy.copy, copy.deepcopy, _pickled(pickle.HIGHEST_PROTOCOL)])
def test_an_error_with_slots_is_copied_and_pickled(duplicate: Callable[[OfSlots], OfSlots]) -> None:
    error = OfSlots(shelf="C")
    error.request_id = "the-call"
    copied = duplicate(error)
    assert (copied.shelf, str(copied), vars(copied)) == ("C", "Not there.", vars(error))


def _raise(error: BookstoreError) -> None:
    raise error


def test_errors_come_back_from_other_processes() -> None:
    with ProcessPoolExecutor(1, mp_context=multiprocessing.get_context("spawn")) as pool:
        for error in _of_every_class():
            raised = pool.submit(_raise, error).exception(30)
            assert type(raised) is type(error)
            assert (str(raised), raised.args) == (str(error), error.args)
