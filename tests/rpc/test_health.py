import asyncio
import time
from collections.abc import AsyncIterator, Awaitable, Callable
from contextlib import AsyncExitStack, asynccontextmanager
from pathlib import Path
from typing import NamedTuple

import grpc
import pytest
from sqlalchemy.engine import make_url

from bookstore_grpc.dal.database import Database
from bookstore_grpc.server.app import running_server
from tests.conftest import SERVERS, settings_for
from tests.http2 import call_frames, opened
from tests.rpc.calls import Stub, books_of, create, get, list_page, rejection, update
from tests.rpc.health import Status, check, watch
from tests.rpc.obstacles import Network, locked_book

SERVICES = ["", "bookstore.v1.BookService"]
DEFAULT_PORTS = {"postgresql": 5432, "mariadb": 3306}


@pytest.mark.parametrize("service", SERVICES)
async def test_check_and_watch_say_serving(channel: grpc.aio.Channel, service: str) -> None:
    assert (await check(channel, service)).status == Status.SERVING
    call = watch(channel, service)
    assert (await anext(aiter(call))).status == Status.SERVING
    call.cancel()


async def test_check_of_an_unknown_service_is_not_found(channel: grpc.aio.Channel) -> None:
    with pytest.raises(grpc.aio.AioRpcError) as caught:
        await check(channel, "bookstore.v1.Nothing")
    assert caught.value.code() is grpc.StatusCode.NOT_FOUND


async def test_watch_of_an_unknown_service_reports_that_and_continues(channel: grpc.aio.Channel) -> None:
    call = watch(channel, "bookstore.v1.Nothing")
    assert (await anext(aiter(call))).status == Status.SERVICE_UNKNOWN
    assert not call.done()
    call.cancel()


class Outage(NamedTuple):
    """A way to a database that a test can take away and give back."""

    url: str
    begin: Callable[[], Awaitable[None]]
    end: Callable[[], Awaitable[None]]


@asynccontextmanager
async def file_that_moves(folder: Path) -> AsyncIterator[Outage]:
    here, there = folder / "bookstore.db", folder / "elsewhere.db"

    async def begin() -> None:
        here.rename(there)

    async def end() -> None:
        there.rename(here)

    yield Outage(f"sqlite+aiosqlite:///{here}", begin, end)


@asynccontextmanager
async def network_that_breaks(database_url: str) -> AsyncIterator[Outage]:
    url = make_url(database_url)
    network = Network(url.host or "127.0.0.1", url.port or DEFAULT_PORTS[url.get_backend_name()])
    await network.restore()
    broken = url.set(host="127.0.0.1", port=network.port)
    yield Outage(broken.render_as_string(hide_password=False), network.cut, network.restore)
    await network.cut()


@pytest.fixture
async def outage(database: Database, database_url: str, tmp_path: Path) -> AsyncIterator[Outage]:
    way = file_that_moves(tmp_path) if database.is_embedded else network_that_breaks(database_url)
    async with way as outage:
        yield outage


@pytest.fixture
async def breakable_channel(outage: Outage) -> AsyncIterator[grpc.aio.Channel]:
    settings = settings_for(outage.url, health_interval_seconds=0.1, database_timeout_seconds=2.0)
    async with (
        running_server(settings) as server,
        grpc.aio.insecure_channel(server.addresses[0]) as channel,
    ):
        yield channel


async def test_health_follows_the_database_without_a_restart(
    outage: Outage, breakable_channel: grpc.aio.Channel
) -> None:
    stub = Stub(breakable_channel)
    made = await create(stub)
    stream = aiter(watch(breakable_channel))
    seen = [(await anext(stream)).status]
    for _ in range(2):
        await outage.begin()
        seen.append((await anext(stream)).status)
        for service in SERVICES:
            assert (await check(breakable_channel, service)).status == Status.NOT_SERVING
        await outage.end()
        seen.append((await anext(stream)).status)
        for service in SERVICES:
            assert (await check(breakable_channel, service)).status == Status.SERVING
        assert await books_of(stub) == [made]
        made = await update(stub, made.id, release_year=made.release_year + 1)
    assert seen == [Status.SERVING, Status.NOT_SERVING, Status.SERVING, Status.NOT_SERVING, Status.SERVING]


# An open SQLite file can be used wherever it is moved.
@pytest.mark.parametrize("database_url", SERVERS, indirect=True)
async def test_calls_to_a_database_that_is_away_are_unavailable_and_may_be_repeated(
    outage: Outage, breakable_channel: grpc.aio.Channel
) -> None:
    stub = Stub(breakable_channel)
    made = await create(stub)
    await outage.begin()
    request_id = "6f1e4c2a-58b1-4d0b-9c57-0e1f2a3b4c5d"
    calls: list[Callable[[], Awaitable[object]]] = [
        lambda: get(stub, made.id),
        lambda: list_page(stub),
        lambda: update(stub, made.id, name="Dune Messiah"),
        lambda: create(stub, "Solaris", request_id=request_id),
    ]
    for _ in range(3):
        for call in calls:
            rejected = await rejection(call())
            assert (rejected.code, rejected.reason) == (
                grpc.StatusCode.UNAVAILABLE,
                "DATABASE_UNAVAILABLE",
            )
            assert rejected.retry_seconds
            assert "127.0.0.1" not in rejected.message
    await outage.end()
    assert await get(stub, made.id) == made
    assert (await create(stub, "Solaris", request_id=request_id)).name == "Solaris"
    assert len(await books_of(stub)) == 2


@pytest.mark.parametrize("database_url", ["sqlite"], indirect=True)
async def test_a_write_that_waits_too_long_for_sqlites_lock_is_unavailable(database_url: str, stub: Stub) -> None:
    made = await create(stub)
    settings = settings_for(database_url, database_timeout_seconds=0.2)
    async with (
        running_server(settings) as server,
        grpc.aio.insecure_channel(server.addresses[0]) as channel,
    ):
        impatient = Stub(channel)
        async with locked_book(database_url, made.id):
            rejected = await rejection(update(impatient, made.id, name="Dune Messiah"))
            assert (rejected.code, rejected.reason) == (grpc.StatusCode.UNAVAILABLE, "DATABASE_UNAVAILABLE")
            assert rejected.retry_seconds
            assert await get(impatient, made.id) == made
        assert (await update(impatient, made.id, name="Dune Messiah")).name == "Dune Messiah"


async def test_a_watcher_that_reads_nothing_holds_up_neither_the_others_nor_the_end(tmp_path: Path) -> None:
    async with file_that_moves(tmp_path) as outage:
        settings = settings_for(outage.url, health_interval_seconds=0.1)
        async with AsyncExitStack() as stack:
            server = await stack.enter_async_context(running_server(settings))
            deaf = stack.enter_context(opened(server.addresses[0], window_bytes=0))
            deaf.sendall(call_frames("/grpc.health.v1.Health/Watch", b"", stream=1))
            await asyncio.sleep(0.2)
            channel = await stack.enter_async_context(grpc.aio.insecure_channel(server.addresses[0]))
            statuses = aiter(watch(channel, ""))
            async with asyncio.timeout(10):
                assert (await anext(statuses)).status == Status.SERVING
                await outage.begin()
                assert (await anext(statuses)).status == Status.NOT_SERVING
                assert (await check(channel, "")).status == Status.NOT_SERVING
                assert server.why_not_ready
                await outage.end()
                assert (await anext(statuses)).status == Status.SERVING
            began = time.monotonic()
        assert time.monotonic() - began < 5
