import grpc
import pytest

from tests.rpc.calls import Stub, books_of, create, delete, get, rejection, update


async def test_a_deleted_book_is_not_found_and_the_others_remain(stub: Stub) -> None:
    gone, kept = await create(stub, "Gone"), await create(stub, "Kept")
    await delete(stub, gone.id)
    assert (await rejection(get(stub, gone.id))).reason == "BOOK_NOT_FOUND"
    assert await books_of(stub) == [kept]


async def test_deleting_twice_is_not_found(stub: Stub) -> None:
    made = await create(stub)
    await delete(stub, made.id)
    rejected = await rejection(delete(stub, made.id))
    assert (rejected.code, rejected.reason) == (grpc.StatusCode.NOT_FOUND, "BOOK_NOT_FOUND")
    assert rejected.resources == [f"books/{made.id}"]


async def test_the_highest_id_is_not_given_again_after_its_book_is_deleted(stub: Stub) -> None:
    given = set()
    for _ in range(3):
        made = await create(stub)
        assert made.id not in given
        given.add(made.id)
        await delete(stub, made.id)


async def test_the_current_etag_deletes(stub: Stub) -> None:
    made = await create(stub)
    await delete(stub, made.id, etag=made.etag)
    assert await books_of(stub) == []


@pytest.mark.parametrize("etag", ["stale", "another book's", "invented"])
async def test_another_etag_deletes_nothing(stub: Stub, etag: str) -> None:
    made, other = await create(stub), await create(stub)
    current = await update(stub, made.id, name="Dune Messiah")
    etags = {"stale": made.etag, "another book's": other.etag, "invented": "x' OR 1=1 --\0"}
    rejected = await rejection(delete(stub, made.id, etag=etags[etag]))
    assert (rejected.code, rejected.reason) == (grpc.StatusCode.ABORTED, "ETAG_MISMATCH")
    assert await get(stub, made.id) == current


@pytest.mark.parametrize("book_id", [0, -7])
async def test_an_id_that_is_not_positive_is_rejected(stub: Stub, book_id: int) -> None:
    rejected = await rejection(delete(stub, book_id))
    assert rejected.reason == "INVALID_FIELD"
    assert list(rejected.violations) == ["id"]


async def test_an_etag_does_not_tell_a_missing_book_from_a_changed_one_wrongly(stub: Stub) -> None:
    assert (await rejection(delete(stub, 2**63 - 1, etag="any"))).reason == "BOOK_NOT_FOUND"
