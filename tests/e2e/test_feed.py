"""The feed of changes of the installed command: clients of other makes, workers, restarts and settings."""

import asyncio
import json
import signal
import subprocess
import sys
import uuid
from collections.abc import Iterator
from contextlib import AsyncExitStack, contextmanager
from pathlib import Path
from typing import IO, Any

import grpc
import pytest
from bookstore.v1 import books_pb2

from tests import node
from tests.conftest import require
from tests.e2e.conftest import Start
from tests.e2e.test_workers import OWN_CONNECTION, TWO, each_worker
from tests.executable import GRPCURL, PATIENCE_SECONDS, Serving, run_bookstore
from tests.rpc.calls import Stub, create
from tests.rpc.watches import Start as WatchStart
from tests.rpc.watches import Type, end_of, next_changes, next_response, watching

pytestmark = pytest.mark.e2e


def _documents(output: IO[str]) -> Iterator[Any]:
    """Yield the JSON documents that a program prints, each as soon as its last line is there."""
    lines = ""
    for line in output:
        lines += line
        if line == "}\n":
            yield json.loads(lines)
            lines = ""


@contextmanager
def _grpcurl(server: Serving, request: dict[str, Any]) -> Iterator["subprocess.Popen[str]"]:
    """Watch with grpcurl."""
    require(GRPCURL.exists() and sys.platform == "linux", "grpcurl is not installed")
    command = [
        str(GRPCURL),
        "-plaintext",
        "-max-time",
        str(PATIENCE_SECONDS),
        "-d",
        json.dumps(request),
        server.address,
    ]
    with subprocess.Popen(
        [*command, "bookstore.v1.BookService/WatchBooks"], stdout=subprocess.PIPE, stderr=subprocess.PIPE, text=True
    ) as process:
        try:
            yield process
        finally:
            process.kill()


async def test_grpcurl_follows_the_feed_until_it_is_interrupted(shared_server: Serving) -> None:
    author = uuid.uuid4().hex
    async with grpc.aio.insecure_channel(shared_server.address) as channel:
        created = await create(Stub(channel), author=author)
        with _grpcurl(shared_server, {"start": "EARLIEST", "filter": f"author = {author}"}) as process:
            assert process.stdout is not None
            responses = _documents(process.stdout)
            first = await asyncio.to_thread(next, responses)
            assert set(first) == {"resume_token", "existing_sent"}
            (change,) = (await asyncio.to_thread(next, responses))["changes"]
            assert (change["type"], change["book"]["id"]) == ("CREATED", str(created.id))
            await create(Stub(channel), author=author, name="later")
            (change,) = (await asyncio.to_thread(next, responses))["changes"]
            assert (change["type"], change["book"]["name"]) == ("CREATED", "later")
            process.send_signal(signal.SIGINT)
            assert await asyncio.to_thread(process.wait, PATIENCE_SECONDS) != 0
        await create(Stub(channel), author=author)  # the server serves on


@pytest.mark.thorough
@pytest.mark.timeout(300)
async def test_node_follows_the_feed_and_resumes(shared_server: Serving, node_folder: Path) -> None:
    author = uuid.uuid4().hex
    command = node.command("follow.js", shared_server.address, author)
    result = json.loads(await asyncio.to_thread(node.succeed, *command, cwd=node_folder))
    changes = result["first"]["changes"]
    assert [change["type"] for change in changes] == ["CREATED", "UPDATED", "DELETED"]
    assert [change["book"]["name"] for change in changes] == ["N", "M", "M"]
    assert changes[1]["previous_book"]["name"] == "N"
    assert result["resumed"]["changes"] == changes
    assert {result["first"]["ended"], result["resumed"]["ended"]} == {"CANCELLED"}


async def test_a_commit_of_one_worker_is_seen_by_the_watchers_of_the_other(start: Start, sqlite_url: str) -> None:
    server = await asyncio.to_thread(start, sqlite_url, *TWO)
    async with each_worker(server) as stubs:
        for writing, reading in ((0, 1), (1, 0)):
            async with watching(stubs[reading]) as call:
                token = (await next_response(call)).resume_token
                created = await create(stubs[writing])
                (change,) = await next_changes(call, 1)
                assert (change.type, change.book) == (Type.CREATED, created)
            async with watching(stubs[writing], resume_token=token) as call:
                await next_response(call)
                assert await next_changes(call, 1) == [change]
    assert await asyncio.to_thread(server.stop) == 0


async def test_a_watch_is_resumed_after_a_restart(start: Start, sqlite_url: str) -> None:
    server = await asyncio.to_thread(start, sqlite_url)
    options = [*OWN_CONNECTION, ("grpc.initial_reconnect_backoff_ms", 100), ("grpc.max_reconnect_backoff_ms", 100)]
    async with AsyncExitStack() as stack:
        channel = await stack.enter_async_context(grpc.aio.insecure_channel(server.address, options=options))
        stub = Stub(channel)
        created = await create(stub)
        async with watching(stub, start=WatchStart.EXISTING) as call:
            await next_response(call)  # it comes at once, before the books
            first = await next_response(call)
            assert [each.book for each in first.changes] == [created]
            server.process.send_signal(signal.SIGTERM)
            assert (await end_of(call)).reason == "SERVER_DRAINING"
        assert await asyncio.to_thread(server.wait) == 0
        server = await asyncio.to_thread(start, sqlite_url, "--listen", server.address)
        await stub.DeleteBook(books_pb2.DeleteBookRequest(id=created.id), wait_for_ready=True, timeout=PATIENCE_SECONDS)
        async with watching(stub, resume_token=first.resume_token) as call:
            await next_response(call)
            (change,) = await next_changes(call, 1)
            assert (change.type, change.book) == (Type.DELETED, created)


async def test_a_killed_server_s_watch_is_resumed(start: Start, sqlite_url: str) -> None:
    server = await asyncio.to_thread(start, sqlite_url)
    async with (
        grpc.aio.insecure_channel(server.address, options=OWN_CONNECTION) as channel,
        watching(Stub(channel)) as call,
    ):
        token = (await next_response(call)).resume_token
        created = await create(Stub(channel))
        server.process.kill()
        assert await call.code() is grpc.StatusCode.UNAVAILABLE
    successor = await asyncio.to_thread(start, sqlite_url)
    async with (
        grpc.aio.insecure_channel(successor.address, options=OWN_CONNECTION) as channel,
        watching(Stub(channel), resume_token=token) as call,
    ):
        await next_response(call)
        assert [each.book for each in await next_changes(call, 1)] == [created]


def test_watchers_are_limited_as_configured(start: Start, sqlite_url: str) -> None:
    server = start(sqlite_url, "--max-watchers", "1")
    with _grpcurl(server, {}) as first:
        assert first.stdout is not None
        next(_documents(first.stdout))
        with _grpcurl(server, {}) as second:
            _, errors = second.communicate(timeout=PATIENCE_SECONDS)
    assert "ResourceExhausted" in errors
    assert "too many watchers" in errors


@pytest.mark.parametrize(
    ("flag", "value", "bounds"),
    [
        ("--max-watchers", "0", "1<=x<=2147483647"),
        ("--max-watchers-per-caller", "0", "1<=x<=2147483647"),
        ("--changes-kept-hours", "0.9", "1<=x<=8784"),
        ("--changes-kept-hours", "8785", "1<=x<=8784"),
    ],
)
def test_limits_of_the_feed_are_verified(flag: str, value: str, bounds: str) -> None:
    finished = run_bookstore("serve", flag, value)
    assert finished.status != 0
    assert f"Invalid value for '{flag}'" in finished.errors
    assert bounds in finished.errors
