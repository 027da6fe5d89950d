"""Fixtures: the JSON API of a real server, over each database."""

from collections.abc import AsyncIterator

import pytest

from bookstore_grpc.dal.database import Database
from bookstore_grpc.rpc.server import Server
from bookstore_grpc.server.app import running_server
from tests.conftest import settings_for
from tests.gateway.servers import FREE_PORT


@pytest.fixture(scope="session")
async def session_server(migrated_database: Database, database_url: str) -> AsyncIterator[Server]:
    """In the place of the server that has gRPC alone."""
    async with running_server(settings_for(database_url, http_listen=FREE_PORT)) as server:
        yield server


@pytest.fixture
def address(server: Server) -> str:
    """Where a server whose database holds no books answers over HTTP."""
    return server.http_address
