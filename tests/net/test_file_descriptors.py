"""Descriptors: as many as the system allows, divided so that connections leave some for everything else."""

import json
import os
import resource
import subprocess
import sys
from collections.abc import AsyncIterator, Iterator
from contextlib import contextmanager
from pathlib import Path

import pytest
from sqlalchemy.engine import make_url

from bookstore_grpc.dal.database import Database
from bookstore_grpc.dal.driver_errors import driver_error
from bookstore_grpc.errors import DatabaseUnavailable
from bookstore_grpc.limits import DESCRIPTORS_MAX, DESCRIPTORS_RESERVED, GRPC_CONNECTIONS_MAX
from bookstore_grpc.net.file_descriptors import DescriptorsExhausted, named_exhaustion
from bookstore_grpc.server.connection_bounds import connection_bounds
from tests.conftest import LogLines, new_database, settings_for

SQLITE = "sqlite+aiosqlite:///bookstore.db"
EVERYTHING = {"http_listen": "127.0.0.1:1", "metrics_listen": "127.0.0.1:2"}


def raised(soft: int, hard: int) -> list[int]:
    """What a process that began with these limits has, by its own account and the system's."""
    code = (
        "import json, resource; from bookstore_grpc.net.file_descriptors import raise_descriptor_limit as r;"
        "print(json.dumps([r(), resource.getrlimit(resource.RLIMIT_NOFILE)[0]]))"
    )
    command = ["prlimit", f"--nofile={soft}:{hard}", sys.executable, "-c", code]
    response: list[int] = json.loads(subprocess.run(command, check=True, capture_output=True).stdout)
    return response


@pytest.mark.parametrize(("soft", "hard", "expected"), [(256, 2_048, 2_048), (1_024, 1_024, 1_024)])
def test_the_limit_is_raised_to_what_is_allowed(soft: int, hard: int, expected: int) -> None:
    assert raised(soft, hard) == [expected, expected]


def test_the_limit_is_raised_within_reason() -> None:
    _, hard = resource.getrlimit(resource.RLIMIT_NOFILE)
    if 0 <= hard <= DESCRIPTORS_MAX:
        pytest.skip(f"this system allows {hard}")
    assert raised(1_024, hard) == [DESCRIPTORS_MAX, DESCRIPTORS_MAX]


@pytest.mark.parametrize("pool_size", [1, 10, 40])
@pytest.mark.parametrize("url", [SQLITE, "postgresql+asyncpg://h/b"])
@pytest.mark.parametrize("listen", [("127.0.0.1:1",), ("127.0.0.1:1", "unix:/tmp/x", "localhost:2")])
@pytest.mark.parametrize("descriptors", [256, 1_024, 65_536])
def test_connections_leave_descriptors_for_everything_else(
    descriptors: int, listen: tuple[str, ...], url: str, pool_size: int
) -> None:
    settings = settings_for(url, listen=listen, pool_size=pool_size, **EVERYTHING)
    bounds = connection_bounds(settings, descriptors)
    files = (pool_size + 4) * (3 if url == SQLITE else 1)
    at_least_as_many = len(listen)  # localhost may have two
    assert bounds.grpc * at_least_as_many + bounds.http + bounds.endpoints + files + DESCRIPTORS_RESERVED <= descriptors
    assert min(bounds) >= 5


def test_what_does_not_listen_takes_nothing() -> None:
    bounds = connection_bounds(settings_for(SQLITE), 1_024)
    assert (bounds.http, bounds.endpoints) == (0, 0)
    assert bounds.grpc > connection_bounds(settings_for(SQLITE, **EVERYTHING), 1_024).grpc
    assert connection_bounds(settings_for(SQLITE, workers=2, **EVERYTHING), 1_024).endpoints == 0


def test_the_setting_bounds_connections_too(log_lines: LogLines) -> None:
    assert connection_bounds(settings_for(SQLITE, max_connections=50), 65_536).grpc == 50
    assert connection_bounds(settings_for(SQLITE), 65_536).grpc == GRPC_CONNECTIONS_MAX
    assert log_lines() == []


def test_the_log_tells_that_descriptors_are_few(log_lines: LogLines) -> None:
    bounds = connection_bounds(settings_for(SQLITE, max_connections=2_000), 1_024)
    (line,) = log_lines()
    assert (line["event"], line["limit"], line["connections"]) == (
        "connection limits lowered",
        1_024,
        bounds.grpc,
    )


@contextmanager
def no_descriptors() -> Iterator[None]:
    """Let this process open no more files."""
    soft, hard = resource.getrlimit(resource.RLIMIT_NOFILE)
    opened = [os.open(os.devnull, os.O_RDONLY)]
    resource.setrlimit(resource.RLIMIT_NOFILE, (max(map(int, os.listdir("/proc/self/fd"))) + 1, hard))
    try:
        while True:
            try:
                opened.append(os.open(os.devnull, os.O_RDONLY))
            except OSError:
                break
        yield
    finally:
        resource.setrlimit(resource.RLIMIT_NOFILE, (soft, hard))
        for descriptor in opened:
            os.close(descriptor)


@pytest.fixture
async def own_url(database_url: str, tmp_path: Path) -> AsyncIterator[str]:
    """A database that nothing else in this process has open: SQLite would use a descriptor of its file again."""
    async for url in new_database(make_url(database_url).get_backend_name(), tmp_path):
        yield url


async def test_a_database_that_cannot_be_opened_for_lack_of_descriptors_has_that_cause(own_url: str) -> None:
    database = Database(own_url, pool_size=1, timeout_seconds=2)
    try:
        with no_descriptors(), pytest.raises(DatabaseUnavailable) as caught:
            await database.ping()
        cause = driver_error(caught.value)
        assert isinstance(cause, DescriptorsExhausted)
        assert "no file descriptors are left, of " in str(cause)
        await database.ping()
    finally:
        await database.close()


def test_a_missing_file_is_not_reported_as_a_lack_of_descriptors() -> None:
    error = OSError(2, "No such file or directory")
    assert named_exhaustion(error) is error
