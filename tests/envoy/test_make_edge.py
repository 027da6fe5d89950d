"""`make edge`: one command that starts everything on the loopback, reports what ends, and leaves nothing running."""

import os
import re
import signal
import socket
import subprocess
import sys
from collections.abc import AsyncIterator, Iterator
from contextlib import contextmanager
from functools import partial
from pathlib import Path

import pytest

from deploy.envoy import edge
from tests.conftest import new_database
from tests.envoy.callers import ask
from tests.executable import PATIENCE_SECONDS, environment, wait_until

_LISTENING = "0A"  # in /proc/net/tcp


@pytest.fixture
async def postgresql_url(tmp_path: Path) -> AsyncIterator[str]:
    async for url in new_database("postgresql", tmp_path):
        yield url


class MakeEdge:
    """The script as a process, on free ports."""

    def __init__(self, folder: Path, postgresql_url: str, *, admin_port: int = 0) -> None:
        self.folder = folder
        port, one, other, admin = self.ports = free_ports(4)
        self.address = f"127.0.0.1:{port}"
        self.output = folder / "output"
        command = [sys.executable, edge.__file__, "--folder", folder, "--port", port, "--server-ports", one, other]
        with self.output.open("wb") as output:
            self.process = subprocess.Popen(
                [*map(str, command), "--admin-port", str(admin_port or admin)],
                stdin=subprocess.DEVNULL,
                stdout=output,
                stderr=output,
                env=environment(BOOKSTORE_DATABASE_URL=postgresql_url),
            )

    def wait_for(self, text: str) -> None:
        wait_until(lambda: self.process.poll() is not None or text in self.printed(), f"it prints {text!r}")
        assert text in self.printed(), self.printed()

    def printed(self) -> str:
        return self.output.read_text()

    def children(self) -> list[int]:
        return [int(pid) for pid in re.findall(r"(?:server \d|envoy) is (\d+)", self.printed())]

    def status(self) -> int:
        """Request a page of books, and return the status."""
        return ask(self.address, str(self.folder / "tls/tls.crt"), "GET", "/v1/books").status

    def wait_for_calls_of_each_server(self) -> None:
        """Call until both servers have served one: Envoy may use a healthy server a second later only."""
        logs = [self.folder / f"server-{number}.log" for number in (1, 2)]
        wait_until(lambda: self.status() and all('"method"' in log.read_text() for log in logs), "both serve calls")


def free_ports(count: int) -> list[int]:
    sockets = [socket.create_server(("127.0.0.1", 0)) for _ in range(count)]
    ports = [each.getsockname()[1] for each in sockets]
    for each in sockets:
        each.close()
    return ports


@contextmanager
def made_edge(folder: Path, postgresql_url: str) -> Iterator[MakeEdge]:
    made = MakeEdge(folder, postgresql_url)
    try:
        made.wait_for("Ctrl-C ends everything.")
        yield made
    finally:
        if made.process.poll() is None:
            made.process.send_signal(signal.SIGTERM)
        made.process.wait(PATIENCE_SECONDS)


def listening(port: int) -> list[str]:
    """Return the addresses that are listened on at a port, as the kernel writes them."""
    tables = Path("/proc/net/tcp").read_text() + Path("/proc/net/tcp6").read_text()
    sockets = [line.split() for line in tables.splitlines()]
    local = [fields[1].split(":") for fields in sockets if fields[3] == _LISTENING]
    return [address for address, hexadecimal in local if int(hexadecimal, 16) == port]


def is_running(pid: int) -> bool:
    try:
        os.kill(pid, 0)
    except ProcessLookupError:
        return False
    return True


def test_without_a_database_the_error_says_how_to_start_one() -> None:
    for url in ("", "sqlite+aiosqlite:///bookstore.db"):
        done = subprocess.run(
            [sys.executable, edge.__file__],
            env=environment(**({"BOOKSTORE_DATABASE_URL": url} if url else {})),
            capture_output=True,
            text=True,
            timeout=PATIENCE_SECONDS,
            check=False,
        )
        assert (done.returncode, done.stdout) == (2, "")
        assert "make edge needs a PostgreSQL in BOOKSTORE_DATABASE_URL" in done.stderr
        assert "docker run" in done.stderr


def test_it_serves_on_the_loopback_and_stops_everything_at_the_end(tmp_path: Path, postgresql_url: str) -> None:
    with made_edge(tmp_path, postgresql_url) as made:
        assert made.status() == 200
        for port in made.ports:
            # The tables are not read in one moment, and a line may be missed.
            wait_until(partial(listening, port), f"something listens on {port}")
            assert all(address.endswith("0100007F") for address in listening(port))
        children = made.children()
        assert len(children) == 3

        made.process.send_signal(signal.SIGINT)
        assert made.process.wait(PATIENCE_SECONDS) == 0, made.printed()
        assert not any(map(is_running, children))
        assert (tmp_path / "tls/tls.key").stat().st_mode & 0o077 == 0


def test_a_killed_server_is_reported_and_the_other_responds(tmp_path: Path, postgresql_url: str) -> None:
    with made_edge(tmp_path, postgresql_url) as made:
        made.wait_for_calls_of_each_server()
        one, other, _ = made.children()
        os.kill(one, signal.SIGKILL)
        made.wait_for("server 1 has ended with status -9")
        assert made.status() == 200
        os.kill(other, signal.SIGKILL)
        assert made.process.wait(PATIENCE_SECONDS) == 1, made.printed()


def test_a_port_in_use_is_reported(tmp_path: Path, postgresql_url: str) -> None:
    with socket.create_server(("127.0.0.1", 0)) as used:
        made = MakeEdge(tmp_path, postgresql_url, admin_port=used.getsockname()[1])
        assert made.process.wait(PATIENCE_SECONDS) == 1
    assert "envoy has ended with status 1" in made.printed()
    assert "cannot bind" in made.printed()
    assert "Ctrl-C" not in made.printed()
