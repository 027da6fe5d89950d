from datetime import UTC, datetime

import grpc
import pytest
from bookstore.v1 import books_pb2
from google.protobuf.timestamp_pb2 import Timestamp

from tests.rpc.calls import Stub, book, books_of, create, get, rejection
from tests.rpc.conftest import HandClock


async def test_a_created_book_has_the_values_that_were_sent(stub: Stub) -> None:
    made = await create(stub, "Candide", "Voltaire", 1759)
    assert (made.name, made.author, made.release_year) == ("Candide", "Voltaire", 1759)
    assert made.id > 0
    assert made.etag


async def test_create_returns_the_book_as_it_is_stored(stub: Stub) -> None:
    made = await create(stub)
    assert await get(stub, made.id) == made


async def test_equal_books_are_different_books(stub: Stub) -> None:
    first, second = await create(stub), await create(stub)
    assert first.id != second.id
    assert first.etag != second.etag


async def test_times_are_those_of_the_clock_to_the_microsecond(clocked_stub: Stub, clock: HandClock) -> None:
    clock.now = 1_700_000_000_123_456
    made = await create(clocked_stub)
    assert made.create_time.ToMicroseconds() == clock.now
    assert made.update_time == made.create_time
    assert made.create_time.nanos == 123_456_000
    assert await get(clocked_stub, made.id) == made


@pytest.mark.parametrize(
    "moment", [datetime(1969, 12, 31, 23, 59, 59, 999_999, UTC), datetime(9999, 12, 31, tzinfo=UTC)], ids=str
)
async def test_times_far_from_now_are_stored(clocked_stub: Stub, clock: HandClock, moment: datetime) -> None:
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


async def test_years_of_the_range_are_stored(stub: Stub) -> None:
    for year in (-5000, -1, 0, 1, 9999):
        made = await create(stub, release_year=year)
        assert made.HasField("release_year")
        stored = await get(stub, made.id)
        assert stored.HasField("release_year")
        assert stored.release_year == year


@pytest.mark.databases("sqlite")
async def test_years_out_of_range_or_absent_are_rejected(stub: Stub) -> None:
    for year in (-5001, 10_000, -(2**31), 2**31 - 1, None):
        rejected = await rejection(create(stub, release_year=year))
        assert (rejected.code, rejected.reason) == (grpc.StatusCode.INVALID_ARGUMENT, "INVALID_FIELD")
        assert list(rejected.violations) == ["book.release_year"]


async def test_all_violations_are_returned_at_once(stub: Stub) -> None:
    rejected = await rejection(create(stub, "", "\t", 10_000, request_id="none"))
    assert set(rejected.violations) == {"book.name", "book.author", "book.release_year", "request_id"}
    assert all(rejected.violations.values())
    assert await books_of(stub) == []


async def test_a_request_without_a_book_is_rejected(stub: Stub) -> None:
    rejected = await rejection(stub.CreateBook(books_pb2.CreateBookRequest()))
    assert rejected.reason == "INVALID_FIELD"
    assert list(rejected.violations) == ["book"]


async def test_unknown_fields_are_ignored(channel: grpc.aio.Channel) -> None:
    call: grpc.aio.UnaryUnaryMultiCallable[bytes, bytes] = channel.unary_unary("/bookstore.v1.BookService/CreateBook")
    request = books_pb2.CreateBookRequest(book=book()).SerializeToString()
    unknown_field_100 = b"\xa2\x06\x05later"
    assert books_pb2.Book.FromString(await call(request + unknown_field_100)).name == "Dune"
