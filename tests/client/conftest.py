"""A client of a real server on SQLite; the contract on all databases is tested in `tests/rpc`."""

from collections.abc import AsyncIterator
from pathlib import Path

import pytest

from bookstore_grpc.client import BookstoreClient
from bookstore_grpc.rpc.server import Server
from bookstore_grpc.server.app import running_server
from tests.conftest import reset_sqlite, settings_for


@pytest.fixture(scope="session")
async def shared_server(tmp_path_factory: pytest.TempPathFactory) -> AsyncIterator[tuple[Server, Path]]:
    path = tmp_path_factory.mktemp("client") / "bookstore.db"
    async with running_server(settings_for(f"sqlite+aiosqlite:///{path}")) as server:
        yield server, path


@pytest.fixture
def sqlite_server(shared_server: tuple[Server, Path]) -> Server:
    """A server without books, whose first book gets the id 1."""
    server, path = shared_server
    reset_sqlite(path)
    return server


@pytest.fixture
async def client(sqlite_server: Server) -> AsyncIterator[BookstoreClient]:
    async with BookstoreClient(sqlite_server.addresses[0]) as client:
        yield client
