"""Servers of the installed command, on databases of their own."""

import itertools
from collections.abc import AsyncIterator, Callable, Iterator
from pathlib import Path

import pytest

from tests import node
from tests.conftest import DATABASES, SERVERS, new_database
from tests.executable import Serving, serving

Start = Callable[..., Serving]


@pytest.fixture(scope="session")
def shared_server(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Serving]:
    """A server on SQLite for tests that leave nothing behind, or do not depend on what others leave."""
    folder = tmp_path_factory.mktemp("shared")
    with serving(f"sqlite+aiosqlite:///{folder}/bookstore.db", folder / "log") as server:
        yield server


@pytest.fixture(scope="session")
def node_folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A folder with clients in Node and their packages, for `tests.node.command`."""
    folder = tmp_path_factory.mktemp("node") / "callers"
    node.install(folder)
    return folder


@pytest.fixture
def sqlite_file(tmp_path: Path) -> Path:
    return tmp_path / "bookstore.db"


@pytest.fixture
def sqlite_url(sqlite_file: Path) -> str:
    return f"sqlite+aiosqlite:///{sqlite_file}"


@pytest.fixture(params=DATABASES)
async def any_database_url(request: pytest.FixtureRequest, tmp_path: Path) -> AsyncIterator[str]:
    """An empty database of each kind."""
    async for url in new_database(request.param, tmp_path):
        yield url


@pytest.fixture(params=SERVERS)
async def database_server_url(request: pytest.FixtureRequest, tmp_path: Path) -> AsyncIterator[str]:
    """An empty database on each kind of database server."""
    async for url in new_database(request.param, tmp_path):
        yield url


@pytest.fixture
def start(tmp_path: Path) -> Iterator[Start]:
    """Start servers; those that still run at the end are killed."""
    servers: list[Serving] = []
    numbers = itertools.count()  # tests start several at once, from threads

    def start_server(database_url: str, *arguments: str, **variables: str) -> Serving:
        server = Serving(database_url, tmp_path / f"log-{next(numbers)}", *arguments, **variables)
        servers.append(server)
        return server

    yield start_server
    for server in servers:
        server.end()
