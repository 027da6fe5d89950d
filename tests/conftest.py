"""Fixtures: the databases, a real server on each, and a real stub that calls it."""

import importlib.util
import io
import json
import logging
import os
import signal
import sqlite3
import uuid
from collections.abc import AsyncIterator, Callable, Iterator
from contextlib import AbstractAsyncContextManager, AsyncExitStack, asynccontextmanager, closing, redirect_stderr
from functools import partial
from pathlib import Path
from typing import Any, TypeVar

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

T = TypeVar("T")
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


# Each kind of database as a parameter: a test that needs a server of its kind has the mark of that name.
SERVERS = [pytest.param(kind, marks=getattr(pytest.mark, kind), id=kind) for kind in SERVER_VARIABLES]
DATABASES = [pytest.param("sqlite", id="sqlite"), *SERVERS]
GOODBOOKS_VARIABLE = "BOOKSTORE_TEST_GOODBOOKS"
# The marks of what `make test` leaves to `make test-all`.
LEFT_TO_TEST_ALL = (*SERVER_VARIABLES, "browser", "envoy", "thorough")
# The marks of tests that need packages of the extra [check], and what these are imported as.
MARKS_OF_CHECK = ("browser", "check", "envoy")
MODULES_OF_CHECK = (
    "check_jsonschema",
    "envoy",
    "kubernetes_validate",
    "openapi_spec_validator",
    "pip_audit",
    "playwright",
    "schemathesis",
)


def require(condition: object, reason: str) -> None:
    """Skip the test where it lacks something; fail it where everything is required, as in CI."""
    if condition:
        return
    if os.environ.get(REQUIRE_ALL_VARIABLE):
        pytest.fail(reason)
    pytest.skip(reason)


def pytest_addoption(parser: pytest.Parser) -> None:
    parser.addoption("--quick", action="store_true", help=f"leave out tests marked {', '.join(LEFT_TO_TEST_ALL)}")


def pytest_configure() -> None:
    # A shell lets what it runs in the background ignore Ctrl-C, and the commands under test would inherit that.
    signal.signal(signal.SIGINT, signal.default_int_handler)


def pytest_generate_tests(metafunc: pytest.Metafunc) -> None:
    """Run what uses `database_url` on every kind of database, or on those that the mark `databases` names."""
    is_parametrized = any("database_url" in mark.args[0] for mark in metafunc.definition.iter_markers("parametrize"))
    definitions = metafunc.definition._fixtureinfo.name2fixturedefs.get("database_url", ())
    if "database_url" not in metafunc.fixturenames or is_parametrized or any(each.params for each in definitions):
        return
    mark = metafunc.definition.get_closest_marker("databases")
    kinds = [each for each in DATABASES if mark is None or each.values[0] in mark.args]
    metafunc.parametrize("database_url", kinds, indirect=True, scope="session")


def pytest_collection_modifyitems(config: pytest.Config, items: list[pytest.Item]) -> None:
    """Deselect what this run leaves out, which `pytest_terminal_summary` names."""
    for item in items:
        if item.path.parent.name in ("browser", "envoy"):
            item.add_marker(item.path.parent.name)
    left_out = {*_left_out_marks(config), *(MARKS_OF_CHECK if _missing_modules_of_check() else ())}
    deselected = [item for item in items if not _is_selected(item, left_out=left_out)]
    if deselected:
        config.hook.pytest_deselected(items=deselected)
        items[:] = [item for item in items if item not in set(deselected)]


def _is_selected(item: pytest.Item, *, left_out: set[str]) -> bool:
    if "goodbooks" in getattr(item, "fixturenames", ()) and not os.environ.get(GOODBOOKS_VARIABLE):
        return False
    return left_out.isdisjoint(mark.name for mark in item.iter_markers())


def _left_out_marks(config: pytest.Config) -> tuple[str, ...]:
    if config.getoption("--quick"):
        return LEFT_TO_TEST_ALL
    if os.environ.get(REQUIRE_ALL_VARIABLE):
        return ()
    return tuple(kind for kind, variable in SERVER_VARIABLES.items() if not os.environ.get(variable))


def _missing_modules_of_check() -> list[str]:
    """Return what is not installed, except where everything is required."""
    if os.environ.get(REQUIRE_ALL_VARIABLE):
        return []
    return [name for name in MODULES_OF_CHECK if importlib.util.find_spec(name) is None]


def pytest_terminal_summary(terminalreporter: pytest.TerminalReporter, config: pytest.Config) -> None:
    left_out = _left_out_marks(config)
    if left_out == LEFT_TO_TEST_ALL:
        terminalreporter.write_line(f"Left out: {', '.join(left_out)}. To include them: make test-all.")
    elif left_out:
        variables = " and ".join(SERVER_VARIABLES[kind] for kind in left_out)
        terminalreporter.write_line(
            f"Left out: {', '.join(left_out)}. To include them, set {variables} "
            "(as in postgresql+asyncpg://USER@HOST/DATABASE)."
        )
    if missing := _missing_modules_of_check():
        terminalreporter.write_line(
            f"Left out: the tests that need packages of [check] ({', '.join(missing)}). To include them: make check."
        )
    if not os.environ.get(GOODBOOKS_VARIABLE):
        terminalreporter.write_line(
            f"Left out: the tests on 10,000 books. To include them, name their CSV file in {GOODBOOKS_VARIABLE}."
        )
    if not os.environ.get(FAULTS_VARIABLE) and not config.getoption("--quick"):
        terminalreporter.write_line(
            f"Left out: the suite of faults. To include it, set {FAULTS_VARIABLE}=short or long."
        )


class SessionResources:
    """What the tests of a process share: entered at its first use and left at the end of the session."""

    def __init__(self, stack: AsyncExitStack) -> None:
        self._stack = stack
        self._entered: dict[tuple[str, ...], Any] = {}

    async def enter(self, *key: str, make: Callable[[], AbstractAsyncContextManager[T]]) -> T:
        """Return what `make` gives, which is made once for each key."""
        if key not in self._entered:
            self._entered[key] = await self._stack.enter_async_context(make())
        entered: T = self._entered[key]
        return entered


@pytest.fixture(scope="session")
async def session_resources() -> AsyncIterator[SessionResources]:
    """Keep databases and servers while tests of other kinds of databases run in between."""
    async with AsyncExitStack() as stack:
        yield SessionResources(stack)


@pytest.fixture(scope="session")
async def database_url(
    request: pytest.FixtureRequest, session_resources: SessionResources, tmp_path_factory: pytest.TempPathFactory
) -> str:
    """Return the URL of a database of the kind that `pytest_generate_tests` sets."""
    make = asynccontextmanager(partial(new_database, request.param, tmp_path_factory.mktemp("database")))
    return await session_resources.enter("database", request.param, make=make)


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
async def migrated_database(database_url: str, session_resources: SessionResources) -> Database:
    """A database with its tables, shared by the tests of a session; `database` empties it for each."""

    @asynccontextmanager
    async def opened() -> AsyncIterator[Database]:
        database = Database(database_url, pool_size=5, timeout_seconds=10)
        await database.migrate()
        yield database
        await database.close()

    return await session_resources.enter("migrated", database_url, make=opened)


@pytest.fixture
async def database(migrated_database: Database) -> Database:
    """A migrated database without books."""
    await empty(migrated_database)
    return migrated_database


async def empty(database: Database) -> None:
    """Delete all books and idempotency keys."""

    async def clear(connection: AsyncConnection) -> None:
        await connection.execute(text("DELETE FROM books"))
        await connection.execute(text("DELETE FROM create_requests"))

    await database.write(clear)


def reset_sqlite(path: Path) -> None:
    """Delete all books and idempotency keys in a file; the next book gets the id 1."""
    with closing(sqlite3.connect(path, timeout=30, isolation_level=None)) as connection:
        for table in ("books", "create_requests", "sqlite_sequence"):
            connection.execute(f"DELETE FROM {table}")


@pytest.fixture
def books(database: Database) -> BookDAL:
    return BookDAL(database)


@pytest.fixture(scope="session")
async def session_server(migrated_database: Database, database_url: str, session_resources: SessionResources) -> Server:
    make = partial(running_server, settings_for(database_url))
    return await session_resources.enter("server", database_url, make=make)


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
    """The file of 10,000 real books; tests that use it are deselected where there is none."""
    return Path(os.environ[GOODBOOKS_VARIABLE])
