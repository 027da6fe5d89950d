import asyncio
from typing import Any

import grpc
import pytest
from bookstore.v1 import books_pb2
from google.protobuf.field_mask_pb2 import FieldMask

from tests.rpc.calls import Stub, create, get, refusal, update
from tests.rpc.conftest import HandClock

OTHER: dict[str, Any] = {"name": "Solaris", "author": "Stanisław Lem", "release_year": 1961}


def values(message: books_pb2.Book) -> tuple[str, str, int]:
    return message.name, message.author, message.release_year


@pytest.mark.parametrize(
    ("mask", "fields", "expected"),
    [
        # Without a mask: what is present.
        (None, {"name": "Solaris"}, ("Solaris", "Frank Herbert", 1965)),
        (None, {"author": "Lem"}, ("Dune", "Lem", 1965)),
        (None, {"release_year": 1961}, ("Dune", "Frank Herbert", 1961)),
        (None, {"release_year": 0}, ("Dune", "Frank Herbert", 0)),
        (None, {"release_year": -5000}, ("Dune", "Frank Herbert", -5000)),
        (None, OTHER, tuple(OTHER.values())),
        (None, {}, ("Dune", "Frank Herbert", 1965)),
        ([], {"name": "Solaris"}, ("Solaris", "Frank Herbert", 1965)),
        # With one: exactly the named.
        (["name"], OTHER, ("Solaris", "Frank Herbert", 1965)),
        (["author"], OTHER, ("Dune", "Stanisław Lem", 1965)),
        (["release_year"], OTHER, ("Dune", "Frank Herbert", 1961)),
        (["release_year", "name"], OTHER, ("Solaris", "Frank Herbert", 1961)),
        (["name", "name"], OTHER, ("Solaris", "Frank Herbert", 1965)),
        (["release_year"], {"release_year": 0}, ("Dune", "Frank Herbert", 0)),
        (["*"], OTHER, tuple(OTHER.values())),
        (["*", "name"], OTHER, tuple(OTHER.values())),
        # Output-only fields count for nothing.
        (["id"], OTHER, ("Dune", "Frank Herbert", 1965)),
        (["id", "etag", "create_time", "update_time"], OTHER, ("Dune", "Frank Herbert", 1965)),
        (["name", "etag", "update_time"], OTHER, ("Solaris", "Frank Herbert", 1965)),
        # Stored in its stored form.
        (None, {"name": "  E\u0301mile\n"}, ("Émile", "Frank Herbert", 1965)),
    ],
)
async def test_the_mask_or_else_presence_says_what_changes(
    stub: Stub, mask: list[str] | None, fields: dict[str, Any], expected: tuple[str, str, int]
) -> None:
    made = await create(stub)
    updated = await update(stub, made.id, mask=mask, **fields)
    assert values(updated) == expected
    assert updated.create_time == made.create_time
    assert await get(stub, made.id) == updated


@pytest.mark.parametrize(
    ("mask", "fields", "violated"),
    [
        (["title"], OTHER, ["update_mask"]),
        (["name", "book.name"], OTHER, ["update_mask"]),
        (["releaseYear"], OTHER, ["update_mask"]),
        (["Name"], OTHER, ["update_mask"]),
        ([""], OTHER, ["update_mask"]),
        (["name.x"], OTHER, ["update_mask"]),
        (["*", "publisher"], OTHER, ["update_mask"]),
        (["name, author"], OTHER, ["update_mask"]),
        # What is required cannot be cleared.
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
    ],
)
async def test_a_wrong_mask_or_value_changes_nothing(
    stub: Stub, mask: list[str] | None, fields: dict[str, Any], violated: list[str]
) -> None:
    made = await create(stub)
    refused = await refusal(update(stub, made.id, mask=mask, **fields))
    assert (refused.code, refused.reason) == (grpc.StatusCode.INVALID_ARGUMENT, "INVALID_FIELD")
    assert sorted(refused.violations) == sorted(violated)
    assert await get(stub, made.id) == made


async def test_values_outside_the_mask_are_not_judged(stub: Stub) -> None:
    made = await create(stub)
    updated = await update(stub, made.id, mask=["name"], name="Solaris", author="\0", release_year=99_999)
    assert values(updated) == ("Solaris", "Frank Herbert", 1965)


async def test_an_update_without_a_book_is_refused(stub: Stub) -> None:
    refused = await refusal(stub.UpdateBook(books_pb2.UpdateBookRequest(update_mask=FieldMask(paths=["*"]))))
    assert list(refused.violations) == ["book"]


async def test_an_update_without_an_id_is_refused_with_all_else_that_is_wrong(stub: Stub) -> None:
    for book_id in (0, -1):
        refused = await refusal(update(stub, book_id, release_year=10_000))
        assert set(refused.violations) == {"book.id", "book.release_year"}


async def test_a_missing_book_is_not_found_and_not_made(stub: Stub) -> None:
    refused = await refusal(update(stub, 2**63 - 1, **OTHER))
    assert (refused.code, refused.reason) == (grpc.StatusCode.NOT_FOUND, "BOOK_NOT_FOUND")
    assert refused.resources == [f"books/{2**63 - 1}"]
    assert (await refusal(get(stub, 2**63 - 1))).code is grpc.StatusCode.NOT_FOUND


async def test_the_current_etag_lets_the_update_through_and_changes_with_it(stub: Stub) -> None:
    made = await create(stub)
    updated = await update(stub, made.id, etag=made.etag, name="Solaris")
    assert updated.name == "Solaris"
    assert updated.etag != made.etag


@pytest.mark.parametrize("fields", [{"name": "Solaris"}, {"name": "Dune"}, {}], ids=str)
async def test_a_stale_etag_stops_the_update(stub: Stub, fields: dict[str, Any]) -> None:
    made = await create(stub)
    current = await update(stub, made.id, release_year=1966)
    refused = await refusal(update(stub, made.id, etag=made.etag, **fields))
    assert (refused.code, refused.reason) == (grpc.StatusCode.ABORTED, "ETAG_MISMATCH")
    assert await get(stub, made.id) == current


async def test_of_updates_that_race_with_one_etag_one_wins(stub: Stub) -> None:
    made = await create(stub)
    calls = [update(stub, made.id, etag=made.etag, release_year=year) for year in range(8)]
    answers = await asyncio.gather(*calls, return_exceptions=True)
    won = [answer for answer in answers if isinstance(answer, books_pb2.Book)]
    lost = [answer for answer in answers if isinstance(answer, grpc.aio.AioRpcError)]
    assert [error.code() for error in lost] == [grpc.StatusCode.ABORTED] * 7
    assert won == [await get(stub, made.id)]


@pytest.mark.parametrize(
    "fields", [{}, {"name": "Dune"}, {"name": " Dune ", "author": "Frank Herbert", "release_year": 1965}], ids=str
)
async def test_an_update_that_changes_nothing_leaves_etag_and_update_time(
    clocked_stub: Stub, clock: HandClock, fields: dict[str, Any]
) -> None:
    made = await create(clocked_stub)
    clock.now += 1_000_000
    assert await update(clocked_stub, made.id, **fields) == made
    assert await get(clocked_stub, made.id) == made


async def test_a_change_moves_update_time_to_now_and_leaves_create_time(clocked_stub: Stub, clock: HandClock) -> None:
    made = await create(clocked_stub)
    clock.now += 5_000_001
    updated = await update(clocked_stub, made.id, name="Solaris")
    assert updated.update_time.ToMicroseconds() == clock.now
    assert updated.create_time == made.create_time


@pytest.mark.parametrize("step", [0, -3_600_000_000], ids=["stands still", "goes back an hour"])
async def test_update_time_and_etag_move_though_the_clock_does_not(
    clocked_stub: Stub, clock: HandClock, step: int
) -> None:
    states = [await create(clocked_stub)]
    for year in range(5):
        clock.now += step
        states.append(await update(clocked_stub, states[0].id, release_year=year))
    # Back to the first values: another state all the same.
    states.append(await update(clocked_stub, states[0].id, release_year=1965))
    times = [state.update_time.ToMicroseconds() for state in states]
    assert times == sorted(set(times))
    assert len({state.etag for state in states}) == len(states)


async def test_updates_of_different_fields_at_the_same_time_all_survive(stub: Stub) -> None:
    for number in range(5):
        made = await create(stub)
        await asyncio.gather(
            update(stub, made.id, name=f"Solaris {number}"),
            update(stub, made.id, mask=["author"], author=f"Lem {number}"),
            update(stub, made.id, release_year=number),
        )
        assert values(await get(stub, made.id)) == (f"Solaris {number}", f"Lem {number}", number)


async def test_many_updates_of_one_book_at_the_same_time_are_all_answered(stub: Stub) -> None:
    made = await create(stub)
    answers = await asyncio.gather(*(update(stub, made.id, release_year=year) for year in range(40)))
    assert [answer.release_year for answer in answers] == list(range(40))
    assert len({answer.etag for answer in answers}) == 40
    last = max(answers, key=lambda answer: answer.update_time.ToMicroseconds())
    assert await get(stub, made.id) == last
