"""A primary that is read-only, moves or dies: writes return without a restart, and none is lost or stored twice."""

import asyncio
import statistics
import time
from collections.abc import Iterator
from contextlib import nullcontext

import grpc
import pytest
from bookstore.v1 import books_pb2, books_pb2_grpc

from bookstore_grpc.dal.database import Database
from bookstore_grpc.dal.driver_errors import ReadOnly
from tests.e2e.conftest import Start
from tests.executable import wait_until
from tests.faults.conftest import Figures
from tests.faults.load import Tally, figures_of_load, load, read_at_once, until_acknowledged
from tests.faults.replication import ReplicatedDatabase, replicated_database
from tests.faults.test_database_away import SERVING_SECONDS, Status, events, until_health_is
from tests.metrics import ask, number

pytestmark = pytest.mark.e2e

# The guarantee, counted from when new connections lead to a server that takes writes.
WRITES_RETURN_SECONDS = 5.0
# All connections to the former primary are closed by then.
LEFT_SECONDS = 3.0
METRICS = ("--metrics-listen", "127.0.0.1:0")


@pytest.fixture(scope="module", params=["postgresql", "mariadb"])
def own_database(request: pytest.FixtureRequest) -> Iterator[ReplicatedDatabase]:
    with replicated_database(request.param) as database:
        yield database


async def test_a_replica_can_be_read_and_takes_no_writes(own_database: ReplicatedDatabase) -> None:
    for server, is_replica in ((own_database.primary, False), (own_database.replica, True)):
        database = Database(server.url, pool_size=2, timeout_seconds=5)
        await database.ping()
        with pytest.raises(ReadOnly) if is_replica else nullcontext():
            await database.check_writes()
        await database.close()


async def test_a_read_only_database_is_reported_and_writes_return_by_themselves(
    start: Start, own_database: ReplicatedDatabase, figures: Figures
) -> None:
    server = await asyncio.to_thread(start, own_database.url, "--migrate", *METRICS)
    strict = await asyncio.to_thread(start, own_database.url, "--health-requires-writes", *METRICS)
    async with (
        grpc.aio.insecure_channel(server.address) as channel,
        grpc.aio.insecure_channel(strict.address) as strict_channel,
    ):
        stub: books_pb2_grpc.BookServiceAsyncStub = books_pb2_grpc.BookServiceStub(channel)
        own_database.primary.make_new_sessions_read_only(True)
        own_database.primary.end_sessions()
        await until_health_is(strict_channel, Status.NOT_SERVING, 5)
        wait_until(lambda: ask(server, "/readyz")[1] != "ok\n", "the outage of writes is reported")
        assert ask(server, "/readyz") == (200, "ok, but writes unavailable\n")
        assert ask(strict, "/readyz") == (503, "writes unavailable\n")
        await until_health_is(channel, Status.SERVING, 0.5)
        wait_until(lambda: number(server, "bookstore_database_writable") == 0, "the metric follows")
        tally = Tally()
        assert await tally.read(stub, 5)
        assert not await tally.create(stub, 5)
        assert tally.rejections == {grpc.StatusCode.UNAVAILABLE: 1}

        # No write arrives in the meantime: the probe replaces the sessions.
        own_database.primary.make_new_sessions_read_only(False)
        recovery = await until_health_is(strict_channel, Status.SERVING, WRITES_RETURN_SECONDS)
        wait_until(lambda: number(server, "bookstore_database_writable") == 1, "writes are possible again")
        assert ask(server, "/readyz") == (200, "ok\n")
        assert await tally.create(stub, 5)
    figures(database=own_database.kind, recovery_seconds=round(recovery, 2))
    assert events(server, "writes unavailable", "writes available again", "not serving: writes unavailable") == [
        "writes unavailable",
        "writes available again",
    ]
    assert events(strict, "writes unavailable", "not serving: writes unavailable") == [
        "not serving: writes unavailable"
    ]
    assert await asyncio.to_thread(server.stop) == 0
    assert await asyncio.to_thread(strict.stop) == 0


async def test_a_watch_resumes_ahead_of_a_server_that_reads_from_a_former_primary(
    start: Start, own_database: ReplicatedDatabase
) -> None:
    current = await asyncio.to_thread(start, own_database.primary.url, "--migrate")
    behind = await asyncio.to_thread(start, own_database.url)
    async with (
        grpc.aio.insecure_channel(current.address) as channel,
        grpc.aio.insecure_channel(behind.address) as channel_behind,
    ):
        stub: books_pb2_grpc.BookServiceAsyncStub = books_pb2_grpc.BookServiceStub(channel)
        stub_behind: books_pb2_grpc.BookServiceAsyncStub = books_pb2_grpc.BookServiceStub(channel_behind)
        own_database.proxy.direct_to(own_database.replica.port)
        own_database.primary.end_sessions()
        await read_at_once(channel_behind)
        own_database.replica.replay(False)
        try:
            own_database.proxy.direct_to(own_database.primary.port)
            assert await Tally().create(stub, 5)
            token = ""
            while (page := await stub.ListBookChanges(books_pb2.ListBookChangesRequest(page_token=token))).more_changes:
                token = page.next_page_token
            request = books_pb2.WatchBooksRequest(resume_token=page.next_page_token)
            # "lost" would make the watcher read everything again.
            assert await first_codes(stub_behind, request) <= {grpc.StatusCode.OK, grpc.StatusCode.UNAVAILABLE}
        finally:
            own_database.replica.replay(True)


async def first_codes(
    stub: "books_pb2_grpc.BookServiceAsyncStub", request: books_pb2.WatchBooksRequest
) -> set[grpc.StatusCode]:
    """Watch until there is a response, and return the codes of all attempts."""
    codes = set()
    async with asyncio.timeout(WRITES_RETURN_SECONDS):
        while grpc.StatusCode.OK not in codes:
            call = stub.WatchBooks(request)
            try:
                await call.read()
            except grpc.aio.AioRpcError as error:
                codes.add(error.code())
                await asyncio.sleep(0.05)
            else:
                codes.add(grpc.StatusCode.OK)
            call.cancel()
    return codes


@pytest.mark.timeout(900)
@pytest.mark.parametrize("change", ["switched", "killed"])
async def test_writes_return_after_a_failover(
    start: Start, own_database: ReplicatedDatabase, change: str, is_long: bool, margin_seconds: float, figures: Figures
) -> None:
    rounds = 12 if is_long else 1
    fail_over = {"switched": own_database.switch_over, "killed": own_database.fail_over}[change]
    server = await asyncio.to_thread(start, own_database.url, "--migrate", *METRICS)
    tally = Tally()
    returns = []
    async with (
        grpc.aio.insecure_channel(server.address) as channel,
        load(server.address, tally, callers=8, readers=4, timeout_seconds=60),
    ):
        for _ in range(rounds):
            await asyncio.to_thread(own_database.replicate)
            await until_acknowledged(tally)
            await asyncio.to_thread(fail_over)
            returns.append(await until_acknowledged(tally))
            await until_health_is(channel, Status.SERVING, SERVING_SECONDS)
            recovered = time.monotonic()
            if change == "switched":
                await until_left(own_database)
            await until_acknowledged(tally)
            assert {call.code for call in tally.ended if call.began > recovered} == {grpc.StatusCode.OK}
    found = await figures_of_load(server, own_database.primary, tally)

    figures(
        **found,
        rounds=rounds,
        median_recovery_seconds=round(statistics.median(returns), 2),
        recovery_seconds=round(max(returns), 2),
    )
    assert (found["lost"], found["doubled"]) == (0, 0)
    assert max(returns) < WRITES_RETURN_SECONDS + margin_seconds
    assert tally.rejections.keys() <= {grpc.StatusCode.UNAVAILABLE}
    if change == "switched":
        assert {call.code for call in tally.ended if call.method == "ListBooks"} == {grpc.StatusCode.OK}
    assert "Traceback" not in server.log_text()
    assert await asyncio.to_thread(server.stop) == 0


async def until_left(database: ReplicatedDatabase) -> None:
    """Wait until no connection is to the former primary, which still serves reads."""
    async with asyncio.timeout(LEFT_SECONDS):
        while await asyncio.to_thread(database.replica.connections):  # noqa: ASYNC110  another process's
            await asyncio.sleep(0.05)
