"""A relay of a real server's changes, while the server, the relay and NATS are killed in turn."""

import asyncio
import json
import sqlite3
from collections.abc import Callable
from contextlib import closing
from pathlib import Path

import nats
import pytest

from bookstore_grpc.client import BookstoreClient
from tests.executable import Serving
from tests.relay.conftest import NatsServer, Relay, Stream

pytestmark = pytest.mark.e2e

ROUNDS = 4


async def ignore(error: Exception) -> None:
    """A lost connection is what the test is about."""


async def write(client: BookstoreClient, label: str) -> None:
    """Make twenty changes of ten books."""
    for number in range(10):
        book = await client.create_book(name=f"{label}-{number}", author="A", release_year=1)
        await client.update_book(book.id, release_year=2)


async def test_every_change_is_stored_once_and_in_order_whatever_is_killed(
    tmp_path: Path, start_relay: Relay, own_nats: NatsServer
) -> None:
    url = f"sqlite+aiosqlite:///{tmp_path}/bookstore.db"
    server = Serving(url, tmp_path / "log-0")
    address = server.address
    observer = await nats.connect(own_nats.url, max_reconnect_attempts=-1, reconnect_time_wait=0.1, error_cb=ignore)
    stream = Stream(observer, "BOOKS")
    relays = [start_relay(own_nats.url, stream, "--start", "earliest", server=address)]
    try:
        await stream.until_stored(0)
        async with BookstoreClient(address) as client:
            for number in range(ROUNDS):
                writing = asyncio.create_task(write(client, f"a{number}"))
                await asyncio.sleep(0)
                kill: list[Callable[[], None]] = [relays[-1].kill, own_nats.kill]
                kill[number % 2]()
                await writing
                if number % 2:
                    await asyncio.to_thread(own_nats.start)
                else:
                    relays.append(start_relay(own_nats.url, stream, "--start", "earliest", server=address))
                await relays[-1].until_logged("Publishing the changes")
                server.process.kill()
                server.wait()
                server = Serving(url, tmp_path / f"log-{number + 1}", "--listen", address)
                await write(client, f"b{number}")
        async with asyncio.timeout(20):
            while not observer.is_connected:  # noqa: ASYNC110  the client has no event for it
                await asyncio.sleep(0.05)
        await stream.until_stored(ROUNDS * 40)
    except TimeoutError:
        pytest.fail("\n".join(each.log for each in relays))
    finally:
        server.end()

    with closing(sqlite3.connect(tmp_path / "bookstore.db")) as database:
        expected = [number for (number,) in database.execute("SELECT number FROM book_changes ORDER BY number")]
    events = [json.loads(message.data or b"") for message in await stream.messages()]
    assert [int(event["id"]) for event in events] == expected
    assert len(expected) == ROUNDS * 40
    await observer.close()
