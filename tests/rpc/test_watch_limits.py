"""What bounds watches: their number, their callers' tokens and deadlines, and what a slow caller costs."""

import asyncio
import time
from collections.abc import AsyncIterator
from contextlib import AsyncExitStack, asynccontextmanager
from pathlib import Path
from typing import Any

import grpc
import pytest
from bookstore.v1 import books_pb2

from bookstore_grpc.calls.call import Call, Outcome
from bookstore_grpc.dal.books import BookDAL
from bookstore_grpc.dal.database import Database
from bookstore_grpc.dal.records import BookDraft
from bookstore_grpc.limits import PAGE_MAX_CODE_POINTS
from bookstore_grpc.rpc.server import Server
from bookstore_grpc.server.app import running_server
from bookstore_grpc.service.servicer import BookServicer
from tests.conftest import settings_for
from tests.dal.change_logs import empty_log
from tests.rpc.calls import Rejection, Stub, create, rejection
from tests.rpc.obstacles import Waiting, until
from tests.rpc.servers import server_with
from tests.rpc.watches import WAIT_SECONDS, Start, end_of, next_changes, next_response, watching
from tests.tokens import Issuer, bearer, token_settings

pytestmark = pytest.mark.databases("sqlite")

OWN_CONNECTION = (("grpc.use_local_subchannel_pool", 1),)


@asynccontextmanager
async def limited(database_url: str, **settings: Any) -> AsyncIterator[tuple[Server, Stub]]:
    async with (
        running_server(settings_for(database_url, **settings)) as server,
        grpc.aio.insecure_channel(server.addresses[0], options=OWN_CONNECTION) as channel,
    ):
        yield server, Stub(channel)


def _watches(server: Server) -> int:
    return server.pipeline._watch_limit.count


async def _start(stack: AsyncExitStack, stub: Stub, count: int, **fields: Any) -> None:
    """Start watches that last as long as the stack."""
    calls = [await stack.enter_async_context(watching(stub, **fields)) for _ in range(count)]
    for call in calls:
        await next_response(call)


async def _rejected(stub: Stub, **fields: Any) -> Rejection:
    async with watching(stub, **fields) as call:
        return await end_of(call)


def _assert_too_many(rejected: Rejection, limit: str) -> None:
    assert (rejected.code, rejected.reason) == (grpc.StatusCode.RESOURCE_EXHAUSTED, "TOO_MANY_REQUESTS")
    assert rejected.metadata == {"limit": limit}
    assert rejected.retry_seconds == 10


async def test_a_watch_that_its_caller_cancels_is_counted_no_longer(database: Database, database_url: str) -> None:
    async with limited(database_url) as (server, stub):
        async with AsyncExitStack() as stack:
            await _start(stack, stub, 3)
            assert _watches(server) == 3

        async def has_none() -> bool:
            return not _watches(server)

        await until(has_none)


async def test_a_watch_whose_caller_disconnects_is_counted_no_longer(database: Database, database_url: str) -> None:
    async with limited(database_url) as (server, _):
        async with grpc.aio.insecure_channel(server.addresses[0], options=OWN_CONNECTION) as channel:
            call = Stub(channel).WatchBooks(books_pb2.WatchBooksRequest())
            await next_response(call)
            assert _watches(server) == 1

        async def has_none() -> bool:
            return not _watches(server)

        await until(has_none)


async def test_watches_beyond_the_limit_of_the_process_are_rejected(database: Database, database_url: str) -> None:
    async with limited(database_url, max_watchers=2) as (server, stub):
        async with AsyncExitStack() as stack:
            await _start(stack, stub, 2)
            _assert_too_many(await _rejected(stub), "watchers")
            await create(stub)  # other calls are not
            assert _watches(server) == 2

        async def has_room() -> bool:
            return _watches(server) < 2

        await until(has_room)
        async with AsyncExitStack() as stack:
            await _start(stack, stub, 1)


async def test_watches_of_one_caller_are_limited_and_those_of_another_are_its_own(
    database: Database, database_url: str, tmp_path: Path
) -> None:
    issuer = Issuer()
    settings = token_settings(issuer.write_jwks(tmp_path / "jwks"))
    async with limited(database_url, max_watchers_per_caller=2, **settings) as (_, stub), AsyncExitStack() as stack:
        busy, other = (bearer(issuer.token(sub=name)) for name in ("busy", "other"))
        await _start(stack, stub, 2, metadata=busy)
        rejected = await _rejected(stub, metadata=busy)
        _assert_too_many(rejected, "watchers_per_caller")
        assert "has 2 watches" in rejected.message
        await _start(stack, stub, 2, metadata=other)


async def test_without_a_name_a_watcher_is_its_address(database: Database, database_url: str) -> None:
    async with limited(database_url, max_watchers_per_caller=1) as (server, stub), AsyncExitStack() as stack:
        await _start(stack, stub, 1)
        async with grpc.aio.insecure_channel(server.addresses[0], options=OWN_CONNECTION) as channel:  # another port
            _assert_too_many(await _rejected(Stub(channel)), "watchers_per_caller")


async def test_rejected_watches_are_not_counted(database: Database, database_url: str) -> None:
    async with limited(database_url) as (server, stub):
        for _ in range(3):
            assert (await _rejected(stub, resume_token="x")).reason == "INVALID_RESUME_TOKEN"
        assert _watches(server) == 0


async def test_watches_use_up_no_concurrent_calls(database: Database, database_url: str) -> None:
    async with limited(database_url, max_concurrent_calls=2) as (server, stub), AsyncExitStack() as stack:
        await _start(stack, stub, 80)
        assert _watches(server) == 80
        await asyncio.gather(*(create(stub) for _ in range(2)))


class _WaitingWithFeed(Waiting):
    """Calls that last, beside watches that work."""

    def __init__(self, books: BookDAL) -> None:
        super().__init__()
        self._books = books


async def test_concurrent_calls_keep_no_watch_out(database: Database) -> None:
    servicer = _WaitingWithFeed(BookDAL(database))
    async with (
        server_with(servicer, max_concurrent_calls=1) as server,
        grpc.aio.insecure_channel(server.addresses[0], options=OWN_CONNECTION) as channel,
    ):
        stub = Stub(channel)
        held = asyncio.ensure_future(stub.GetBook(books_pb2.GetBookRequest(id=1)))
        await servicer.begun.acquire()
        assert (await rejection(stub.ListBooks(books_pb2.ListBooksRequest()))).metadata["limit"] == "concurrent_calls"
        async with AsyncExitStack() as stack:
            await _start(stack, stub, 1)
        servicer.may_go_on.set()
        await held


async def test_a_watch_outlasts_the_time_limit_of_calls(database: Database, database_url: str) -> None:
    async with limited(database_url, max_call_seconds=0.2) as (_, stub), watching(stub) as call:
        began = time.monotonic()
        await next_response(call)
        while time.monotonic() < began + 0.5:
            await create(stub)
            await next_changes(call, 1)


async def test_a_watch_ends_at_its_caller_s_deadline(database: Database, database_url: str) -> None:
    async with limited(database_url, max_call_seconds=0.1) as (server, stub):
        began = time.monotonic()
        async with watching(stub, timeout=0.6) as call:
            await next_response(call)
            with pytest.raises(grpc.aio.AioRpcError) as caught:
                await call.read()
        assert caught.value.code() is grpc.StatusCode.DEADLINE_EXCEEDED
        assert time.monotonic() - began > 0.5

        async def has_none() -> bool:
            return not _watches(server)

        await until(has_none)


async def test_a_watch_ends_when_its_caller_s_token_expires(
    database: Database, database_url: str, tmp_path: Path
) -> None:
    issuer = Issuer()
    settings = token_settings(issuer.write_jwks(tmp_path / "jwks"))
    async with limited(database_url, **settings) as (server, stub):
        expires_at = int(time.time()) + 2
        lasting = bearer(issuer.token())
        async with (
            watching(stub, metadata=bearer(issuer.token(exp=expires_at))) as call,
            watching(stub, metadata=lasting) as other,
        ):
            token = (await next_response(call)).resume_token
            await next_response(other)
            ended = await end_of(call)
            assert (ended.code, ended.reason) == (grpc.StatusCode.UNAUTHENTICATED, "TOKEN_INVALID")
            assert "expired" in ended.message
            assert time.time() >= expires_at - 0.05
            assert _watches(server) == 1
            async with watching(stub, metadata=lasting, resume_token=token) as resumed:
                await next_response(resumed)


async def test_a_deadline_before_the_end_of_a_token_counts_as_one(
    database: Database, database_url: str, tmp_path: Path
) -> None:
    issuer = Issuer()
    settings = token_settings(issuer.write_jwks(tmp_path / "jwks"))
    async with (
        limited(database_url, **settings) as (_, stub),
        watching(stub, metadata=bearer(issuer.token(exp=int(time.time()) + 60)), timeout=1.5) as call,
    ):
        await next_response(call)
        with pytest.raises(grpc.aio.AioRpcError) as caught:
            await call.read()
    assert caught.value.code() is grpc.StatusCode.DEADLINE_EXCEEDED


async def test_the_feed_needs_the_scope_to_read(database: Database, database_url: str, tmp_path: Path) -> None:
    issuer = Issuer()
    settings = token_settings(issuer.write_jwks(tmp_path / "jwks"))
    async with limited(database_url, **settings) as (server, stub):
        writing, reading = (bearer(issuer.token(scope=scope)) for scope in ("books.write", "books.read"))
        for rejected in (
            await _rejected(stub, metadata=writing),
            await rejection(stub.ListBookChanges(books_pb2.ListBookChangesRequest(), metadata=writing)),
        ):
            assert (rejected.code, rejected.reason) == (grpc.StatusCode.PERMISSION_DENIED, "SCOPE_MISSING")
            assert rejected.metadata["scope"] == "books.read"
        assert (await _rejected(stub)).reason == "TOKEN_MISSING"
        assert _watches(server) == 0
        async with watching(stub, metadata=reading) as call:
            await next_response(call)
        await stub.ListBookChanges(books_pb2.ListBookChangesRequest(), metadata=reading)


class _LastCall:
    """Observes calls, and remembers the last that began."""

    def __init__(self) -> None:
        self.call: Call | None = None

    def call_began(self, call: Call) -> None:
        self.call = call

    def call_ended(self, call: Call, outcome: Outcome) -> None:
        pass


async def test_a_caller_that_does_not_read_makes_the_server_wait(database: Database) -> None:
    await empty_log(database)
    books = BookDAL(database)
    long = BookDraft("x" * 500, "x" * 1_000, 1)
    count = 10 * PAGE_MAX_CODE_POINTS // 1_500
    for first in range(0, count, 1_000):
        await books.create_books([long] * min(1_000, count - first))
    seen = _LastCall()
    options = [*OWN_CONNECTION, ("grpc.http2.bdp_probe", 0)]  # with the smallest window of flow control
    async with (
        server_with(BookServicer(books), observers=[seen]) as server,
        grpc.aio.insecure_channel(server.addresses[0], options=options) as channel,
        watching(Stub(channel), start=Start.EARLIEST) as call,
    ):
        await next_response(call)
        assert seen.call is not None
        sent = -1
        while sent != seen.call.response_bytes:  # until it has stopped
            sent = seen.call.response_bytes
            await asyncio.sleep(0.1)
        assert sent < 3 * PAGE_MAX_CODE_POINTS
        async with asyncio.timeout(WAIT_SECONDS):
            await next_changes(call, count)
