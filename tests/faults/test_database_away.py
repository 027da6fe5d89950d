"""A database that is stopped, killed or paused under load: calls are refused soon, and all is well when it is back."""

import asyncio
import shutil
import tempfile
import time
from collections.abc import Awaitable, Callable, Iterator
from pathlib import Path
from typing import Any

import grpc
import pytest
from bookstore.v1 import books_pb2, books_pb2_grpc
from grpc_health.v1 import health_pb2, health_pb2_grpc

from tests.e2e.conftest import Start
from tests.faults.conftest import Figures
from tests.faults.database_servers import DatabaseServer, database_server
from tests.faults.load import Tally, defects, load, lost_and_doubled

pytestmark = pytest.mark.e2e

POOL = 5
AWAY_SECONDS = 4.0
TIMEOUT_SECONDS = 1.5
Status = health_pb2.HealthCheckResponse


@pytest.fixture(scope="module", params=["postgresql", "mariadb"])
def own_database(request: pytest.FixtureRequest) -> Iterator[DatabaseServer]:
    folder = Path(tempfile.mkdtemp(prefix="faults-"))
    try:
        with database_server(request.param, folder) as server:
            yield server
    finally:
        shutil.rmtree(folder, ignore_errors=True)


async def until_health_is(channel: grpc.aio.Channel, status: int, seconds: float) -> float:
    health: Any = health_pb2_grpc.HealthStub(channel)
    began = time.monotonic()
    async with asyncio.timeout(seconds):
        while (await health.Check(health_pb2.HealthCheckRequest(), timeout=5)).status != status:  # noqa: ASYNC110  another process's
            await asyncio.sleep(0.05)
    return time.monotonic() - began


async def refusal_seconds(channel: grpc.aio.Channel) -> float:
    """Ask while the database is away and answer how long the refusal took."""
    began = time.monotonic()
    with pytest.raises(grpc.aio.AioRpcError) as raised:
        await books_pb2_grpc.BookServiceStub(channel).ListBooks(books_pb2.ListBooksRequest(), timeout=30)
    assert raised.value.code() is grpc.StatusCode.UNAVAILABLE
    return time.monotonic() - began


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
    server = await asyncio.to_thread(
        start,
        own_database.url,
        *("--migrate", "--pool-size", str(POOL), "--database-timeout-seconds", str(TIMEOUT_SECONDS)),
    )
    tally = Tally()
    recoveries, refusals = [], []
    async with (
        grpc.aio.insecure_channel(server.address) as channel,
        load(server.address, tally, callers=8, timeout_seconds=60),
    ):
        for _ in range(rounds):
            await asyncio.sleep(0.5)
            await asyncio.to_thread(away)
            try:
                await until_health_is(channel, Status.NOT_SERVING, 10)
                refusals.append(await refusal_seconds(channel))
                await asyncio.sleep(AWAY_SECONDS / 4)
            finally:
                await asyncio.to_thread(back)
            recoveries.append(await until_health_is(channel, Status.SERVING, 30))
    async with grpc.aio.insecure_channel(server.address) as channel:
        stub = books_pb2_grpc.BookServiceStub(channel)
        # As many at once as there are connections, a page of many books each.
        reads: list[Awaitable[object]] = [
            stub.ListBooks(books_pb2.ListBooksRequest(page_size=1_000), timeout=30) for _ in range(POOL * 2)
        ]
        await asyncio.gather(*reads)
    connections = own_database.connections()
    answered = len(tally.answered)
    lost, doubled = await lost_and_doubled(server.address, tally)

    figures(
        database=own_database.kind,
        rounds=rounds,
        calls=tally.calls,
        answered=answered,
        lost=lost,
        doubled=doubled,
        refusal_seconds=round(max(refusals), 2),
        recovery_seconds=round(max(recoveries), 2),
        slowest_seconds=round(tally.slowest_seconds, 2),
    )
    assert (lost, doubled) == (0, 0)
    assert tally.refusals.keys() <= {grpc.StatusCode.UNAVAILABLE}
    assert max(refusals) < 2
    # Readers, two writers and the probe.
    assert connections <= POOL + 2 + 1
    assert own_database.open_transactions() == 0
    assert defects(server) == []  # the pool logs, with tracebacks, what it finds broken
    assert await asyncio.to_thread(server.stop) == 0
