"""Page tokens: their values are decoded unchanged, and any other token is rejected without a statement."""

import json
import string
from base64 import urlsafe_b64encode
from typing import Any

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from bookstore_grpc.dal import checked_token
from bookstore_grpc.dal.books import BookDAL
from bookstore_grpc.dal.database import Database
from bookstore_grpc.dal.paging import page_token_from_record, parse_order_by, position_from_page_token
from bookstore_grpc.dal.records import FIELDS, BookRecord, Field, FieldType
from bookstore_grpc.errors import InvalidPageToken
from bookstore_grpc.limits import PAGE_TOKEN_MAX_CODE_POINTS
from tests.dal.conftest import statements_of

_URL_SAFE = set(string.ascii_letters + string.digits + "-_")
_RECORD = BookRecord(7, "Émile \U0001f600 \"'\\", "Jean-Jacques", 1762, 1_767_225_600_000_001, 1_767_225_600_000_002)

_characters = st.characters(exclude_categories=("Cc", "Cs"))


def _values(field: Field) -> st.SearchStrategy[Any]:
    match field.type:
        case FieldType.TEXT:
            return st.text(_characters, min_size=0 if field.is_optional else 1, max_size=field.max_code_points)
        case FieldType.INT32:
            return st.integers(field.min_value, field.max_value)
        case FieldType.INT64:
            return st.integers(1, 2**63 - 1)
        case FieldType.TIME:
            return st.integers(0, 2**62)


_records = st.builds(BookRecord, **{name: _values(FIELDS[name]) for name in BookRecord._fields})
_orders = st.lists(
    st.builds(
        lambda field, direction: field + direction, st.sampled_from(list(FIELDS)), st.sampled_from(["", " desc"])
    ),
    max_size=4,
    unique_by=lambda term: term.split()[0],
).map(", ".join)


@given(record=_records, order_by=_orders, filter=st.text(max_size=20))
def test_token_decodes_to_the_position_that_was_encoded(record: BookRecord, order_by: str, filter: str) -> None:
    order = parse_order_by(order_by)
    token = page_token_from_record(record, filter=filter, order=order)
    assert set(token) <= _URL_SAFE
    position = position_from_page_token(token, filter=filter, order=order)
    head = {"after_author_head": record.author[:255]} if "author" in [term.field for term in order] else {}
    assert position == {f"after_{term.field}": getattr(record, term.field) for term in order} | head


def test_the_longest_possible_token_is_accepted() -> None:
    order = parse_order_by("name, author, release_year, create_time, update_time")
    # A backslash and a quote take two characters of JSON each, the longest a character can take four bytes.
    for character in ('"', "\\", "\U0001f600"):
        record = _RECORD._replace(name=character * 500, author=character * 1_000)
        token = page_token_from_record(record, filter="", order=order)
        assert len(token) < PAGE_TOKEN_MAX_CODE_POINTS
        assert position_from_page_token(token, filter="", order=order)["after_author"] == record.author


def _reject(token: str, *, filter: str = "", order_by: str = "") -> None:
    with pytest.raises(InvalidPageToken) as caught:
        position_from_page_token(token, filter=filter, order=parse_order_by(order_by))
    (violation,) = caught.value.violations
    assert violation.field == "page_token"


def test_every_changed_character_is_detected() -> None:
    order_by = "name desc, author"
    token = page_token_from_record(_RECORD, filter="", order=parse_order_by(order_by))
    for place, character in enumerate(token):
        for other in "A", "B", "_", "=", " ", "é", "\0", "\n", character.swapcase():
            if other != character:
                _reject(token[:place] + other + token[place + 1 :], order_by=order_by)


def test_every_missing_added_or_exchanged_character_is_detected() -> None:
    token = page_token_from_record(_RECORD, filter="", order=parse_order_by(""))
    for place in range(1, len(token)):
        _reject(token[:place])
        _reject(token[place:])
        _reject(token[: place - 1] + token[place:])
        _reject(token[:place] + "A" + token[place:])
        _reject(token[:place] + "\n" + token[place:])
        if token[place] != token[place - 1]:
            _reject(token[: place - 1] + token[place] + token[place - 1] + token[place + 1 :])
    for suffix in ("=", "==", "A", "\n", " ", "é", "\0", token):
        _reject(token + suffix)


@pytest.mark.parametrize(
    ("filter", "order_by"),
    [
        ("", "name"),
        ("b", "name desc"),
        ("a ", "name"),
        ("A", "name desc"),
        ("a", ""),
        ("a", "name desc, author"),
        ("a", "author desc"),
        ("a", "name desc, id desc"),
    ],
)
def test_token_of_another_filter_or_order_is_rejected(filter: str, order_by: str) -> None:
    _reject(
        page_token_from_record(_RECORD, filter="a", order=parse_order_by("name desc")),
        filter=filter,
        order_by=order_by,
    )


@pytest.mark.parametrize("order_by", ["name desc,id", " name  desc , id asc", "name desc, id, author"])
def test_token_is_accepted_with_the_same_order_in_another_spelling(order_by: str) -> None:
    token = page_token_from_record(_RECORD, filter="a", order=parse_order_by("name desc"))
    assert position_from_page_token(token, filter=" a ", order=parse_order_by(order_by))["after_id"] == 7


def _forged(payload: bytes | str | object, *, order_by: str) -> str:
    """Return a token with the right digest over any payload, as a caller could who knows the code."""
    if not isinstance(payload, bytes):
        payload = (payload if isinstance(payload, str) else json.dumps(payload)).encode()
    digest = checked_token._digest(payload, ["", parse_order_by(order_by)])
    return urlsafe_b64encode(digest + payload).rstrip(b"=").decode()


_FORGERIES: list[tuple[str, object]] = [
    # not the values of a token
    ("", b""),
    ("", b"\xff\xfe"),
    ("", "["),
    ("", "[1,]"),
    ("", "1"),
    ("", "null"),
    ("", "{}"),
    ("", '"1"'),
    ("", '{"1":1}'),
    ("", "[" * 5_000),
    ("", "[" + "1" * 5_000 + "]"),
    ("", []),
    ("", [1, 1]),
    ("name", ["a"]),
    ("name", "ab"),
    ("name", '"ab"'),
    # numbers
    ("", ["1"]),
    ("", [None]),
    ("", [True]),
    ("", [1.0]),
    ("", "[1e3]"),
    ("", "[NaN]"),
    ("", "[Infinity]"),
    ("", [[1]]),
    ("", [{}]),
    ("", [2**63]),
    ("", [-(2**63) - 1]),
    ("", [2**4_000]),
    ("release_year", [2**31, 1]),
    ("release_year", [-(2**31) - 1, 1]),
    ("release_year", ["1984", 1]),
    ("create_time", [2**63, 1]),
    ("update_time", [1.5, 1]),
    # texts
    ("name", [1, 1]),
    ("name", [None, 1]),
    ("name", [True, 1]),
    ("name", [[], 1]),
    ("name", [["a"], 1]),
    ("name", [{}, 1]),
    ("name", [{"a": 1}, 1]),
    ("name", ["a\0b", 1]),
    ("name", '["\\ud800",1]'),
    ("author", [["a"], 1]),
    ("author", ["\0", 1]),
    ("author", '["' + "a" * 300 + '\\udfff",1]'),
]


async def test_forged_values_are_rejected_without_a_statement(migrated_database: Database) -> None:
    books = BookDAL(migrated_database)
    with statements_of(migrated_database) as statements:
        for order_by, payload in _FORGERIES:
            with pytest.raises(InvalidPageToken):
                await books.list_books(
                    page_size=1, page_token=_forged(payload, order_by=order_by), filter="", order_by=order_by
                )
    assert statements == []


@pytest.mark.parametrize(
    ("order_by", "payload"),
    [
        ("", [0]),
        ("", [-1]),
        ("", [2**63 - 1]),
        ("", [-(2**63) + 1]),
        ("release_year", [2**31 - 1, 1]),
        ("release_year", [-(2**31) + 1, 1]),
        ("create_time desc", [2**63 - 1, 1]),
        ("name", ["", 1]),
        ("name", ["\x01\x7f", 1]),
        ("name", ["\U0010ffff" * 1_000, 1]),
        ("author desc", ["'; DROP TABLE books; --", 1]),
        ("author", ["\U0001f600" * 1_000, 1]),
    ],
)
async def test_forged_values_that_a_book_could_have_return_a_page(
    shelf_books: BookDAL, shelf: list[BookRecord], order_by: str, payload: list[object]
) -> None:
    token = _forged(payload, order_by=order_by)
    page = await shelf_books.list_books(page_size=1_000, page_token=token, filter="", order_by=order_by)
    assert set(page.books) <= set(shelf)
    field, _, direction = order_by.partition(" ")
    place = (payload[0], payload[-1])
    for book in shelf:
        here = (getattr(book, field or "id"), book.id)
        is_behind = here[0] < payload[0] if direction and here[0] != payload[0] else here > place
        assert (book in page.books) == is_behind


_json = st.recursive(
    st.one_of(st.none(), st.booleans(), st.integers(), st.floats(), st.text()),
    lambda inner: st.one_of(st.lists(inner, max_size=3), st.dictionaries(st.text(), inner, max_size=3)),
    max_leaves=5,
)


@settings(max_examples=100)
@given(
    payload=st.one_of(_json, st.lists(_json, min_size=2, max_size=2)),
    order_by=st.sampled_from(["", "name", "author desc", "release_year"]),
)
async def test_any_forged_json_returns_a_page_or_is_rejected(
    shelf_books: BookDAL, payload: object, order_by: str
) -> None:
    token = _forged(json.dumps(payload), order_by=order_by)
    try:
        page = await shelf_books.list_books(page_size=5, page_token=token, filter="", order_by=order_by)
    except InvalidPageToken:
        return
    assert len(page.books) <= 5
