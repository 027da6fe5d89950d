import asyncio
from typing import Any

import grpc
import pytest
from bookstore.v1 import books_pb2
from google.protobuf.field_mask_pb2 import FieldMask

from tests.rpc.calls import Stub, create, get, rejection, update
from tests.rpc.conftest import HandClock

OTHER: dict[str, Any] = {"name": "Solaris", "author": "Stanisław Lem", "release_year": 1961}
OTHER_VALUES = ("Solaris", "Stanisław Lem", 1961)


def values(message: books_pb2.Book) -> tuple[str, str, int]:
    return message.name, message.author, message.release_year


# Masks, the fields of the request, and the values that are then stored.
_CHANGES: list[tuple[list[str] | None, dict[str, Any], tuple[str, str, int]]] = [
    # Without a mask: the present fields.
    (None, {"name": "Solaris"}, ("Solaris", "Frank Herbert", 1965)),
    (None, {"author": "Lem"}, ("Dune", "Lem", 1965)),
    (None, {"release_year": 1961}, ("Dune", "Frank Herbert", 1961)),
    (None, {"release_year": 0}, ("Dune", "Frank Herbert", 0)),
    (None, {"release_year": -5000}, ("Dune", "Frank Herbert", -5000)),
    (None, OTHER, OTHER_VALUES),
    (None, {}, ("Dune", "Frank Herbert", 1965)),
    ([], {"name": "Solaris"}, ("Solaris", "Frank Herbert", 1965)),
    # With a mask: exactly its fields.
    (["name"], OTHER, ("Solaris", "Frank Herbert", 1965)),
    (["author"], OTHER, ("Dune", "Stanisław Lem", 1965)),
    (["release_year"], OTHER, ("Dune", "Frank Herbert", 1961)),
    (["release_year", "name"], OTHER, ("Solaris", "Frank Herbert", 1961)),
    (["name", "name"], OTHER, ("Solaris", "Frank Herbert", 1965)),
    (["release_year"], {"release_year": 0}, ("Dune", "Frank Herbert", 0)),
    (["*"], OTHER, OTHER_VALUES),
    (["*", "name"], OTHER, OTHER_VALUES),
    # Output-only fields have no effect.
    (["id"], OTHER, ("Dune", "Frank Herbert", 1965)),
    (["id", "etag", "create_time", "update_time"], OTHER, ("Dune", "Frank Herbert", 1965)),
    (["name", "etag", "update_time"], OTHER, ("Solaris", "Frank Herbert", 1965)),
    # Stored in its stored form.
    (None, {"name": "  E\u0301mile\n"}, ("Émile", "Frank Herbert", 1965)),
]


async def test_the_mask_decides_what_changes_or_else_the_present_fields(stub: Stub) -> None:
    for mask, fields, expected in _CHANGES:
        made = await create(stub)
        updated = await update(stub, made.id, mask=mask, **fields)
        assert values(updated) == expected, (mask, fields)
        assert updated.create_time == made.create_time
        assert await get(stub, made.id) == updated


_VIOLATIONS: list[tuple[list[str] | None, dict[str, Any], list[str]]] = [
    (["title"], OTHER, ["update_mask"]),
    (["name", "book.name"], OTHER, ["update_mask"]),
    (["releaseYear"], OTHER, ["update_mask"]),
    (["Name"], OTHER, ["update_mask"]),
    ([""], OTHER, ["update_mask"]),
    (["name.x"], OTHER, ["update_mask"]),
    (["*", "publisher"], OTHER, ["update_mask"]),
    (["name, author"], OTHER, ["update_mask"]),
    # A required field cannot be cleared.
    (["name"], {"author": "Lem"}, ["book.name"]),
    (["author"], {}, ["book.author"]),
    (["release_year"], {"name": "Solaris"}, ["book.release_year"]),
    (["*"], {"name": "Solaris"}, ["book.author", "book.release_year"]),
    (["*"], {}, ["book.name", "book.author", "book.release_year"]),
    (None, {"name": " \t"}, ["book.name"]),
    (
        None,
        {"name": "x" * 501, "author": "\0", "release_year": 10_000},
        ["book.name", "book.author", "book.release_year"],
    ),
    (["title", "name"], {}, ["update_mask", "book.name"]),
]


@pytest.mark.databases("sqlite")
async def test_an_invalid_mask_or_value_changes_nothing(stub: Stub) -> None:
    made = await create(stub)
    for mask, fields, violated in _VIOLATIONS:
        rejected = await rejection(update(stub, made.id, mask=mask, **fields))
        assert (rejected.code, rejected.reason) == (grpc.StatusCode.INVALID_ARGUMENT, "INVALID_FIELD")
        assert sorted(rejected.violations) == sorted(violated), (mask, fields)
    assert await get(stub, made.id) == made


async def test_values_outside_the_mask_are_not_validated(stub: Stub) -> None:
    made = await create(stub)
    updated = await update(stub, made.id, mask=["name"], name="Solaris", author="\0", release_year=99_999)
    assert values(updated) == ("Solaris", "Frank Herbert", 1965)


async def test_an_update_without_a_book_is_rejected(stub: Stub) -> None:
    rejected = await rejection(stub.UpdateBook(books_pb2.UpdateBookRequest(update_mask=FieldMask(paths=["*"]))))
    assert list(rejected.violations) == ["book"]


async def test_an_update_without_an_id_is_rejected_with_all_other_violations(stub: Stub) -> None:
    for book_id in (0, -1):
        rejected = await rejection(update(stub, book_id, release_year=10_000))
        assert set(rejected.violations) == {"book.id", "book.release_year"}


async def test_a_missing_book_is_not_found_and_not_created(stub: Stub) -> None:
    rejected = await rejection(update(stub, 2**63 - 1, **OTHER))
    assert (rejected.code, rejected.reason) == (grpc.StatusCode.NOT_FOUND, "BOOK_NOT_FOUND")
    assert rejected.resources == [f"books/{2**63 - 1}"]
    assert (await rejection(get(stub, 2**63 - 1))).code is grpc.StatusCode.NOT_FOUND


async def test_an_update_with_the_current_etag_succeeds_and_changes_the_etag(stub: Stub) -> None:
    made = await create(stub)
    updated = await update(stub, made.id, etag=made.etag, name="Solaris")
    assert updated.name == "Solaris"
    assert updated.etag != made.etag


@pytest.mark.parametrize("fields", [{"name": "Solaris"}, {"name": "Dune"}, {}], ids=str)
async def test_an_update_with_a_stale_etag_is_rejected(stub: Stub, fields: dict[str, Any]) -> None:
    made = await create(stub)
    current = await update(stub, made.id, release_year=1966)
    rejected = await rejection(update(stub, made.id, etag=made.etag, **fields))
    assert (rejected.code, rejected.reason) == (grpc.StatusCode.ABORTED, "ETAG_MISMATCH")
    assert await get(stub, made.id) == current


async def test_of_updates_that_race_with_one_etag_one_succeeds(stub: Stub) -> None:
    made = await create(stub)
    calls = [update(stub, made.id, etag=made.etag, release_year=year) for year in range(8)]
    responses = await asyncio.gather(*calls, return_exceptions=True)
    won = [response for response in responses if isinstance(response, books_pb2.Book)]
    lost = [response for response in responses if isinstance(response, grpc.aio.AioRpcError)]
    assert [error.code() for error in lost] == [grpc.StatusCode.ABORTED] * 7
    assert won == [await get(stub, made.id)]


@pytest.mark.parametrize(
    "fields", [{}, {"name": "Dune"}, {"name": " Dune ", "author": "Frank Herbert", "release_year": 1965}], ids=str
)
async def test_an_update_that_changes_nothing_keeps_etag_and_update_time(
    clocked_stub: Stub, clock: HandClock, fields: dict[str, Any]
) -> None:
    made = await create(clocked_stub)
    clock.now += 1_000_000
    assert await update(clocked_stub, made.id, **fields) == made
    assert await get(clocked_stub, made.id) == made


async def test_a_change_sets_update_time_to_now_and_keeps_create_time(clocked_stub: Stub, clock: HandClock) -> None:
    made = await create(clocked_stub)
    clock.now += 5_000_001
    updated = await update(clocked_stub, made.id, name="Solaris")
    assert updated.update_time.ToMicroseconds() == clock.now
    assert updated.create_time == made.create_time


@pytest.mark.parametrize("step", [0, -3_600_000_000], ids=["stands still", "goes back an hour"])
async def test_update_time_and_etag_change_even_if_the_clock_does_not(
    clocked_stub: Stub, clock: HandClock, step: int
) -> None:
    states = [await create(clocked_stub)]
    for year in range(5):
        clock.now += step
        states.append(await update(clocked_stub, states[0].id, release_year=year))
    # Back to the first values, which is a new state.
    states.append(await update(clocked_stub, states[0].id, release_year=1965))
    times = [state.update_time.ToMicroseconds() for state in states]
    assert times == sorted(set(times))
    assert len({state.etag for state in states}) == len(states)


async def test_concurrent_updates_of_different_fields_are_all_stored(stub: Stub) -> None:
    for number in range(5):
        made = await create(stub)
        await asyncio.gather(
            update(stub, made.id, name=f"Solaris {number}"),
            update(stub, made.id, mask=["author"], author=f"Lem {number}"),
            update(stub, made.id, release_year=number),
        )
        assert values(await get(stub, made.id)) == (f"Solaris {number}", f"Lem {number}", number)


async def test_many_concurrent_updates_of_one_book_all_succeed(stub: Stub) -> None:
    made = await create(stub)
    responses = await asyncio.gather(*(update(stub, made.id, release_year=year) for year in range(40)))
    assert [response.release_year for response in responses] == list(range(40))
    assert len({response.etag for response in responses}) == 40
    last = max(responses, key=lambda response: response.update_time.ToMicroseconds())
    assert await get(stub, made.id) == last
