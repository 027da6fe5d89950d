"""WatchBooks and ListBookChanges: what they return, and which requests are rejected."""

import asyncio
import time
from typing import Any

import grpc
import pytest
from bookstore.v1 import books_pb2
from google.protobuf.duration_pb2 import Duration

from bookstore_grpc.dal.books import BookDAL
from bookstore_grpc.dal.database import Database
from bookstore_grpc.dal.records import BookDraft
from bookstore_grpc.server.app import running_server
from tests.conftest import LogLines, settings_for
from tests.dal.change_logs import empty_log, log_creates
from tests.rpc.calls import Rejection, Stub, create, create_all, delete, rejection, update
from tests.rpc.conftest import HandClock
from tests.rpc.obstacles import until
from tests.rpc.test_drain import draining_server
from tests.rpc.watches import Start, Type, end_of, next_changes, next_response, watching

_SECOND = Duration(seconds=1)


async def _list(stub: Stub, **fields: Any) -> books_pb2.ListBookChangesResponse:
    return await stub.ListBookChanges(books_pb2.ListBookChangesRequest(**fields))


@pytest.fixture
async def log(database: Database) -> Database:
    """A database without changes."""
    await empty_log(database)
    return database


async def test_a_watch_sends_creates_updates_and_deletes_with_their_books(log: Database, stub: Stub) -> None:
    async with watching(stub) as call:
        first = await next_response(call)
        assert (list(first.changes), first.existing_sent, first.continues) == ([], True, False)
        created = await create(stub)
        updated = await update(stub, created.id, name="Dune Messiah")
        await delete(stub, created.id)
        changes = await next_changes(call, 3)
    expected = [
        (1, Type.CREATED, created, None),
        (2, Type.UPDATED, updated, created),
        (3, Type.DELETED, updated, None),
    ]
    assert [
        (each.number, each.type, each.book, each.previous_book if each.HasField("previous_book") else None)
        for each in changes
    ] == expected
    assert list((await _list(stub)).changes) == changes


async def test_a_change_has_the_time_of_its_commit_to_the_microsecond(
    log: Database, clocked_stub: Stub, clock: HandClock
) -> None:
    async with watching(clocked_stub) as call:
        await next_response(call)
        created = await create(clocked_stub)
        clock.now += 1_000_001
        await delete(clocked_stub, created.id)
        made, deleted = await next_changes(call, 2)
    assert made.change_time == created.create_time
    assert (deleted.change_time.seconds, deleted.change_time.nanos) == divmod(clock.now * 1_000, 1_000_000_000)


async def test_a_watch_of_existing_books_says_when_they_are_sent(log: Database, stub: Stub) -> None:
    created = [each for _ in range(2) for each in await create_all(stub, [_book(number) for number in range(300)])]
    async with watching(stub, start=Start.EXISTING) as call:
        begin, first, second = [await next_response(call) for _ in range(3)]
        assert (list(begin.changes), begin.existing_sent) == ([], False)
        assert [first.existing_sent, second.existing_sent] == [False, True]
        existing = [*first.changes, *second.changes]
        assert [each.book for each in existing] == created
        assert {each.type for each in existing} == {Type.EXISTING}
        assert not [each for each in existing if each.number or each.HasField("change_time")]
        await delete(stub, created[0].id)
        (change,) = await next_changes(call, 1)
    assert (change.type, change.number) == (Type.DELETED, 601)


def _book(number: int) -> books_pb2.Book:
    return books_pb2.Book(name=f"Book {number}", author="x", release_year=number)


async def test_the_changes_of_a_batch_are_in_one_response(log: Database, stub: Stub) -> None:
    async with watching(stub, filter="release_year < 990") as call:
        await next_response(call)
        await create_all(stub, [_book(number) for number in range(1_000)])
        response = await next_response(call)
    assert (len(response.changes), response.continues) == (990, False)


async def test_the_changes_of_a_long_batch_are_in_consecutive_responses_below_the_limit_of_clients(
    log: Database, stub: Stub
) -> None:
    longest = BookDraft("\U0001f4d6" * 500, "\U0001f4d6" * 1_000, 1)
    async with watching(stub) as call:
        await next_response(call)
        await BookDAL(log).create_books([longest] * 1_000)  # whose response would be longer
        responses = [await next_response(call)]
        while responses[-1].continues:
            responses.append(await next_response(call))
    assert len(responses) == 2
    assert sum(len(each.changes) for each in responses) == 1_000
    assert max(each.ByteSize() for each in responses) < 4 * 1024 * 1024


@pytest.mark.databases("sqlite")
async def test_a_watch_is_resumed_after_a_restart(log: Database, database_url: str, stub: Stub) -> None:
    async with watching(stub, start=Start.EXISTING) as call:
        token = (await next_response(call)).resume_token
    created = await create(stub)
    async with (
        running_server(settings_for(database_url)) as server,
        grpc.aio.insecure_channel(server.addresses[0]) as channel,
        watching(Stub(channel), resume_token=token) as call,
    ):
        await next_response(call)
        (change,) = await next_changes(call, 1)
        assert change.book == created
        # By a commit of another server too.
        await delete(stub, created.id)
        (change,) = await next_changes(call, 1)
        assert (change.type, change.book) == (Type.DELETED, created)


@pytest.mark.databases("sqlite")
async def test_a_silent_watch_sends_a_checkpoint_after_its_interval(log: Database, stub: Stub) -> None:
    async with watching(stub, checkpoint_interval=_SECOND) as call:
        first = await next_response(call)
        began = time.monotonic()
        second = await next_response(call)
        assert time.monotonic() - began > 0.9
    assert second == first


@pytest.mark.databases("sqlite")
async def test_a_list_of_changes_is_paged(log: Database, stub: Stub) -> None:
    created = await create_all(stub, [_book(number) for number in range(60)])
    first = await _list(stub)
    second = await _list(stub, page_token=first.next_page_token, page_size=3)
    third = await _list(stub, page_token=second.next_page_token, page_size=2_000)
    assert [len(page.changes) for page in (first, second, third)] == [50, 3, 7]
    assert [page.more_changes for page in (first, second, third)] == [True, True, False]
    assert [each.book for page in (first, second, third) for each in page.changes] == created
    assert not (await _list(stub, page_token=third.next_page_token)).changes
    matching = await _list(stub, filter="release_year > 57")
    assert [each.book for each in matching.changes] == created[58:]


async def _rejection_of_watch(stub: Stub, **fields: Any) -> Rejection:
    async with watching(stub, **fields) as call:
        return await end_of(call)


@pytest.mark.databases("sqlite")
async def test_all_invalid_fields_of_a_watch_are_listed(stub: Stub) -> None:
    rejected = await _rejection_of_watch(stub, start=99, checkpoint_interval=Duration(nanos=999_999_999))
    assert (rejected.code, rejected.reason) == (grpc.StatusCode.INVALID_ARGUMENT, "INVALID_FIELD")
    assert rejected.rules == {"start": "OUT_OF_RANGE", "checkpoint_interval": "OUT_OF_RANGE"}
    assert rejected.violations["start"] == "is 99, which is not a value of Start"
    assert "between 1 and 300" in rejected.violations["checkpoint_interval"]
    for interval in (Duration(seconds=300, nanos=1), Duration(seconds=-1), Duration()):
        rejected = await _rejection_of_watch(stub, checkpoint_interval=interval)
        assert rejected.rules == {"checkpoint_interval": "OUT_OF_RANGE"}


@pytest.mark.databases("sqlite")
async def test_an_invalid_filter_is_rejected_with_its_column(stub: Stub) -> None:
    for rejected in (
        await _rejection_of_watch(stub, filter="name = a pages = 3"),
        await rejection(_list(stub, filter="name = a pages = 3")),
    ):
        assert (rejected.code, rejected.reason) == (grpc.StatusCode.INVALID_ARGUMENT, "INVALID_FILTER")
        assert rejected.metadata["column"] == "10"


@pytest.mark.databases("sqlite")
async def test_an_invalid_token_is_rejected_by_the_name_of_its_field(log: Database, stub: Stub) -> None:
    for field, rejected in (
        ("resume_token", await _rejection_of_watch(stub, resume_token="x")),
        ("page_token", await rejection(_list(stub, page_token="x"))),
    ):
        assert (rejected.code, rejected.reason) == (grpc.StatusCode.INVALID_ARGUMENT, "INVALID_RESUME_TOKEN")
        assert rejected.rules == {field: "INVALID_TOKEN"}
    await log_creates(log, [1, 2, 3])
    lost = (await _list(stub)).next_page_token
    await empty_log(log)
    for field, rejected in (
        ("resume_token", await _rejection_of_watch(stub, resume_token=lost)),
        ("page_token", await rejection(_list(stub, page_token=lost))),
    ):
        assert rejected.reason == "INVALID_RESUME_TOKEN"
        assert "no longer has" in rejected.violations[field]


@pytest.mark.databases("sqlite")
async def test_an_expired_token_is_out_of_range(log: Database, stub: Stub) -> None:
    await log_creates(log, [1, 2, 3])
    token = (await _list(stub, page_size=1)).next_page_token
    await BookDAL(log).changes.trim(before=3)
    for rejected in (
        await _rejection_of_watch(stub, resume_token=token),
        await rejection(_list(stub, page_token=token)),
    ):
        assert (rejected.code, rejected.reason) == (grpc.StatusCode.OUT_OF_RANGE, "RESUME_TOKEN_EXPIRED")


@pytest.mark.databases("sqlite")
async def test_a_negative_page_size_is_rejected(stub: Stub) -> None:
    rejected = await rejection(_list(stub, page_size=-1))
    assert (rejected.reason, set(rejected.rules)) == ("INVALID_FIELD", {"page_size"})


@pytest.mark.databases("sqlite")
async def test_a_drain_ends_watches_which_continue_on_another_server(
    log: Database, database_url: str, stub: Stub
) -> None:
    async with draining_server(database_url, drain_seconds=60.0) as (server, channel):
        async with watching(Stub(channel), start=Start.EXISTING) as call:
            token = (await next_response(call)).resume_token
            await create(stub)
            server.begin_to_drain()
            ended = await end_of(call)
        assert (ended.code, ended.reason) == (grpc.StatusCode.UNAVAILABLE, "SERVER_DRAINING")
        assert ended.retry_seconds is not None
        async with asyncio.timeout(30):  # less than the grace period
            await server.stopped
    async with watching(stub, resume_token=token) as call:
        await next_response(call)
        await next_changes(call, 1)


@pytest.mark.databases("sqlite")
async def test_a_watch_is_never_slow_and_is_logged_once_it_has_ended(
    log: Database, database_url: str, log_lines: LogLines
) -> None:
    def lines() -> list[dict[str, Any]]:
        return [line for line in log_lines() if "duration_ms" in line and line["method"].endswith("WatchBooks")]

    async def is_logged() -> bool:
        return bool(lines())

    async with (
        running_server(settings_for(database_url, slow_call_seconds=0.001)) as server,
        grpc.aio.insecure_channel(server.addresses[0]) as channel,
    ):
        async with watching(Stub(channel)) as call:
            await next_response(call)
            await create(Stub(channel))
            await next_changes(call, 1)
            assert not lines()
        await until(is_logged)
    (line,) = lines()
    assert (line["event"], line["status"], line.get("slow")) == ("call cancelled", "CANCELLED", None)
    assert line["duration_ms"] > 1
    assert line["response_bytes"] > 100
