"""Fixtures: the databases, a real server on each, and a real stub that calls it."""

import io
import json
import logging
import os
import signal
import uuid
from collections.abc import AsyncIterator, Callable, Iterator
from contextlib import redirect_stderr
from pathlib import Path
from typing import Any

import grpc
import pytest
from bookstore.v1 import books_pb2_grpc
from hypothesis import HealthCheck
from hypothesis import settings as hypothesis_settings
from sqlalchemy import text
from sqlalchemy.engine import URL, make_url
from sqlalchemy.ext.asyncio import AsyncConnection, create_async_engine

from bookstore_grpc.dal.books import BookDAL
from bookstore_grpc.dal.database import Database
from bookstore_grpc.rpc.server import Server
from bookstore_grpc.server.app import running_server
from bookstore_grpc.server.settings import Settings
from bookstore_grpc.telemetry.logs import configure_logging, flush_logs

LogLines = Callable[[], list[dict[str, Any]]]

# The same examples at every run. A database is slow at times, and one fixture may serve all examples of a test.
hypothesis_settings.register_profile(
    "repeatable",
    deadline=None,
    derandomize=True,
    suppress_health_check=[HealthCheck.function_scoped_fixture, HealthCheck.too_slow],
)
hypothesis_settings.load_profile("repeatable")

# Where the tests may make databases of their own; SQLite needs no address.
SERVER_VARIABLES = {
    "postgresql": "BOOKSTORE_TEST_POSTGRESQL_URL",
    "mariadb": "BOOKSTORE_TEST_MARIADB_URL",
}
REQUIRE_ALL_VARIABLE = "BOOKSTORE_TEST_REQUIRE_ALL"
FAULTS_VARIABLE = "BOOKSTORE_TEST_FAULTS"


def require(condition: object, reason: str) -> None:
    """Skip the test where it lacks something; fail it where everything is required, as in CI."""
    if condition:
        return
    if os.environ.get(REQUIRE_ALL_VARIABLE):
        pytest.fail(reason)
    pytest.skip(reason)


def pytest_configure() -> None:
    # A shell lets what it runs in the background ignore Ctrl-C, and the commands under test would inherit that.
    signal.signal(signal.SIGINT, signal.default_int_handler)


def pytest_terminal_summary(terminalreporter: pytest.TerminalReporter) -> None:
    missing = [variable for variable in SERVER_VARIABLES.values() if not os.environ.get(variable)]
    if missing:
        left_out = ", ".join(name for name, variable in SERVER_VARIABLES.items() if variable in missing)
        terminalreporter.write_line(
            f"Left out: {left_out}. To include them, set {' and '.join(missing)} "
            "(as in postgresql+asyncpg://USER@HOST/DATABASE)."
        )
    if not os.environ.get(FAULTS_VARIABLE):
        terminalreporter.write_line(
            f"Left out: the suite of faults. To include it, set {FAULTS_VARIABLE}=short or long."
        )


@pytest.fixture(scope="session", params=["sqlite", *SERVER_VARIABLES])
async def database_url(request: pytest.FixtureRequest, tmp_path_factory: pytest.TempPathFactory) -> AsyncIterator[str]:
    """The URL of an empty database, once for each kind of database."""
    async for url in new_database(request.param, tmp_path_factory.mktemp("database")):
        yield url


async def new_database(kind: str, folder: Path) -> AsyncIterator[str]:
    """Make an empty database and drop it at the end."""
    if kind == "sqlite":
        yield f"sqlite+aiosqlite:///{folder}/bookstore.db"
        return
    variable = SERVER_VARIABLES[kind]
    require(os.environ.get(variable), f"{variable} is not set")
    server_url = make_url(os.environ[variable])
    name = f"bookstore_test_{uuid.uuid4().hex[:12]}"
    await _execute(server_url, f"CREATE DATABASE {name}")
    try:
        yield server_url.set(database=name).render_as_string(hide_password=False)
    finally:
        await _execute(server_url, f"DROP DATABASE {name}{' WITH (FORCE)' if kind == 'postgresql' else ''}")


async def _execute(url: URL, statement: str) -> None:
    engine = create_async_engine(url, isolation_level="AUTOCOMMIT")
    async with engine.connect() as connection:
        await connection.execute(text(statement))
    await engine.dispose()


@pytest.fixture(scope="session")
async def migrated_database(database_url: str) -> AsyncIterator[Database]:
    """A database with its tables, shared by the tests of a session; `database` empties it for each."""
    database = Database(database_url, pool_size=5, timeout_seconds=10)
    await database.migrate()
    yield database
    await database.close()


@pytest.fixture
async def database(migrated_database: Database) -> Database:
    """A migrated database without books."""

    async def clear(connection: AsyncConnection) -> None:
        await connection.execute(text("DELETE FROM books"))
        await connection.execute(text("DELETE FROM create_requests"))

    await migrated_database.write(clear)
    return migrated_database


@pytest.fixture
def books(database: Database) -> BookDAL:
    return BookDAL(database)


@pytest.fixture(scope="session")
async def session_server(migrated_database: Database, database_url: str) -> AsyncIterator[Server]:
    async with running_server(settings_for(database_url)) as server:
        yield server


def settings_for(database_url: str, **settings: object) -> Settings:
    """Settings of a server on a free port, for tests."""
    values: dict[str, object] = {"listen": ("127.0.0.1:0",), "drain_seconds": 5.0, **settings}
    return Settings(database_url=database_url, **values)  # type: ignore[arg-type]


@pytest.fixture
def server(session_server: Server, database: Database) -> Server:
    """A real server whose database holds no books."""
    return session_server


@pytest.fixture
async def channel(server: Server) -> AsyncIterator[grpc.aio.Channel]:
    async with grpc.aio.insecure_channel(server.addresses[0]) as channel:
        yield channel


@pytest.fixture
def stub(channel: grpc.aio.Channel) -> "books_pb2_grpc.BookServiceAsyncStub":
    return books_pb2_grpc.BookServiceStub(channel)


@pytest.fixture
def log_lines() -> Iterator[LogLines]:
    """Log as the server does in production, and read the lines back."""
    root = logging.getLogger()
    handlers, level = root.handlers[:], root.level
    stream = io.StringIO()
    flush_logs()  # what others have left
    with redirect_stderr(stream):
        configure_logging(level="debug", log_format="json")

    def read() -> list[dict[str, Any]]:
        flush_logs()
        return [json.loads(line) for line in stream.getvalue().splitlines()]

    yield read
    flush_logs()
    logging.captureWarnings(False)
    root.handlers = handlers
    root.setLevel(level)


@pytest.fixture
def goodbooks() -> Path:
    """The file of 10,000 real books, where there is one."""
    path = os.environ.get("BOOKSTORE_TEST_GOODBOOKS")
    if not path:
        pytest.skip("BOOKSTORE_TEST_GOODBOOKS is not set")
    return Path(path)
