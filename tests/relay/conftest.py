"""A service whose changes a test makes up, NATS with JetStream, and relays in processes between the two."""

import asyncio
import json
import os
import shutil
import socket
import subprocess
from collections.abc import AsyncIterator, Callable, Iterator
from contextlib import suppress
from pathlib import Path
from typing import Any

import nats
import pytest
from nats.aio.client import Client
from nats.js import JetStreamContext, api
from nats.js.errors import NotFoundError

from bookstore_grpc.relay.positions import BUCKET
from tests.client.watched_service import address, service
from tests.conftest import require
from tests.executable import PATIENCE_SECONDS, Process, end_process, start_bookstore, wait_until

__all__ = ["address", "service"]  # fixtures

NATS_VARIABLE = "BOOKSTORE_TEST_NATS_URL"
SUBJECT_TOKENS = ("created", "updated", "deleted", "existing")


class NatsServer:
    """A NATS of a test's own, which it may kill."""

    def __init__(self, folder: Path, *arguments: str, has_jetstream: bool = True) -> None:
        program = shutil.which("nats-server", path=f"{os.environ['PATH']}:/usr/sbin")
        require(program, "nats-server is not installed")
        with socket.socket() as bound:
            bound.bind(("127.0.0.1", 0))
            self.port = bound.getsockname()[1]
        jetstream = ("-js", "-sd", str(folder)) if has_jetstream else ()
        self._command = [str(program), "-a", "127.0.0.1", "-p", str(self.port), *jetstream, *arguments]
        self._log = folder / "log"
        self.start()

    @property
    def url(self) -> str:
        return f"nats://127.0.0.1:{self.port}"

    def start(self) -> None:
        with self._log.open("ab") as log:
            self._process = subprocess.Popen(self._command, stdout=log, stderr=log)
        wait_until(self._responds, "NATS responds")

    def kill(self) -> None:
        """As kill -9."""
        self._process.kill()
        self._process.wait()

    def _responds(self) -> bool:
        with socket.socket() as connecting:
            return connecting.connect_ex(("127.0.0.1", self.port)) == 0


class Stream:
    """A stream of a test's own, and what relays have stored in it."""

    def __init__(self, client: Client, name: str) -> None:
        self.name = name
        self.prefix = f"test.{name}"
        self.js: JetStreamContext = client.jetstream()

    async def create(self, **options: Any) -> None:
        options.setdefault("subjects", [f"{self.prefix}.*"])
        await self.js.add_stream(api.StreamConfig(name=self.name, **options))

    async def messages(self) -> list[api.RawStreamMsg]:
        try:
            state = (await self.js.stream_info(self.name)).state
        except NotFoundError:
            return []
        return [await self.js.get_msg(self.name, seq) for seq in range(state.first_seq or 1, state.last_seq + 1)]

    async def count(self) -> int:
        try:
            return (await self.js.stream_info(self.name)).state.messages
        except NotFoundError:
            return 0

    async def numbers(self) -> list[int]:
        """The numbers of the changes that are stored, in the order of the stream; of existing books their ids."""
        return [_number(message) for message in await self.messages()]

    async def position(self) -> dict[str, Any]:
        bucket = await self.js.key_value(BUCKET)
        fields: dict[str, Any] = json.loads((await bucket.get(f"{self.name}.{self.prefix}")).value or b"{}")
        return fields

    async def until_stored(self, count: int) -> None:
        async with asyncio.timeout(PATIENCE_SECONDS):
            while await self.count() < count:  # noqa: ASYNC110  a stream is polled
                await asyncio.sleep(0.02)

    async def until_position(self, condition: Callable[[dict[str, Any]], bool]) -> None:
        async with asyncio.timeout(PATIENCE_SECONDS):
            while True:
                with suppress(NotFoundError):
                    if condition(await self.position()):
                        return
                await asyncio.sleep(0.05)

    async def delete(self) -> None:
        for name in (self.name, f"OTHER_{self.name}"):
            with suppress(NotFoundError):
                await self.js.delete_stream(name)
        with suppress(NotFoundError):
            await (await self.js.key_value(BUCKET)).purge(f"{self.name}.{self.prefix}")


class Relaying:
    """A relay in a process of its own."""

    def __init__(self, folder: Path, *arguments: str, **variables: str) -> None:
        self._log = folder / "log"
        with self._log.open("wb") as log:
            self.process: Process = start_bookstore("relay", *arguments, stdout=log, stderr=log, variables=variables)

    @property
    def log(self) -> str:
        return self._log.read_text()

    async def until_logged(self, text: str) -> None:
        async with asyncio.timeout(PATIENCE_SECONDS):
            while text not in self.log:
                assert self.process.poll() is None, self.log
                await asyncio.sleep(0.01)

    async def status(self) -> int:
        status = await asyncio.to_thread(self.process.wait, PATIENCE_SECONDS)
        assert "Traceback" not in self.log, self.log
        assert "never retrieved" not in self.log, self.log
        return status

    def kill(self) -> None:
        """As kill -9."""
        self.process.kill()
        self.process.wait()


Relay = Callable[..., Relaying]


@pytest.fixture
def nats_url() -> str:
    require(os.environ.get(NATS_VARIABLE), f"{NATS_VARIABLE} is not set (as in nats://127.0.0.1:4222, with JetStream)")
    return os.environ[NATS_VARIABLE]


@pytest.fixture
def own_nats(tmp_path: Path) -> Iterator[NatsServer]:
    folder = tmp_path / "nats"
    folder.mkdir()
    server = NatsServer(folder)
    yield server
    server.kill()


@pytest.fixture
async def stream(nats_url: str) -> AsyncIterator[Stream]:
    client = await nats.connect(nats_url)
    stream = Stream(client, f"BOOKSTORE_TEST_{os.getpid()}_{os.urandom(4).hex()}")
    yield stream
    await stream.delete()
    await client.close()


@pytest.fixture
def start_relay(tmp_path: Path, address: str) -> Iterator[Relay]:
    started: list[Relaying] = []

    def start(url: str, stream: Stream, *arguments: str, server: str = address, **variables: str) -> Relaying:
        folder = tmp_path / f"relay-{len(started)}"
        folder.mkdir()
        options = (*(("--to", url) if url else ()), "--stream", stream.name, "--subject-prefix", stream.prefix)
        started.append(Relaying(folder, *options, *arguments, BOOKSTORE_SERVER=server, **variables))
        return started[-1]

    yield start
    for each in started:
        end_process(each.process)


@pytest.fixture
def relay(start_relay: Relay, stream: Stream, nats_url: str) -> Relay:
    """Start a relay to the test's stream."""

    def start(*arguments: str, **options: Any) -> Relaying:
        return start_relay(nats_url, stream, *arguments, **options)

    return start


def _number(message: api.RawStreamMsg) -> int:
    event = json.loads(message.data or b"{}")
    return int(event["data"].get("number", event["data"]["book"]["id"]))
