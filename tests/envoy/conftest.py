"""Fixtures: the service behind Envoy, on PostgreSQL where there is one and else on a file of SQLite."""

import importlib.util
import os
from collections.abc import AsyncIterator, Callable
from contextlib import AbstractAsyncContextManager
from functools import partial
from pathlib import Path
from typing import TYPE_CHECKING

import grpc
import pytest
from bookstore.v1 import books_pb2_grpc

from tests.conftest import SERVER_VARIABLES, new_database, require
from tests.envoy.edge import Edge, running_edge

if TYPE_CHECKING:
    from bookstore.v1.books_pb2_grpc import BookServiceAsyncStub as Stub

RunEdge = Callable[..., AbstractAsyncContextManager[Edge]]


@pytest.fixture(scope="session", autouse=True)
def _envoy() -> None:
    require(importlib.util.find_spec("envoy"), "Envoy is missing (`make check` installs it)")


async def shared_database(folder: Path) -> AsyncIterator[str]:
    """Make a database that two servers can share."""
    kind = "postgresql" if os.environ.get(SERVER_VARIABLES["postgresql"]) else "sqlite"
    async for url in new_database(kind, folder):
        yield url


@pytest.fixture(scope="session")
async def edge(_envoy: None, tmp_path_factory: pytest.TempPathFactory) -> AsyncIterator[Edge]:
    """Two servers behind Envoy, for tests that leave them as they are."""
    folder = tmp_path_factory.mktemp("edge")
    async for url in shared_database(folder):
        async with running_edge(folder, url, "--http-listen", "127.0.0.1:0") as edge:
            yield edge


@pytest.fixture
async def run_edge(_envoy: None, tmp_path: Path) -> AsyncIterator[RunEdge]:
    """Run servers of the test, with these arguments, behind their own Envoy."""
    async for url in shared_database(tmp_path):
        yield partial(running_edge, tmp_path, url)


@pytest.fixture
async def direct(edge: Edge) -> AsyncIterator[grpc.aio.Channel]:
    """A channel to one of the servers, without Envoy."""
    async with grpc.aio.insecure_channel(edge.servers[0].address) as channel:
        yield channel


@pytest.fixture
def stub(direct: grpc.aio.Channel) -> "Stub":
    return books_pb2_grpc.BookServiceStub(direct)
