"""Fixtures: the JSON API of a real server, over each database."""

from functools import partial

import pytest

from bookstore_grpc.dal.database import Database
from bookstore_grpc.rpc.server import Server
from bookstore_grpc.server.app import running_server
from tests.conftest import SessionResources, settings_for
from tests.gateway.servers import FREE_PORT


@pytest.fixture(scope="session")
async def session_server(migrated_database: Database, database_url: str, session_resources: SessionResources) -> Server:
    """In the place of the server that has gRPC alone."""
    make = partial(running_server, settings_for(database_url, http_listen=FREE_PORT))
    return await session_resources.enter("http server", database_url, make=make)


@pytest.fixture
def address(server: Server) -> str:
    """The HTTP address of a server whose database has no books."""
    return server.http_address
