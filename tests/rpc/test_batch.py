import grpc
import pytest
from bookstore.v1 import books_pb2

from tests.rpc.calls import Refusal, Stub, book, books_of, create, create_all, delete, get, refusal


async def batch_get(stub: Stub, ids: list[int]) -> list[books_pb2.Book]:
    return list((await stub.BatchGetBooks(books_pb2.BatchGetBooksRequest(ids=ids))).books)


async def batch_create_refusal(stub: Stub, requests: list[books_pb2.CreateBookRequest]) -> Refusal:
    return await refusal(stub.BatchCreateBooks(books_pb2.BatchCreateBooksRequest(requests=requests)))


async def test_batch_get_answers_in_the_order_of_the_ids_and_repeats(stub: Stub) -> None:
    one, two, three = await create_all(stub, [book("One"), book("Two"), book("Three")])
    ids = [three.id, one.id, three.id, two.id, three.id]
    assert await batch_get(stub, ids) == [three, one, three, two, three]


async def test_batch_get_takes_1000_ids(stub: Stub) -> None:
    books = await create_all(stub, [book(str(number)) for number in range(1_000)])
    books.reverse()
    assert await batch_get(stub, [each.id for each in books]) == books
    assert await batch_get(stub, [books[0].id] * 1_000) == [books[0]] * 1_000


@pytest.mark.parametrize("count", [0, 1_001])
async def test_batch_get_refuses_no_ids_and_1001(stub: Stub, count: int) -> None:
    made = await create(stub)
    refused = await refusal(batch_get(stub, [made.id] * count))
    assert (refused.code, refused.reason) == (grpc.StatusCode.INVALID_ARGUMENT, "INVALID_FIELD")
    assert list(refused.violations) == ["ids"]


async def test_batch_get_refuses_ids_that_are_not_positive_each_by_its_path(stub: Stub) -> None:
    refused = await refusal(batch_get(stub, [5, 0, 7, -1]))
    assert refused.reason == "INVALID_FIELD"
    assert list(refused.violations) == ["ids[1]", "ids[3]"]


async def test_batch_get_names_every_missing_book_once(stub: Stub) -> None:
    made, gone = await create(stub), await create(stub)
    await delete(stub, gone.id)
    refused = await refusal(batch_get(stub, [2**63 - 1, made.id, gone.id, 2**63 - 1]))
    assert (refused.code, refused.reason) == (grpc.StatusCode.NOT_FOUND, "BOOK_NOT_FOUND")
    assert refused.resources == [f"books/{2**63 - 1}", f"books/{gone.id}"]


async def test_1000_missing_books_leave_a_status_that_can_be_read(stub: Stub) -> None:
    ids = [2**63 - 1 - number for number in range(1_000)]
    refused = await refusal(batch_get(stub, ids))
    assert (refused.code, refused.reason) == (grpc.StatusCode.NOT_FOUND, "BOOK_NOT_FOUND")
    assert len(refused.resources) > 10
    assert refused.resources == [f"books/{book_id}" for book_id in ids][: len(refused.resources)]
    assert "990 more" in refused.message


async def test_batch_create_answers_in_the_order_of_the_requests(stub: Stub) -> None:
    names = [f"{number * 7 % 1_000:03}" for number in range(1_000)]
    books = await create_all(stub, [book(name) for name in names])
    assert [each.name for each in books] == names
    assert [each.id for each in books] == sorted({each.id for each in books})
    assert await books_of(stub, page_size=1_000) == books
    assert await get(stub, books[500].id) == books[500]


@pytest.mark.parametrize("count", [0, 1_001])
async def test_batch_create_refuses_no_requests_and_1001(stub: Stub, count: int) -> None:
    refused = await batch_create_refusal(stub, [books_pb2.CreateBookRequest(book=book())] * count)
    assert (refused.code, refused.reason) == (grpc.StatusCode.INVALID_ARGUMENT, "INVALID_FIELD")
    assert list(refused.violations) == ["requests"]
    assert await books_of(stub) == []


async def test_batch_create_names_each_violation_by_its_path_and_stores_nothing(stub: Stub) -> None:
    requests = [
        books_pb2.CreateBookRequest(book=book()),
        books_pb2.CreateBookRequest(),
        books_pb2.CreateBookRequest(book=book(release_year=None)),
        books_pb2.CreateBookRequest(book=book("x" * 501, " ", 10_000), request_id="none"),
    ]
    refused = await batch_create_refusal(stub, requests)
    assert refused.reason == "INVALID_FIELD"
    assert set(refused.violations) == {
        "requests[1].book",
        "requests[2].book.release_year",
        "requests[3].book.name",
        "requests[3].book.author",
        "requests[3].book.release_year",
        "requests[3].request_id",
    }
    assert await books_of(stub) == []


async def test_1000_bad_rows_leave_a_status_that_can_be_read(stub: Stub) -> None:
    refused = await batch_create_refusal(stub, [books_pb2.CreateBookRequest(book=book("", "", None))] * 1_000)
    assert (refused.code, refused.reason) == (grpc.StatusCode.INVALID_ARGUMENT, "INVALID_FIELD")
    assert len(refused.violations) > 10
    assert list(refused.violations)[:3] == [
        "requests[0].book.name",
        "requests[0].book.author",
        "requests[0].book.release_year",
    ]
    assert "2999 more" in refused.message


async def test_one_bad_row_among_1000_is_found(stub: Stub) -> None:
    requests = [books_pb2.CreateBookRequest(book=book(str(number))) for number in range(1_000)]
    requests[999].book.author = "\x07"
    refused = await batch_create_refusal(stub, requests)
    assert list(refused.violations) == ["requests[999].book.author"]
    assert await books_of(stub) == []
