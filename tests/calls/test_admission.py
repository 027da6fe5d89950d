"""How many calls are taken in at once, and what becomes of those beyond that."""

import asyncio
import gc
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager

import grpc
import pytest
from bookstore.v1 import books_pb2
from bookstore.v1.books_pb2_grpc import add_BookServiceServicer_to_server

from bookstore_grpc.calls import admission
from bookstore_grpc.calls.admission import Admission
from bookstore_grpc.errors import ResourceExhausted
from tests.rpc.calls import Stub, check_health, get, rejection
from tests.rpc.obstacles import Waiting
from tests.rpc.servers import server_with

SERVING = b"\x08\x01"


@asynccontextmanager
async def serving(servicer: Waiting, *, most: int) -> AsyncIterator[tuple[Stub, grpc.aio.Channel]]:
    options = [("grpc.use_local_subchannel_pool", 1)]
    async with (
        server_with(servicer, max_concurrent_calls=most) as server,
        grpc.aio.insecure_channel(server.addresses[0], options=options) as channel,
    ):
        try:
            yield Stub(channel), channel
        finally:
            servicer.may_go_on.set()


async def held(servicer: Waiting, stub: Stub, count: int) -> "list[asyncio.Task[books_pb2.Book]]":
    """Have so many calls under way."""
    calls = [asyncio.create_task(get(stub, number)) for number in range(count)]
    for _ in calls:
        await servicer.begun.acquire()
    return calls


@pytest.fixture
def three_rejections(monkeypatch: pytest.MonkeyPatch) -> None:
    """Limit the budget of rejections to three."""
    monkeypatch.setattr(admission, "_REJECTIONS_BURST", 3)
    monkeypatch.setattr(admission, "_REJECTIONS_PER_SECOND", 0)


async def test_calls_beyond_the_limit_are_rejected_at_once_except_for_health() -> None:
    servicer = Waiting()
    async with serving(servicer, most=3) as (stub, channel):
        calls = await held(servicer, stub, 3)
        rejected = await rejection(get(stub, 4))
        assert (rejected.code, rejected.reason) == (grpc.StatusCode.RESOURCE_EXHAUSTED, "TOO_MANY_REQUESTS")
        assert rejected.metadata["limit"] == "concurrent_calls"
        assert rejected.retry_seconds
        assert await check_health(channel) == SERVING
        servicer.may_go_on.set()
        assert [book.id for book in await asyncio.gather(*calls)] == [0, 1, 2]
        assert (await get(stub, 5)).id == 5


@pytest.mark.usefixtures("three_rejections")
async def test_calls_without_rejection_budget_wait_until_there_is_room() -> None:
    servicer = Waiting()
    async with serving(servicer, most=2) as (stub, channel):
        calls = await held(servicer, stub, 2)
        for _ in range(3):
            assert (await rejection(get(stub, 4))).code is grpc.StatusCode.RESOURCE_EXHAUSTED
        # One that was requested from gRPC before is still handed over.
        waiting = [asyncio.create_task(get(stub, number)) for number in range(10)]
        await asyncio.wait(waiting, timeout=0.3)
        assert sum(not call.done() for call in waiting) >= 9
        assert await check_health(channel) == SERVING
        servicer.may_go_on.set()
        responses = await asyncio.gather(*calls, *waiting, return_exceptions=True)
        assert sum(isinstance(response, books_pb2.Book) for response in responses) >= 11


@pytest.mark.usefixtures("three_rejections")
async def test_servers_of_one_process_hold_back_only_their_own_calls() -> None:
    busy, idle = Waiting(), Waiting()
    idle.may_go_on.set()
    async with serving(busy, most=1) as (stub, _), serving(idle, most=1) as (other, _):
        await held(busy, stub, 1)
        for _ in range(3):
            await rejection(get(stub, 4))
        for number in range(20):
            assert (await get(other, number)).id == number


@pytest.mark.usefixtures("three_rejections")
async def test_a_server_that_holds_calls_back_drains_all_the_same() -> None:
    servicer = Waiting()
    async with (
        server_with(servicer, max_concurrent_calls=1) as server,
        grpc.aio.insecure_channel(server.addresses[0]) as channel,
    ):
        stub = Stub(channel)
        [call] = await held(servicer, stub, 1)
        for _ in range(3):
            await rejection(get(stub, 4))
        late = [asyncio.create_task(get(stub, 5)) for _ in range(3)]
        await asyncio.wait(late, timeout=0.2)
        draining = asyncio.create_task(server.drain(delay_seconds=0, grace_seconds=5))
        await asyncio.sleep(0.1)
        servicer.may_go_on.set()
        async with asyncio.timeout(4):
            await draining
        assert (await call).id == 0
        # gRPC itself turns away, when a server ends, what it has not handed over.
        for outcome in await asyncio.gather(*late, return_exceptions=True):
            assert isinstance(outcome, grpc.aio.AioRpcError | books_pb2.Book)


def test_the_rejection_budget_refills_over_time() -> None:
    now = 0.0
    calls = Admission(max_concurrent_calls=1, now=lambda: now)
    calls.enter()

    def rejected() -> int:
        count = 0
        while calls.may_receive():
            calls.enter()
            with pytest.raises(ResourceExhausted):
                calls.check_capacity()
            calls.leave()
            count += 1
        return count

    assert rejected() == 500
    now += 0.1
    assert rejected() == 50
    calls.leave()
    assert calls.may_receive()


def test_forced_rejections_do_not_overdraw_the_budget() -> None:
    now = 0.0
    calls = Admission(max_concurrent_calls=1, now=lambda: now)
    calls.enter()
    for _ in range(2_000):  # as over HTTP
        calls.enter()
        with pytest.raises(ResourceExhausted):
            calls.check_capacity()
        calls.leave()
    assert not calls.may_receive()
    now += 0.01
    assert calls.may_receive()


async def test_received_calls_can_be_asked_for_after_the_end_too() -> None:
    servicer = Waiting()
    servicer.may_go_on.set()
    others = [grpc.aio.server() for _ in range(120)]  # more than a page of channelz
    async with server_with(servicer, counts_received_calls=True) as server:
        async with grpc.aio.insecure_channel(server.addresses[0]) as channel:
            await get(Stub(channel), 1)
            assert await check_health(channel) == SERVING
        assert server.backlog() == 0
    for other in others:
        await other.start()  # or it would complain
        await other.stop(None)
    del server._server  # gRPC frees a server without references
    gc.collect()
    assert server.backlog() == 0


@pytest.mark.usefixtures("three_rejections")
async def test_other_servers_of_the_program_are_left_alone() -> None:
    busy, other = Waiting(), Waiting()
    other.may_go_on.set()
    async with serving(busy, most=1) as (stub, _):
        server = grpc.aio.server()
        add_BookServiceServicer_to_server(other, server)
        port = server.add_insecure_port("127.0.0.1:0")
        await server.start()
        try:
            await held(busy, stub, 1)
            for _ in range(3):
                await rejection(get(stub, 4))
            async with grpc.aio.insecure_channel(f"127.0.0.1:{port}") as channel:
                for number in range(20):
                    assert (await Stub(channel).GetBook(books_pb2.GetBookRequest(id=number), timeout=5)).id == number
        finally:
            await server.stop(None)
