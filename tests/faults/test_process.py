"""A server that is killed or stopped under load loses no acknowledged write, and stores none twice."""

import asyncio
import signal
import time

import grpc
import pytest

from bookstore_grpc.client import BookstoreClient
from tests.e2e.conftest import Start
from tests.every_call import Callers
from tests.executable import Serving, wait_until
from tests.faults.conftest import Figures
from tests.faults.load import CALLERS, Tally, load, lost_and_doubled, numbered_request, stored_books

pytestmark = pytest.mark.e2e

UNDER_LOAD_SECONDS = 0.3


async def start_on(start: Start, *arguments: str) -> Serving:
    return await asyncio.to_thread(start, *arguments, "--migrate")


async def run_rounds(start: Start, url: str, number: signal.Signals, rounds: int) -> tuple[Tally, float]:
    """Stop a server under load repeatedly. Return the tally and the seconds of the slowest start after a stop."""
    tally = Tally()
    slowest_start = 0.0
    for place in range(rounds):
        began = time.monotonic()
        server = await start_on(start, url)
        slowest_start = max(slowest_start, time.monotonic() - began)
        acknowledged_before = len(tally.acknowledged)
        async with load(server.address, tally, until_rejected=True):
            await asyncio.sleep(UNDER_LOAD_SECONDS + 0.037 * place)
            server.process.send_signal(number)
            status = await asyncio.to_thread(server.wait)
        assert len(tally.acknowledged) > acknowledged_before
        assert status == (-signal.SIGKILL if number is signal.SIGKILL else 0)
        if number is signal.SIGTERM:
            assert server.log_lines()[-1]["event"] == "stopped"
            assert "drain timed out" not in {line["event"] for line in server.log_lines()}
            ends = {(line["status"], line.get("reason")) for line in server.log_lines() if "method" in line}
            assert ends == {("OK", None)}
    return tally, slowest_start


@pytest.mark.timeout(600)
@pytest.mark.parametrize("any_database_url", ["sqlite", "postgresql", "mariadb"], indirect=True)
@pytest.mark.parametrize("number", [signal.SIGKILL, signal.SIGTERM], ids=["kill", "term"])
async def test_every_acknowledged_create_survives_the_server(
    start: Start, any_database_url: str, number: signal.Signals, is_long: bool, figures: Figures
) -> None:
    rounds = 20 if is_long else 2
    tally, slowest_start = await run_rounds(start, any_database_url, number, rounds)

    server = await start_on(start, any_database_url)
    succeeded = len(tally.acknowledged)
    if number is signal.SIGTERM:
        # Calls under way have finished, and rejected ones have not begun.
        stored = await stored_books(server.address)
        assert {book for book in stored if book[0].startswith(f"Book {tally.run}")} == set(tally.acknowledged.items())
    lost, doubled = await lost_and_doubled(server.address, tally)

    figures(
        rounds=rounds,
        calls=tally.calls,
        succeeded=succeeded,
        lost=lost,
        doubled=doubled,
        recovery_seconds=round(slowest_start, 2),
    )
    assert (lost, doubled) == (0, 0)
    assert len(tally.failed) == rounds * CALLERS
    assert tally.rejections.keys() == {grpc.StatusCode.UNAVAILABLE}


@pytest.mark.timeout(600)
@pytest.mark.parametrize("any_database_url", ["sqlite", "postgresql"], indirect=True)
@pytest.mark.parametrize("number", [signal.SIGKILL, signal.SIGTERM], ids=["kill", "term"])
async def test_a_client_of_two_servers_has_no_failed_call_while_one_is_replaced(
    start: Start, any_database_url: str, number: signal.Signals, is_long: bool, figures: Figures
) -> None:
    rounds = 20 if is_long else 2
    servers = [await start_on(start, any_database_url) for _ in range(2)]
    addresses = [server.address for server in servers]
    tally = Tally()
    failures: list[Exception] = []
    is_over = False

    async def create_continuously(client: BookstoreClient) -> None:
        while not is_over:
            request = numbered_request(next(tally.numbers), tally.run)
            tally.calls += 1
            began = time.monotonic()
            try:
                book = await client.create_book(
                    name=request.book.name, author="Anon", release_year=1, request_id=request.request_id
                )
                tally.acknowledged[book.name] = book.id
            except Exception as error:  # counted, and reported all at once
                failures.append(error)
            tally.slowest_seconds = max(tally.slowest_seconds, time.monotonic() - began)

    async with BookstoreClient(f"ipv4:{','.join(addresses)}") as client:
        callers = [asyncio.create_task(create_continuously(client)) for _ in range(8)]
        for place in range(rounds):
            await asyncio.sleep(UNDER_LOAD_SECONDS)
            which = place % 2
            servers[which].process.send_signal(number)
            await asyncio.to_thread(servers[which].wait)
            servers[which] = await start_on(start, any_database_url, "--listen", addresses[which])
            # The other one is only stopped when the client has connected to this one again.
            await asyncio.to_thread(wait_until, servers[which].calls, "the client has connected again")
        is_over = True
        await asyncio.gather(*callers)

    lost, doubled = await lost_and_doubled(addresses[0], tally)
    figures(
        rounds=rounds,
        calls=tally.calls,
        succeeded=len(tally.acknowledged),
        failed=len(failures),
        lost=lost,
        doubled=doubled,
        slowest_seconds=round(tally.slowest_seconds, 2),
    )
    assert failures == []
    assert (lost, doubled) == (0, 0)


@pytest.mark.timeout(600)
@pytest.mark.parametrize("any_database_url", ["sqlite", "postgresql"], indirect=True)
@pytest.mark.parametrize("count", [1, 2], ids=["alone", "two"])
async def test_no_call_of_any_kind_fails_while_servers_are_replaced(
    start: Start, any_database_url: str, count: int, is_long: bool, figures: Figures
) -> None:
    rounds = 20 if is_long else 2
    servers = [await start_on(start, any_database_url) for _ in range(count)]
    addresses = [server.address for server in servers]

    async def replace() -> None:
        for place in range(rounds):
            await asyncio.sleep(UNDER_LOAD_SECONDS)
            which = place % count
            assert await asyncio.to_thread(servers[which].stop) == 0
            servers[which] = await start_on(start, any_database_url, "--listen", addresses[which])
            # The other one is only stopped when the client has connected to this one again.
            await asyncio.to_thread(wait_until, servers[which].calls, "the client has connected again")

    async with BookstoreClient(f"ipv4:{','.join(addresses)}", timeout_seconds=60) as client:
        callers = Callers(client, doomed_batches=rounds)
        await callers.call_while(replace())
        figures(
            rounds=rounds,
            calls=callers.counts.total() + len(callers.failures),
            succeeded=callers.counts.total(),
            failed=len(callers.failures),
        )
        await callers.check()
