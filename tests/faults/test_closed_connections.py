"""Connections that the database or a proxy closes, in the middle of a transaction or because they are idle."""

import asyncio
import random
import time
from collections.abc import Iterator

import grpc
import pytest
from bookstore.v1 import books_pb2_grpc
from sqlalchemy.engine import make_url

from tests.e2e.conftest import Start
from tests.executable import Serving
from tests.faults.conftest import Figures
from tests.faults.database_servers import DatabaseServer
from tests.faults.load import Tally, figures_of_load, load, until_acknowledged
from tests.faults.test_database_away import events
from tests.haproxy import HAProxy, haproxy

pytestmark = pytest.mark.e2e

_END_IDLE_SESSIONS = {
    "postgresql": "ALTER ROLE bookstore SET idle_session_timeout = '1s'",
    "mariadb": "SET GLOBAL wait_timeout = 1",
}
# A connection that was idle for a second is checked before use, so shorter rests count too.
_PROXY_IDLE_SECONDS = 0.5
_RESTS_SECONDS = (0.48, 0.52, 0.7, 0.98, 1.02, 1.3)


@pytest.fixture
def proxy(own_database: DatabaseServer) -> Iterator[HAProxy]:
    with haproxy([own_database.port], idle_seconds=_PROXY_IDLE_SECONDS) as proxy:
        yield proxy


def url_through(proxy: HAProxy, database: DatabaseServer) -> str:
    return make_url(database.url).set(port=proxy.port).render_as_string()


@pytest.mark.timeout(300)
async def test_connections_cut_under_load_lose_and_double_nothing(
    start: Start, own_database: DatabaseServer, proxy: HAProxy, is_long: bool, figures: Figures
) -> None:
    rounds = 60 if is_long else 8
    chance = random.Random(1)
    server = await asyncio.to_thread(
        start, url_through(proxy, own_database), "--migrate", "--metrics-listen", "127.0.0.1:0"
    )
    tally = Tally()
    cuts = []
    async with load(server.address, tally, callers=8, readers=4):
        for _ in range(rounds):
            await until_acknowledged(tally)
            await asyncio.sleep(chance.uniform(0.1, 0.2))
            cuts.append(time.monotonic())
            proxy.close_connections()
    found = await figures_of_load(server, own_database, tally)

    figures(**found, rounds=rounds)
    assert (found["lost"], found["doubled"]) == (0, 0)
    # A write fails if its commit was in progress, because nobody knows whether it is stored, and a read if it was cut
    # a second time.
    assert tally.rejections.keys() <= {grpc.StatusCode.UNAVAILABLE}
    failed_reads = [call for call in tally.ended if call.method == "ListBooks" and call.code is not grpc.StatusCode.OK]
    for read in failed_reads:
        assert sum(read.began < cut < read.at for cut in cuts) > 1
    assert "Traceback" not in server.log_text()
    assert await asyncio.to_thread(server.stop) == 0


@pytest.mark.timeout(300)
async def test_no_call_fails_after_a_rest_that_ends_the_connections(
    start: Start, own_database: DatabaseServer, proxy: HAProxy, is_long: bool, figures: Figures
) -> None:
    rounds = 6 if is_long else 1
    own_database._query(_END_IDLE_SESSIONS[own_database.kind])
    servers = [
        await asyncio.to_thread(start, own_database.url, "--migrate"),
        await asyncio.to_thread(start, url_through(proxy, own_database)),
    ]
    tallies = await asyncio.gather(*(calls_after_rests(server, rounds) for server in servers))
    figures(
        database=own_database.kind,
        rounds=rounds * len(_RESTS_SECONDS),
        calls=sum(len(tally.ended) for tally in tallies),
        slowest_seconds=round(max(tally.slowest_seconds for tally in tallies), 2),
    )
    for server, tally in zip(servers, tallies, strict=True):
        assert tally.rejections == {}
        assert events(server, "not serving: database unavailable", "writes unavailable", "call failed") == []
        assert "Traceback" not in server.log_text()
        assert await asyncio.to_thread(server.stop) == 0


async def calls_after_rests(server: Serving, rounds: int) -> Tally:
    """Make reads and writes at once after each rest."""
    tally = Tally()
    async with grpc.aio.insecure_channel(server.address) as channel:
        stub: books_pb2_grpc.BookServiceAsyncStub = books_pb2_grpc.BookServiceStub(channel)
        for rest_seconds in (0.0, *_RESTS_SECONDS * rounds):
            await asyncio.sleep(rest_seconds)
            calls = [tally.read] * 6 + [tally.create] * 3
            await asyncio.gather(*(call(stub, 10) for call in calls))
    return tally
