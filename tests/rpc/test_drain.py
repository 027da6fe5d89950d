import asyncio
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager
from typing import Any

import grpc
import pytest
from bookstore.v1 import books_pb2

from bookstore_grpc.dal.database import Database
from bookstore_grpc.rpc import held_responses
from bookstore_grpc.server.app import running_server
from tests.conftest import LogLines, settings_for
from tests.rpc.calls import Stub, create, get, rejection_from_error, update
from tests.rpc.health import Status, watch
from tests.rpc.obstacles import lock_request, locked_book, until

# Longer than a busy machine pauses between two calls of a test.
PATIENT_QUIET_SECONDS = 2.0


class DrainingServer:
    """A server of a test's own that begins to drain on request, while the test continues."""

    def __init__(self, database_url: str, **settings: Any) -> None:
        self._settings = settings_for(
            database_url, **{"health_interval_seconds": 3_600.0, "database_timeout_seconds": 30.0, **settings}
        )
        self._stop = asyncio.Event()
        self.address: asyncio.Future[str] = asyncio.get_running_loop().create_future()
        self.stopped = asyncio.create_task(self._run())

    def begin_to_drain(self) -> None:
        self._stop.set()

    async def _run(self) -> None:
        async with running_server(self._settings) as server:
            self.address.set_result(server.addresses[0])
            await self._stop.wait()


@asynccontextmanager
async def draining_server(database_url: str, **settings: Any) -> AsyncIterator[tuple[DrainingServer, grpc.aio.Channel]]:
    server = DrainingServer(database_url, **settings)
    # With quick reconnects the channel detects soonest that nothing listens any more.
    options = [("grpc.initial_reconnect_backoff_ms", 100), ("grpc.use_local_subchannel_pool", 1)]
    async with grpc.aio.insecure_channel(await server.address, options=options) as channel:
        try:
            yield server, channel
        finally:
            server.begin_to_drain()
            await server.stopped


async def rejects_calls(address: str) -> bool:
    """Return whether a call on a new connection fails with UNAVAILABLE."""
    async with grpc.aio.insecure_channel(address, options=[("grpc.use_local_subchannel_pool", 1)]) as channel:
        try:
            # A call that arrives at the very moment of the shutdown may get no response at all from gRPC.
            await Stub(channel).ListBooks(books_pb2.ListBooksRequest(), timeout=2)
        except grpc.aio.AioRpcError as error:
            return error.code() is grpc.StatusCode.UNAVAILABLE
    return False


async def test_a_call_under_way_finishes_while_new_ones_are_rejected(
    database: Database, database_url: str, stub: Stub
) -> None:
    made = await create(stub)
    async with draining_server(database_url, drain_seconds=60.0) as (server, channel):
        await get(Stub(channel), made.id)
        async with locked_book(database_url, made.id):
            with lock_request() as asked:
                call = asyncio.ensure_future(update(Stub(channel), made.id, name="Dune Messiah"))
                await asked.wait()
            server.begin_to_drain()
            address = await server.address
            await until(lambda: rejects_calls(address))
            with pytest.raises(grpc.aio.AioRpcError) as caught:
                await get(Stub(channel), made.id)
            assert caught.value.code() is grpc.StatusCode.UNAVAILABLE
            assert not call.done()
            assert not server.stopped.done()
        updated = await call
        await server.stopped
    assert updated.name == "Dune Messiah"
    assert await get(stub, made.id) == updated


async def call_on_and_on(stub: Stub, book_id: int, is_over: asyncio.Event, pause_seconds: float) -> int:
    """Update, miss and read a book in turn, twice at least, and count the rounds. Raises the first failure."""
    count = 0
    while not is_over.is_set() or count < 2:
        count += 1
        await update(stub, book_id, name=f"Dune {count}")
        with pytest.raises(grpc.aio.AioRpcError) as missed:
            await get(stub, 2**40)
        assert missed.value.code() is grpc.StatusCode.NOT_FOUND
        await get(stub, book_id)
        await asyncio.sleep(pause_seconds)
    return count


@pytest.mark.databases("sqlite")
@pytest.mark.parametrize("pause_seconds", [0, 0.01])
async def test_no_call_of_a_bare_stub_fails_when_one_of_two_servers_drains(
    database: Database, database_url: str, stub: Stub, pause_seconds: float
) -> None:
    made = [await create(stub, name=f"N{number}") for number in range(16)]
    first, second = DrainingServer(database_url), DrainingServer(database_url)
    target = f"ipv4:{await first.address},{await second.address}"
    is_over = asyncio.Event()
    # By its default policy a channel uses the first address that can be had.
    async with grpc.aio.insecure_channel(target, options=[("grpc.use_local_subchannel_pool", 1)]) as channel:
        callers = [call_on_and_on(Stub(channel), book.id, is_over, pause_seconds) for book in made]
        calls = asyncio.gather(*callers)
        await asyncio.sleep(0.3)
        first.begin_to_drain()
        await first.stopped
        await asyncio.sleep(0.1)
        is_over.set()
        assert min(await calls) >= 2
    second.begin_to_drain()
    await second.stopped


@pytest.mark.databases("sqlite")
async def test_no_concurrent_call_fails_when_one_of_two_servers_drains(
    database: Database, database_url: str, stub: Stub
) -> None:
    made = await create(stub)
    first, second = DrainingServer(database_url), DrainingServer(database_url)
    target = f"ipv4:{await first.address},{await second.address}"
    async with grpc.aio.insecure_channel(target, options=[("grpc.use_local_subchannel_pool", 1)]) as channel:
        calls = []
        for number in range(600):
            calls.append(asyncio.ensure_future(get(Stub(channel), made.id)))
            if number == 100:
                first.begin_to_drain()
            await asyncio.sleep(0.003)
        # While the responses are held the connection comes to have as many calls as it may.
        await asyncio.gather(*calls)
        await first.stopped
    second.begin_to_drain()
    await second.stopped


@pytest.mark.databases("sqlite")
async def test_the_time_that_a_response_is_held_does_not_count_towards_the_time_limit_of_a_call(
    database: Database, database_url: str, stub: Stub, log_lines: LogLines, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(held_responses, "_QUIET_SECONDS", PATIENT_QUIET_SECONDS)
    made = await create(stub)
    async with draining_server(database_url, max_call_seconds=0.5, slow_call_seconds=0.5) as (server, channel):
        await get(Stub(channel), made.id)
        server.begin_to_drain()
        calls = []
        for _ in range(30):  # which keeps the responses held for longer than that
            calls.append(asyncio.ensure_future(get(Stub(channel), made.id)))
            await asyncio.sleep(0.03)
        await asyncio.gather(*calls)
        await server.stopped
    lines = [line for line in log_lines() if line.get("method", "").endswith("GetBook")]
    assert len(lines) == 31
    assert not [line for line in lines if line.get("slow") or line["status"] != "OK"]


@pytest.mark.databases("sqlite")
async def test_a_call_cancelled_while_its_error_is_held_is_logged_once(
    database: Database, database_url: str, log_lines: LogLines
) -> None:
    def get_lines() -> list[dict[str, Any]]:
        return [line for line in log_lines() if line.get("method", "").endswith("GetBook")]

    async def has_ended() -> bool:
        return bool(get_lines())

    async with draining_server(database_url) as (server, channel):
        await create(Stub(channel))
        server.begin_to_drain()
        await asyncio.sleep(0)
        missed = Stub(channel).GetBook(books_pb2.GetBookRequest(id=2**40))
        await until(has_ended)
        missed.cancel()
        await server.stopped
    (line,) = get_lines()
    assert line["status"] == "NOT_FOUND"


@pytest.mark.databases("sqlite")
async def test_the_response_of_a_quick_call_is_not_held_past_its_deadline(
    database: Database, database_url: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(held_responses, "_QUIET_SECONDS", PATIENT_QUIET_SECONDS)
    async with draining_server(database_url) as (server, channel):
        await create(Stub(channel))
        server.begin_to_drain()
        await asyncio.sleep(0)
        calls = []
        for _ in range(50):  # which keeps the responses of others held for longer than these calls have
            calls.append(asyncio.ensure_future(Stub(channel).ListBooks(books_pb2.ListBooksRequest(), timeout=1.2)))
            await asyncio.sleep(0.03)
        await asyncio.gather(*calls)


async def test_the_drain_ends_after_its_grace_period_even_if_a_call_hangs(
    database: Database, database_url: str, stub: Stub
) -> None:
    made = await create(stub)
    async with (
        draining_server(database_url, drain_seconds=0.2, database_timeout_seconds=1.0) as (server, channel),
        locked_book(database_url, made.id),
    ):
        with lock_request() as asked:
            call = asyncio.ensure_future(update(Stub(channel), made.id, name="Dune Messiah"))
            await asked.wait()
        server.begin_to_drain()
        with pytest.raises(grpc.aio.AioRpcError) as caught:
            await call
        rejected = rejection_from_error(caught.value)
        # Not SERVER_DRAINING, which means that the call has not begun, and which clients retry at once.
        assert (rejected.code, rejected.reason) == (grpc.StatusCode.UNAVAILABLE, "CALL_INTERRUPTED")
        async with asyncio.timeout(25):  # less than the database would wait for the lock
            await server.stopped
    assert await get(stub, made.id) == made


@pytest.mark.databases("sqlite")
async def test_streams_that_arrive_with_the_drain_do_not_delay_it(database: Database, database_url: str) -> None:
    async with draining_server(database_url, drain_seconds=60.0) as (server, channel):
        await anext(aiter(watch(channel)))  # connected
        watches = [watch(channel) for _ in range(100)]
        server.begin_to_drain()
        async with asyncio.timeout(30):
            await server.stopped
        for each in watches:
            each.cancel()


@pytest.mark.databases("sqlite")
async def test_watches_end_and_do_not_delay_the_drain(database: Database, database_url: str) -> None:
    async with draining_server(database_url, drain_seconds=60.0) as (server, channel):
        services = ["", "bookstore.v1.BookService", "unknown"] * 5
        watches = [watch(channel, service) for service in services]
        streams = [aiter(each) for each in watches]
        first = [(await anext(stream)).status for stream in streams]
        assert first == [Status.SERVING, Status.SERVING, Status.SERVICE_UNKNOWN] * 5
        server.begin_to_drain()
        async with asyncio.timeout(30):
            await server.stopped
        for each, stream in zip(watches, streams, strict=True):
            # The status comes after the responses, of which NOT_SERVING may be one.
            with pytest.raises(grpc.aio.AioRpcError):
                async for _ in stream:
                    pass
            assert await each.code() is grpc.StatusCode.UNAVAILABLE


@pytest.mark.databases("sqlite")
async def test_during_the_drain_delay_health_is_not_serving_and_calls_are_served(
    database: Database, database_url: str
) -> None:
    async with draining_server(database_url, drain_seconds=60.0, drain_delay_seconds=1.0) as (server, channel):
        stream = aiter(watch(channel))
        assert (await anext(stream)).status == Status.SERVING
        server.begin_to_drain()
        assert (await anext(stream)).status == Status.NOT_SERVING
        made = await create(Stub(channel))
        assert not await rejects_calls(await server.address)
        await server.stopped
    assert made.id > 0


@pytest.mark.databases("sqlite")
async def test_a_server_can_listen_on_the_address_of_one_that_has_drained(
    database: Database, database_url: str
) -> None:
    async with draining_server(database_url) as (server, channel):
        made = await create(Stub(channel))
        address = await server.address
    async with draining_server(database_url, listen=(address,)) as (server, channel):
        assert await server.address == address
        assert await get(Stub(channel), made.id) == made
