"""Filters and the books that they find, by example, on every database."""

import pytest

from bookstore_grpc.dal.books import BookDAL
from bookstore_grpc.dal.database import Database
from bookstore_grpc.dal.records import BookChanges, BookDraft
from tests.conftest import empty
from tests.dal.conftest import FilterCases, assert_filters_find, found_by

# 2026-01-31T12:00:00.123456Z
_NOON = 1_769_860_800_123_456

_BOOKS = {
    "odyssey": ("The Odyssey", "Homer", -750),
    "iliad": ("The Iliad", "Homer", -762),
    "germinal": ("Germinal", "Émile Zola", 1885),
    "nana": ("NANA", "ÉMILE ZOLA", 1880),
    "blarney": ("Blarney, Wit!", "Flann O'Brien", 1967),
    "android": ("ANDROID dreams", "NOTker ORWELL", 1968),
    "stars": ("*a*b*", '100% \\ "quoted"', 0),
    "minus": ("well-known -5", "a:b=c", -5),
}
_KEYS = {name: key for key, (name, _, _) in _BOOKS.items()}
_ALL = set(_BOOKS)
_SQL = [
    "'; DROP TABLE books; --",
    "' OR '1'='1",
    '") OR ("1"="1',
    "\\'; SELECT 1",
    "x'; DELETE FROM books; -- \" ) UNION SELECT 1 /* % ? :id $1 {0} */",
]
_PLACEHOLDERS = ["%", "_", ":id", "$1", "?"]


@pytest.fixture(scope="module")
async def library(migrated_database: Database) -> BookDAL:
    """The books above, with ids in their order, created a second apart; the last was updated an hour later."""
    await empty(migrated_database)
    now = _NOON
    books = BookDAL(migrated_database, clock=lambda: now)
    for name, author, year in _BOOKS.values():
        record = await books.create_book(BookDraft(name, author, year))
        now += 1_000_000
    now += 3_600_000_000
    await books.update_book(record.id, BookChanges(author="x"))
    await books.update_book(record.id, BookChanges(author="a:b=c"))
    return books


_EXAMPLES: FilterCases = [
    # without terms
    ("", _ALL),
    (" \t\r\n", _ALL),
    # comparisons are exact
    ('name = "Germinal"', {"germinal"}),
    ("name=Germinal", {"germinal"}),
    ("name = 'Germinal'", {"germinal"}),
    ("name = germinal", set()),
    ('name = "Germinal "', set()),
    ('author = "E\u0301mile Zola"', {"germinal"}),
    ('author = "Emile Zola"', set()),
    ("author != Homer", _ALL - {"odyssey", "iliad"}),
    ('name < "G"', {"blarney", "android", "stars"}),
    ('name <= "Germinal"', {"blarney", "android", "stars", "germinal"}),
    ('author > "a:b=b"', {"minus", "germinal", "nana"}),
    ('author >= "É"', {"germinal", "nana"}),
    ('name = ""', set()),
    ('name != ""', _ALL),
    ('name > ""', _ALL),
    # numbers
    ("release_year = 0", {"stars"}),
    ("release_year = -0", {"stars"}),
    ("release_year = 007", set()),
    ("release_year = -750", {"odyssey"}),
    ("release_year=-750", {"odyssey"}),
    ("release_year>-751 release_year<0", {"odyssey", "minus"}),
    ("release_year != 0", _ALL - {"stars"}),
    ("release_year > 2147483647", set()),
    ("release_year >= -2147483648", _ALL),
    ("id > 0", _ALL),
    ("id >= -9223372036854775808 id <= 9223372036854775807", _ALL),
    ("id = -1", set()),
    # wildcards are at the ends, and only with = and !=
    ('name = "The *"', {"odyssey", "iliad"}),
    ("name = The*", {"odyssey", "iliad"}),
    ("name = *inal", {"germinal"}),
    ("name = *e*", {"odyssey", "iliad", "germinal", "blarney", "android", "minus"}),
    ("name != The*", _ALL - {"odyssey", "iliad"}),
    ("name = *", _ALL),
    ("name = **", _ALL),
    ('name != "*"', set()),
    ("name = G*l", set()),
    (r'name = "*a\*b*"', {"stars"}),
    (r'name = "\*a*"', {"stars"}),
    (r'name = "*b\*"', {"stars"}),
    (r'name = "\*a\*b\*"', {"stars"}),
    (r'name = "\*a*b\*"', {"stars"}),
    (r'name = "\**"', {"stars"}),
    (r'name = "\*"', set()),
    ("name < *b", {"stars"}),
    # escapes
    (r"""author = "100% \\ \"quoted\"" """, {"stars"}),
    (r"""author = '100% \\ "quoted"' """, {"stars"}),
    (r"""author = 'Flann O\'Brien'""", {"blarney"}),
    ("""author = "Flann O'Brien" """, {"blarney"}),
    (r"author:\\", set()),
    (r"author:\ ", {"stars"}),
    # contains, regardless of case
    ("author:émile", {"germinal", "nana"}),
    ('author:"e\u0301MILE z"', {"germinal", "nana"}),
    ("author:emile", {"germinal", "nana"}),
    ("name:NA", {"nana", "germinal"}),
    ("name : NA", {"nana", "germinal"}),
    ("name:*", _ALL),
    ('name:"*"', {"stars"}),
    ("name:a*b", {"stars"}),
    ('name:""', _ALL),
    ('author:"b=c"', {"minus"}),
    ("author:a:b", {"minus"}),
    ("author:o'brien", {"blarney"}),
    # words
    ("homer", {"odyssey", "iliad"}),
    ("HOMER iliad", {"iliad"}),
    ('"the iliad"', {"iliad"}),
    ("'the iliad'", {"iliad"}),
    ('""', _ALL),
    ("O'Brien", {"blarney"}),
    ("wit!", {"blarney"}),
    ("blarney,", {"blarney"}),
    ("odyssey,iliad", set()),
    ("*", {"stars"}),
    ("100%", {"stars"}),
    ("_", set()),
    ("well-known", {"minus"}),
    # words that begin like keywords, or are keywords in lower case
    ("ANDROID", {"android"}),
    ("NOTker", {"android"}),
    ("ORWELL", {"android"}),
    ("NOTker ANDROID ORWELL", {"android"}),
    ("or", {"android"}),
    ("and", {"android"}),
    ("not", {"android"}),
    ('"AND"', {"android"}),
    ("name = AND*", {"android"}),
    ("author:NOT", {"android"}),
]


async def test_filter_finds(library: BookDAL) -> None:
    await assert_filters_find(library, _KEYS, _EXAMPLES)


_OPERATORS: FilterCases = [
    ("homer AND odyssey", {"odyssey"}),
    ("homer odyssey", {"odyssey"}),
    ("odyssey OR iliad", {"odyssey", "iliad"}),
    # OR binds tighter than AND, and than a sequence
    ("zola AND nana OR homer", {"nana"}),
    ("nana OR homer AND zola", {"nana"}),
    ("zola nana OR homer", {"nana"}),
    ("homer OR zola iliad OR germinal", {"iliad", "germinal"}),
    ("(zola AND nana) OR homer", {"nana", "odyssey", "iliad"}),
    ("NOT homer", _ALL - {"odyssey", "iliad"}),
    ("-homer", _ALL - {"odyssey", "iliad"}),
    ("- homer", _ALL - {"odyssey", "iliad"}),
    ("NOT(homer)", _ALL - {"odyssey", "iliad"}),
    ("-(homer OR zola)", _ALL - {"odyssey", "iliad", "germinal", "nana"}),
    ('NOT"homer"', _ALL - {"odyssey", "iliad"}),
    ("NOT homer NOT zola", _ALL - {"odyssey", "iliad", "germinal", "nana"}),
    ("homer OR NOT zola", _ALL - {"germinal", "nana"}),
    ("homer -iliad", {"odyssey"}),
    ("NOT NOTker", _ALL - {"android"}),
    ("-release_year=-750 homer", {"iliad"}),
    ("NOT author:zola AND NOT author:homer", _ALL - {"odyssey", "iliad", "germinal", "nana"}),
    ("NOT name = *", set()),
    ("NOT (NOT (homer))", {"odyssey", "iliad"}),
    ("(((homer)))", {"odyssey", "iliad"}),
    ("(homer)(odyssey)", {"odyssey"}),
    ("(homer)AND(odyssey)", {"odyssey"}),
    ("(odyssey)OR(iliad)", {"odyssey", "iliad"}),
    ("homer\n\tAND\r\nodyssey", {"odyssey"}),
    ('"homer"AND"odyssey"', {"odyssey"}),
    ('name="NANA"author:zola', {"nana"}),
]


async def test_operators_combine(library: BookDAL) -> None:
    await assert_filters_find(library, _KEYS, _OPERATORS)


_TIMES: FilterCases = [
    ('create_time = "2026-01-31T12:00:00.123456Z"', {"odyssey"}),
    ("create_time = 2026-01-31T12:00:00.123456Z", {"odyssey"}),
    ("create_time='2026-01-31t12:00:00.123456z'", {"odyssey"}),
    ('create_time = "2026-01-31T12:00:00.123456000Z"', {"odyssey"}),
    ('create_time = "2026-01-31T14:00:00.123456+02:00"', {"odyssey"}),
    ('create_time = "2026-01-30T12:01:00.123456-23:59"', {"odyssey"}),
    ('create_time = "2026-01-31T12:00:00.123456-00:00"', {"odyssey"}),
    ('create_time != "2026-01-31T12:00:00.123456Z"', _ALL - {"odyssey"}),
    ('create_time < "2026-01-31T12:00:01.123456Z"', {"odyssey"}),
    ('create_time <= "2026-01-31T12:00:01.123456Z"', {"odyssey", "iliad"}),
    ('create_time > "2026-01-31T12:00:06Z"', {"stars", "minus"}),
    ('create_time >= "2026-01-31T12:00:06.1234Z"', {"stars", "minus"}),
    # a nanosecond away from the stored time: equal to none, and ordered correctly
    ('create_time = "2026-01-31T12:00:00.123456001Z"', set()),
    ('create_time != "2026-01-31T12:00:00.123456001Z"', _ALL),
    ('create_time < "2026-01-31T12:00:00.123456001Z"', {"odyssey"}),
    ('create_time <= "2026-01-31T12:00:00.123456001Z"', {"odyssey"}),
    ('create_time > "2026-01-31T12:00:00.123456001Z"', _ALL - {"odyssey"}),
    ('create_time >= "2026-01-31T12:00:00.123456001Z"', _ALL - {"odyssey"}),
    ('create_time < "2026-01-31T12:00:00.123455999Z"', set()),
    ('create_time >= "2026-01-31T12:00:00.123455999Z"', _ALL),
    # the ends of the range of RFC 3339
    ('create_time > "0001-01-01T00:00:00+23:59"', _ALL),
    ('create_time < "9999-12-31T23:59:59.999999999-23:59"', _ALL),
    ('create_time > "1969-12-31T23:59:59.999999999Z"', _ALL),
    # only one was updated
    ("update_time > 2026-01-31T13:00:00Z", {"minus"}),
]


async def test_times_compare_to_the_nanosecond(library: BookDAL) -> None:
    await assert_filters_find(library, _KEYS, _TIMES)


async def test_minus_means_the_same_as_not(library: BookDAL) -> None:
    for simple in ("homer", '"homer"', "author:homer", "release_year=-750", "(homer OR zola)"):
        plain = await found_by(library, _KEYS, simple)
        assert plain not in (set(), _ALL)
        assert (
            await found_by(library, _KEYS, f"-{simple}")
            == await found_by(library, _KEYS, f"NOT {simple}")
            == _ALL - plain
        )


async def test_and_and_or_are_commutative(library: BookDAL) -> None:
    for first in ("homer", "-zola", "release_year < 0", "(nana OR iliad)"):
        for second in ("iliad", "NOT odyssey", "name = The*"):
            for operator in ("AND", "OR", ""):
                one, other = f"{first} {operator} {second}", f"{second} {operator} {first}"
                assert await found_by(library, _KEYS, one) == await found_by(library, _KEYS, other), one


async def test_sql_in_a_text_is_only_text(library: BookDAL) -> None:
    for text in (*_SQL, *_PLACEHOLDERS):
        quoted = '"' + text.replace("\\", "\\\\").replace('"', '\\"') + '"'
        for filter in (f"name = {quoted}", f"author = {quoted}", f"name < {quoted} AND name > {quoted}"):
            assert await found_by(library, _KEYS, filter) == set(), filter
        assert await found_by(library, _KEYS, quoted) == ({"stars"} if text == "%" else set()), text
        assert await found_by(library, _KEYS, f"author:{quoted}") == ({"stars"} if text == "%" else set()), text
    assert await found_by(library, _KEYS, "") == _ALL


async def test_filters_at_their_limits_are_valid(library: BookDAL) -> None:
    nested = "(" * 20 + "homer" + ")" * 20
    homer = {"odyssey", "iliad"}
    cases: FilterCases = [
        (" ".join(["homer"] * 100), homer),
        (" OR ".join(["author:homer"] * 100), homer),
        (" AND ".join(f"-id={n}" for n in range(-99, 1)), _ALL),
        (nested, homer),
        (" ".join([nested] * 30), homer),
        ("NOT " + nested, _ALL - homer),
        ('"' + "é" * 1_998 + '"', set()),
    ]
    await assert_filters_find(library, _KEYS, cases)


async def test_a_filter_at_every_limit_at_once_is_valid(library: BookDAL) -> None:
    levels = "(" * 20 + "homer" + ")" * 20
    terms = f"{levels} AND " + " OR ".join(["iliad"] * 99)
    filter = terms + " " * (2_000 - len(terms))
    assert await found_by(library, _KEYS, filter) == {"iliad"}
