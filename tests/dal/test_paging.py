"""Orders, and walks over the pages in them."""

from functools import cmp_to_key

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from bookstore_grpc.dal.books import BookDAL
from bookstore_grpc.dal.database import Database
from bookstore_grpc.dal.paging import OrderTerm, parse_order_by
from bookstore_grpc.dal.records import FIELDS, BookChanges, BookDraft, BookRecord
from bookstore_grpc.errors import InvalidOrderBy
from bookstore_grpc.limits import PAGE_MAX_CODE_POINTS
from tests.conftest import empty
from tests.dal.tricky_books import ORDERED_DIFFERENTLY

_BY_ID = OrderTerm("id", False)


@pytest.mark.parametrize(
    ("text", "terms"),
    [
        ("", (_BY_ID,)),
        ("  \t", (_BY_ID,)),
        ("id", (_BY_ID,)),
        ("id asc", (_BY_ID,)),
        ("id desc", (OrderTerm("id", True),)),
        ("name", (OrderTerm("name", False), _BY_ID)),
        ("name asc", (OrderTerm("name", False), _BY_ID)),
        ("name desc", (OrderTerm("name", True), _BY_ID)),
        ("  author\tdesc ,name  ", (OrderTerm("author", True), OrderTerm("name", False), _BY_ID)),
        ("name,id desc", (OrderTerm("name", False), OrderTerm("id", True))),
        # after the id nothing is left to decide
        ("id,name", (_BY_ID,)),
        ("release_year desc,id desc,name", (OrderTerm("release_year", True), OrderTerm("id", True))),
        (
            "create_time,update_time desc,release_year",
            (
                OrderTerm("create_time", False),
                OrderTerm("update_time", True),
                OrderTerm("release_year", False),
                _BY_ID,
            ),
        ),
    ],
)
def test_order_ends_with_the_id(text: str, terms: tuple[OrderTerm, ...]) -> None:
    assert parse_order_by(text) == terms


@pytest.mark.parametrize(
    ("text", "expected"),
    [
        (",", "'' is not a field to order by; there are id, name, author, release_year"),
        ("name,", "'' is not a field"),
        (",name", "'' is not a field"),
        ("name,,author", "'' is not a field"),
        ("title", "'title' is not a field"),
        ("Name", "'Name' is not a field"),
        ("etag", "'etag' is not a field"),
        ("name_folded", "'name_folded' is not a field"),
        ("-name", "'-name' is not a field"),
        ("desc", "'desc' is not a field"),
        ("x" * 10_000, f"'{'x' * 40}…' is not a field"),
        ("name DESC", "'DESC' after name is neither asc nor desc"),
        ("name descending", "'descending' after name"),
        ("name asc desc", "'asc desc' after name"),
        ("name author", "'author' after name"),
        ("name;", "'name;' is not a field"),
        ("name, name", "name occurs twice"),
        ("name, author, name desc", "name occurs twice"),
        ("id, id", "id occurs twice"),
        ("id; DROP TABLE books", "'id;' is not a field"),
        ("name;author", "'name;author' is not a field"),
        ("name up", "'up' after name is neither asc nor desc"),
        ("name desc nulls last", "'desc nulls last' after name"),
        ("name,name desc", "name occurs twice"),
        ("book.name", "'book.name' is not a field"),
        ("nàme", "'nàme' is not a field"),
        ("\0", "is not a field"),
    ],
)
def test_an_invalid_order_is_rejected(text: str, expected: str) -> None:
    with pytest.raises(InvalidOrderBy) as caught:
        parse_order_by(text)
    (violation,) = caught.value.violations
    assert violation.field == "order_by"
    assert expected in violation.description


_orders = st.lists(st.tuples(st.sampled_from(list(FIELDS)), st.booleans()), max_size=6, unique_by=lambda term: term[0])


def _written(order: list[tuple[str, bool]]) -> str:
    return ", ".join(f"{field} desc" if descending else field for field, descending in order)


def _sorted(records: list[BookRecord], order: list[tuple[str, bool]]) -> list[BookRecord]:
    """Sort as plain Python does: text by code point, ties by id."""

    def compare(one: BookRecord, other: BookRecord) -> int:
        for field, descending in [*order, ("id", False)]:
            first, second = getattr(one, field), getattr(other, field)
            if first != second:
                return 1 if (first > second) != descending else -1
        return 0

    return sorted(records, key=cmp_to_key(compare))


async def _walk(books: BookDAL, *, page_sizes: list[int], filter: str, order_by: str) -> list[BookRecord]:
    """Walk over all pages, with the page sizes one after the other and the last one from then on."""
    walked: list[BookRecord] = []
    token, sizes = "", iter(page_sizes)
    size = 1
    while True:
        size = next(sizes, size)
        page = await books.list_books(page_size=size, page_token=token, filter=filter, order_by=order_by)
        walked += page.books
        token = page.next_page_token
        if not token:
            assert 0 < len(page.books) <= size or not walked
            return walked
        assert len(page.books) == size


@settings(max_examples=60)
@given(order=_orders, page_sizes=st.lists(st.integers(1, 40), min_size=1, max_size=4))
async def test_walk_over_tricky_books_equals_the_sorted_whole(
    shelf_books: BookDAL, shelf: list[BookRecord], order: list[tuple[str, bool]], page_sizes: list[int]
) -> None:
    page_sizes = [*page_sizes, max(page_sizes[-1], 7)]
    walked = await _walk(shelf_books, page_sizes=page_sizes, filter="", order_by=_written(order))
    assert walked == _sorted(shelf, order)


@pytest.mark.parametrize("field", FIELDS)
@pytest.mark.parametrize("descending", [False, True], ids=["asc", "desc"])
async def test_walk_book_by_book_in_every_order(
    shelf_books: BookDAL, shelf: list[BookRecord], field: str, descending: bool
) -> None:
    order = [(field, descending)]
    walked = await _walk(shelf_books, page_sizes=[1], filter="", order_by=_written(order))
    assert walked == _sorted(shelf, order)


async def test_walk_with_a_filter_holds_only_what_it_finds(shelf_books: BookDAL, shelf: list[BookRecord]) -> None:
    order = [("author", True), ("name", False)]
    walked = await _walk(shelf_books, page_sizes=[3], filter="release_year > 1800", order_by=_written(order))
    assert walked == _sorted([book for book in shelf if book.release_year > 1800], order)


_ORDERS: list[list[tuple[str, bool]]] = [
    [],
    *([(field, descending)] for field in FIELDS for descending in (False, True)),
    [("release_year", True), ("name", False)],
    [("name", False), ("release_year", True), ("author", False)],
    [("author", True), ("id", True)],
    [("release_year", False), ("id", True)],
    [
        ("author", False),
        ("name", True),
        ("create_time", False),
        ("update_time", True),
        ("release_year", False),
        ("id", True),
    ],
]


async def test_walk_in_every_order_with_pages_of_any_size_equals_the_sorted_whole(database: Database) -> None:
    books = BookDAL(database)
    drafts = [BookDraft(*each) for each in ORDERED_DIFFERENTLY]
    stored = await books.create_books(drafts[:4])
    stored += [await books.create_book(draft) for draft in drafts[4:]]
    for index in (5, 1):
        stored[index] = await books.update_book(stored[index].id, BookChanges(release_year=3))
    for order in _ORDERS:
        for page_size in (1, 3, 12, 13):
            walked = await _walk(books, page_sizes=[page_size], filter="", order_by=_written(order))
            assert walked == _sorted(stored, order), (order, page_size)


_few_texts = st.sampled_from(["a", "A", "b", "é", "z", "\uffee", "\U00010000", "a" * 300, "a" * 299 + "b"])
_drafts = st.builds(BookDraft, _few_texts, _few_texts, st.integers(-2, 2), st.none())


@settings(max_examples=25)
@given(
    drafts=st.lists(_drafts, max_size=12),
    order=_orders,
    page_size=st.integers(1, 5),
)
async def test_walk_over_random_books_equals_the_sorted_whole(
    migrated_database: Database, drafts: list[BookDraft], order: list[tuple[str, bool]], page_size: int
) -> None:
    await empty(migrated_database)
    books = BookDAL(migrated_database)
    stored = await books.create_books(drafts)
    walked = await _walk(books, page_sizes=[page_size], filter="", order_by=_written(order))
    assert walked == _sorted(stored, order)


async def test_page_that_ends_with_the_last_book_has_no_token(database: Database) -> None:
    books = BookDAL(database)
    await books.create_books([BookDraft(str(number), "x", 1) for number in range(4)])
    for page_size, has_token in ((3, True), (4, False), (5, False)):
        page = await books.list_books(page_size=page_size, page_token="", filter="", order_by="")
        assert bool(page.next_page_token) == has_token


async def test_walk_neither_repeats_nor_skips_while_books_are_created_and_deleted(database: Database) -> None:
    books = BookDAL(database)
    stored = await books.create_books([BookDraft(f"{number:02}", "x", 1) for number in range(0, 40, 2)])
    kept = {book.id for number, book in enumerate(stored) if number % 4}
    token, walked = "", list[int]()
    for number in range(1, 40, 2):
        page = await books.list_books(page_size=2, page_token=token, filter="", order_by="name desc")
        walked += [book.id for book in page.books]
        token = page.next_page_token
        if not token:
            break
        # One after the position of the walk, one before it, and the book at the position if it may be deleted.
        await books.create_books([BookDraft(f"{number:02}", "y", 1), BookDraft("99", "y", 1)])
        if page.books[-1].id not in kept:
            await books.delete_book(page.books[-1].id)
    assert token == ""
    assert len(walked) == len(set(walked))
    assert kept <= set(walked)


async def test_page_of_the_longest_texts_ends_before_its_response_is_too_large(database: Database) -> None:
    books = BookDAL(database)
    stored = await books.create_books([BookDraft("\U0001f600" * 500, "\U0001f601" * 1_000, 1)] * 1_000)
    first = await books.list_books(page_size=1_000, page_token="", filter="", order_by="")
    assert len(first.books) == PAGE_MAX_CODE_POINTS // 1_500
    second = await books.list_books(page_size=1_000, page_token=first.next_page_token, filter="", order_by="")
    assert first.books + second.books == stored
    assert second.next_page_token == ""


async def test_token_of_the_longest_texts_is_valid(database: Database) -> None:
    books = BookDAL(database)
    stored = await books.create_books([BookDraft("\U0001f600" * 500, '"' * 1_000, 1)] * 3)
    walked = await _walk(books, page_sizes=[1], filter="", order_by="name, author, id desc")
    assert walked == stored[::-1]
