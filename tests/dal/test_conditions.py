"""A condition of a filter is met by a book in memory exactly if the database finds the book by its SQL."""

import pytest
from hypothesis import HealthCheck, assume, example, given, settings
from hypothesis import strategies as st

from bookstore_grpc.dal.books import BookDAL
from bookstore_grpc.dal.filters import parse_filter
from bookstore_grpc.dal.records import BookRecord, Change, ChangeType
from bookstore_grpc.dal.watch import is_wanted_by
from bookstore_grpc.limits import FILTER_MAX_CODE_POINTS
from tests.dal import test_filter_rules, test_filters
from tests.dal.test_filter_properties import (
    _Clause,
    _contains,
    _expressions,
    _ids,
    _text_comparison,
    _wildcard,
    _words,
)

_DIALECTS = ("sqlite", "postgresql", "mariadb")
_BY_EXAMPLE = [
    filter
    for module, names in (
        (test_filters, ("_EXAMPLES", "_OPERATORS", "_TIMES")),
        (test_filter_rules, ("_NUMBERS", "_TEXTS", "_WILDCARDS", "_CONTAINS", "_WORDS", "_OPERATORS", "_TIMES")),
    )
    for name in names
    for filter, _ in getattr(module, name)
]


def _met(filter: str, shelf: list[BookRecord]) -> dict[str, list[int]]:
    """Return the ids of the books that meet a filter, by each dialect's conditions, which differ in their columns."""
    found = {}
    for dialect in _DIALECTS:
        parsed, values = parse_filter(filter, dialect=dialect)
        found[dialect] = [book.id for book in shelf if parsed.condition.is_met(book, values)]
    return found


async def test_filters_of_all_examples_are_met_by_the_books_that_the_database_finds(
    shelf_books: BookDAL, shelf: list[BookRecord]
) -> None:
    assert len(_BY_EXAMPLE) > 250
    for filter in _BY_EXAMPLE:
        assert _met(filter, shelf) == dict.fromkeys(_DIALECTS, await _ids(shelf_books, filter)), filter


@settings(max_examples=40, suppress_health_check=[HealthCheck.function_scoped_fixture])
@given(clause=_expressions)
@example(clause=_Clause("", lambda _: True))
async def test_any_filter_is_met_by_the_books_that_the_database_finds(
    shelf_books: BookDAL, shelf: list[BookRecord], clause: _Clause
) -> None:
    assume(len(clause.text) <= FILTER_MAX_CODE_POINTS)
    assert _met(clause.text, shelf) == dict.fromkeys(_DIALECTS, await _ids(shelf_books, clause.text))


@settings(max_examples=80)
@given(clause=st.one_of(_words(), _contains(), _text_comparison(), _wildcard()))
async def test_any_comparison_of_text_is_met_by_the_books_that_the_database_finds(
    shelf_books: BookDAL, shelf: list[BookRecord], clause: _Clause
) -> None:
    assume(len(clause.text) <= FILTER_MAX_CODE_POINTS)
    assert _met(clause.text, shelf) == dict.fromkeys(_DIALECTS, await _ids(shelf_books, clause.text))


@pytest.mark.parametrize(
    ("filter", "expected"),
    [("", True), ("name = before", True), ("name = after", True), ("name = other", False), ("NOT name = after", True)],
)
def test_a_change_is_wanted_if_its_book_meets_the_filter_before_or_after(filter: str, expected: bool) -> None:
    before = BookRecord(1, "before", "x", 1, 1, 1)
    update = Change(ChangeType.UPDATED, before._replace(name="after"), before)
    assert is_wanted_by(filter)(update) == expected


def test_a_change_without_a_state_before_is_wanted_by_its_book() -> None:
    create = Change(ChangeType.CREATED, BookRecord(1, "after", "x", 1, 1, 1))
    assert is_wanted_by("name = after")(create)
    assert not is_wanted_by("name = before")(create)
