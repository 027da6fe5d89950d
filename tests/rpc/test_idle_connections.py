"""Connections to gRPC beyond the limit: idle ones are closed, and new ones are served."""

import asyncio
import re
import socket
import sqlite3
import subprocess
import sys
import time
from collections.abc import AsyncIterator
from contextlib import ExitStack, asynccontextmanager, closing, suppress
from pathlib import Path
from typing import Any

import grpc
import pytest
from bookstore.v1 import books_pb2
from grpc_health.v1 import health_pb2

from bookstore_grpc.rpc import idle_connections as crowding
from bookstore_grpc.rpc.server import Server
from bookstore_grpc.server import app
from bookstore_grpc.server import channel_args as options
from bookstore_grpc.server.app import running_server
from tests.certificates import Authority
from tests.conftest import LogLines, settings_for
from tests.gateway.client import ask
from tests.http2 import PREFACE, SETTINGS, frame
from tests.rpc.calls import Stub
from tests.rpc.obstacles import until

MOST = 12
SOON_SECONDS = 5
CHECK_SECONDS = 0.1
IDLE = PREFACE + frame(SETTINGS)
OWN = (("grpc.use_local_subchannel_pool", 1),)


@pytest.fixture(autouse=True)
def _frequent_checks(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(app, "CHECK_SECONDS", CHECK_SECONDS)
    monkeypatch.setattr(crowding, "_IDLE_LEAST_MS", 100)


@asynccontextmanager
async def crowded_server(folder: Path, **settings: object) -> AsyncIterator[Server]:
    url = f"sqlite+aiosqlite:///{folder}/bookstore.db"
    async with running_server(settings_for(url, max_connections=MOST, **settings)) as server:
        yield server


def hold(stack: ExitStack, address: str, data: bytes, count: int, source: str = "127.0.0.1") -> list[socket.socket]:
    host, _, port = address.rpartition(":")
    held = []
    for _ in range(count):
        held.append(stack.enter_context(socket.create_connection((host, int(port)), 10, (source, 0))))
        with suppress(OSError):
            held[-1].sendall(data)
    return held


async def seconds_until_served(address: str, credentials: grpc.ChannelCredentials | None = None) -> float:
    """Return how long a new connection and a call on it take."""
    began = time.monotonic()
    channel = (
        grpc.aio.secure_channel(address, credentials, options=OWN)
        if credentials
        else grpc.aio.insecure_channel(address, options=OWN)
    )
    async with channel:
        await Stub(channel).ListBooks(books_pb2.ListBooksRequest(), timeout=20, wait_for_ready=True)
    return time.monotonic() - began


def watch_health(channel: grpc.aio.Channel) -> Any:
    method = channel.unary_stream(
        "/grpc.health.v1.Health/Watch",
        request_serializer=health_pb2.HealthCheckRequest.SerializeToString,
        response_deserializer=health_pb2.HealthCheckResponse.FromString,
    )
    return method(health_pb2.HealthCheckRequest())


def are_closed(connections: list[socket.socket], *, within_seconds: float = 0.05) -> list[bool]:
    """Return for each whether the server has closed it, or closes it soon."""
    closed = []
    for connection in connections:
        connection.settimeout(within_seconds)
        try:
            while connection.recv(1_000):
                pass
            closed.append(True)
        except TimeoutError:
            closed.append(False)
        except ConnectionError:
            closed.append(True)
    return closed


@pytest.mark.parametrize("data", [b"", PREFACE[:5], IDLE], ids=["silent", "half a preface", "idle"])
async def test_a_new_connection_is_served_despite_more_idle_ones_than_allowed(tmp_path: Path, data: bytes) -> None:
    async with crowded_server(tmp_path) as server:
        with ExitStack() as stack:
            await asyncio.to_thread(hold, stack, server.addresses[0], data, 5 * MOST)
            assert await seconds_until_served(server.addresses[0]) < SOON_SECONDS


async def test_a_connection_in_an_endless_handshake_is_closed(tmp_path: Path) -> None:
    authority = Authority()
    cert, key = authority.server().write(tmp_path, "server")
    credentials = grpc.ssl_channel_credentials(authority.pem)
    async with crowded_server(tmp_path, tls_cert=cert, tls_key=key) as server:
        with ExitStack() as stack:
            await asyncio.to_thread(hold, stack, server.addresses[0], b"\x16\x03\x01", 5 * MOST)
            assert await seconds_until_served(server.addresses[0], credentials) < SOON_SECONDS


async def test_connections_beyond_the_limit_are_closed_at_once(tmp_path: Path) -> None:
    async with crowded_server(tmp_path) as server:
        with ExitStack() as stack:
            held = await asyncio.to_thread(hold, stack, server.addresses[0], b"", 2 * MOST)
            assert all(await asyncio.to_thread(are_closed, held[MOST:], within_seconds=10))


async def test_few_connections_may_be_idle(tmp_path: Path) -> None:
    async with crowded_server(tmp_path) as server:
        with ExitStack() as stack:
            held = await asyncio.to_thread(hold, stack, server.addresses[0], IDLE, MOST // 2)
            await asyncio.sleep(5 * CHECK_SECONDS)
            assert not any(await asyncio.to_thread(are_closed, held))


async def test_a_connection_with_a_call_under_way_is_closed_last(tmp_path: Path) -> None:
    async with crowded_server(tmp_path) as server:
        with ExitStack() as stack:
            async with grpc.aio.insecure_channel(server.addresses[0], options=OWN) as channel:
                watch = watch_health(channel)
                assert (await watch.read()).status == health_pb2.HealthCheckResponse.SERVING
                await asyncio.sleep(CHECK_SECONDS)  # idle for longest
                await asyncio.to_thread(hold, stack, server.addresses[0], IDLE, 2 * MOST)
                await asyncio.sleep(5 * CHECK_SECONDS)
                assert not watch.done()
                watch.cancel()


async def test_the_peer_with_the_most_connections_loses_one(tmp_path: Path) -> None:
    async with crowded_server(tmp_path) as server:
        with ExitStack() as stack:
            (patient,) = await asyncio.to_thread(hold, stack, server.addresses[0], IDLE, 1)
            await asyncio.sleep(CHECK_SECONDS)  # idle for longest
            await asyncio.to_thread(hold, stack, server.addresses[0], IDLE, 2 * MOST, source="127.0.0.2")
            await asyncio.sleep(5 * CHECK_SECONDS)
            assert await asyncio.to_thread(are_closed, [patient]) == [False]


async def test_closed_connections_are_in_the_log_and_the_metrics(tmp_path: Path, log_lines: LogLines) -> None:
    def closed_lines() -> list[dict[str, Any]]:
        return [line for line in log_lines() if line["event"] == "connections closed: limit reached"]

    async with crowded_server(tmp_path, metrics_listen="127.0.0.1:0") as server:
        with ExitStack() as stack:
            await asyncio.to_thread(hold, stack, server.addresses[0], IDLE, 2 * MOST)

            (serving,) = [line for line in log_lines() if line["event"] == "serving"]

            async def are_counted() -> bool:
                page = await ask(serving["metrics"], "GET", "/metrics")
                (count,) = re.findall(rb'bookstore_connections_closed_total{listener="grpc"} (\S+)', page.body)
                return float(count) >= 1

            await until(are_counted)
    assert [(line["listener"], line["max_connections"]) for line in closed_lines()] == [("grpc", MOST)]


async def test_a_connection_without_a_preface_is_closed(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(options, "_HANDSHAKE_SECONDS", 1)
    async with crowded_server(tmp_path) as server:
        with ExitStack() as stack:
            held = await asyncio.to_thread(hold, stack, server.addresses[0], b"", 2)

            async def all_are_closed() -> bool:
                return all(await asyncio.to_thread(are_closed, held))

            await until(all_are_closed)


async def test_a_connection_without_calls_is_closed_if_configured(tmp_path: Path) -> None:
    async with (
        crowded_server(tmp_path, max_connection_idle_seconds=0.5) as server,
        grpc.aio.insecure_channel(server.addresses[0], options=OWN) as channel,
    ):
        await Stub(channel).ListBooks(books_pb2.ListBooksRequest())
        async with asyncio.timeout(30):
            while (state := channel.get_state()) != grpc.ChannelConnectivity.IDLE:
                await channel.wait_for_state_change(state)
        await Stub(channel).ListBooks(books_pb2.ListBooksRequest())


OTHER_PROCESS = """
import sqlite3, sys
connection = sqlite3.connect(sys.argv[1], isolation_level=None, timeout=0)
try:
    connection.execute("BEGIN IMMEDIATE")
except sqlite3.OperationalError as error:
    print(error)
"""


def test_listing_connections_keeps_the_locks_that_sqlite_has_on_its_files(tmp_path: Path) -> None:
    """To close any descriptor of a file drops all the locks that the process has on it."""
    path = tmp_path / "bookstore.db"
    with (
        closing(sqlite3.connect(path, isolation_level=None)) as connection,
        closing(socket.create_server(("127.0.0.1", 0))) as listener,
    ):
        connection.execute("PRAGMA journal_mode = WAL")
        connection.execute("CREATE TABLE books (id)")
        connection.execute("BEGIN IMMEDIATE")
        connection.execute("INSERT INTO books VALUES (1)")
        port = listener.getsockname()[1]
        with closing(socket.create_connection(("127.0.0.1", port))), closing(listener.accept()[0]):
            (seen,) = crowding._connections({port})
        assert seen.local_port == port
        printed = subprocess.run(
            [sys.executable, "-c", OTHER_PROCESS, path], capture_output=True, text=True, check=True
        ).stdout
        assert printed == "database is locked\n"
        connection.execute("COMMIT")
