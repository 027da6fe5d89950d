"""An outage of the database while no calls arrive: later calls use no connection from before, and do not fail."""

import asyncio

import grpc
import pytest
from bookstore.v1 import books_pb2_grpc

from tests.e2e.conftest import Start
from tests.faults.conftest import Figures
from tests.faults.database_servers import DatabaseServer
from tests.faults.load import Tally, read_at_once
from tests.faults.test_database_away import FAILURE_SECONDS, Status, network_to, until_health_is

pytestmark = pytest.mark.e2e


@pytest.mark.timeout(300)
@pytest.mark.parametrize("fault", ["restarted", "forgotten", "brief"])
async def test_an_outage_without_calls_fails_no_later_call(
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
                    await asyncio.sleep(1.5)  # and has found it closed, and the database available
                await until_health_is(channel, Status.SERVING, 10)
                slowest = max(slowest, await read_at_once(channel))
                tally = Tally()
                await tally.create(stub, 30)
                assert tally.rejections == {}
                slowest = max(slowest, tally.slowest_seconds)
        figures(database=own_database.kind, rounds=rounds, slowest_seconds=round(slowest, 2))
        assert slowest < FAILURE_SECONDS
        assert "Traceback" not in server.log_text()
        assert await asyncio.to_thread(server.stop) == 0
