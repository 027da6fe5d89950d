"""What is bounded: calls under way, their duration and rate, metadata, messages, the age of connections."""

import asyncio
import socket
import time
from collections import Counter
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager, suppress
from pathlib import Path
from typing import Any

import grpc
import pytest
from bookstore.v1 import books_pb2

from bookstore_grpc.calls.call import Call
from bookstore_grpc.calls.rate_limit import RateLimit
from bookstore_grpc.client import BookstoreClient
from bookstore_grpc.errors import ResourceExhausted
from bookstore_grpc.rpc.server import Server
from bookstore_grpc.server.app import running_server
from bookstore_grpc.server.channel_args import server_options
from bookstore_grpc.server.settings import Settings
from tests.calls.context import PlainContext
from tests.conftest import LogLines, settings_for
from tests.http2 import call_frames, opened
from tests.rpc.calls import Stub, check_health, create, get, rejection
from tests.rpc.obstacles import Waiting, locked_book
from tests.tokens import Issuer, bearer, token_settings

SERVING = b"\x08\x01"
REFLECTION = "/grpc.reflection.v1.ServerReflection/ServerReflectionInfo"
LIST_SERVICES = b"\x3a\x00"


@asynccontextmanager
async def limited(tmp_path: Path, **settings: Any) -> AsyncIterator[tuple[Server, Stub, grpc.aio.Channel]]:
    values = settings_for(f"sqlite+aiosqlite:///{tmp_path}/bookstore.db", **settings)
    options = [("grpc.use_local_subchannel_pool", 1)]
    async with (
        running_server(values) as server,
        grpc.aio.insecure_channel(server.addresses[0], options=options) as channel,
    ):
        yield server, Stub(channel), channel


async def test_no_call_takes_longer_than_the_server_allows_whatever_its_deadline(tmp_path: Path) -> None:
    url = f"sqlite+aiosqlite:///{tmp_path}/bookstore.db"
    async with limited(tmp_path, max_call_seconds=0.3, database_timeout_seconds=20.0) as (_, stub, _):
        made = await create(stub)
        update = books_pb2.UpdateBookRequest(book=books_pb2.Book(id=made.id, name="Other"))
        async with locked_book(url, made.id):
            for timeout in (None, 15):
                rejected = await rejection(stub.UpdateBook(update, timeout=timeout))
                assert (rejected.code, rejected.reason) == (grpc.StatusCode.DEADLINE_EXCEEDED, "DEADLINE_EXCEEDED")
                assert "0.3 s" in rejected.message
        assert await get(stub, made.id) == made


async def test_a_watch_on_health_may_last(tmp_path: Path) -> None:
    async with limited(tmp_path, max_call_seconds=0.2) as (_, _, channel):
        watch: grpc.aio.UnaryStreamMultiCallable[bytes, bytes] = channel.unary_stream("/grpc.health.v1.Health/Watch")
        call = watch(b"")
        assert await call.read() == SERVING
        with pytest.raises(TimeoutError):
            async with asyncio.timeout(0.6):
                await call.read()


async def test_a_stream_of_reflection_may_not(tmp_path: Path) -> None:
    async with limited(tmp_path, max_call_seconds=0.3) as (_, _, channel):
        ask: grpc.aio.StreamStreamMultiCallable[bytes, bytes] = channel.stream_stream(REFLECTION)
        call = ask()
        await call.write(LIST_SERVICES)
        assert await call.read()
        with pytest.raises(grpc.aio.AioRpcError) as caught:
            async with asyncio.timeout(10):
                await call.read()
        assert caught.value.code() is grpc.StatusCode.DEADLINE_EXCEEDED


async def test_a_caller_s_rate_is_bounded_and_another_s_is_its_own(tmp_path: Path) -> None:
    issuer = Issuer()
    settings = token_settings(issuer.write_jwks(tmp_path / "jwks"))
    async with limited(tmp_path, **settings, rate_limit_per_second=0.01, rate_limit_burst=3) as (_, stub, channel):
        busy, other = (bearer(issuer.token(sub=name)) for name in ("busy", "other"))
        for _ in range(3):
            await stub.ListBooks(books_pb2.ListBooksRequest(), metadata=busy)
        rejected = await rejection(stub.ListBooks(books_pb2.ListBooksRequest(), metadata=busy))
        assert (rejected.code, rejected.reason) == (grpc.StatusCode.RESOURCE_EXHAUSTED, "TOO_MANY_REQUESTS")
        assert rejected.metadata["limit"] == "rate"
        assert rejected.retry_seconds is not None
        assert rejected.retry_seconds > 90
        await stub.ListBooks(books_pb2.ListBooksRequest(), metadata=other)
        for _ in range(5):
            assert await check_health(channel) == SERVING


async def test_without_a_name_a_caller_is_its_address(tmp_path: Path) -> None:
    async with limited(tmp_path, rate_limit_per_second=0.01, rate_limit_burst=2) as (server, stub, _):
        for _ in range(2):
            await stub.ListBooks(books_pb2.ListBooksRequest())
        async with BookstoreClient(server.addresses[0]) as client:  # from another port
            with pytest.raises(ResourceExhausted) as caught:
                await client.list_page()
        assert caught.value.reason == "TOO_MANY_REQUESTS"


async def test_a_bucket_fills_with_time_and_not_beyond_its_rim() -> None:
    now = 0.0
    limit = RateLimit(per_second=2, burst=4, now=lambda: now)

    async def passed() -> int:
        count = 0
        with pytest.raises(ResourceExhausted) as caught:  # noqa: PT012  until it is raised
            while True:
                await limit(Call("/a/B", "r", (), PlainContext()))
                count += 1
        assert 0 < caught.value.retry_seconds <= 0.5
        return count

    assert await passed() == 4
    now = 1.0
    assert await passed() == 2
    now = 1_000.0
    assert await passed() == 4


async def test_metadata_beyond_the_limit_is_rejected_and_the_next_call_succeeds(tmp_path: Path) -> None:
    async with limited(tmp_path, max_metadata_bytes=4_096) as (_, stub, _):
        with pytest.raises(grpc.aio.AioRpcError) as caught:
            await stub.ListBooks(books_pb2.ListBooksRequest(), metadata=(("x", "y" * 5_000),))
        assert caught.value.code() is grpc.StatusCode.RESOURCE_EXHAUSTED
        await stub.ListBooks(books_pb2.ListBooksRequest(), metadata=(("x", "y" * 3_000),))


async def test_a_message_beyond_the_limit_is_rejected_and_logged_as_such(tmp_path: Path, log_lines: LogLines) -> None:
    async with limited(tmp_path, max_message_bytes=2_000) as (_, stub, _):
        rejected = await rejection(stub.ListBooks(books_pb2.ListBooksRequest(filter="x" * 3_000)))
        assert (rejected.code, rejected.reason) == (grpc.StatusCode.RESOURCE_EXHAUSTED, "REQUEST_TOO_LARGE")
        assert "2000 bytes" in rejected.message
    (line,) = [line for line in log_lines() if "method" in line]
    assert (line["status"], line["reason"]) == ("RESOURCE_EXHAUSTED", "REQUEST_TOO_LARGE")
    assert line["request_bytes"] > 3_000
    assert line["peer"].startswith("ipv4:127.0.0.1:")


async def test_a_message_far_beyond_the_limit_is_rejected_by_the_core_and_not_as_malformed(
    tmp_path: Path, log_lines: LogLines
) -> None:
    async with limited(tmp_path, max_message_bytes=2_000) as (_, stub, _):
        with pytest.raises(grpc.aio.AioRpcError) as caught:
            await stub.ListBooks(books_pb2.ListBooksRequest(filter="x" * 9_000_000))
        assert caught.value.code() is grpc.StatusCode.RESOURCE_EXHAUSTED
    (line,) = [line for line in log_lines() if "method" in line]
    assert (line["status"], line["peer"][:15]) == ("CANCELLED", "ipv4:127.0.0.1:")


async def test_no_more_calls_of_a_connection_are_under_way_than_may_be() -> None:
    async def probe() -> None:
        pass

    servicer = Waiting()
    options = server_options(Settings(max_calls_per_connection=2), shares_ports=False)
    server = Server(servicer, probe=probe, probe_writes=probe, probe_interval_seconds=3_600, options=options)
    await server.start(["127.0.0.1:0"])
    async with grpc.aio.insecure_channel(server.addresses[0]) as channel:
        calls = [asyncio.ensure_future(get(Stub(channel), number)) for number in range(5)]
        for _ in range(2):
            await servicer.begun.acquire()
        with pytest.raises(TimeoutError):
            async with asyncio.timeout(0.3):
                await servicer.begun.acquire()
        servicer.may_go_on.set()
        await asyncio.gather(*calls)  # the client has held the others back
    await server.drain(delay_seconds=0, grace_seconds=5)


async def test_connections_come_of_age_without_a_failed_call(tmp_path: Path) -> None:
    peers = set()

    class Seen(Waiting):
        async def GetBook(self, request: books_pb2.GetBookRequest, context: Any) -> books_pb2.Book:  # noqa: N802
            peers.add(context.peer())
            return books_pb2.Book(id=request.id)

    async def probe() -> None:
        pass

    options = [("grpc.max_connection_age_ms", 200), ("grpc.max_connection_age_grace_ms", 5_000)]
    server = Server(Seen(), probe=probe, probe_writes=probe, probe_interval_seconds=3_600, options=options)
    await server.start(["127.0.0.1:0"])
    async with grpc.aio.insecure_channel(server.addresses[0]) as channel:
        async with asyncio.timeout(30):
            while len(peers) < 3:
                await get(Stub(channel), 1)
    await server.drain(delay_seconds=0, grace_seconds=5)


UPLOAD = "/bookstore.v1.BookService/BatchCreateBooks"


def responses_to(connection: socket.socket, seconds: float) -> bytes:
    """What comes within a time."""
    connection.settimeout(0.1)
    received = b""
    give_up = time.monotonic() + seconds
    while time.monotonic() < give_up:
        with suppress(TimeoutError):
            received += connection.recv(65_536)
    return received


async def test_a_request_that_does_not_end_counts_as_a_call_and_ends_in_time(
    tmp_path: Path, log_lines: LogLines
) -> None:
    settings = {"max_call_seconds": 0.5, "max_concurrent_calls": 5}
    async with limited(tmp_path, **settings) as (server, stub, _):
        with opened(server.addresses[0]) as connection:
            for stream in range(1, 21, 2):
                connection.sendall(call_frames(UPLOAD, b"x" * 100, stream=stream, is_whole=False))
            await asyncio.to_thread(responses_to, connection, 1.5)
            assert (await create(stub)).id
    statuses = Counter(line["status"] for line in log_lines() if line.get("method") == UPLOAD)
    assert statuses == {"DEADLINE_EXCEEDED": 5, "RESOURCE_EXHAUSTED": 5}


async def test_an_unauthorized_call_is_rejected_before_its_request_is_read(tmp_path: Path, log_lines: LogLines) -> None:
    settings = token_settings(Issuer().write_jwks(tmp_path / "jwks"))
    async with limited(tmp_path, **settings) as (server, _, _):
        with opened(server.addresses[0]) as connection:
            connection.sendall(call_frames(UPLOAD, b"x" * 100, stream=1, is_whole=False))
            await asyncio.to_thread(responses_to, connection, 0.5)
    (line,) = [line for line in log_lines() if line.get("method") == UPLOAD]
    assert (line["status"], line["request_bytes"]) == ("UNAUTHENTICATED", 0)


async def test_a_request_without_a_message_is_rejected(tmp_path: Path) -> None:
    async with limited(tmp_path) as (_, _, channel):
        upload: grpc.aio.StreamUnaryMultiCallable[bytes, bytes] = channel.stream_unary(UPLOAD)
        with pytest.raises(grpc.aio.AioRpcError) as caught:
            await upload(iter(()), timeout=10)
    assert caught.value.code() is grpc.StatusCode.INVALID_ARGUMENT
    assert "not a valid message for" in (caught.value.details() or "")
