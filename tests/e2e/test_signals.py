"""How a server stops: it finishes the calls under way, within its bounds."""

import asyncio
import os
import signal
import sqlite3
from collections.abc import AsyncIterator, Iterator
from contextlib import asynccontextmanager, closing, contextmanager
from pathlib import Path
from typing import Any

import grpc
import pytest
from bookstore.v1 import books_pb2, books_pb2_grpc
from sqlalchemy.engine import make_url

from tests.conftest import SERVERS
from tests.e2e.conftest import Start
from tests.executable import PATIENCE_SECONDS, Serving, run_bookstore, wait_until
from tests.rpc.health import Status, watch
from tests.rpc.obstacles import Network

pytestmark = pytest.mark.e2e

BOTH = pytest.mark.parametrize("number", [signal.SIGTERM, signal.SIGINT], ids=["SIGTERM", "SIGINT"])
REQUEST = books_pb2.CreateBookRequest(book=books_pb2.Book(name="N", author="A", release_year=1))


@contextmanager
def locked(path: Path) -> Iterator[sqlite3.Connection]:
    """Hold SQLite's lock for writing, so that a create takes until ROLLBACK."""
    with closing(sqlite3.connect(path, isolation_level=None, timeout=30)) as connection:
        connection.execute("BEGIN IMMEDIATE")
        yield connection


@asynccontextmanager
async def create_under_way(server: Serving) -> AsyncIterator["asyncio.Task[books_pb2.Book]"]:
    """Send a create, and run the block when the server has received it."""
    async with grpc.aio.insecure_channel(server.address) as channel:
        stub = books_pb2_grpc.BookServiceStub(channel)

        async def create() -> books_pb2.Book:
            return await stub.CreateBook(REQUEST, timeout=PATIENCE_SECONDS)

        await channel.channel_ready()
        task = asyncio.create_task(create())
        # These come after it on the same connection, so when they have returned the create has begun.
        for _ in range(3):
            await stub.ListBooks(books_pb2.ListBooksRequest(), timeout=PATIENCE_SECONDS)
        assert not task.done()
        yield task
        task.cancel()


async def ended(server: Serving) -> int:
    return await asyncio.to_thread(server.wait)


async def event_of(server: Serving, event: str) -> dict[str, Any]:
    return await asyncio.to_thread(server.wait_for_event, event)


@BOTH
def test_a_signal_stops_an_idle_server_with_status_0(start: Start, sqlite_url: str, number: signal.Signals) -> None:
    server = start(sqlite_url, "--drain-seconds", "7")

    server.process.send_signal(number)

    assert server.wait() == 0
    events = {line["event"]: line for line in server.log_lines()}
    assert list(events) == ["serving", "draining", "stopped"]
    assert events["draining"]["grace_seconds"] == 7


@pytest.mark.parametrize("worker_count", [1, 2])
def test_sighup_stops_nothing_and_is_logged(start: Start, sqlite_url: str, worker_count: int) -> None:
    server = start(sqlite_url, "--workers", str(worker_count), "--log-level", "debug")
    pids = {line["pid"] for line in server.log_lines() if line["event"] in ("serving", "worker serving")}
    assert len(pids) == (1 if worker_count == 1 else 3)

    for pid in pids:
        os.kill(pid, signal.SIGHUP)

    def ignored() -> int:
        return sum(line["event"].startswith("SIGHUP ignored: ") for line in server.log_lines())

    wait_until(lambda: ignored() == len(pids) or server.process.poll() is not None, "SIGHUP is logged")
    assert run_bookstore("health", "--server", server.address).output == "SERVING\n"
    assert server.stop() == 0
    assert "worker ended" not in server.log_text()


@BOTH
async def test_a_call_under_way_is_finished(
    start: Start, sqlite_url: str, sqlite_file: Path, number: signal.Signals
) -> None:
    server = start(sqlite_url, "--drain-seconds", "60", BOOKSTORE_DATABASE_TIMEOUT_SECONDS="60")
    with locked(sqlite_file) as lock:
        async with create_under_way(server) as create:
            server.process.send_signal(number)
            await event_of(server, "draining")
            assert server.process.poll() is None
            lock.execute("ROLLBACK")
            book = await create

        assert await ended(server) == 0
        assert lock.execute("SELECT id, name FROM books").fetchall() == [(book.id, "N")]
    assert server.log_lines()[-1]["event"] == "stopped"


async def test_a_draining_server_rejects_new_calls(start: Start, sqlite_url: str, sqlite_file: Path) -> None:
    server = start(sqlite_url, "--drain-seconds", "60", BOOKSTORE_DATABASE_TIMEOUT_SECONDS="60")
    with locked(sqlite_file) as lock:
        async with create_under_way(server) as create:
            server.process.send_signal(signal.SIGTERM)
            await event_of(server, "draining")

            async def is_rejected() -> bool:
                async with grpc.aio.insecure_channel(server.address) as channel:
                    try:
                        await books_pb2_grpc.BookServiceStub(channel).ListBooks(
                            books_pb2.ListBooksRequest(), timeout=PATIENCE_SECONDS
                        )
                    except grpc.aio.AioRpcError as error:
                        return error.code() is grpc.StatusCode.UNAVAILABLE
                    return False

            # Between the log's line and the closed port there is a moment.
            async with asyncio.timeout(PATIENCE_SECONDS):
                while not await is_rejected():
                    pass
            lock.execute("ROLLBACK")
            assert (await create).name == "N"
    assert await ended(server) == 0


async def test_the_drain_is_bounded(start: Start, sqlite_url: str, sqlite_file: Path) -> None:
    server = start(sqlite_url, "--drain-seconds", "0.5", BOOKSTORE_DATABASE_TIMEOUT_SECONDS="600")
    with locked(sqlite_file) as lock:
        async with create_under_way(server) as create:
            server.process.send_signal(signal.SIGTERM)
            with pytest.raises(grpc.aio.AioRpcError) as raised:
                await create
            # The lock is still held: what ends the server is the bound, not the call.
            await asyncio.to_thread(server.wait, 30)

        assert raised.value.code() is grpc.StatusCode.UNAVAILABLE
        assert lock.execute("SELECT count(*) FROM books").fetchone() == (0,)
    assert "drain timed out" in {line["event"] for line in server.log_lines()}


@BOTH
async def test_a_second_signal_ends_it_immediately(
    start: Start, sqlite_url: str, sqlite_file: Path, number: signal.Signals
) -> None:
    server = start(sqlite_url, "--drain-seconds", "600", BOOKSTORE_DATABASE_TIMEOUT_SECONDS="600")
    with locked(sqlite_file):
        async with create_under_way(server) as create:
            server.process.send_signal(number)
            await event_of(server, "draining")
            server.process.send_signal(number)
            status = await ended(server)
            with pytest.raises(grpc.aio.AioRpcError):
                await create

    assert status != 0
    assert "stopped" not in {line["event"] for line in server.log_lines()}


async def test_health_is_not_serving_while_calls_are_still_accepted(start: Start, sqlite_url: str) -> None:
    server = start(sqlite_url, "--drain-delay-seconds", "2")
    async with grpc.aio.insecure_channel(server.address) as channel:
        states = aiter(watch(channel, "bookstore.v1.BookService"))
        assert (await anext(states)).status == Status.SERVING
        server.process.send_signal(signal.SIGTERM)
        assert (await anext(states)).status == Status.NOT_SERVING
        await books_pb2_grpc.BookServiceStub(channel).CreateBook(REQUEST, timeout=PATIENCE_SECONDS)

    assert await ended(server) == 0


async def test_cancelled_calls_do_not_keep_it_from_stopping(start: Start, any_database_url: str) -> None:
    """A thread or a connection that a cancelled call has left would."""
    server = await asyncio.to_thread(start, any_database_url, "--migrate")
    async with grpc.aio.insecure_channel(server.address) as channel:
        stub = books_pb2_grpc.BookServiceStub(channel)
        for _ in range(10):
            calls = [asyncio.ensure_future(stub.CreateBook(REQUEST)) for _ in range(20)]
            calls += [asyncio.ensure_future(stub.GetBook(books_pb2.GetBookRequest(id=1))) for _ in range(20)]
            # When one has returned, the others are at all stages.
            await asyncio.wait(calls, return_when=asyncio.FIRST_COMPLETED)
            for call in calls:
                call.cancel()
            await asyncio.gather(*calls, return_exceptions=True)

    assert await asyncio.to_thread(server.stop) == 0
    assert server.log_lines()[-1]["event"] == "stopped"


@pytest.mark.parametrize("database_server_url", SERVERS, indirect=True)
async def test_an_unresponsive_database_neither_delays_the_stop_nor_fills_the_log(
    start: Start, database_server_url: str
) -> None:
    url = make_url(database_server_url)
    network = Network(
        url.host or "127.0.0.1", url.port or {"postgresql": 5432, "mariadb": 3306}[url.get_backend_name()]
    )
    await network.restore()
    through_network = url.set(host="127.0.0.1", port=network.port).render_as_string(hide_password=False)
    server = await asyncio.to_thread(start, through_network, "--migrate", "--drain-seconds", "1")
    async with grpc.aio.insecure_channel(server.address) as channel:
        stub = books_pb2_grpc.BookServiceStub(channel)
        await asyncio.gather(*(stub.ListBooks(books_pb2.ListBooksRequest(), timeout=30) for _ in range(5)))
        await stub.CreateBook(REQUEST, timeout=30)
    network.stall()
    try:
        server.process.send_signal(signal.SIGTERM)
        assert await ended(server) == 0
    finally:
        network.flow()
        await network.cut()
    assert [line["event"] for line in server.log_lines() if line["event"] != "call finished"] == [
        "serving",
        "draining",
        "stopped",
    ]
