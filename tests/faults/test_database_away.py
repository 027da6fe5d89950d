"""A database that is stopped, killed or silent: calls are refused soon, and all is well when it is back."""

import asyncio
import itertools
import shutil
import tempfile
import time
from collections.abc import AsyncIterator, Callable, Iterator
from contextlib import asynccontextmanager
from pathlib import Path
from typing import Any

import grpc
import pytest
from bookstore.v1 import books_pb2_grpc
from grpc_health.v1 import health_pb2, health_pb2_grpc
from sqlalchemy.engine import make_url

from tests.e2e.conftest import Start
from tests.executable import Serving
from tests.faults.conftest import Figures
from tests.faults.database_servers import DatabaseServer, database_server
from tests.faults.load import Ended, Tally, check_connections, check_pool_is_whole, load, lost_and_doubled, read_at_once
from tests.rpc.obstacles import Network

pytestmark = pytest.mark.e2e

# The promise: so soon after it is known that the database is away a call that waits for it is refused.
REFUSAL_SECONDS = 2.0
# The probe asks every second and waits for two.
KNOWN_SECONDS = 3.5
SERVING_SECONDS = 5.0
AWAY_SECONDS = 2.5
Status = health_pb2.HealthCheckResponse


@pytest.fixture(scope="module", params=["postgresql", "mariadb"])
def own_database(request: pytest.FixtureRequest) -> Iterator[DatabaseServer]:
    folder = Path(tempfile.mkdtemp(prefix="faults-"))
    try:
        with database_server(request.param, folder) as server:
            yield server
    finally:
        shutil.rmtree(folder, ignore_errors=True)


@asynccontextmanager
async def network_to(database: DatabaseServer) -> AsyncIterator[tuple[str, Network]]:
    """A way to a database that can fail, and the URL that takes it."""
    network = Network("127.0.0.1", database.port)
    await network.restore()
    try:
        yield make_url(database.url).set(port=network.port).render_as_string(), network
    finally:
        network.flow()
        await network.cut()


async def until_health_is(channel: grpc.aio.Channel, status: int, seconds: float) -> float:
    health: Any = health_pb2_grpc.HealthStub(channel)
    began = time.monotonic()
    async with asyncio.timeout(seconds):
        while (await health.Check(health_pb2.HealthCheckRequest(), timeout=5)).status != status:  # noqa: ASYNC110  another process's
            await asyncio.sleep(0.02)
    return time.monotonic() - began


def slowest_while_away(calls: list[Ended], *, known: float) -> float:
    """Return how long, after it was known that the database is away, the longest of these calls waited.

    Raises unless reads and writes were refused, and so that they may be tried again.
    """
    refused = [call for call in calls if call.code is not grpc.StatusCode.OK]
    assert {call.method for call in refused} == {"CreateBook", "ListBooks"}
    assert {call.code for call in refused} == {grpc.StatusCode.UNAVAILABLE}
    return max(call.at - max(call.began, known) for call in calls)


def events(server: Serving, *names: str) -> list[str]:
    return [line["event"] for line in server.log_lines() if line["event"] in names]


@pytest.mark.timeout(900)
@pytest.mark.parametrize("fault", ["stopped", "killed", "paused"])
async def test_calls_are_refused_soon_and_the_service_recovers_by_itself(
    start: Start, own_database: DatabaseServer, fault: str, is_long: bool, figures: Figures
) -> None:
    rounds = 6 if is_long else 1
    actions: dict[str, tuple[Callable[[], None], Callable[[], None]]] = {
        "stopped": (own_database.stop, own_database.start),
        "killed": (own_database.kill, own_database.start),
        "paused": (own_database.pause, own_database.resume),
    }
    away, back = actions[fault]
    server = await asyncio.to_thread(start, own_database.url, "--migrate", "--metrics-listen", "127.0.0.1:0")
    tally = Tally()
    known_seconds, refusals, recoveries = [], [], []
    async with (
        grpc.aio.insecure_channel(server.address) as channel,
        load(server.address, tally, callers=8, readers=4, timeout_seconds=60),
    ):
        for _ in range(rounds):
            await asyncio.sleep(1.5)  # the probe has had its connection
            gone = time.monotonic()
            try:
                await asyncio.to_thread(away)
                if fault == "paused":
                    gone = time.monotonic()
                await until_health_is(channel, Status.NOT_SERVING, 10)
                known = time.monotonic()
                await asyncio.sleep(AWAY_SECONDS)
                given_back = time.monotonic()
            finally:
                await asyncio.to_thread(back)
            recoveries.append(await until_health_is(channel, Status.SERVING, 30))
            recovered = time.monotonic()
            await asyncio.sleep(0.5)
            known_seconds.append(known - gone)
            # Who stops says so: nothing waits for the probe then.
            refusals.append(
                slowest_while_away(
                    [call for call in tally.ended if call.began < given_back and call.at > gone],
                    known=known if fault == "paused" else gone,
                )
            )
            assert {call.code for call in tally.ended if call.began > recovered} == {grpc.StatusCode.OK}
    await check_pool_is_whole(server)
    await check_connections(own_database)
    answered = len(tally.answered)
    lost, doubled = await lost_and_doubled(server.address, tally)

    figures(
        database=own_database.kind,
        rounds=rounds,
        calls=tally.calls,
        answered=answered,
        lost=lost,
        doubled=doubled,
        known_seconds=round(max(known_seconds), 2),
        refusal_seconds=round(max(refusals), 2),
        recovery_seconds=round(max(recoveries), 2),
        slowest_seconds=round(tally.slowest_seconds, 2),
    )
    assert (lost, doubled) == (0, 0)
    assert max(known_seconds) < KNOWN_SECONDS
    assert max(refusals) < REFUSAL_SECONDS
    assert max(recoveries) < SERVING_SECONDS
    assert "Traceback" not in server.log_text()
    told = ["not serving: the database is away", "serving again: the database is back"]
    # One line for each cause that an outage has shown, such as a connection that broke and then a port where nobody is.
    assert [event for event, _ in itertools.groupby(events(server, *told))] == told * rounds
    assert await asyncio.to_thread(server.stop) == 0


@pytest.mark.timeout(300)
@pytest.mark.parametrize("fault", ["restarted", "forgotten", "brief"])
async def test_an_outage_while_nobody_calls_costs_no_call_afterwards(
    start: Start, own_database: DatabaseServer, fault: str, is_long: bool, figures: Figures
) -> None:
    rounds = 5 if is_long else 1
    async with network_to(own_database) as (url, network):
        server = await asyncio.to_thread(start, url, "--migrate")
        slowest = 0.0
        async with grpc.aio.insecure_channel(server.address) as channel:
            stub: books_pb2_grpc.BookServiceAsyncStub = books_pb2_grpc.BookServiceStub(channel)
            for _ in range(rounds):
                await read_at_once(channel)
                await Tally().create(stub, 30)
                if fault == "restarted":
                    await asyncio.to_thread(own_database.kill)
                    await until_health_is(channel, Status.NOT_SERVING, 10)
                    await asyncio.to_thread(own_database.start)
                elif fault == "forgotten":
                    network.stall()
                    await until_health_is(channel, Status.NOT_SERVING, 10)
                    network.forget()
                else:
                    await asyncio.sleep(1.5)  # the probe has its connection
                    await network.cut()
                    await network.restore()
                    await asyncio.sleep(1.5)  # and has found it dead, and the database there
                await until_health_is(channel, Status.SERVING, 10)
                slowest = max(slowest, await read_at_once(channel))
                tally = Tally()
                await tally.create(stub, 30)
                assert tally.refusals == {}
                slowest = max(slowest, tally.slowest_seconds)
        figures(database=own_database.kind, rounds=rounds, slowest_seconds=round(slowest, 2))
        assert slowest < REFUSAL_SECONDS
        assert "Traceback" not in server.log_text()
        assert await asyncio.to_thread(server.stop) == 0
