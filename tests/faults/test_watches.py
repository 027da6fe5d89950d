"""Watches keep the guarantees of the feed while servers, their database and the watchers are killed and stopped."""

import asyncio

import pytest

from tests.e2e.conftest import Start
from tests.faults.conftest import Figures
from tests.faults.database_servers import DatabaseServer
from tests.faults.watches import Servers, Workers, disturb, figures_of
from tests.history.checker import check
from tests.history.recording import recording

pytestmark = [pytest.mark.e2e, pytest.mark.timeout(900)]

CONNECTIONS = 4


async def test_watches_at_two_servers_miss_and_double_nothing(
    start: Start, own_database: DatabaseServer, is_long: bool, figures: Figures
) -> None:
    servers = await asyncio.to_thread(Servers, start, own_database.url)

    async def restart_database() -> None:
        await asyncio.to_thread(own_database.restart)

    faults = [servers.kill_one, restart_database, servers.stop_one]
    rounds = 18 if is_long else len(faults)
    async with recording(servers.addresses * 2) as recorded:
        await disturb(recorded, faults, rounds)
    check(recorded.history)
    figures(database=own_database.kind, rounds=rounds, **figures_of(recorded.history))


async def test_watches_at_two_workers_miss_and_double_nothing(
    start: Start, sqlite_url: str, is_long: bool, figures: Figures
) -> None:
    workers = await asyncio.to_thread(Workers, start, sqlite_url)
    faults = [workers.kill_one, workers.stop_one, workers.restart]
    rounds = 18 if is_long else len(faults)
    # Of so many connections each worker has some.
    async with recording([workers.address] * CONNECTIONS) as recorded:
        await disturb(recorded, faults, rounds)
    check(recorded.history)
    figures(database="sqlite", rounds=rounds, **figures_of(recorded.history))
