"""Error messages of invalid filters, and the column, counted from 1, of the error."""

import pytest
from sqlalchemy.dialects import sqlite

from bookstore_grpc.dal.filters import parse_filter
from bookstore_grpc.errors import InvalidFilter


def _rejected(filter: str) -> tuple[int, str]:
    with pytest.raises(InvalidFilter) as caught:
        parse_filter(filter, dialect="sqlite")
    (violation,) = caught.value.violations
    assert violation.field == "filter"
    assert violation.description.endswith(f"(column {caught.value.column})")
    return caught.value.column, violation.description


@pytest.mark.parametrize(
    ("filter", "column", "expected"),
    [
        # ends too early
        ("a AND", 6, "ends where more is expected"),
        ("a AND ", 7, "ends where more is expected"),
        ("a OR", 5, "ends where more is expected"),
        ("NOT", 4, "ends where more is expected"),
        ("-", 2, "ends where more is expected"),
        ("name =", 7, "ends where more is expected"),
        ("name:", 6, "ends where more is expected"),
        ("(", 2, "ends where more is expected"),
        ("(a", 3, "ends where more is expected"),
        ("((a)", 5, "ends where more is expected"),
        ("a (", 4, "ends where more is expected"),
        # something that cannot stand there
        (")", 1, "unexpected ')'"),
        ("()", 2, "unexpected ')'"),
        ("a)", 2, "unexpected ')'"),
        ("(a))", 4, "unexpected ')'"),
        ("AND", 1, "unexpected 'AND'"),
        ("AND a", 1, "unexpected 'AND'"),
        ("OR a", 1, "unexpected 'OR'"),
        ("a AND AND b", 7, "unexpected 'AND'"),
        ("a OR AND b", 6, "unexpected 'AND'"),
        ("a OR OR b", 6, "unexpected 'OR'"),
        ("(AND)", 2, "unexpected 'AND'"),
        ("= 5", 1, "unexpected '='"),
        ("<= 5", 1, "unexpected '<='"),
        (": a", 1, "unexpected ':'"),
        ("name == a", 7, "unexpected '='"),
        ("name <> a", 7, "unexpected '>'"),
        ("name = = a", 8, "unexpected '='"),
        ("name = < a", 8, "unexpected '<'"),
        ("name = a = b", 10, "unexpected '='"),
        ("name = (a)", 8, "unexpected '('"),
        ("name = )", 8, "unexpected ')'"),
        ('"name" = a', 8, "unexpected '='"),
        ("-name:a:b=c", 10, "unexpected '='"),
        ("NOT NOT a", 5, "unexpected 'NOT'"),
        ("--a", 2, "unexpected '-"),
        ("- -a", 3, "unexpected '-"),
        ("-NOT a", 2, "unexpected 'NOT'"),
        ("a\n  AND)", 8, "unexpected ')'"),
        # quotes
        ('"', 1, "quote that is not closed"),
        ("'", 1, "quote that is not closed"),
        ('name = "abc', 8, "quote that is not closed"),
        ("name = 'abc", 8, "quote that is not closed"),
        ('name = "abc\\"', 8, "quote that is not closed"),
        ("name = \"abc'", 8, "quote that is not closed"),
        ('a"', 2, "quote that is not closed"),
        ('name = "a" "', 12, "quote that is not closed"),
        # fields
        ("isbn = a", 1, "'isbn' is not a field of a book; there are id, name, author, release_year"),
        ("Name = a", 1, "'Name' is not a field"),
        ("etag = a", 1, "'etag' is not a field"),
        ("a AND book.name = a", 7, "'book.name' is not a field"),
        ("name_folded = a", 1, "'name_folded' is not a field"),
        ("author_head:a", 1, "'author_head' is not a field"),
        ("a (b OR titel:c)", 9, "'titel' is not a field"),
        ("x" * 50 + "=1", 1, f"'{'x' * 40}…' is not a field"),
        # `:` looks inside text
        ("id:1", 3, "':' searches text, and id is not text; use ="),
        ("release_year : 1", 14, "':' searches text, and release_year is not text"),
        ("create_time:*", 12, "':' searches text"),
        ("update_time:*", 12, "':' searches text"),
        # control characters
        ('name = "a\0b"', 8, "control character"),
        ('name:"\x1b"', 6, "control character"),
        ('a "\x7f"', 3, "control character"),
        ("a \x80", 3, "control character"),
        ("name = a\0", 8, "control character"),
        ("name = 'a\nb'", 8, "control character"),
    ],
)
def test_the_message_says_what_is_wrong_and_in_which_column(filter: str, column: int, expected: str) -> None:
    found, description = _rejected(filter)
    assert expected in description
    assert found == column


@pytest.mark.parametrize(
    ("filter", "column"),
    [
        ("id = one", 6),
        ('id = "1"', 6),
        ("id = '1'", 6),
        ("id = 1.0", 6),
        ("id = 1e3", 6),
        ("id = +1", 6),
        ("id = 0x1", 6),
        ("id = 1_000", 6),
        ("id = --1", 6),
        ("id = -", 6),
        ("id = *", 6),
        ("id = ٣", 6),
        ("id != 1*", 7),
        ("release_year = true", 16),
        ("release_year = 1984,", 16),
        ("name = a release_year<=x", 24),
    ],
)
def test_a_value_that_is_not_a_whole_number_is_rejected(filter: str, column: int) -> None:
    found, description = _rejected(filter)
    assert "takes a whole number, not" in description
    assert found == column


_COLUMNS = [
    ("(", 2),
    ("dune (", 7),
    (")", 1),
    ("dune)", 5),
    ("()", 2),
    ("AND", 1),
    ("dune AND", 9),
    ("dune OR OR messiah", 9),
    ("NOT", 4),
    ("name =", 7),
    ("= dune", 1),
    ("name = = dune", 8),
    ('name = "Dune', 8),
    ("name = 'Dune", 8),
    ('dune "', 6),
    ("isbn = dune", 1),
    ("dune AND isbn:x", 10),
    ("etag = x", 1),
    ("Name = x", 1),
    ("book.name = x", 1),
    ("release_year:1965", 13),
    ("id:1", 3),
    ('create_time:"2020-01-01T00:00:00Z"', 12),
    ("release_year = old", 16),
    ("release_year = 1.5", 16),
    ("release_year = '1965'", 16),
    ("release_year = 2147483648", 16),
    ("release_year = ٣", 16),
    ("release_year = +1", 16),
    ("id = 9223372036854775808", 6),
    ("id = *", 6),
    ("id = 1e3", 6),
    ("create_time > yesterday", 15),
    ('create_time > "2020-01-01"', 15),
    ('create_time > "2020-13-01T00:00:00Z"', 15),
    ('create_time > "2020-01-01T00:00:00"', 15),
    ("update_time = 5", 15),
    ("name = \x00", 8),
    ('name = "a\x00b"', 8),
    ("😀😀 (", 5),
    ("name ==Dune", 7),
    ("NOT NOT dune", 5),
    ("name = (Dune)", 8),
]


def test_an_invalid_filter_is_rejected_at_its_column() -> None:
    assert [(filter, _rejected(filter)[0]) for filter, _ in _COLUMNS] == _COLUMNS


@pytest.mark.parametrize(
    ("filter", "least", "most"),
    [
        ("id = 9223372036854775808", -(2**63), 2**63 - 1),
        ("id = -9223372036854775809", -(2**63), 2**63 - 1),
        (f"id = {'9' * 1_990}", -(2**63), 2**63 - 1),
        ("release_year = 2147483648", -(2**31), 2**31 - 1),
        ("release_year = -2147483649", -(2**31), 2**31 - 1),
        ("release_year != 9223372036854775807", -(2**31), 2**31 - 1),
    ],
)
def test_number_beyond_its_fields_type_is_rejected(filter: str, least: int, most: int) -> None:
    _, description = _rejected(filter)
    assert f"takes a number from {least} to {most}" in description


@pytest.mark.parametrize(
    "time",
    [
        "",
        "*",
        "yesterday",
        "0",
        "1769860800",
        "2026-01-31",
        "2026-01-31T12:00Z",
        "2026-01-31T12:00:00",
        "2026-01-31 12:00:00Z",
        "2026-01-31T12:00:00.Z",
        "2026-01-31T12:00:00,5Z",
        "2026-01-31T12:00:00.1234567890Z",
        "2026-01-31T12:00:00+0200",
        "2026-01-31T12:00:00+02",
        "2026-01-31T12:00:00+2:00",
        "2026-01-31T12:00:00+24:00",
        "2026-01-31T12:00:00+12:60",
        "2026-01-31T12:00:00Z ",
        " 2026-01-31T12:00:00Z",
        "26-01-31T12:00:00Z",
        "+2026-01-31T12:00:00Z",
        "02026-01-31T12:00:00Z",
        "-0001-01-31T12:00:00Z",
        "0000-01-01T00:00:00Z",
        "2026-00-31T12:00:00Z",
        "2026-13-31T12:00:00Z",
        "2026-02-29T12:00:00Z",
        "2026-02-30T12:00:00Z",
        "2026-04-31T12:00:00Z",
        "2026-01-31T24:00:00Z",
        "2026-01-31T12:60:00Z",
        "2026-01-31T12:00:61Z",
        "2026-W05-6T12:00:00Z",
        "٢٠٢٦-01-31T12:00:00Z",
        "2026-01-31T12:00:00Ｚ",
    ],
)
@pytest.mark.parametrize("field", ["create_time", "update_time"])
def test_a_value_that_is_not_a_time_is_rejected(field: str, time: str) -> None:
    column, description = _rejected(f'a {field} = "{time}"')
    assert f'{field} takes a time such as "2026-01-31T12:00:00Z", not' in description
    assert column == len(field) + 6


def test_filter_of_2000_characters_is_valid_and_of_2001_rejected() -> None:
    longest = '"' + "\U0001f600" * 1_998 + '"'
    parse_filter(longest, dialect="sqlite")
    assert _rejected(longest + " ") == (2_001, "has 2,001 characters, more than 2,000 (column 2001)")
    assert _rejected(" " * 10_000)[0] == 2_001


@pytest.mark.parametrize("operator", [" ", " AND ", " OR "])
def test_100_terms_are_valid_and_the_101st_rejected(operator: str) -> None:
    terms = operator.join(["a"] * 100)
    parse_filter(terms, dialect="sqlite")
    column, description = _rejected(f"{terms}{operator}b")
    assert "has more than 100 terms" in description
    assert column == len(terms + operator) + 1


def test_terms_are_counted_across_parentheses_in_the_order_of_the_text() -> None:
    filter = "(a b) OR (-c d:e)".replace("d:e", "name:e") + " f" * 96
    parse_filter(filter, dialect="sqlite")
    assert _rejected(f"{filter} (x)")[0] == len(filter) + 3
    assert _rejected(f"{filter} (name = x y)")[0] == len(filter) + 3


def test_20_levels_of_parentheses_are_valid_and_the_21st_rejected() -> None:
    parse_filter("(" * 20 + "a" + ")" * 20, dialect="sqlite")
    column, description = _rejected("(" * 21 + "a" + ")" * 21)
    assert "has more than 20 levels of parentheses" in description
    assert column == 21
    assert _rejected("a (b) " + "(" * 25 + "a" + ")" * 25)[0] == 6 + 21


def test_a_filter_beyond_its_limits_is_rejected_at_its_column() -> None:
    columns = [
        (" OR ".join(["dune"] * 101), 801),
        (" ".join(["(dune)"] * 101), 702),
        ("dune " + "(" * 21 + "dune" + ")" * 21, 26),
        ("(" * 900 + "dune" + ")" * 900, 21),
        ("(" * 1_999, 2_000),
        ('"' + "é" * 1_999 + '"', 2_001),
        ("dune " * 2_000, 2_001),
        ("(" * 10_000, 2_001),
        (" " * 10_000, 2_001),
    ]
    assert [(filter, _rejected(filter)[0]) for filter, _ in columns] == columns


def test_parentheses_side_by_side_are_not_nested() -> None:
    parse_filter("(a)" * 100, dialect="sqlite")


@pytest.mark.parametrize("filter", ["(" * 2_000, ")" * 2_000, "-" * 2_000, "NOT " * 500, '"\\' * 1_000, "=" * 2_000])
def test_filter_of_nothing_but_signs_is_rejected(filter: str) -> None:
    assert 1 <= _rejected(filter)[0] <= 2_001


def test_text_is_bound_and_never_part_of_the_statement() -> None:
    filter = 'name = "Robert\'); DROP TABLE books;--" author:evil create_time > 2026-01-31T12:00:00Z'
    parsed, values = parse_filter(filter, dialect="sqlite")
    sql = str(parsed.condition.sql().compile(dialect=sqlite.dialect()))
    assert "DROP" not in sql
    assert "evil" not in sql
    assert {"Robert'); DROP TABLE books;--", "evil"} < set(values.values())
