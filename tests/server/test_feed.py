"""What a serving process does for the feed of changes: old changes, metrics, and signals between workers."""

import asyncio
import re
import socket
import urllib.request
from collections.abc import AsyncIterator, Iterator
from pathlib import Path

import grpc
import pytest
from sqlalchemy import func, select

from bookstore_grpc.dal.books import BookDAL
from bookstore_grpc.dal.database import Database
from bookstore_grpc.dal.models import BookChange
from bookstore_grpc.dal.records import BookDraft
from bookstore_grpc.server import app
from bookstore_grpc.server.app import running_server
from bookstore_grpc.server.supervisor_channel import SupervisorChannel
from bookstore_grpc.server.worker_messages import ChangesCommitted, Heartbeat, decode
from tests.conftest import LogLines, settings_for
from tests.rpc.calls import Stub, book, create, create_all
from tests.rpc.obstacles import until
from tests.rpc.watches import next_changes, next_response, watching

_HOUR_SECONDS = 3_600
_NOW_SECONDS = 1_767_225_600


@pytest.fixture
def file_url(tmp_path: Path) -> str:
    return f"sqlite:///{tmp_path}/books.db"


@pytest.fixture
async def own_database(file_url: str) -> AsyncIterator[Database]:
    """The migrated database of `file_url`."""
    database = Database(file_url, pool_size=1, timeout_seconds=10)
    await database.migrate()
    yield database
    await database.close()


async def _create_at(database: Database, hours_ago: float) -> None:
    time = (_NOW_SECONDS - int(hours_ago * _HOUR_SECONDS)) * 1_000_000
    await BookDAL(database, clock=lambda: time).create_book(BookDraft("Dune", "Frank Herbert", 1965))


async def _metrics(log_lines: LogLines) -> str:
    """Return the metrics of the only server."""
    (address,) = [line["metrics"] for line in log_lines() if line["event"] == "serving"]

    def read() -> str:
        with urllib.request.urlopen(f"http://{address}/metrics", timeout=30) as response:
            return str(response.read().decode())

    return await asyncio.to_thread(read)


async def _value(log_lines: LogLines, name: str) -> float | None:
    """Return the value of the only sample of a metric."""
    found = re.findall(rf"^{re.escape(name)} (\S+)$", await _metrics(log_lines), re.MULTILINE)
    return float(found[0]) if found else None


async def test_changes_are_kept_for_the_configured_time_and_the_oldest_is_a_metric(
    own_database: Database, file_url: str, log_lines: LogLines, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(app, "_SAMPLE_SECONDS", 0.01)
    monkeypatch.setattr(app, "_CHANGES_CHECK_SECONDS", 0.02)
    for hours in (80, 50, 48.001, 47, 1):
        await _create_at(own_database, hours)
    now_seconds = _NOW_SECONDS
    settings = settings_for(file_url, changes_kept_hours=48.0, metrics_listen="127.0.0.1:0")
    async with running_server(settings, clock=lambda: now_seconds * 1_000_000):

        async def has_oldest(hours_ago: float) -> bool:
            oldest = await _value(log_lines, "bookstore_oldest_change_timestamp_seconds")
            return oldest == _NOW_SECONDS - hours_ago * _HOUR_SECONDS

        await until(lambda: has_oldest(47))
        assert [line["count"] for line in log_lines() if line["event"] == "old changes deleted"] == [3]
        now_seconds += 30 * _HOUR_SECONDS
        await until(lambda: has_oldest(1))
        now_seconds += 1_000 * _HOUR_SECONDS
        await asyncio.sleep(0.1)
        assert await has_oldest(1)  # the newest is always kept
    ((count,),) = await own_database.read(select(func.count(BookChange.number)))
    assert count == 1


async def test_without_changes_the_oldest_is_at_0(file_url: str, log_lines: LogLines) -> None:
    async with running_server(settings_for(file_url, metrics_listen="127.0.0.1:0")):
        assert await _value(log_lines, "bookstore_oldest_change_timestamp_seconds") == 0
        assert await _value(log_lines, "bookstore_watch_lag_changes") == 0


async def test_watches_are_counted_by_method_and_their_durations_are_not_in_the_histogram(
    file_url: str, log_lines: LogLines
) -> None:
    watchers = 'bookstore_watchers{method="/bookstore.v1.BookService/WatchBooks"}'
    ended = 'bookstore_calls_total{method="/bookstore.v1.BookService/WatchBooks",reason="",status="CANCELLED"}'
    async with (
        running_server(settings_for(file_url, metrics_listen="127.0.0.1:0")) as server,
        grpc.aio.insecure_channel(server.addresses[0]) as channel,
    ):
        async with watching(Stub(channel)) as first, watching(Stub(channel)) as second:
            await next_response(first)
            await next_response(second)
            assert await _value(log_lines, watchers) == 2
            await create(Stub(channel))
            await next_changes(first, 1)

        async def have_ended() -> bool:
            return await _value(log_lines, ended) == 2

        await until(have_ended)
        assert await _value(log_lines, watchers) == 0
        text = await _metrics(log_lines)
    durations = set(
        re.findall(r'^bookstore_call_duration_seconds_count{method="\S*/(\w+)"} ([1-9]\S*)', text, re.MULTILINE)
    )
    assert durations == {("CreateBook", "1.0")}


async def test_the_lag_of_the_slowest_watch_is_a_metric(
    file_url: str, log_lines: LogLines, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(app, "_SAMPLE_SECONDS", 0.01)
    async with (
        running_server(settings_for(file_url, metrics_listen="127.0.0.1:0")) as server,
        grpc.aio.insecure_channel(
            server.addresses[0], options=[("grpc.use_local_subchannel_pool", 1), ("grpc.http2.bdp_probe", 0)]
        ) as channel,
    ):
        stub = Stub(channel)
        async with watching(stub) as slow:
            await next_response(slow)

            async def has_lag() -> bool:
                await create_all(stub, [book("n" * 500, "a" * 1_000)] * 100)
                return bool(await _value(log_lines, "bookstore_watch_lag_changes"))

            await until(has_lag)  # once the windows of flow control are full

        async def has_none() -> bool:
            return await _value(log_lines, "bookstore_watch_lag_changes") == 0

        await until(has_none)


async def test_commits_in_quick_succession_are_signalled_at_once_and_then_together() -> None:
    times: list[float] = []
    loop = asyncio.get_running_loop()
    throttled = app._Throttled(lambda: times.append(loop.time()))
    throttled()
    assert len(times) == 1
    for _ in range(100):
        throttled()
    assert len(times) == 1

    async def has_second() -> bool:
        return len(times) == 2

    await until(has_second)
    assert times[1] - times[0] >= app._SIGNAL_SECONDS * 0.9
    await asyncio.sleep(3 * app._SIGNAL_SECONDS)
    assert len(times) == 2
    throttled()
    assert len(times) == 3


@pytest.fixture
def sockets() -> Iterator[tuple[socket.socket, socket.socket]]:
    """A supervisor's and a worker's end."""
    ours, theirs = socket.socketpair()
    with ours, theirs:
        theirs.setblocking(False)
        yield ours, theirs


def test_a_channel_reports_commits_of_other_workers_and_the_end(sockets: tuple[socket.socket, socket.socket]) -> None:
    supervisor, worker = sockets
    channel = SupervisorChannel(worker.fileno())
    reported = list[str]()
    channel.on_changes_committed = lambda: reported.append("changes")
    assert channel.receive()  # nothing
    assert reported == []
    supervisor.sendall(b'{"type": "ChangesCommitted"}\n' * 3)
    assert channel.receive()
    assert reported == ["changes"]
    supervisor.close()
    assert not channel.receive()
    assert reported == ["changes"]


def test_messages_to_a_supervisor_that_does_not_read_are_dropped(sockets: tuple[socket.socket, socket.socket]) -> None:
    supervisor, worker = sockets
    channel = SupervisorChannel(worker.fileno())
    channel.send(ChangesCommitted())
    for _ in range(20_000):
        channel.send(Heartbeat(""))  # does not block
    lines = supervisor.recv(100_000).split(b"\n")
    assert [decode(line) for line in lines[:2]] == [ChangesCommitted(), Heartbeat("")]
