"""Untrusted clients can use a connection only for a limited time, and cannot affect the responses of others."""

import asyncio
import json
import time
from collections.abc import AsyncIterator
from contextlib import suppress
from pathlib import Path

import pytest
from bookstore.v1 import books_pb2

from bookstore_grpc.compat import uvicorn as connections
from bookstore_grpc.service.servicer import BookServicer
from tests.certificates import Authority
from tests.conftest import LogLines
from tests.gateway.client import Wire, ask, head
from tests.gateway.servers import http_server, http_server_with

LARGE_BYTES = 8_000_000  # more than the buffers of a connection hold
GET = head("GET", "/v1/books/1")
BOOK = json.dumps({"name": "Smuggled", "author": "A", "releaseYear": 1}).encode()


class Shop(BookServicer):
    """Responds by the id: 0 with a large book, else with a small one; counts the calls."""

    def __init__(self) -> None:
        self.calls: list[str] = []
        self.may_go_on = asyncio.Event()
        self.may_go_on.set()

    async def GetBook(self, request: books_pb2.GetBookRequest, context: object) -> books_pb2.Book:  # noqa: N802
        self.calls.append(f"get {request.id}")
        await self.may_go_on.wait()
        return books_pb2.Book(id=request.id, name="N" * (1 if request.id else LARGE_BYTES))

    async def CreateBook(self, request: books_pb2.CreateBookRequest, context: object) -> books_pb2.Book:  # noqa: N802
        self.calls.append(f"create {request.book.name}")
        return books_pb2.Book(id=1, name=request.book.name)


@pytest.fixture(scope="module")
async def serving_shop() -> AsyncIterator[tuple[str, Shop]]:
    shop = Shop()
    async with http_server_with(shop) as server:
        yield server.http_address, shop


@pytest.fixture
def shop(serving_shop: tuple[str, Shop]) -> Shop:
    _, shop = serving_shop
    shop.calls.clear()
    shop.may_go_on.set()
    return shop


@pytest.fixture
def address(serving_shop: tuple[str, Shop]) -> str:
    address, _ = serving_shop
    return address


@pytest.fixture
def brief(monkeypatch: pytest.MonkeyPatch) -> None:
    """Shorten the timeouts of connections."""
    monkeypatch.setattr(connections, "_HEAD_SECONDS", 0.3)
    monkeypatch.setattr(connections, "_UNREAD_SECONDS", 0.3)


def resident_bytes() -> int:
    return int(Path("/proc/self/statm").read_text().split()[1]) * 4_096


def hangs_up(address: str, data: bytes, *, trickle: bytes = b"", responses: int = 0) -> float:
    """Send data, read so many responses, then trickle; return after how many seconds the server closes."""
    with Wire(address) as wire:
        wire.send(data)
        for _ in range(responses):
            wire.read_until(b"}")
        began = time.monotonic()
        wire.socket.settimeout(0.05)
        while time.monotonic() - began < 10:
            try:
                wire.send(trickle)
                if not wire.socket.recv(1_000):
                    break
            except TimeoutError:
                continue
            except ConnectionError:
                break
        return time.monotonic() - began


@pytest.mark.usefixtures("brief", "shop")
@pytest.mark.parametrize(
    ("data", "trickle", "responses"),
    [
        pytest.param(b"", b"", 0, id="silent"),
        pytest.param(b"", b"\r\n", 0, id="empty lines"),
        pytest.param(b"GET /v1/books/1 HTTP/1.1\r\n", b"x", 0, id="head that does not end"),
        pytest.param(GET, b"x", 1, id="second head that does not end"),
        pytest.param(GET + b"GET /v1/books", b"x", 1, id="second head, begun before the response to the first"),
    ],
)
async def test_a_connection_without_a_request_is_closed(
    address: str, data: bytes, trickle: bytes, responses: int, monkeypatch: pytest.MonkeyPatch
) -> None:
    seconds = await asyncio.to_thread(hangs_up, address, data, trickle=trickle, responses=responses)
    assert seconds < 3


async def test_a_silent_handshake_is_not_waited_for(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(connections, "_HEAD_SECONDS", 0.3)
    cert, key = Authority().server().write(tmp_path, "server")
    async with http_server(tmp_path, tls_cert=cert, tls_key=key) as server:
        assert await asyncio.to_thread(hangs_up, server.http_address, b"\x16\x03\x01") < 2


def endless(address: str, beginning: bytes, more: bytes, *, mebibytes: int = 64) -> tuple[bytes, int]:
    """Send without end. Return what came back, and how many bytes the server had taken by then."""
    block = more * (65_536 // len(more))
    taken = 0
    with Wire(address) as wire:
        try:
            wire.send(beginning)
            while taken < mebibytes * 1024 * 1024:
                wire.send(block)
                taken += len(block)
        except ConnectionError:
            pass
        return wire.read_to_end(5), taken


CHUNKED = head("POST", "/v1/books", content_type="application/json", transfer_encoding="chunked")


@pytest.mark.parametrize(
    ("beginning", "more", "status"),
    [
        pytest.param(b"", b"GET", b"400", id="verb"),
        pytest.param(b"GET /", b"x", b"431", id="path"),
        pytest.param(b"GET / HTTP/1.1\r\n", b"x: y\r\n", b"400", id="headers"),
        pytest.param(b"GET / HTTP/1.1\r\nx: ", b"x", b"431", id="header"),
        pytest.param(CHUNKED + b"0\r\n", b"x: y\r\n", b"400", id="trailers"),
        pytest.param(CHUNKED + b"0\r\nx: ", b"x", b"431", id="trailer"),
        pytest.param(CHUNKED + b"1;", b"x", b"431", id="extension of a chunk"),
    ],
)
async def test_what_does_not_end_is_cut(address: str, beginning: bytes, more: bytes, status: bytes) -> None:
    before = resident_bytes()
    response, taken = await asyncio.to_thread(endless, address, beginning, more)
    assert taken < 32 * 1024 * 1024  # what is on its way
    assert response == b"" or response.startswith(
        b"HTTP/1.1 " + status
    )  # it may be lost when the server closes the connection
    assert response.count(b"HTTP/1.1 ") <= 1
    assert resident_bytes() - before < 32 * 1024 * 1024
    assert (await ask(address, "GET", "/v1/books/1")).status == 200


async def test_a_long_head_within_the_bound_is_read(address: str) -> None:
    response = await ask(address, "GET", "/v1/books/1", x_long="x" * 60_000)
    assert response.status == 200


async def test_a_body_does_not_count_as_the_head_of_what_follows_it(address: str) -> None:
    def two() -> bytes:
        body = json.dumps({"name": "N" * 200_000}).encode()
        post = head("POST", "/v1/books", content_type="application/json", content_length=str(len(body)))
        with Wire(address) as wire:
            wire.send(post + body + GET[:20])
            first = wire.read_until(b"}")
            wire.send(GET[20:])
            return first + wire.read_until(b'"N"}')

    assert (await asyncio.to_thread(two)).count(b"HTTP/1.1 20") == 2


def unread(address: str, data: bytes, *, seconds: float) -> int:
    """Send requests and read nothing for a while; return how much there is to read then."""
    with Wire(address, receive_buffer_bytes=4_096) as wire:
        wire.send(data)
        time.sleep(seconds)
        return len(wire.read_to_end(10))


LARGE = head("GET", "/v1/books/0")


@pytest.mark.usefixtures("brief")
@pytest.mark.parametrize(
    "data",
    [
        pytest.param(LARGE, id="kept alive"),
        pytest.param(head("GET", "/v1/books/0", connection="close"), id="closed"),
        pytest.param(LARGE + LARGE, id="another waits"),
        pytest.param(LARGE + GET[:20], id="another has begun"),
    ],
)
async def test_a_response_that_is_not_read_is_dropped(
    address: str, data: bytes, monkeypatch: pytest.MonkeyPatch
) -> None:
    assert await asyncio.to_thread(unread, address, data, seconds=0.8) < LARGE_BYTES


def slowly(address: str) -> int:
    """Read a large response in two seconds, and return how much of it came."""
    received = 0
    with Wire(address, receive_buffer_bytes=65_536) as wire, suppress(ConnectionError):
        wire.send(LARGE)
        while received < LARGE_BYTES and (data := wire.socket.recv(100_000)):
            received += len(data)
            time.sleep(0.025)
    return received


async def test_a_response_that_is_read_slowly_is_sent_to_its_end(address: str, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(connections, "_UNREAD_SECONDS", 0.8)  # and little need be read in it, for a slow machine
    monkeypatch.setattr(connections, "_READ_MIN_BYTES", 100_000)
    monkeypatch.setattr(connections, "_HEAD_SECONDS", 0.5)
    assert await asyncio.to_thread(slowly, address) >= LARGE_BYTES


async def test_a_response_that_is_read_too_slowly_is_dropped(address: str, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(connections, "_UNREAD_SECONDS", 0.3)
    monkeypatch.setattr(connections, "_READ_MIN_BYTES", LARGE_BYTES // 2)
    assert await asyncio.to_thread(slowly, address) < LARGE_BYTES


async def test_pipelined_requests_are_served_in_their_order(address: str, shop: Shop) -> None:
    def pipeline() -> bytes:
        with Wire(address) as wire:
            wire.send(b"".join(head("GET", f"/v1/books/{number}") for number in range(1, 8)))
            return wire.read_until(b'"id":"7"')

    received = await asyncio.to_thread(pipeline)
    places = [received.index(f'"id":"{number}"'.encode()) for number in range(1, 8)]
    assert places == sorted(places)
    assert len(shop.calls) == 7


async def test_a_flood_of_pipelined_requests_is_not_kept(address: str, shop: Shop) -> None:
    shop.may_go_on.clear()

    def flood(wire: Wire) -> None:
        wire.send(head("GET", "/v1/books/1"))
        wire.send(b"GET /v1/books/2 HTTP/1.1\r\n\r\n" * 9_000)

    before = resident_bytes()
    wires = [Wire(address) for _ in range(8)]
    for wire in wires:
        await asyncio.to_thread(flood, wire)
    await asyncio.sleep(0.5)
    assert resident_bytes() - before < 32 * 1024 * 1024
    shop.may_go_on.set()
    for wire in wires:
        wire.socket.close()
    assert (await ask(address, "GET", "/v1/books/1")).status == 200


@pytest.mark.parametrize(
    "garbage",
    [
        b"garbage\r\n\r\n",
        b"\x16\x03\x01\x02\x00\x01\x00\x01\xfc\x03\x03" + bytes(200),  # a TLS handshake
        b"PRI * HTTP/2.0\r\n\r\nSM\r\n\r\n",
        b"GET /v1/books/1 HTTP/9.9\r\n\r\n",
        b"GET /v1/books/\x00 HTTP/1.1\r\n\r\n",
        b"GET /v1/books/\xff HTTP/1.1\r\nhost: localhost\r\n\r\n",
        b"CONNECT localhost:443 HTTP/1.1\r\n\r\n",
        b"GET /v1/books/1 HTTP/1.1\r\nx\x00y: z\r\n\r\n",
        b"GET /v1/books/1 HTTP/1.1\r\nx: y\x00z\r\n\r\n",
    ],
)
async def test_garbage_is_a_400_that_closes_the_connection(address: str, garbage: bytes, shop: Shop) -> None:
    def send() -> bytes:
        with Wire(address) as wire:
            wire.send(garbage)
            return wire.read_to_end(5)

    assert (await asyncio.to_thread(send)).startswith(b"HTTP/1.1 400 ")
    assert not shop.calls


@pytest.mark.parametrize("garbage", [b"garbage\r\n\r\n", b"GET / HTTP/1.1\r\nx: " + b"x" * 600_000], ids=["400", "431"])
async def test_garbage_after_a_request_does_not_change_its_response(address: str, garbage: bytes, shop: Shop) -> None:
    shop.may_go_on.clear()

    def send() -> bytes:
        with Wire(address) as wire:
            wire.send(GET)
            time.sleep(0.1)
            wire.send(garbage)
            time.sleep(0.1)
            loop.call_soon_threadsafe(shop.may_go_on.set)
            return wire.read_to_end(8)

    loop = asyncio.get_running_loop()
    received = await asyncio.to_thread(send)
    assert not received.startswith((b"HTTP/1.1 400", b"HTTP/1.1 431"))


def smuggled(**headers: str) -> bytes:
    inner = head("POST", "/v1/books", content_type="application/json", content_length=str(len(BOOK))) + BOOK
    return head("POST", "/v1/books", content_type="application/json", **headers) + b"0\r\n\r\n" + inner


LENGTH = str(len(smuggled()))  # of more than there is


@pytest.mark.parametrize(
    "data",
    [
        pytest.param(smuggled(content_length=LENGTH, transfer_encoding="chunked"), id="length and chunked"),
        pytest.param(smuggled(transfer_encoding="chunked", content_length="5"), id="chunked and length"),
        pytest.param(smuggled(content_length="5", Content_Length="6"), id="two lengths"),
        pytest.param(smuggled(content_length="5, 5"), id="list of lengths"),
        pytest.param(smuggled(content_length="+5"), id="signed length"),
        pytest.param(smuggled(content_length="-5"), id="negative length"),
        pytest.param(smuggled(content_length="0x5"), id="hexadecimal length"),
        pytest.param(smuggled(content_length="5 5"), id="length with a blank"),
        pytest.param(smuggled(content_length="9" * 40), id="length without end"),
        pytest.param(smuggled(transfer_encoding="chunked, identity"), id="chunked, then another"),
        pytest.param(smuggled(transfer_encoding="identity"), id="identity"),
        pytest.param(smuggled(transfer_encoding="xchunked"), id="almost chunked"),
        pytest.param(smuggled(transfer_encoding="chunked", Transfer_Encoding="identity"), id="two encodings"),
        pytest.param(smuggled(transfer_encoding="\x0bchunked"), id="hidden chunked"),
        pytest.param(smuggled(x="\r\n transfer-encoding: chunked", content_length=LENGTH), id="folded line"),
        pytest.param(
            smuggled().replace(b"\r\n\r\n", b"\r\nContent-Length : 5\r\n\r\n", 1), id="blank before the colon"
        ),
        pytest.param(smuggled(x="y\ncontent-length: 5"), id="bare line feed"),
        pytest.param(smuggled(x="y\rcontent-length: 5"), id="bare carriage return"),
        pytest.param(smuggled(transfer_encoding="chunked").replace(b"0\r\n", b"0x0\r\n", 1), id="hexadecimal chunk"),
        pytest.param(smuggled(transfer_encoding="chunked").replace(b"0\r\n", b"-1\r\n", 1), id="negative chunk"),
        pytest.param(smuggled(transfer_encoding="chunked").replace(b"0\r\n", b"0\n", 1), id="chunk with a line feed"),
        pytest.param(
            smuggled(transfer_encoding="chunked").replace(b"0\r\n", b"F" * 16 + b"\r\n", 1), id="chunk without end"
        ),
    ],
)
async def test_no_request_is_smuggled_in_the_body_of_another(address: str, data: bytes, shop: Shop) -> None:
    def send() -> bytes:
        with Wire(address) as wire:
            wire.send(data)
            wire.socket.shutdown(1)
            return wire.read_to_end(8)

    received = await asyncio.to_thread(send)
    assert received.count(b"HTTP/1.1 ") <= 1
    assert b" 20" not in received[:15]
    assert shop.calls == []


async def test_expect_100_continue_is_granted_only_if_the_body_is_accepted(address: str, shop: Shop) -> None:
    def expecting(verb: str, path: str, **headers: str) -> bytes:
        with Wire(address) as wire:
            wire.send(head(verb, path, expect="100-continue", **headers))
            received = wire.read_until(b"\r\n\r\n")
            if received.startswith(b"HTTP/1.1 100"):
                wire.send(BOOK)
                received += wire.read_until(b"}")
                return received
            return received + wire.read_to_end(5)

    length = str(len(BOOK))
    wanted = await asyncio.to_thread(
        expecting, "POST", "/v1/books", content_type="application/json", content_length=length
    )
    assert wanted.startswith(b"HTTP/1.1 100 Continue\r\n\r\nHTTP/1.1 201")
    for rejected in (
        {"path": "/v1/books", "content_type": "text/plain", "content_length": length},
        {"path": "/v1/nowhere", "content_type": "application/json", "content_length": length},
        {"path": "/v1/books", "content_type": "application/json", "content_length": "99999999"},
    ):
        received = await asyncio.to_thread(expecting, "POST", **rejected)
        assert received.startswith(b"HTTP/1.1 4")
        assert b"connection: close" in received
        assert b"100 Continue" not in received
    assert shop.calls == ["create Smuggled"]


UPGRADE = {"connection": "Upgrade, HTTP2-Settings", "sec_websocket_key": "x", "sec_websocket_version": "13"}


@pytest.mark.parametrize("protocol", ["websocket", "h2c", "TLS/1.0"])
async def test_a_wish_to_upgrade_is_passed_over(address: str, protocol: str, shop: Shop, log_lines: LogLines) -> None:
    def twice() -> bytes:
        with Wire(address) as wire:
            received = b""
            for _ in range(2):
                wire.send(head("GET", "/v1/books/1", upgrade=protocol, **UPGRADE))
                received += wire.read_until(b"}")
            return received

    assert (await asyncio.to_thread(twice)).count(b"HTTP/1.1 200 OK") == 2
    assert shop.calls == ["get 1", "get 1"]
    assert [line["event"] for line in log_lines()] == ["call finished"] * 2


@pytest.mark.parametrize(
    "length", [{"content_length": "200"}, {"transfer_encoding": "chunked"}], ids=["length", "chunked"]
)
async def test_the_body_of_an_upgrade_request_is_not_parsed_as_another_request(
    address: str, length: dict[str, str], shop: Shop
) -> None:
    def send() -> bytes:
        with Wire(address) as wire:
            wire.send(head("POST", "/v1/books", content_type="application/json", upgrade="h2c", **UPGRADE, **length))
            time.sleep(0.1)
            with suppress(ConnectionError):
                wire.send(smuggled(content_length="5"))
            return wire.read_to_end(5)

    received = await asyncio.to_thread(send)
    assert received.count(b"HTTP/1.1 ") <= 1
    assert shop.calls == []


async def test_untrusted_clients_cannot_write_lines_into_the_log(address: str, log_lines: LogLines) -> None:
    def rude() -> None:
        for data in (b"garbage\r\n\r\n", b"GET / HTTP/1.1\r\nx: " + b"x" * 200_000, b"\x16\x03\x01"):
            with Wire(address) as wire:
                wire.send(data)

    await asyncio.to_thread(rude)
    assert (await ask(address, "GET", "/v1/books/1")).status == 200
    assert [line["event"] for line in log_lines()] == ["call finished"]


@pytest.mark.parametrize("version", ["1.0", "1.1"])
async def test_http_1_0_is_served_and_the_connection_closed(address: str, version: str) -> None:
    def send() -> bytes:
        with Wire(address) as wire:
            wire.send(f"GET /v1/books/1 HTTP/{version}\r\nhost: localhost\r\nconnection: close\r\n\r\n".encode())
            return wire.read_to_end(5)

    received = await asyncio.to_thread(send)
    assert received.startswith(b"HTTP/1.1 200 OK\r\n")
    assert received.endswith(b'{"id":"1","name":"N"}')


async def test_a_disconnect_during_the_response_affects_no_other_call(
    address: str, shop: Shop, log_lines: LogLines
) -> None:
    def go() -> None:
        for _ in range(50):
            with Wire(address) as wire:
                wire.send(LARGE)

    await asyncio.to_thread(go)
    assert (await ask(address, "GET", "/v1/books/1")).status == 200
    assert "error" not in {line["level"] for line in log_lines()}
