"""Many concurrent writes over the wire: each gets its own result, whatever is written together."""

import asyncio
import uuid
from collections.abc import Coroutine
from contextlib import suppress
from typing import Any

import grpc
import pytest
from bookstore.v1 import books_pb2

from tests.rpc.calls import Stub, book, books_of, create, create_all, delete, get, rejection_from_error, update

_UNKNOWN = 2**62

Call = Coroutine[Any, Any, Any]


async def _response(call: Call) -> Any:
    """Return the response of a call, or the code and the reason of its error."""
    try:
        return await call
    except grpc.aio.AioRpcError as error:
        rejection = rejection_from_error(error)
        return (rejection.code, rejection.reason)


async def test_each_of_many_concurrent_writes_gets_its_own_result(stub: Stub) -> None:
    stored = await create_all(stub, [book(f"stored {number}") for number in range(32)])
    used = str(uuid.uuid4())
    await create(stub, "used", request_id=used)
    not_found = (grpc.StatusCode.NOT_FOUND, "BOOK_NOT_FOUND")
    mismatch = (grpc.StatusCode.ABORTED, "ETAG_MISMATCH")
    reused = (grpc.StatusCode.ALREADY_EXISTS, "REQUEST_ID_REUSED")
    for turn in range(3):
        to_delete = stored[turn * 4 : turn * 4 + 4]
        kept = stored[-16:]
        calls: list[Call] = []
        for number in range(8):
            calls += [
                create(stub, f"new {turn} {number}"),
                update(stub, kept[number].id, release_year=turn * 100 + number),
                update(stub, _UNKNOWN, name="x"),
                update(stub, kept[8 + number].id, name="x", etag="stale"),
                delete(stub, to_delete[number % 4].id),
                delete(stub, _UNKNOWN),
                create(stub, "another", request_id=used),
                create(stub, "x" * 501),
            ]
        responses = await asyncio.gather(*map(_response, calls))
        assert len(responses) == 64
        made, updated, missing, stale, deleted, unknown, twice, invalid = (responses[kind::8] for kind in range(8))
        assert [each.name for each in made] == [f"new {turn} {number}" for number in range(8)]
        assert [each.id for each in updated] == [each.id for each in kept[:8]]
        assert [each.release_year for each in updated] == [turn * 100 + number for number in range(8)]
        assert missing == unknown == [not_found] * 8
        assert stale == [mismatch] * 8
        assert twice == [reused] * 8
        assert invalid == [(grpc.StatusCode.INVALID_ARGUMENT, "INVALID_FIELD")] * 8
        for one, other in zip(deleted[:4], deleted[4:], strict=True):
            assert {one if isinstance(one, tuple) else None, other if isinstance(other, tuple) else None} == {
                None,
                not_found,
            }
        for each in [*made, *updated]:
            assert await get(stub, each.id) == each
    names = [each.name for each in await books_of(stub)]
    assert len(names) == len(set(names)) == 32 - 12 + 1 + 24


async def test_ids_of_the_creates_of_one_caller_are_ascending_despite_concurrent_creates(stub: Stub) -> None:
    async def create_some(caller: int) -> list[books_pb2.Book]:
        return [await create(stub, f"{caller} {number}") for number in range(8)]

    made = await asyncio.gather(*(create_some(caller) for caller in range(24)))
    for books in made:
        ids = [each.id for each in books]
        assert ids == sorted(ids)
    flat = [each for books in made for each in books]
    assert len({each.id for each in flat}) == 24 * 8
    assert await books_of(stub) == sorted(flat, key=lambda each: each.id)


@pytest.mark.parametrize("ending", ["cancelled", "past the deadline"])
async def test_cancelled_calls_do_not_affect_concurrent_ones(stub: Stub, ending: str) -> None:
    (counted,) = await create_all(stub, [book("counted")])
    for turn in range(8):
        requests = [
            books_pb2.CreateBookRequest(book=book(f"{turn} {number}"), request_id=str(uuid.uuid4()))
            for number in range(24)
        ]
        leaving = [
            stub.CreateBook(each, timeout=0.002 * turn if ending == "past the deadline" else None)
            for each in requests[::2]
        ]
        staying = asyncio.gather(*(stub.CreateBook(each) for each in requests[1::2]))
        updates = asyncio.gather(*(update(stub, counted.id, release_year=turn) for _ in range(4)))
        await asyncio.sleep(0.002 * turn)
        for call in leaving:
            if ending == "cancelled":
                call.cancel()
        made = await staying
        assert [each.name for each in made] == [each.book.name for each in requests[1::2]]
        assert (await updates)[-1].release_year == turn
        for call in leaving:
            with suppress(asyncio.CancelledError, grpc.aio.AioRpcError):
                await call
        # Sent again, each is there once, whatever became of it.
        again = await asyncio.gather(*(stub.CreateBook(each) for each in requests))
        assert again[1::2] == made
    names = [each.name for each in await books_of(stub)]
    assert sorted(names) == sorted(["counted", *(f"{turn} {number}" for turn in range(8) for number in range(24))])
