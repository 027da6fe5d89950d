"""What the log says of an outage: the cause, as soon as it is known, and once."""

import asyncio
from collections.abc import Callable
from pathlib import Path

import grpc
import pytest
from sqlalchemy.engine import make_url

from bookstore_grpc.dal.database import Database
from bookstore_grpc.errors import DatabaseUnavailable
from bookstore_grpc.net.file_descriptors import DescriptorsExhausted
from bookstore_grpc.server.app import running_server
from tests.accounts import account
from tests.conftest import SERVERS, LogLines, settings_for
from tests.rpc.health import Status, check
from tests.rpc.obstacles import Network, Waiting, until
from tests.rpc.servers import server_with

DEFAULT_PORTS = {"postgresql": 5432, "mariadb": 3306}
ON_SERVERS = pytest.mark.parametrize("database_url", SERVERS, indirect=True)


def causes(log_lines: LogLines) -> list[str]:
    return [line["cause"] for line in log_lines() if line["event"] == "not serving: database unavailable"]


async def until_told(log_lines: LogLines, count: int) -> list[str]:
    async def is_told() -> bool:
        return len(causes(log_lines)) >= count

    await until(is_told)
    return causes(log_lines)


@ON_SERVERS
async def test_the_cause_is_logged_when_it_is_found_after_a_symptom(
    database: Database, database_url: str, log_lines: LogLines
) -> None:
    shut, expected = {
        "postgresql": ("ALTER ROLE {user} NOLOGIN", "is not permitted to log in"),
        "mariadb": ("ALTER USER {user} IDENTIFIED BY 'another'", "Access denied"),
    }[database.dialect]
    async with account(database_url) as user:
        await user.execute(
            "ALTER ROLE {user} SUPERUSER" if user.is_postgresql else "GRANT ALL ON {database}.* TO {user}"
        )
        url = make_url(user.url)
        network = Network(url.host or "127.0.0.1", url.port or DEFAULT_PORTS[database.dialect])
        await network.restore()
        way = url.set(host="127.0.0.1", port=network.port).render_as_string(hide_password=False)
        async with running_server(settings_for(way, health_interval_seconds=0.05)):
            await asyncio.sleep(0.2)
            await user.execute(shut)
            await network.cut()
            (symptom,) = await until_told(log_lines, 1)
            await network.restore()
            _, cause = await until_told(log_lines, 2)
            await asyncio.sleep(0.5)
        await network.cut()
    assert expected not in symptom
    assert expected in cause
    assert len(causes(log_lines)) == 2


@ON_SERVERS
async def test_a_database_that_does_not_respond_is_logged_as_such(
    database: Database, database_url: str, log_lines: LogLines
) -> None:
    url = make_url(database_url)
    network = Network(url.host or "127.0.0.1", url.port or DEFAULT_PORTS[database.dialect])
    await network.restore()
    way = url.set(host="127.0.0.1", port=network.port).render_as_string(hide_password=False)
    async with running_server(settings_for(way, health_interval_seconds=0.05)):
        network.stall()
        (cause,) = await until_told(log_lines, 1)
        network.flow()
        await network.cut()
    assert cause == "TimeoutError('did not respond within 2 seconds')"


async def test_alternating_causes_are_logged_once_per_outage(tmp_path: Path, log_lines: LogLines) -> None:
    file, elsewhere = tmp_path / "bookstore.db", tmp_path / "elsewhere.db"
    settings = settings_for(f"sqlite+aiosqlite:///{file}", health_interval_seconds=0.02)
    async with running_server(settings) as server, grpc.aio.insecure_channel(server.addresses[0]) as channel:

        async def is_serving() -> bool:
            return (await check(channel)).status == Status.SERVING

        for expected in (2, 4):
            file.rename(elsewhere)
            for _ in range(3):
                await asyncio.sleep(0.2)
                file.touch()
                await asyncio.sleep(0.2)
                file.unlink()
            assert len(causes(log_lines)) == expected
            elsewhere.rename(file)
            await until(is_serving)
    gone, replaced, *again = causes(log_lines)
    assert "FileNotFoundError" in gone
    assert "moved or replaced" in replaced
    assert again == [gone, replaced]


class Probe:
    """Fails as set and counts how often it was called."""

    def __init__(self, error: Callable[[int], Exception | None]) -> None:
        self.error = error
        self.asked = 0

    async def __call__(self) -> None:
        self.asked += 1
        if error := self.error(self.asked):
            raise error

    async def has_been_asked(self) -> bool:
        return self.asked >= 50


async def test_causes_that_are_never_the_same_do_not_fill_the_log(log_lines: LogLines) -> None:
    probe = Probe(lambda number: DatabaseUnavailable(f"attempt {number}"))
    async with server_with(Waiting(), probe=probe, probe_interval_seconds=0.005):
        await until(probe.has_been_asked)
    assert 1 < len(causes(log_lines)) < 20


async def test_descriptors_that_have_run_out_are_not_called_an_outage(log_lines: LogLines) -> None:
    def exhausted(_number: int) -> DatabaseUnavailable:
        error = DatabaseUnavailable()
        error.__cause__ = DescriptorsExhausted("no file descriptors are left, of 1024")
        return error

    probe = Probe(exhausted)
    async with server_with(Waiting(), probe=probe, probe_interval_seconds=0.005) as server:
        await until(probe.has_been_asked)
        assert server.why_not_ready == "no file descriptors left"
    assert causes(log_lines) == []
    (line,) = [line for line in log_lines() if line["event"] == "not serving: no file descriptors left"]
    assert "of 1024" in line["cause"]


@pytest.mark.parametrize("is_required", [False, True])
async def test_an_outage_of_writes_is_logged_and_is_not_serving_only_if_writes_are_required(
    log_lines: LogLines, is_required: bool
) -> None:
    probe = Probe(lambda _number: DatabaseUnavailable("it is read-only"))
    async with (
        server_with(
            Waiting(), probe_writes=probe, health_requires_writes=is_required, probe_interval_seconds=0.005
        ) as server,
        grpc.aio.insecure_channel(server.addresses[0]) as channel,
    ):
        await until(probe.has_been_asked)
        assert server.why_no_writes == "writes unavailable"
        assert server.why_not_ready == ("writes unavailable" if is_required else "")
        assert (await check(channel)).status == (Status.NOT_SERVING if is_required else Status.SERVING)
        probe.asked, probe.error = 0, lambda _number: None
        await until(probe.has_been_asked)
        assert server.why_no_writes == server.why_not_ready == ""
        assert (await check(channel)).status == Status.SERVING
    expected = {
        False: [("error", "writes unavailable"), ("info", "writes available again")],
        True: [("error", "not serving: writes unavailable"), ("info", "serving again: database available")],
    }
    logged = [(line["level"], line["event"]) for line in log_lines() if line["level"] != "debug"]
    assert logged == expected[is_required]


async def test_a_defect_of_the_probe_is_logged_once_with_its_traceback(log_lines: LogLines) -> None:
    probe = Probe(lambda _number: LookupError("a defect"))
    async with server_with(Waiting(), probe=probe, probe_interval_seconds=0.005) as server:
        await until(probe.has_been_asked)
        assert server.why_not_ready
        probe.error = lambda _number: None

        async def is_ready() -> bool:
            return not server.why_not_ready

        await until(is_ready)
        probe.asked = 0
        probe.error = lambda _number: LookupError("a defect")
        await until(probe.has_been_asked)
    expected = [line for line in log_lines() if line["event"] == "not serving: health probe failed"]
    assert len(expected) == 2
    assert "LookupError: a defect" in expected[0]["exception"]
