"""Watches keep the guarantees of the feed over a failover of their database."""

import asyncio
from collections.abc import Iterator

import pytest

from tests.e2e.conftest import Start
from tests.faults.conftest import Figures
from tests.faults.replication import ReplicatedDatabase, replicated_database
from tests.faults.watches import Servers, disturb, figures_of
from tests.history.checker import check
from tests.history.recording import recording

pytestmark = [pytest.mark.e2e, pytest.mark.timeout(900)]


@pytest.fixture
def own_database() -> Iterator[ReplicatedDatabase]:
    # Synchronous replication: nothing is shown to readers that the replica does not have.
    with replicated_database("postgresql") as database:
        yield database


async def test_watches_miss_and_double_nothing_over_a_failover(
    start: Start, own_database: ReplicatedDatabase, is_long: bool, figures: Figures
) -> None:
    servers = await asyncio.to_thread(Servers, start, own_database.url)

    async def fail_over() -> None:
        await asyncio.to_thread(own_database.replicate)
        await asyncio.to_thread(own_database.fail_over)

    async def switch_over() -> None:
        await asyncio.to_thread(own_database.replicate)
        await asyncio.to_thread(own_database.switch_over)

    rounds = 12 if is_long else 2
    async with recording(servers.addresses * 2) as recorded:
        await disturb(recorded, [fail_over, switch_over], rounds)
    check(recorded.history)
    figures(database=own_database.kind, rounds=rounds, **figures_of(recorded.history))
