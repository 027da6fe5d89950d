import asyncio
import itertools
from typing import Any

import grpc
import pytest
from bookstore.v1 import books_pb2

from tests.dal.tricky_books import ORDERED_DIFFERENTLY
from tests.rpc.calls import Stub, book, books_of, create, create_all, delete, list_page, rejection, update, walk


def code_points(text: str) -> list[int]:
    return [ord(character) for character in text]


def sort_key(each: books_pb2.Book, field: str) -> Any:
    match field:
        case "name" | "author":
            return code_points(getattr(each, field))
        case "create_time" | "update_time":
            return getattr(each, field).ToMicroseconds()
        case _:
            return getattr(each, field)


def expected_order(books: list[books_pb2.Book], order_by: str) -> list[books_pb2.Book]:
    books = sorted(books, key=lambda each: each.id)
    for term in reversed([term.split() for term in order_by.split(",") if term]):
        books.sort(key=lambda each: sort_key(each, term[0]), reverse=term[1:] == ["desc"])
    return books


@pytest.fixture
async def shelf(stub: Stub) -> list[books_pb2.Book]:
    """Books that were created and updated at different times."""
    messages = [book(*each) for each in ORDERED_DIFFERENTLY]
    books = await create_all(stub, messages[:4])
    for each in messages[4:]:
        books += await create_all(stub, [each])
    for index in (5, 1):
        books[index] = await update(stub, books[index].id, release_year=3)
    return books


async def test_an_empty_catalogue_is_one_empty_page(stub: Stub) -> None:
    page = await list_page(stub)
    assert list(page.books) == []
    assert page.next_page_token == ""


async def test_the_default_order_is_by_id(stub: Stub, shelf: list[books_pb2.Book]) -> None:
    assert await books_of(stub) == shelf
    assert await books_of(stub, order_by=" ") == shelf


async def test_a_walk_meets_every_book_once_in_order(stub: Stub, shelf: list[books_pb2.Book]) -> None:
    for order_by in ("", "name desc", "author,name desc,create_time,update_time desc,release_year,id desc"):
        for page_size in (3, 12, 13):
            pages = await walk(stub, order_by=order_by, page_size=page_size)
            assert list(itertools.chain(*pages)) == expected_order(shelf, order_by), (order_by, page_size)
            assert all(len(page) <= page_size for page in pages)
            assert all(pages)


async def test_blanks_and_asc_in_an_order_have_no_effect(stub: Stub, shelf: list[books_pb2.Book]) -> None:
    first = await list_page(stub, order_by="release_year desc,name", page_size=4)
    again = await list_page(stub, order_by="  release_year   desc ,  name  asc ", page_size=4)
    assert list(again.books) == list(first.books)
    following = {"page_token": first.next_page_token, "page_size": 4}
    assert await list_page(stub, order_by="release_year desc,name", **following) == await list_page(
        stub, order_by=" release_year desc, name asc", **following
    )


@pytest.mark.databases("sqlite")
async def test_an_order_by_an_unknown_field_is_rejected(stub: Stub) -> None:
    rejected = await rejection(list_page(stub, order_by="id; DROP TABLE books"))
    assert (rejected.code, rejected.reason) == (grpc.StatusCode.INVALID_ARGUMENT, "INVALID_ORDER_BY")
    assert list(rejected.violations) == ["order_by"]


async def test_the_default_page_has_50_books_and_the_largest_1000(stub: Stub) -> None:
    books = await create_all(stub, [book(f"{number}") for number in range(1_000)])
    books.append(await create(stub, "last"))
    for page_size, expected in ((0, 50), (1_000, 1_000), (1_001, 1_000), (2**31 - 1, 1_000)):
        page = await list_page(stub, page_size=page_size)
        assert list(page.books) == books[:expected]
        assert page.next_page_token


@pytest.mark.databases("sqlite")
@pytest.mark.parametrize("page_size", [-1, -(2**31)])
async def test_a_negative_page_size_is_rejected(stub: Stub, page_size: int) -> None:
    rejected = await rejection(list_page(stub, page_size=page_size))
    assert (rejected.code, rejected.reason) == (grpc.StatusCode.INVALID_ARGUMENT, "INVALID_FIELD")
    assert list(rejected.violations) == ["page_size"]


async def test_the_token_is_empty_on_the_last_page_and_only_there(stub: Stub) -> None:
    await create_all(stub, [book()] * 3)
    for sizes in ([4], [5], [5, 1]):
        await create(stub)
        assert [len(page) for page in await walk(stub, page_size=5)] == sizes


async def test_the_page_size_may_change_between_pages(stub: Stub, shelf: list[books_pb2.Book]) -> None:
    books: list[books_pb2.Book] = []
    token = ""
    for page_size in (1, 4, 2, 100):
        page = await list_page(stub, order_by="name", page_size=page_size, page_token=token)
        books += page.books
        token = page.next_page_token
    assert token == ""
    assert books == expected_order(shelf, "name")


async def test_a_filter_applies_to_every_page(stub: Stub, shelf: list[books_pb2.Book]) -> None:
    found = await books_of(stub, filter="author = 'Zola' OR name:ebra", order_by="release_year desc", page_size=1)
    expected = [each for each in shelf if each.author == "Zola" or "ebra" in each.name]
    assert len(expected) > 3
    assert found == expected_order(expected, "release_year desc")


@pytest.mark.parametrize("order_by", ["", "name desc", "author", "release_year desc,name"])
async def test_a_walk_among_writers_neither_repeats_nor_skips_the_books_that_stay(stub: Stub, order_by: str) -> None:
    stay = await create_all(stub, [book(f"{n:02}", f"{n % 7}", n % 5) for n in range(40)])
    passing = await create_all(stub, [book(f"{n:02}", f"{n % 7}", n % 5) for n in range(40)])
    is_walking = True

    async def come_and_go() -> None:
        number = 0
        while is_walking or number < 10:
            number = (number + 7) % 40
            made = await create(stub, f"{number:02}", f"{number % 7}", number % 5)
            if passing:
                await delete(stub, passing.pop(number % len(passing)).id)
            if number % 2:
                await delete(stub, made.id)

    async with asyncio.TaskGroup() as tasks:
        writers = [tasks.create_task(come_and_go()) for _ in range(2)]
        seen = await books_of(stub, order_by=order_by, page_size=3)
        is_walking = False
    assert all(writer.done() for writer in writers)
    ids = [each.id for each in seen]
    assert len(set(ids)) == len(ids)
    stay_ids = {each.id for each in stay}
    assert [each for each in seen if each.id in stay_ids] == expected_order(stay, order_by)


@pytest.mark.parametrize("order_by", ["id", "name desc", "author,release_year desc"])
async def test_a_walk_continues_after_a_deleted_book(stub: Stub, shelf: list[books_pb2.Book], order_by: str) -> None:
    expected = expected_order(shelf, order_by)
    page = await list_page(stub, order_by=order_by, page_size=3)
    for each in page.books:
        await delete(stub, each.id)
    rest = await list_page(stub, order_by=order_by, page_token=page.next_page_token)
    assert list(rest.books) == expected[3:]


async def test_a_total_is_returned_with_every_page_if_it_is_asked_for(stub: Stub) -> None:
    await create_all(stub, [book(f"Book {number}", release_year=number % 2) for number in range(10)])
    for filter, total in (("", 10), ("release_year = 1", 5), ("release_year = 2", 0)):
        token = ""
        for left in range(total, -1, -3):
            page = await list_page(stub, page_size=3, include_total=True, filter=filter, page_token=token)
            assert (len(page.books), page.total_size, page.total_size_exceeded) == (min(left, 3), total, False)
            token = page.next_page_token
        assert token == ""
    assert (await list_page(stub, page_size=3)).total_size == 0
