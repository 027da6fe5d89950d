"""A server that receives a signal before it serves ends immediately, with status 0, whatever it waits for."""

import asyncio
import signal
import socket
from collections.abc import AsyncIterator, Iterator
from contextlib import asynccontextmanager, contextmanager
from pathlib import Path

import pytest
from sqlalchemy import text
from sqlalchemy.engine import make_url
from sqlalchemy.ext.asyncio import AsyncConnection, create_async_engine

from bookstore_grpc.dal import migrations
from tests.e2e.test_signals import BOTH, locked
from tests.executable import PATIENCE_SECONDS, end_process, start_bookstore, wait_until

pytestmark = pytest.mark.e2e

# Without the signal it would wait much longer.
PATIENT = ("--database-timeout-seconds", "600")
SERVE = ("serve", "--migrate", *PATIENT)
MIGRATE = ("migrate", *PATIENT)
# Long enough for a slow machine; nothing here takes half a second unless a thread hangs.
SOON_SECONDS = 10
_TAKE_LOCK = {
    "postgresql": f"SELECT pg_advisory_xact_lock({migrations._LOCK_KEY})",
    "mariadb": f"SELECT GET_LOCK({migrations._LOCK_NAME_SQL}, 30)",
}
WAITING = "waiting for another server's migration"


class Starting:
    """A command that does not end by itself."""

    def __init__(self, url: str, log: Path, *arguments: str, **variables: str) -> None:
        self._log = log
        with log.open("wb") as file:
            variables = {"BOOKSTORE_DATABASE_URL": url, "BOOKSTORE_LISTEN": "127.0.0.1:0", **variables}
            self.process = start_bookstore(*arguments, stdout=file, stderr=file, variables=variables)

    def log(self) -> str:
        return self._log.read_text()

    def wait_for_log(self, words: str) -> None:
        wait_until(lambda: words in self.log() or self.process.poll() is not None, f"the log has {words!r}")
        assert self.process.poll() is None, self.log()

    def stop(self, number: signal.Signals = signal.SIGTERM) -> int:
        self.process.send_signal(number)
        status = self.process.wait(SOON_SECONDS)
        assert "Traceback" not in self.log()
        return status


@contextmanager
def starting(url: str, folder: Path, *arguments: str, **variables: str) -> Iterator[Starting]:
    started = Starting(url, folder / "log", *arguments, **variables)
    try:
        yield started
    finally:
        end_process(started.process)


@asynccontextmanager
async def migrating(url: str) -> AsyncIterator[AsyncConnection]:
    """Hold the lock of migrations while a block runs."""
    engine = create_async_engine(url)
    async with engine.connect() as connection:
        await connection.execute(text(_TAKE_LOCK[engine.dialect.name]))
        yield connection
        if engine.dialect.name == "mariadb":  # it would outlive the transaction
            await connection.execute(text(f"SELECT RELEASE_LOCK({migrations._LOCK_NAME_SQL})"))
    await engine.dispose()


_OTHERS_CONNECTIONS = {
    "postgresql": (
        "SELECT count(*) FROM pg_stat_activity WHERE datname = current_database() AND pid <> pg_backend_pid()"
    ),
    "mariadb": ("SELECT count(*) FROM information_schema.processlist WHERE db = database() AND id <> connection_id()"),
}


@BOTH
@pytest.mark.parametrize(("arguments", "status"), [(SERVE, 0), (MIGRATE, 1)], ids=["serve", "migrate"])
async def test_a_wait_for_the_migration_of_another_server_ends_with_a_signal(
    database_server_url: str, tmp_path: Path, arguments: tuple[str, ...], status: int, number: signal.Signals
) -> None:
    dialect = make_url(database_server_url).get_backend_name()
    async with migrating(database_server_url) as connection:
        with starting(database_server_url, tmp_path, *arguments) as started:
            await asyncio.to_thread(started.wait_for_log, WAITING)

            assert await asyncio.to_thread(started.stop, number) == status

            assert started.log().count(WAITING) == 1
            assert "cancelled" in started.log().splitlines()[-1]
            # A server that has ended waits for nothing in the database.
            async with asyncio.timeout(PATIENCE_SECONDS):
                while await connection.scalar(text(_OTHERS_CONNECTIONS[dialect])):  # noqa: ASYNC110  there is no event
                    await asyncio.sleep(0.1)


async def test_a_worker_that_waits_for_the_migration_of_another_server_ends_with_a_signal(
    database_server_url: str, tmp_path: Path
) -> None:
    async with migrating(database_server_url):
        with starting(database_server_url, tmp_path, *SERVE, "--workers", "2") as started:
            await asyncio.to_thread(started.wait_for_log, WAITING)
            assert await asyncio.to_thread(started.stop) == 0
            assert "worker killed" not in started.log()


@pytest.mark.parametrize("arguments", [SERVE, (*SERVE, "--workers", "2"), MIGRATE], ids=["serve", "workers", "migrate"])
def test_a_wait_for_sqlites_lock_ends_with_a_signal(tmp_path: Path, arguments: tuple[str, ...]) -> None:
    path = tmp_path / "bookstore.db"
    with locked(path) as lock, starting(f"sqlite+aiosqlite:///{path}", tmp_path, *arguments) as started:
        started.wait_for_log("waiting for SQLite's lock")

        assert started.stop() == (1 if arguments is MIGRATE else 0)

        assert lock.execute("SELECT count(*) FROM sqlite_master").fetchone() == (0,)


@pytest.mark.parametrize("scheme", ["postgresql+asyncpg", "mariadb+asyncmy"])
@pytest.mark.parametrize("arguments", [SERVE, ("serve", *PATIENT), MIGRATE], ids=["migrate", "serve", "verb"])
def test_a_wait_for_an_unresponsive_database_ends_with_a_signal(
    scheme: str, tmp_path: Path, arguments: tuple[str, ...]
) -> None:
    with socket.create_server(("127.0.0.1", 0)) as mute:
        url = f"{scheme}://127.0.0.1:{mute.getsockname()[1]}/books"
        with starting(url, tmp_path, *arguments) as started:
            mute.settimeout(PATIENCE_SECONDS)
            connection, _ = mute.accept()
            with connection:
                assert started.stop() == (1 if arguments is MIGRATE else 0)


def test_a_wait_for_the_keys_of_tokens_ends_with_a_signal(tmp_path: Path) -> None:
    with socket.create_server(("127.0.0.1", 0)) as mute:
        keys = f"http://127.0.0.1:{mute.getsockname()[1]}/keys"
        tokens = ("--jwks-url", keys, "--token-issuer", "i", "--token-audience", "a")
        with starting(f"sqlite+aiosqlite:///{tmp_path}/bookstore.db", tmp_path, "serve", *tokens) as started:
            mute.settimeout(PATIENCE_SECONDS)
            connection, _ = mute.accept()
            with connection:
                assert started.stop() == 0
    assert not (tmp_path / "bookstore.db").exists()


# A package whose import takes long, as all do on a busy machine.
_SLOW = "import time; open({mark!r}, 'w').close(); time.sleep(600)"


@pytest.mark.parametrize("arguments", [SERVE, (*SERVE, "--workers", "2"), MIGRATE], ids=["serve", "workers", "migrate"])
def test_a_start_that_is_still_importing_ends_with_a_signal(tmp_path: Path, arguments: tuple[str, ...]) -> None:
    mark = tmp_path / "importing"
    (tmp_path / "sqlalchemy.py").write_text(_SLOW.format(mark=str(mark)))
    url = f"sqlite+aiosqlite:///{tmp_path}/bookstore.db"
    with starting(url, tmp_path, *arguments, PYTHONPATH=str(tmp_path)) as started:
        wait_until(mark.exists, "it imports")
        assert started.stop() == (1 if arguments is MIGRATE else 0)
