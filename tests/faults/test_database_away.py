"""A database that is stopped, killed or unresponsive under load: calls fail soon, and the service recovers."""

import asyncio
import itertools
import time
from collections.abc import AsyncIterator, Callable
from contextlib import asynccontextmanager
from typing import Any

import grpc
import pytest
from grpc_health.v1 import health_pb2, health_pb2_grpc
from sqlalchemy.engine import make_url

from tests.e2e.conftest import Start
from tests.executable import Serving
from tests.faults.conftest import Figures
from tests.faults.database_servers import DatabaseServer
from tests.faults.load import Ended, Tally, figures_of_load, load
from tests.rpc.obstacles import Network

pytestmark = pytest.mark.e2e

# The guarantee: calls that wait for the database fail so soon after the outage was detected.
FAILURE_SECONDS = 2.0
# The probe runs every second and waits for two.
KNOWN_SECONDS = 3.5
SERVING_SECONDS = 5.0
AWAY_SECONDS = 2.5
Status = health_pb2.HealthCheckResponse


@asynccontextmanager
async def network_to(database: DatabaseServer) -> AsyncIterator[tuple[str, Network]]:
    """Yield the URL of a database through a network that can fail, and the network."""
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
    """Return how long, after the outage was detected, the longest of these calls waited.

    Raises unless reads and writes failed with UNAVAILABLE, which allows a retry.
    """
    failed = [call for call in calls if call.code is not grpc.StatusCode.OK]
    assert {call.method for call in failed} == {"CreateBook", "ListBooks"}
    assert {call.code for call in failed} == {grpc.StatusCode.UNAVAILABLE}
    return max(call.at - max(call.began, known) for call in calls)


def events(server: Serving, *names: str) -> list[str]:
    return [line["event"] for line in server.log_lines() if line["event"] in names]


@pytest.mark.timeout(900)
@pytest.mark.parametrize("fault", ["stopped", "killed", "paused"])
async def test_calls_fail_soon_and_the_service_recovers_automatically(
    start: Start, own_database: DatabaseServer, fault: str, is_long: bool, margin_seconds: float, figures: Figures
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
    known_seconds, failures, recoveries = [], [], []
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
            # A database that stops closes its connections: nothing waits for the probe then.
            failures.append(
                slowest_while_away(
                    [call for call in tally.ended if call.began < given_back and call.at > gone],
                    known=known if fault == "paused" else gone,
                )
            )
            assert {call.code for call in tally.ended if call.began > recovered} == {grpc.StatusCode.OK}
    found = await figures_of_load(server, own_database, tally)

    figures(
        **found,
        rounds=rounds,
        known_seconds=round(max(known_seconds), 2),
        failure_seconds=round(max(failures), 2),
        recovery_seconds=round(max(recoveries), 2),
    )
    assert (found["lost"], found["doubled"]) == (0, 0)
    assert max(known_seconds) < KNOWN_SECONDS + margin_seconds
    assert max(failures) < FAILURE_SECONDS
    assert max(recoveries) < SERVING_SECONDS
    assert "Traceback" not in server.log_text()
    expected = ["not serving: database unavailable", "serving again: database available"]
    # One line for each observed cause, such as a broken connection and then a refused one.
    assert [event for event, _ in itertools.groupby(events(server, *expected))] == expected * rounds
    assert await asyncio.to_thread(server.stop) == 0
