"""Connections beyond the limit: idle ones are closed, and those with requests are served."""

import asyncio
import socket
import ssl
import time
from collections.abc import AsyncIterator, Iterator
from contextlib import ExitStack, asynccontextmanager, contextmanager
from pathlib import Path

import pytest
from bookstore.v1 import books_pb2

from bookstore_grpc.net.connection_limit import ConnectionLimit
from bookstore_grpc.server import connection_bounds
from bookstore_grpc.service.servicer import BookServicer
from tests.certificates import Authority
from tests.conftest import LogLines
from tests.gateway.client import ask, head
from tests.gateway.servers import http_server, http_server_with
from tests.rpc.obstacles import until

MOST = 8
MOST_OF_ONE = 6
GET = head("GET", "/v1/books/1")
POST = head("POST", "/v1/books", content_type="application/json", content_length="1000")


class Shop(BookServicer):
    """Responds when it may."""

    def __init__(self) -> None:
        self.calls = 0
        self.may_go_on = asyncio.Event()
        self.may_go_on.set()

    async def has_calls(self, count: int) -> None:
        async def has() -> bool:
            return self.calls == count

        await until(has)

    async def GetBook(self, request: books_pb2.GetBookRequest, context: object) -> books_pb2.Book:  # noqa: N802
        self.calls += 1
        await self.may_go_on.wait()
        return books_pb2.Book(id=request.id, name="N")


@asynccontextmanager
async def crowded_shop() -> AsyncIterator[tuple[str, Shop, ConnectionLimit]]:
    shop, limit = Shop(), ConnectionLimit(MOST, name="http")
    async with http_server_with(shop, limit=limit) as server:
        yield server.http_address, shop, limit


@contextmanager
def connected(address: str, data: bytes = b"", *, source: str = "127.0.0.1") -> Iterator[socket.socket]:
    host, _, port = address.rpartition(":")
    with socket.create_connection((host.strip("[]"), int(port)), 10, source_address=(source, 0)) as connection:
        connection.sendall(data)
        yield connection


def hold(address: str, data: bytes, count: int) -> ExitStack:
    with ExitStack() as stack:
        for _ in range(count):
            stack.enter_context(connected(address, data))
        return stack.pop_all()


def is_closed(connection: socket.socket) -> bool:
    connection.settimeout(5)
    try:
        return connection.recv(1_000) == b""
    except ConnectionError:
        return True


@pytest.mark.parametrize(
    "data",
    [
        pytest.param(b"", id="silent"),
        pytest.param(b"GET /v1", id="half a line"),
        pytest.param(GET[:-2], id="half a head"),
        pytest.param(GET, id="kept alive"),
        pytest.param(POST + b"{", id="half a body"),
    ],
)
async def test_a_request_is_served_despite_more_idle_connections_than_allowed(data: bytes) -> None:
    async with crowded_shop() as (address, _, limit):
        with await asyncio.to_thread(hold, address, data, 5 * MOST):
            for _ in range(3 * MOST):
                assert (await ask(address, "GET", "/v1/books/1")).status == 200
        assert limit.closed.count >= 4 * MOST


async def test_a_connection_that_sends_single_bytes_counts_as_idle() -> None:
    def trickle(address: str) -> bool:
        with connected(address, GET[:5]) as slow, hold(address, b"", MOST_OF_ONE - 1):
            for place in range(5, 10):
                slow.sendall(GET[place : place + 1])
                time.sleep(0.02)
            with connected(address):
                return is_closed(slow)

    async with crowded_shop() as (address, _, _):
        assert await asyncio.to_thread(trickle, address)


async def test_a_connection_that_is_being_served_is_not_closed() -> None:
    async with crowded_shop() as (address, shop, limit):
        shop.may_go_on.clear()
        with ExitStack() as stack:
            asking = []
            for number in range(MOST_OF_ONE):
                asking.append(stack.enter_context(connected(address, GET)))
                await shop.has_calls(number + 1)
            for _ in range(2 * MOST):
                with connected(address, GET) as excess:
                    assert await asyncio.to_thread(is_closed, excess)
            assert limit.closed.count == 2 * MOST
            shop.may_go_on.set()
            for connection in asking:
                assert (await asyncio.to_thread(connection.recv, 1_000)).startswith(b"HTTP/1.1 200")


async def test_one_address_leaves_room_for_others() -> None:
    async with crowded_shop() as (address, shop, _):
        shop.may_go_on.clear()
        with ExitStack() as stack:
            for number in range(MOST_OF_ONE):
                stack.enter_context(connected(address, GET, source="127.0.0.2"))
                await shop.has_calls(number + 1)
            excess = stack.enter_context(connected(address, GET, source="127.0.0.2"))
            assert await asyncio.to_thread(is_closed, excess)
            other = stack.enter_context(connected(address, GET))
            await shop.has_calls(MOST_OF_ONE + 1)
            shop.may_go_on.set()
            assert (await asyncio.to_thread(other.recv, 1_000)).startswith(b"HTTP/1.1 200")


async def test_the_address_with_most_that_wait_gives_way() -> None:
    async with crowded_shop() as (address, _, _):
        with ExitStack() as stack:
            patient = stack.enter_context(connected(address))  # has waited longest
            for number in range(3 * MOST):
                stack.enter_context(connected(address, source=f"127.0.0.{2 + number % 2}"))
            patient.sendall(GET)
            assert (await asyncio.to_thread(patient.recv, 1_000)).startswith(b"HTTP/1.1 200")


async def test_a_place_is_given_back_when_a_connection_ends() -> None:
    async with crowded_shop() as (address, _, limit):
        for _ in range(5 * MOST):
            assert (await ask(address, "GET", "/v1/books/1")).status == 200
            with connected(address, GET[:5]):
                pass
        await asyncio.sleep(0.05)
        closed = limit.closed.count
        with await asyncio.to_thread(hold, address, b"", MOST_OF_ONE):
            await asyncio.sleep(0.05)
        assert limit.closed.count == closed


async def test_handshakes_that_do_not_end_give_way(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(connection_bounds, "HTTP_CONNECTIONS_MAX", MOST)
    authority = Authority()
    cert, key = authority.server().write(tmp_path, "server")
    tls = ssl.create_default_context(cadata=authority.pem.decode())
    async with http_server(tmp_path, tls_cert=cert, tls_key=key) as server:
        for data in (b"", b"\x16\x03\x01"):
            with await asyncio.to_thread(hold, server.http_address, data, 5 * MOST):
                for _ in range(2 * MOST):
                    response = await ask(server.http_address, "GET", "/v1/books", tls=tls)
                    assert response.status == 200


async def test_the_log_tells_of_it_once(log_lines: LogLines) -> None:
    async with crowded_shop() as (address, _, _):
        with await asyncio.to_thread(hold, address, b"", 3 * MOST):
            await ask(address, "GET", "/v1/books/1")
    expected = [line for line in log_lines() if line["event"] == "connections closed: limit reached"]
    assert [(line["listener"], line["max_connections"]) for line in expected] == [("http", MOST)]


@pytest.mark.parametrize(
    ("one", "other", "are_one"),
    [
        ("192.0.2.1", "192.0.2.2", False),
        ("192.0.2.1", "::ffff:192.0.2.1", True),
        ("2001:db8::1", "2001:db8::ffff:2", True),
        ("2001:db8::1", "2001:db8:0:1::1", False),
        ("fe80::1%eth0", "fe80::2", True),
    ],
)
def test_an_address_of_ipv6_is_counted_with_its_network(one: str, other: str, are_one: bool) -> None:
    limit = ConnectionLimit(2, name="http")  # one for each address
    closed: list[str] = []

    def take(host: str) -> None:
        place = limit.admit(host)
        assert place
        place.close = lambda: closed.append(host)

    take(one)
    take(other)
    assert closed == ([one] if are_one else [])
