"""The rules of filters (AIP-160), each by examples, on every database."""

import pytest

from bookstore_grpc.dal.books import BookDAL
from bookstore_grpc.dal.database import Database
from bookstore_grpc.dal.records import BookChanges, BookDraft
from tests.conftest import empty
from tests.dal.conftest import FilterCases, assert_filters_find

# By keys, which name the books that a filter finds.
_BOOKS = {
    "dune": BookDraft("Dune", "Frank Herbert", 1965),
    "messiah": BookDraft("Dune Messiah", "Frank Herbert", 1969),
    "germinal": BookDraft("Germinal", "ÉMILE ZOLA", 1885),
    "bete": BookDraft("La Bête humaine", "Émile Zola", 1890),
    "emile": BookDraft("Emile, or On Education", "Rousseau", 1762),
    "iliad": BookDraft("The Iliad", "Homer", -750),
    "year0": BookDraft("The Year 0", "Nobody and Everybody", 0),
    "strasse": BookDraft("Die Straße", "Σίσυφος", 1900),
    "signs": BookDraft("100% _off_ * \\ 'quoted' \"twice\"", "Robert'); DROP TABLE books;--", 2000),
    "cant": BookDraft("Can't and Won't", "Not, Or and And", 2014),
}
_KEYS = {each.name: key for key, each in _BOOKS.items()}
_ALL = set(_BOOKS)

# 2023-11-14T22:13:20.123456Z
_CREATED = 1_700_000_000_123_456


@pytest.fixture(scope="module")
async def library(migrated_database: Database) -> BookDAL:
    """The books above; a module that uses this must not use `database`."""
    await empty(migrated_database)
    books = BookDAL(migrated_database)
    await books.create_books(list(_BOOKS.values()))
    return books


_NUMBERS: FilterCases = [
    ("", _ALL),
    ("  \t\n ", _ALL),
    ("release_year = 1965", {"dune"}),
    ("release_year=1965", {"dune"}),
    ("release_year != 1965", _ALL - {"dune"}),
    ("release_year < -749", {"iliad"}),
    ("release_year <= -750", {"iliad"}),
    ("release_year < -750", set()),
    ("release_year > 2000", {"cant"}),
    ("release_year >= 2000", {"cant", "signs"}),
    ("release_year = 0", {"year0"}),
    ("release_year = -0", {"year0"}),
    ("release_year = 0001965", {"dune"}),
    ("release_year > -2147483648", _ALL),
    ("release_year = 2147483647", set()),
    ("id > 0", _ALL),
    ("id = 0", set()),
    ("id < 9223372036854775807", _ALL),
    ("id >= -9223372036854775808", _ALL),
]


async def test_numbers_compare_as_numbers(library: BookDAL) -> None:
    await assert_filters_find(library, _KEYS, _NUMBERS)


_TEXTS: FilterCases = [
    ("name = Dune", {"dune"}),
    ('name = "Dune"', {"dune"}),
    ("name = 'Dune'", {"dune"}),
    ('name = "dune"', set()),
    ('name = "Dune "', set()),
    ('name = "Dun"', set()),
    ('name = ""', set()),
    ('name != ""', _ALL),
    ('name != "Dune"', _ALL - {"dune"}),
    ('author = "Emile Zola"', set()),
    ('author = "Émile Zola"', {"bete"}),
    ('author = "E\u0301mile Zola"', {"bete"}),
    ('author = "ÉMILE ZOLA"', {"germinal"}),
    ('name < "Die Stras"', {"cant", "signs"}),
    ('name < "Die Straß"', {"cant", "signs"}),
    ('name <= "Die Straße"', {"cant", "signs", "strasse"}),
    ('name >= "The Iliad"', {"iliad", "year0"}),
    ('name > "The Iliad"', {"year0"}),
    ('author > "a"', {"germinal", "bete", "strasse"}),
    ('author >= "Σ"', {"strasse"}),
    ('author > "\U0010ffff"', set()),
]


async def test_text_compares_exactly_by_code_point(library: BookDAL) -> None:
    await assert_filters_find(library, _KEYS, _TEXTS)


_WILDCARDS: FilterCases = [
    ('name = "The *"', {"iliad", "year0"}),
    ("name = The*", {"iliad", "year0"}),
    ('name = "Dune*"', {"dune", "messiah"}),
    ('name = "dune*"', set()),
    ('name = "*e"', {"dune", "bete", "strasse"}),
    ('name = "*un*"', {"dune", "messiah"}),
    ('name = "*Dune*"', {"dune", "messiah"}),
    ('name = "*"', _ALL),
    ('name = "**"', _ALL),
    ('name != "*"', set()),
    ('name != "The *"', _ALL - {"iliad", "year0"}),
    ('name != "*e"', _ALL - {"dune", "bete", "strasse"}),
    ('author = "É*"', {"germinal", "bete"}),
    ('author = "E\u0301*"', {"germinal", "bete"}),
    ('author = "E*"', set()),
    ('author = "*OLA"', {"germinal"}),
    ('name = "D*e"', set()),  # a star in the middle stands for itself
    (r'name = "*\**"', {"signs"}),
    (r'name = "\*"', set()),
    ('name = "100% *"', {"signs"}),
    ('name = "%"', set()),
    ('name = "*%*"', {"signs"}),
    ('name = "*_*"', {"signs"}),
    ('name = "_une"', set()),
    (r'name = "*\\*"', {"signs"}),
    ('name > "*"', _ALL),  # wildcards are for = and != alone
    ('name < "D*"', {"cant", "signs"}),
]


async def test_stars_at_the_ends_are_wildcards(library: BookDAL) -> None:
    await assert_filters_find(library, _KEYS, _WILDCARDS)


_CONTAINS: FilterCases = [
    ("author:émile", {"germinal", "bete"}),
    ("author:ÉMILE", {"germinal", "bete"}),
    ("author:e\u0301mile", {"germinal", "bete"}),
    ("author:emile", {"germinal", "bete"}),
    ("name:emile", {"emile"}),
    ("name:STRASSE", {"strasse"}),
    ("name:straße", {"strasse"}),
    ("name:straẞe", {"strasse"}),
    ("author:σίσυφοσ", {"strasse"}),
    ("author:ΣΊΣΥΦΟΣ", {"strasse"}),
    ("name:une", {"dune", "messiah"}),
    ('name:"dune m"', {"messiah"}),
    ("name:1", {"signs"}),
    ("name:%", {"signs"}),
    ("name:_", {"signs"}),
    (r'name:"\\"', {"signs"}),
    (r'name:"\*"', {"signs"}),
    (r'name:"\"TWICE\""', {"signs"}),
    ("name:*", _ALL),
    ('name:""', _ALL),
    ('author:"robert\'); drop table books;--"', {"signs"}),
]


async def test_a_colon_searches_text_regardless_of_case(library: BookDAL) -> None:
    await assert_filters_find(library, _KEYS, _CONTAINS)


_WORDS: FilterCases = [
    ("dune", {"dune", "messiah"}),
    ("HERBERT", {"dune", "messiah"}),
    ("émile", {"germinal", "bete", "emile"}),
    ("emile", {"germinal", "bete", "emile"}),
    ("zola", {"germinal", "bete"}),
    ("bête", {"bete"}),
    ('"on education"', {"emile"}),
    ("'la bête'", {"bete"}),
    ("zola humaine", {"bete"}),
    ("1965", {"dune"}),
    ('"1965"', set()),
    ("and", {"year0", "cant"}),
    ("or", {"emile", "cant"}),
    ("not", {"cant"}),
    ('"NOT"', {"cant"}),
    ("ORsomething", set()),
    ("Germ", {"germinal"}),
    ("can't", {"cant"}),
    ("%", {"signs"}),
    ('"; DROP TABLE books"', {"signs"}),
    ('""', _ALL),
    ("name", set()),
]


async def test_a_word_without_a_field_is_searched_in_name_and_author(library: BookDAL) -> None:
    await assert_filters_find(library, _KEYS, _WORDS)


_OPERATORS: FilterCases = [
    ("dune AND messiah", {"messiah"}),
    ("dune messiah", {"messiah"}),
    ("germinal OR iliad", {"germinal", "iliad"}),
    # OR binds tighter than AND, and than the AND that is left out.
    ("herbert AND messiah OR iliad", {"messiah"}),
    ("iliad OR messiah AND herbert", {"messiah"}),
    ("herbert messiah OR iliad", {"messiah"}),
    ("(herbert AND messiah) OR iliad", {"messiah", "iliad"}),
    ("a b OR zola AND germinal OR bête", {"germinal", "bete"}),
    ("NOT dune", _ALL - {"dune", "messiah"}),
    ("-dune", _ALL - {"dune", "messiah"}),
    ("herbert -messiah", {"dune"}),
    ("herbert AND NOT messiah", {"dune"}),
    ("NOT dune OR messiah", _ALL - {"dune"}),
    ("NOT (dune OR messiah)", _ALL - {"dune", "messiah"}),
    ("NOT (dune messiah)", _ALL - {"messiah"}),
    ("-(zola OR herbert) release_year > 1800", {"strasse", "signs", "cant"}),
    ("-release_year = 1965", _ALL - {"dune"}),
    ("NOT release_year < 1965", {"dune", "messiah", "signs", "cant"}),
    ('NOT name = "The *"', _ALL - {"iliad", "year0"}),
    ("-author:zola -author:herbert -release_year>0", {"iliad", "year0"}),
    ("((((dune))))", {"dune", "messiah"}),
    ("(dune)AND(messiah)", {"messiah"}),
    ("(dune)(messiah)", {"messiah"}),
    ("dune\nAND\tmessiah", {"messiah"}),
    ("release_year >= 1885 AND release_year <= 1890 AND NOT name:bête", {"germinal"}),
    ("dune and messiah", set()),  # lower case: a word like any other, which stands in neither
]


async def test_operators_combine_terms_with_the_precedence_of_aip_160(library: BookDAL) -> None:
    await assert_filters_find(library, _KEYS, _OPERATORS)


_TIMES: list[tuple[str, bool]] = [
    ('create_time = "2023-11-14T22:13:20.123456Z"', True),
    ("create_time = '2023-11-14T22:13:20.123456Z'", True),
    ("create_time = 2023-11-14T22:13:20.123456Z", True),
    ('create_time = "2023-11-14t22:13:20.123456z"', True),
    ('create_time = "2023-11-15T00:13:20.123456+02:00"', True),
    ('create_time = "2023-11-14T16:43:20.123456-05:30"', True),
    ('create_time = "2023-11-14T22:13:20.123456000Z"', True),
    ('create_time = "2023-11-14T22:13:20.123456001Z"', False),
    ('create_time != "2023-11-14T22:13:20.123456001Z"', True),
    ('create_time != "2023-11-14T22:13:20.123456Z"', False),
    ('create_time = "2023-11-14T22:13:20Z"', False),
    ('create_time > "2023-11-14T22:13:20Z"', True),
    ('create_time > "2023-11-14T22:13:20.123456Z"', False),
    ('create_time >= "2023-11-14T22:13:20.123456Z"', True),
    ('create_time >= "2023-11-14T22:13:20.123456001Z"', False),
    ('create_time > "2023-11-14T22:13:20.123455999Z"', True),
    ('create_time < "2023-11-14T22:13:20.123456001Z"', True),
    ('create_time < "2023-11-14T22:13:20.123456Z"', False),
    ('create_time <= "2023-11-14T22:13:20.123456Z"', True),
    ('create_time <= "2023-11-14T22:13:20.123455999Z"', False),
    ('create_time < "9999-12-31T23:59:59.999999999-23:59"', True),
    ('create_time > "0001-01-01T00:00:00+23:59"', True),
    ('update_time = "2023-11-14T22:13:21.123456Z"', True),
    ('update_time = "2023-11-14T22:13:20.123456Z"', False),
    ('create_time < "2023-11-14T22:13:21Z" AND update_time > "2023-11-14T22:13:21Z"', True),
    ('NOT update_time > "2023-11-14T22:13:21Z"', False),
]


@pytest.fixture
async def updated_later(database: Database) -> BookDAL:
    """One book, created at _CREATED and updated a second later."""
    now = _CREATED
    books = BookDAL(database, clock=lambda: now)
    record = await books.create_book(BookDraft("Dune", "Frank Herbert", 1965))
    now += 1_000_000
    await books.update_book(record.id, BookChanges(name="Dune Messiah"))
    return books


async def test_times_compare_as_instants(updated_later: BookDAL) -> None:
    found = []
    for filter, _ in _TIMES:
        page = await updated_later.list_books(page_size=10, page_token="", filter=filter, order_by="")
        found.append((filter, bool(page.books)))
    assert found == _TIMES
