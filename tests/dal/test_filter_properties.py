"""Random filters find the same books as plain Python, on every database."""

import re
import unicodedata
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from datetime import UTC, datetime, timedelta, timezone
from operator import eq, ge, gt, le, lt, ne
from typing import Any, NamedTuple, TypeVar

import pytest
from hypothesis import HealthCheck, assume, example, given, settings
from hypothesis import strategies as st

from bookstore_grpc.dal import page_statements
from bookstore_grpc.dal.books import BookDAL
from bookstore_grpc.dal.filters import parse_filter
from bookstore_grpc.dal.folding import fold
from bookstore_grpc.dal.records import BookRecord
from bookstore_grpc.errors import BookstoreError, InvalidFilter, InvalidOrderBy, InvalidPageToken
from tests.dal.tricky_books import FIRST_CREATE_TIME, TRICKY_BOOKS

_OPERATORS: dict[str, Callable[[Any, Any], bool]] = {
    "=": eq,
    "!=": ne,
    "<": lt,
    "<=": le,
    ">": gt,
    ">=": ge,
}
_TEXTS = sorted({text for book in TRICKY_BOOKS for text in (book.name, book.author)})
_PLAIN_WORD = re.compile(r"(?!(?:AND|OR|NOT)$)\w[\w'.,&*%+#/\\-]*")


class _Clause(NamedTuple):
    """A part of a filter, and the books that match it."""

    text: str
    matches: Callable[[BookRecord], bool]


def _nfc(text: str) -> str:
    return unicodedata.normalize("NFC", text)


_characters = st.characters(exclude_categories=("Cc", "Cs"))
_pieces_of_texts = st.builds(
    lambda text, start, length: text[start : start + length],
    st.sampled_from(_TEXTS),
    st.integers(0, 12),
    st.one_of(st.integers(1, 4), st.just(300)),
)
_other_forms = st.builds(
    lambda text, change: change(text),
    st.one_of(st.sampled_from(_TEXTS), _pieces_of_texts),
    st.sampled_from([str.upper, str.lower, str.title, str.swapcase, lambda text: unicodedata.normalize("NFD", text)]),
)
_years = st.sampled_from(TRICKY_BOOKS).map(lambda book: f"{abs(book.release_year):04}")
_texts = st.one_of(st.sampled_from(_TEXTS), _pieces_of_texts, _other_forms, _years, st.text(_characters, max_size=3))


@st.composite
def _quoted(draw: st.DrawFn, text: str) -> str:
    """Write a text in quotes, its `*` escaped where that might matter."""
    quote = draw(st.sampled_from("\"'"))
    written = text.replace("\\", "\\\\").replace(quote, "\\" + quote).replace("*", "\\*")
    return f"{quote}{written}{quote}"


@st.composite
def _written(draw: st.DrawFn, text: str) -> str:
    """Write a text for which a `*` is nothing special: as a plain word where it can be one."""
    if _PLAIN_WORD.fullmatch(text) and draw(st.booleans()):
        return text
    return draw(_quoted(text))


@st.composite
def _words(draw: st.DrawFn) -> _Clause:
    text = draw(_texts)
    needle, written = fold(_nfc(text)), draw(_written(text))
    year = int(written) if re.fullmatch("[0-9]{4}", written) else None
    return _Clause(
        written,
        lambda book: needle in fold(book.name) or needle in fold(book.author) or book.release_year == year,
    )


@st.composite
def _contains(draw: st.DrawFn) -> _Clause:
    field = draw(st.sampled_from(["name", "author"]))
    text = draw(_texts)
    needle = fold(_nfc(text))
    written = draw(_written(text).filter(lambda written: written != "*"))
    return _Clause(f"{field}{draw(_comparator(':'))}{written}", lambda book: needle in fold(getattr(book, field)))


@st.composite
def _comparator(draw: st.DrawFn, sign: str) -> str:
    return draw(st.sampled_from([sign, f" {sign} ", f"{sign}\t"]))


@st.composite
def _text_comparison(draw: st.DrawFn) -> _Clause:
    field = draw(st.sampled_from(["name", "author"]))
    sign = draw(st.sampled_from(list(_OPERATORS)))
    text = draw(_texts)
    value = _nfc(text)
    return _Clause(
        f"{field}{draw(_comparator(sign))}{draw(_quoted(text))}",
        lambda book: _OPERATORS[sign](getattr(book, field), value),
    )


@st.composite
def _wildcard(draw: st.DrawFn) -> _Clause:
    field = draw(st.sampled_from(["name", "author"]))
    sign = draw(st.sampled_from(["=", "!="]))
    starts, ends = draw(st.sampled_from([(True, True), (True, False), (False, True)]))
    stem = draw(_texts)
    quoted = draw(_quoted(stem))
    written = quoted[0] + "*" * starts + quoted[1:-1] + "*" * ends + quoted[0]
    value = _nfc(stem)

    def matches(book: BookRecord) -> bool:
        text = getattr(book, field)
        tests = {(True, True): str.__contains__, (True, False): str.endswith, (False, True): str.startswith}
        return tests[starts, ends](text, value) == (sign == "=")

    return _Clause(f"{field}{draw(_comparator(sign))}{written}", matches)


@st.composite
def _number_comparison(draw: st.DrawFn) -> _Clause:
    field, bits = draw(st.sampled_from([("id", 64), ("release_year", 32)]))
    near = (
        st.sampled_from([book.release_year for book in TRICKY_BOOKS])
        if field == "release_year"
        else st.integers(-1, 1_000)
    )
    value = draw(st.one_of(near, st.integers(-(2 ** (bits - 1)), 2 ** (bits - 1) - 1)))
    sign = draw(st.sampled_from(list(_OPERATORS)))
    return _Clause(
        f"{field}{draw(_comparator(sign))}{value}",
        lambda book: _OPERATORS[sign](getattr(book, field), value),
    )


@st.composite
def _time_comparison(draw: st.DrawFn) -> _Clause:
    field = draw(st.sampled_from(["create_time", "update_time"]))
    sign = draw(st.sampled_from(list(_OPERATORS)))
    number = draw(st.integers(0, 2 * len(TRICKY_BOOKS)))
    microseconds = FIRST_CREATE_TIME + draw(st.sampled_from([number, number * 1_000_000, -number, -(10**15)]))
    nanoseconds = microseconds * 1_000 + draw(st.sampled_from([0, 0, 0, 1, 999]))
    return _Clause(
        f"{field}{draw(_comparator(sign))}{draw(_rfc_3339(nanoseconds))}",
        lambda book: _OPERATORS[sign](getattr(book, field) * 1_000, nanoseconds),
    )


@st.composite
def _rfc_3339(draw: st.DrawFn, nanoseconds: int) -> str:
    seconds, fraction = divmod(nanoseconds, 1_000_000_000)
    minutes = draw(st.sampled_from([0, 0, 60, -330, 14 * 60, -23 * 60 - 59]))
    zone = timezone(timedelta(minutes=minutes))
    moment = datetime.fromtimestamp(seconds, tz=UTC).astimezone(zone)
    date = moment.strftime(f"%Y-%m-%d{draw(st.sampled_from('Tt'))}%H:%M:%S")
    offset = moment.isoformat()[-6:] if minutes else draw(st.sampled_from(["Z", "z", "+00:00", "-00:00"]))
    digits = f"{fraction:09}".rstrip("0")
    quote = draw(st.sampled_from(["", '"', "'"]))
    return f"{quote}{date}{'.' + digits if digits else ''}{offset}{quote}"


_simple = st.one_of(_words(), _contains(), _text_comparison(), _wildcard(), _number_comparison(), _time_comparison())


@st.composite
def _combined(draw: st.DrawFn, simple: st.SearchStrategy[_Clause]) -> _Clause:
    """Combine clauses into an expression: terms by OR into factors, factors by nothing, these by AND."""
    negated = st.builds(_negated, st.sampled_from(["", "", "-", "- ", "NOT ", "NOT\n"]), simple)
    factor = st.builds(_either, st.lists(negated, min_size=1, max_size=3))
    sequence = st.builds(lambda clauses: _all(" ", clauses), st.lists(factor, min_size=1, max_size=2))
    return draw(st.builds(lambda clauses: _all(" AND ", clauses), st.lists(sequence, min_size=1, max_size=2)))


def _negated(sign: str, clause: _Clause) -> _Clause:
    return _Clause(sign + clause.text, lambda book: not clause.matches(book)) if sign else clause


def _either(clauses: list[_Clause]) -> _Clause:
    text = " OR ".join(clause.text for clause in clauses)
    return _Clause(text, lambda book: any(clause.matches(book) for clause in clauses))


def _all(separator: str, clauses: list[_Clause]) -> _Clause:
    text = separator.join(clause.text for clause in clauses)
    return _Clause(text, lambda book: all(clause.matches(book) for clause in clauses))


_expressions = st.recursive(
    _combined(_simple),
    lambda inner: _combined(
        st.one_of(_simple, st.builds(lambda clause: _Clause(f"({clause.text})", clause.matches), inner))
    ),
    max_leaves=6,
)


async def _ids(books: BookDAL, filter: str) -> list[int]:
    page = await books.list_books(page_size=1_000, page_token="", filter=filter, order_by="")
    assert page.next_page_token == ""
    return [book.id for book in page.books]


@pytest.fixture(params=["few", "first rows", "all"])
def candidates(request: pytest.FixtureRequest, monkeypatch: pytest.MonkeyPatch) -> None:
    """Make one of the attempts to find the candidates of the search index succeed, and those before it give up."""
    if request.param != "few":
        monkeypatch.setattr(page_statements, "_CANDIDATES", 0)
        monkeypatch.setattr(page_statements, "_CANDIDATES_PER_BOOK", 0)
    if request.param == "all":
        monkeypatch.setattr(page_statements, "_ROWS_IN_ORDER", 1)
    page_statements.page_attempts.cache_clear()
    request.addfinalizer(page_statements.page_attempts.cache_clear)  # noqa: PT021  after the values are restored


@settings(max_examples=40, suppress_health_check=[HealthCheck.function_scoped_fixture])
@given(clause=_expressions)
@pytest.mark.usefixtures("candidates")
async def test_a_filter_finds_the_same_books_as_plain_python(
    shelf_books: BookDAL, shelf: list[BookRecord], clause: _Clause
) -> None:
    assume(len(clause.text) <= 2_000)
    assert await _ids(shelf_books, clause.text) == [book.id for book in shelf if clause.matches(book)]


@settings(max_examples=80)
@given(clause=st.one_of(_words(), _contains(), _text_comparison(), _wildcard()))
async def test_every_comparison_of_text_finds_the_same_books_as_plain_python(
    shelf_books: BookDAL, shelf: list[BookRecord], clause: _Clause
) -> None:
    assume(len(clause.text) <= 2_000)
    assert await _ids(shelf_books, clause.text) == [book.id for book in shelf if clause.matches(book)]


@pytest.mark.parametrize("field", ["name", "author"])
async def test_every_text_of_the_shelf_is_found_by_itself_and_by_its_ends(
    shelf_books: BookDAL, shelf: list[BookRecord], field: str
) -> None:
    texts = {getattr(book, field) for book in shelf}
    for text in texts:
        written = re.sub(r'([\\"*])', r"\\\1", text)
        for pattern, matches in (
            (written, str.__eq__),
            (f"*{written}", str.endswith),
            (f"{written}*", str.startswith),
            (f"*{written}*", str.__contains__),
        ):
            expected = [book.id for book in shelf if matches(getattr(book, field), text)]
            assert await _ids(shelf_books, f'{field} = "{pattern}"') == expected


_Error = TypeVar("_Error", bound=BookstoreError)


@contextmanager
def _collecting(kind: type[_Error]) -> Iterator[list[_Error]]:
    """Collect an error of a kind if it is raised; let others pass."""
    rejected: list[_Error] = []
    try:
        yield rejected
    except kind as error:
        rejected.append(error)


_tokens_of_filters = st.lists(
    st.sampled_from(
        [
            *("AND", "OR", "NOT", "-", "(", ")", "=", "!=", "<", "<=", ">", ">=", ":", '"', "'", "\\", "*", "!"),
            *("id", "name", "author", "release_year", "create_time", "update_time", "etag", "x", "é", "\0"),
            *("1", "-1", "9" * 20, '"2026-01-31T12:00:00Z"', "2026-01-31T12:00:00Z", '"a"', "'b'", " ", "\n"),
        ]
    ),
    max_size=15,
).flatmap(lambda tokens: st.sampled_from([" ".join(tokens), "".join(tokens)]))
_any_text = st.one_of(st.text(max_size=30), _tokens_of_filters)


@settings(max_examples=100)
@given(filter=_any_text)
@example(filter="\U0010ffff*")
@example(filter="name = \U0010ffff*")
@example(filter="name = \ud7ff*")
async def test_any_text_as_filter_is_valid_or_rejected_at_a_column(shelf_books: BookDAL, filter: str) -> None:
    with _collecting(InvalidFilter) as rejected:
        await _ids(shelf_books, filter)
    for error in rejected:
        assert 1 <= error.column <= len(filter) + 1
        assert error.message.startswith("filter: ")


@settings(max_examples=500)
@given(filter=_tokens_of_filters)
def test_tokens_in_any_order_are_valid_or_rejected_at_a_column(filter: str) -> None:
    with _collecting(InvalidFilter) as rejected:
        parse_filter(filter, dialect="sqlite")
    assert all(1 <= error.column <= len(filter) + 1 for error in rejected)


@settings(max_examples=60)
@given(
    order_by=st.one_of(
        st.text(max_size=30),
        st.lists(
            st.sampled_from(["id", "name", "author", "asc", "desc", "DESC", ",", ", ", " ", "etag", "\0"]),
            max_size=8,
        ).map(" ".join),
    )
)
async def test_any_text_as_order_is_valid_or_rejected(
    shelf_books: BookDAL, shelf: list[BookRecord], order_by: str
) -> None:
    with _collecting(InvalidOrderBy) as rejected:
        page = await shelf_books.list_books(page_size=1_000, page_token="", filter="", order_by=order_by)
        assert sorted(page.books) == sorted(shelf)
    assert all(error.message.startswith("order_by: ") for error in rejected)


@settings(max_examples=60)
@given(page_token=st.one_of(st.text(min_size=1), st.from_regex(r"[A-Za-z0-9_-]{1,80}={0,2}", fullmatch=True)))
async def test_any_text_as_page_token_is_rejected(shelf_books: BookDAL, page_token: str) -> None:
    with pytest.raises(InvalidPageToken, match=r"^page_token: "):
        await shelf_books.list_books(page_size=5, page_token=page_token, filter="", order_by="")
