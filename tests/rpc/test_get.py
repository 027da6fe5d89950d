import grpc
import pytest

from tests.rpc.calls import Stub, create, delete, get, rejection


async def test_a_book_is_found_by_its_id(stub: Stub) -> None:
    first, second = await create(stub, "One"), await create(stub, "Two")
    assert await get(stub, second.id) == second
    assert await get(stub, first.id) == first


@pytest.mark.parametrize("book_id", [0, -1, -(2**63)])
async def test_an_id_that_is_not_positive_is_rejected(stub: Stub, book_id: int) -> None:
    rejected = await rejection(get(stub, book_id))
    assert (rejected.code, rejected.reason) == (grpc.StatusCode.INVALID_ARGUMENT, "INVALID_FIELD")
    assert list(rejected.violations) == ["id"]


async def test_a_missing_book_is_named(stub: Stub) -> None:
    made = await create(stub)
    await delete(stub, made.id)
    rejected = await rejection(get(stub, made.id))
    assert (rejected.code, rejected.reason) == (grpc.StatusCode.NOT_FOUND, "BOOK_NOT_FOUND")
    assert rejected.resources == [f"books/{made.id}"]
    assert str(made.id) in rejected.message


async def test_the_greatest_id_is_missing_like_any_other(stub: Stub) -> None:
    rejected = await rejection(get(stub, 2**63 - 1))
    assert rejected.code is grpc.StatusCode.NOT_FOUND
    assert rejected.resources == [f"books/{2**63 - 1}"]
