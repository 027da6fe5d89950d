from datetime import UTC, datetime

import grpc
import pytest
from bookstore.v1 import books_pb2
from google.protobuf.timestamp_pb2 import Timestamp

from tests.rpc.calls import Stub, book, books_of, create, get, refusal
from tests.rpc.conftest import HandClock


async def test_a_created_book_holds_what_was_sent(stub: Stub) -> None:
    made = await create(stub, "Candide", "Voltaire", 1759)
    assert (made.name, made.author, made.release_year) == ("Candide", "Voltaire", 1759)
    assert made.id > 0
    assert made.etag


async def test_create_answers_the_book_as_it_is_then_stored(stub: Stub) -> None:
    made = await create(stub)
    assert await get(stub, made.id) == made


async def test_equal_books_are_different_books(stub: Stub) -> None:
    first, second = await create(stub), await create(stub)
    assert first.id != second.id
    assert first.etag != second.etag


async def test_times_are_the_clocks_to_the_microsecond(clocked_stub: Stub, clock: HandClock) -> None:
    clock.now = 1_700_000_000_123_456
    made = await create(clocked_stub)
    assert made.create_time.ToMicroseconds() == clock.now
    assert made.update_time == made.create_time
    assert made.create_time.nanos == 123_456_000
    assert await get(clocked_stub, made.id) == made


@pytest.mark.parametrize(
    "moment", [datetime(1969, 12, 31, 23, 59, 59, 999_999, UTC), datetime(9999, 12, 31, tzinfo=UTC)], ids=str
)
async def test_times_far_from_now_are_kept(clocked_stub: Stub, clock: HandClock, moment: datetime) -> None:
    expected = Timestamp()
    expected.FromDatetime(moment)
    clock.now = expected.ToMicroseconds()
    made = await create(clocked_stub)
    assert (await get(clocked_stub, made.id)).create_time == expected


async def test_output_only_fields_and_etag_of_the_request_are_ignored(stub: Stub) -> None:
    made = await create(
        stub, id=987_654_321, etag="mine", create_time=Timestamp(seconds=1), update_time=Timestamp(seconds=2)
    )
    assert made.id != 987_654_321
    assert made.etag != "mine"
    assert made.create_time.seconds > 2
    assert made.update_time == made.create_time


@pytest.mark.parametrize("year", [-5000, -1, 0, 1, 9999])
async def test_years_of_the_range_are_kept(stub: Stub, year: int) -> None:
    made = await create(stub, release_year=year)
    assert made.HasField("release_year")
    stored = await get(stub, made.id)
    assert stored.HasField("release_year")
    assert stored.release_year == year


@pytest.mark.parametrize("year", [-5001, 10_000, -(2**31), 2**31 - 1, None])
async def test_years_out_of_range_or_absent_are_refused(stub: Stub, year: int | None) -> None:
    refused = await refusal(create(stub, release_year=year))
    assert (refused.code, refused.reason) == (grpc.StatusCode.INVALID_ARGUMENT, "INVALID_FIELD")
    assert list(refused.violations) == ["book.release_year"]


async def test_every_violation_is_told_at_once(stub: Stub) -> None:
    refused = await refusal(create(stub, "", "\t", 10_000, request_id="none"))
    assert set(refused.violations) == {"book.name", "book.author", "book.release_year", "request_id"}
    assert all(refused.violations.values())
    assert await books_of(stub) == []


async def test_a_request_without_a_book_is_refused(stub: Stub) -> None:
    refused = await refusal(stub.CreateBook(books_pb2.CreateBookRequest()))
    assert refused.reason == "INVALID_FIELD"
    assert list(refused.violations) == ["book"]


async def test_fields_that_this_version_does_not_know_are_ignored(channel: grpc.aio.Channel) -> None:
    call: grpc.aio.UnaryUnaryMultiCallable[bytes, bytes] = channel.unary_unary("/bookstore.v1.BookService/CreateBook")
    request = books_pb2.CreateBookRequest(book=book()).SerializeToString()
    unknown_field_100 = b"\xa2\x06\x05later"
    assert books_pb2.Book.FromString(await call(request + unknown_field_100)).name == "Dune"
