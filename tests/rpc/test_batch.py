import grpc
import pytest
from bookstore.v1 import books_pb2

from tests.rpc.calls import Rejection, Stub, book, books_of, create, create_all, delete, get, rejection


async def batch_get(stub: Stub, ids: list[int]) -> list[books_pb2.Book]:
    return list((await stub.BatchGetBooks(books_pb2.BatchGetBooksRequest(ids=ids))).books)


async def batch_create_error(stub: Stub, requests: list[books_pb2.CreateBookRequest]) -> Rejection:
    return await rejection(stub.BatchCreateBooks(books_pb2.BatchCreateBooksRequest(requests=requests)))


async def test_batch_get_returns_the_books_in_the_order_of_the_ids_with_repetitions(stub: Stub) -> None:
    one, two, three = await create_all(stub, [book("One"), book("Two"), book("Three")])
    ids = [three.id, one.id, three.id, two.id, three.id]
    assert await batch_get(stub, ids) == [three, one, three, two, three]


async def test_batch_get_accepts_1000_ids(stub: Stub) -> None:
    books = await create_all(stub, [book(str(number)) for number in range(1_000)])
    books.reverse()
    assert await batch_get(stub, [each.id for each in books]) == books
    assert await batch_get(stub, [books[0].id] * 1_000) == [books[0]] * 1_000


@pytest.mark.parametrize("count", [0, 1_001])
async def test_batch_get_rejects_no_ids_and_1001(stub: Stub, count: int) -> None:
    made = await create(stub)
    rejected = await rejection(batch_get(stub, [made.id] * count))
    assert (rejected.code, rejected.reason) == (grpc.StatusCode.INVALID_ARGUMENT, "INVALID_FIELD")
    assert list(rejected.violations) == ["ids"]


@pytest.mark.databases("sqlite")
async def test_batch_get_rejects_ids_that_are_not_positive_each_with_its_path(stub: Stub) -> None:
    rejected = await rejection(batch_get(stub, [5, 0, 7, -1]))
    assert rejected.reason == "INVALID_FIELD"
    assert list(rejected.violations) == ["ids[1]", "ids[3]"]


async def test_batch_get_names_every_missing_book_once(stub: Stub) -> None:
    made, gone = await create(stub), await create(stub)
    await delete(stub, gone.id)
    rejected = await rejection(batch_get(stub, [2**63 - 1, made.id, gone.id, 2**63 - 1]))
    assert (rejected.code, rejected.reason) == (grpc.StatusCode.NOT_FOUND, "BOOK_NOT_FOUND")
    assert rejected.resources == [f"books/{2**63 - 1}", f"books/{gone.id}"]


async def test_the_status_for_1000_missing_books_is_limited_in_size(stub: Stub) -> None:
    ids = [2**63 - 1 - number for number in range(1_000)]
    rejected = await rejection(batch_get(stub, ids))
    assert (rejected.code, rejected.reason) == (grpc.StatusCode.NOT_FOUND, "BOOK_NOT_FOUND")
    assert len(rejected.resources) > 10
    assert rejected.resources == [f"books/{book_id}" for book_id in ids][: len(rejected.resources)]
    assert "990 more" in rejected.message


async def test_batch_create_returns_the_books_in_the_order_of_the_requests(stub: Stub) -> None:
    names = [f"{number * 7 % 1_000:03}" for number in range(1_000)]
    books = await create_all(stub, [book(name) for name in names])
    assert [each.name for each in books] == names
    assert [each.id for each in books] == sorted({each.id for each in books})
    assert await books_of(stub, page_size=1_000) == books
    assert await get(stub, books[500].id) == books[500]


@pytest.mark.parametrize("count", [0, 1_001])
async def test_batch_create_rejects_no_requests_and_1001(stub: Stub, count: int) -> None:
    rejected = await batch_create_error(stub, [books_pb2.CreateBookRequest(book=book())] * count)
    assert (rejected.code, rejected.reason) == (grpc.StatusCode.INVALID_ARGUMENT, "INVALID_FIELD")
    assert list(rejected.violations) == ["requests"]
    assert await books_of(stub) == []


@pytest.mark.databases("sqlite")
async def test_batch_create_names_each_violation_by_its_path_and_stores_nothing(stub: Stub) -> None:
    requests = [
        books_pb2.CreateBookRequest(book=book()),
        books_pb2.CreateBookRequest(),
        books_pb2.CreateBookRequest(book=book(release_year=None)),
        books_pb2.CreateBookRequest(book=book("x" * 501, " ", 10_000), request_id="none"),
    ]
    rejected = await batch_create_error(stub, requests)
    assert rejected.reason == "INVALID_FIELD"
    assert set(rejected.violations) == {
        "requests[1].book",
        "requests[2].book.release_year",
        "requests[3].book.name",
        "requests[3].book.author",
        "requests[3].book.release_year",
        "requests[3].request_id",
    }
    assert await books_of(stub) == []


@pytest.mark.databases("sqlite")
async def test_the_status_for_1000_invalid_rows_is_limited_in_size(stub: Stub) -> None:
    rejected = await batch_create_error(stub, [books_pb2.CreateBookRequest(book=book("", "", None))] * 1_000)
    assert (rejected.code, rejected.reason) == (grpc.StatusCode.INVALID_ARGUMENT, "INVALID_FIELD")
    assert len(rejected.violations) > 10
    assert list(rejected.violations)[:3] == [
        "requests[0].book.name",
        "requests[0].book.author",
        "requests[0].book.release_year",
    ]
    assert "2999 more" in rejected.message


@pytest.mark.databases("sqlite")
async def test_one_invalid_row_among_1000_is_named(stub: Stub) -> None:
    requests = [books_pb2.CreateBookRequest(book=book(str(number))) for number in range(1_000)]
    requests[999].book.author = "\x07"
    rejected = await batch_create_error(stub, requests)
    assert list(rejected.violations) == ["requests[999].book.author"]
    assert await books_of(stub) == []
