"""BatchUpdateBooks and BatchDeleteBooks: all or none, every violation with its path, every book named."""

import asyncio
from collections.abc import Iterable
from typing import Any

import grpc
import pytest
from bookstore.v1 import books_pb2
from google.protobuf.field_mask_pb2 import FieldMask

from tests.rpc.calls import Rejection, Stub, book, books_of, create, create_all, delete, get, rejection, update

NOBODY = 2**63 - 1


def update_request(
    book_id: int, *, mask: Iterable[str] | None = None, etag: str = "", **fields: Any
) -> books_pb2.UpdateBookRequest:
    return books_pb2.UpdateBookRequest(
        book=books_pb2.Book(id=book_id, etag=etag, **fields),
        update_mask=None if mask is None else FieldMask(paths=list(mask)),
    )


async def batch_update(stub: Stub, *requests: books_pb2.UpdateBookRequest) -> list[books_pb2.Book]:
    return list((await stub.BatchUpdateBooks(books_pb2.BatchUpdateBooksRequest(requests=requests))).books)


async def batch_delete(stub: Stub, *books: int | books_pb2.Book) -> None:
    requests = [
        books_pb2.DeleteBookRequest(id=each)
        if isinstance(each, int)
        else books_pb2.DeleteBookRequest(id=each.id, etag=each.etag)
        for each in books
    ]
    await stub.BatchDeleteBooks(books_pb2.BatchDeleteBooksRequest(requests=requests))


async def numbered(stub: Stub, count: int) -> list[books_pb2.Book]:
    return await create_all(stub, [book(f"Book {number}") for number in range(count)])


async def test_updates_have_a_mask_and_an_etag_each_and_are_returned_in_order(stub: Stub) -> None:
    one, two, three = await numbered(stub, 3)
    updated = await batch_update(
        stub,
        update_request(three.id, name="Three", author="ignored", mask=["name"]),
        update_request(one.id, name="One", author="Somebody", release_year=1, mask=["*"], etag=one.etag),
        update_request(two.id, release_year=2),
    )
    assert [(each.id, each.name, each.author, each.release_year) for each in updated] == [
        (three.id, "Three", "Frank Herbert", 1965),
        (one.id, "One", "Somebody", 1),
        (two.id, "Book 1", "Frank Herbert", 2),
    ]
    assert [await get(stub, each.id) for each in updated] == updated


async def test_an_update_that_changes_nothing_keeps_the_etag(stub: Stub) -> None:
    one, two = await numbered(stub, 2)
    assert await batch_update(stub, update_request(one.id, name=one.name), update_request(two.id, mask=[])) == [
        one,
        two,
    ]


async def test_a_book_that_is_named_twice_is_updated_in_sequence(stub: Stub) -> None:
    (one,) = await numbered(stub, 1)
    first, second = await batch_update(
        stub, update_request(one.id, name="First", etag=one.etag), update_request(one.id, release_year=7)
    )
    assert (first.name, first.release_year) == ("First", 1965)
    assert (second.name, second.release_year) == ("First", 7)
    assert len({one.etag, first.etag, second.etag}) == 3
    assert await get(stub, one.id) == second

    rejected = await rejection(
        batch_update(
            stub,
            update_request(one.id, name="Third", etag=second.etag),
            update_request(one.id, release_year=8, etag=second.etag),
        )
    )
    assert rejected.reason == "ETAG_MISMATCH"
    assert await get(stub, one.id) == second


async def test_1000_books_are_updated_and_deleted(stub: Stub) -> None:
    books = await numbered(stub, 1_000)
    updated = await batch_update(stub, *(update_request(each.id, name=f"New {each.name}") for each in books))
    assert [each.name for each in updated] == [f"New Book {number}" for number in range(1_000)]
    assert await books_of(stub, page_size=1_000) == updated
    await batch_delete(stub, *updated)
    assert await books_of(stub) == []


async def test_a_delete_with_and_without_etags(stub: Stub) -> None:
    one, two, three = await numbered(stub, 3)
    await batch_delete(stub, three.id, one)
    assert await books_of(stub) == [two]


async def rejected_update(stub: Stub, *requests: books_pb2.UpdateBookRequest) -> Rejection:
    return await rejection(batch_update(stub, *requests))


async def rejected_delete(stub: Stub, *books: int | books_pb2.Book) -> Rejection:
    return await rejection(batch_delete(stub, *books))


async def test_every_missing_book_is_named_and_nothing_is_changed(stub: Stub) -> None:
    one, gone, three = await numbered(stub, 3)
    await delete(stub, gone.id)
    for rejected in (
        await rejected_update(
            stub, *(update_request(each, name="New") for each in (one.id, NOBODY, three.id, gone.id, NOBODY))
        ),
        await rejected_delete(stub, one.id, NOBODY, three.id, gone.id),
    ):
        assert (rejected.code, rejected.reason) == (grpc.StatusCode.NOT_FOUND, "BOOK_NOT_FOUND")
        assert rejected.resources == [f"books/{NOBODY}", f"books/{gone.id}"]
    assert await books_of(stub) == [one, three]


async def test_every_book_that_has_changed_is_named_and_nothing_is_changed(stub: Stub) -> None:
    one, two, three = await numbered(stub, 3)
    now = [await update(stub, one.id, name="changed"), two, await update(stub, three.id, name="changed")]
    for rejected in (
        await rejected_update(
            stub, *(update_request(each.id, release_year=1, etag=each.etag) for each in (three, two, one))
        ),
        await rejected_delete(stub, three, two, one),
    ):
        assert (rejected.code, rejected.reason) == (grpc.StatusCode.ABORTED, "ETAG_MISMATCH")
        assert rejected.resources == [f"books/{three.id}", f"books/{one.id}"]
        assert f"{three.id}, {one.id}" in rejected.message
    assert await books_of(stub) == now


async def test_missing_books_are_reported_before_changed_ones(stub: Stub) -> None:
    (one,) = await numbered(stub, 1)
    await update(stub, one.id, name="changed")
    rejected = await rejected_update(
        stub, update_request(one.id, name="New", etag=one.etag), update_request(NOBODY, name="New")
    )
    assert rejected.resources == [f"books/{NOBODY}"]


@pytest.mark.databases("sqlite")
async def test_the_statuses_of_1000_books_are_limited_in_size(stub: Stub) -> None:
    books = await numbered(stub, 1_000)
    rejected = await rejected_update(stub, *(update_request(each.id, name="New", etag="old") for each in books))
    assert len(rejected.resources) > 10
    assert int(rejected.metadata["omitted_count"]) == 1_000 - len(rejected.resources)
    assert "990 more" in rejected.message


async def test_a_delete_that_is_repeated_finds_no_books(stub: Stub) -> None:
    one, two = await numbered(stub, 2)
    await batch_delete(stub, one.id, two.id)
    rejected = await rejected_delete(stub, one.id, two.id)
    assert rejected.resources == [f"books/{one.id}", f"books/{two.id}"]


async def test_of_concurrent_deletes_of_the_same_books_one_succeeds(stub: Stub) -> None:
    for _ in range(5):
        ids = [each.id for each in await numbered(stub, 10)]
        calls = [batch_delete(stub, *order) for order in (ids, ids[::-1], ids[5:] + ids[:5])]
        results = await asyncio.gather(*calls, return_exceptions=True)
        assert results.count(None) == 1
    assert await books_of(stub) == []


@pytest.mark.databases("sqlite")
class TestViolations:
    @pytest.mark.parametrize("count", [0, 1_001])
    async def test_no_requests_and_1001_are_rejected(self, stub: Stub, count: int) -> None:
        made = await create(stub)
        for rejected in (
            await rejected_update(stub, *[update_request(made.id, name="New")] * count),
            await rejected_delete(stub, *[made.id] * count),
        ):
            assert (rejected.code, rejected.reason) == (grpc.StatusCode.INVALID_ARGUMENT, "INVALID_FIELD")
            assert list(rejected.violations) == ["requests"]

    async def test_each_violation_of_an_update_has_its_path(self, stub: Stub) -> None:
        made = await create(stub)
        rejected = await rejected_update(
            stub,
            update_request(made.id, name="New"),
            books_pb2.UpdateBookRequest(),
            update_request(0, name="New"),
            update_request(made.id, mask=["pages"]),
            update_request(made.id, name="x" * 501, author=" ", release_year=10_000, mask=["*"]),
        )
        assert rejected.rules == {
            "requests[1].book": "REQUIRED",
            "requests[2].book.id": "OUT_OF_RANGE",
            "requests[3].update_mask": "UNKNOWN_FIELD",
            "requests[4].book.name": "TOO_LONG",
            "requests[4].book.author": "REQUIRED",
            "requests[4].book.release_year": "OUT_OF_RANGE",
        }
        assert await books_of(stub) == [made]

    async def test_each_violation_of_a_delete_has_its_path(self, stub: Stub) -> None:
        one, two = await numbered(stub, 2)
        rejected = await rejected_delete(stub, one.id, 0, two.id, one, -1, two.id)
        assert rejected.rules == {
            "requests[1].id": "OUT_OF_RANGE",
            "requests[3].id": "DUPLICATE",
            "requests[4].id": "OUT_OF_RANGE",
            "requests[5].id": "DUPLICATE",
        }
        assert "requests[0] has too" in rejected.violations["requests[3].id"]
        assert await books_of(stub) == [one, two]
