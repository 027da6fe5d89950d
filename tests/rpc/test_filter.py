"""Filters over the wire: one case for each rule, which `tests/dal/test_filter_rules.py` tests in full."""

import grpc
import pytest

from tests.rpc.calls import Stub, book, books_of, create, create_all, list_page, rejection

# By keys, which name the books that a filter finds.
LIBRARY = {
    "dune": book("Dune", "Frank Herbert", 1965),
    "messiah": book("Dune Messiah", "Frank Herbert", 1969),
    "germinal": book("Germinal", "ÉMILE ZOLA", 1885),
    "bete": book("La Bête humaine", "Émile Zola", 1890),
    "iliad": book("The Iliad", "Homer", -750),
    "signs": book("100% _off_ * \\ 'quoted' \"twice\"", "Robert'); DROP TABLE books;--", 2000),
}
EVERYTHING = set(LIBRARY)


async def found(stub: Stub, filter: str) -> set[str]:
    keys = {each.name: key for key, each in LIBRARY.items()}
    return {keys[each.name] for each in await books_of(stub, filter=filter, page_size=4)}


async def test_a_filter_finds_the_books_that_match_it(stub: Stub) -> None:
    await create_all(stub, LIBRARY.values())
    cases = [
        ("", EVERYTHING),
        ("release_year <= -750", {"iliad"}),
        ('author = "E\u0301mile Zola"', {"bete"}),
        ('name < "D"', {"signs"}),
        ('name = "Dune*"', {"dune", "messiah"}),
        (r'name = "*\**"', {"signs"}),
        ("author:émile", {"germinal", "bete"}),
        ("bête", {"bete"}),
        ("herbert AND messiah OR iliad", {"messiah"}),
        ("-dune release_year > 1885", {"bete", "signs"}),
        ("create_time > 2023-11-14T22:13:20.123456Z", EVERYTHING),
    ]
    assert [(filter, await found(stub, filter)) for filter, _ in cases] == cases


async def test_an_id_finds_its_book(stub: Stub) -> None:
    books = await create_all(stub, LIBRARY.values())
    assert await books_of(stub, filter=f"id = {books[3].id}") == [books[3]]
    assert await books_of(stub, filter=f"id <= {books[3].id}") == books[:4]


async def test_a_books_own_times_find_it(stub: Stub) -> None:
    made = await create(stub)
    for field in ("create_time", "update_time"):
        moment = getattr(made, field).ToJsonString()
        assert await books_of(stub, filter=f'{field} = "{moment}"') == [made]


async def test_an_invalid_filter_is_rejected_with_its_column(stub: Stub) -> None:
    rejected = await rejection(list_page(stub, filter="dune AND isbn:x"))
    assert (rejected.code, rejected.reason) == (grpc.StatusCode.INVALID_ARGUMENT, "INVALID_FILTER")
    assert rejected.metadata["column"] == "10"
    assert "column 10" in rejected.violations["filter"]


async def test_a_filter_of_2000_code_points_is_valid_and_a_longer_one_is_rejected(stub: Stub) -> None:
    made = await create(stub, "é" * 500)
    assert await books_of(stub, filter="é" + " " * 1_999) == [made]
    rejected = await rejection(list_page(stub, filter="é" + " " * 2_000))
    assert (rejected.reason, rejected.metadata["column"]) == ("INVALID_FILTER", "2001")


@pytest.mark.databases("sqlite")
async def test_a_long_word_is_truncated_in_the_message_about_it(stub: Stub) -> None:
    rejected = await rejection(list_page(stub, filter=f"{'long' * 400} = x"))
    assert len(rejected.message) < 300


async def test_no_part_of_a_filter_reaches_the_database_as_sql(stub: Stub) -> None:
    await create_all(stub, LIBRARY.values())
    injection = "x'; DELETE FROM books; -- \" ) UNION SELECT 1 /* % ? :id $1 {0} */"
    quoted = '"' + injection.replace("\\", "\\\\").replace('"', '\\"') + '"'
    for filter in (quoted, f"name = {quoted}", f"author:{quoted}", f"name < {quoted} AND name > {quoted}"):
        assert await found(stub, filter) == set()
    assert await found(stub, "") == EVERYTHING
