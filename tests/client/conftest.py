"""A client of a real server on SQLite; the contract on all databases is told elsewhere."""

from collections.abc import AsyncIterator
from pathlib import Path

import pytest

from bookstore_grpc.client import BookstoreClient
from bookstore_grpc.rpc.server import Server
from bookstore_grpc.server.app import running_server
from tests.conftest import settings_for


@pytest.fixture
async def sqlite_server(tmp_path: Path) -> AsyncIterator[Server]:
    async with running_server(settings_for(f"sqlite+aiosqlite:///{tmp_path}/bookstore.db")) as server:
        yield server


@pytest.fixture
async def client(sqlite_server: Server) -> AsyncIterator[BookstoreClient]:
    async with BookstoreClient(sqlite_server.addresses[0]) as client:
        yield client
