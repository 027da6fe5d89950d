"""Fixtures for servers that a test starts itself, and for what stands in their way."""

from collections.abc import AsyncIterator
from contextlib import AsyncExitStack

import grpc
import pytest

from bookstore_grpc.dal.database import Database
from bookstore_grpc.server.app import running_server
from tests.conftest import settings_for
from tests.rpc.calls import Stub


class HandClock:
    """A clock that is set by hand: microseconds since 1970-01-01T00:00:00Z."""

    def __init__(self, now: int = 1_700_000_000_123_456) -> None:
        self.now = now

    def __call__(self) -> int:
        return self.now


@pytest.fixture
def clock() -> HandClock:
    return HandClock()


@pytest.fixture
async def clocked_stub(database: Database, database_url: str, clock: HandClock) -> AsyncIterator[Stub]:
    """The stub of a server that lives by `clock`, with no books."""
    async with AsyncExitStack() as stack:
        server = await stack.enter_async_context(running_server(settings_for(database_url), clock=clock))
        channel = await stack.enter_async_context(grpc.aio.insecure_channel(server.addresses[0]))
        yield Stub(channel)
