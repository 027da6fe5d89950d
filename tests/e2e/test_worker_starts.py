"""Starts and ends of workers that fail: before all serve, again after a fault, and beyond their time."""

import json
import os
import signal
import socket
import subprocess
import sys
from collections.abc import Iterator
from contextlib import contextmanager, suppress
from pathlib import Path

import pytest

from tests.e2e.conftest import Start
from tests.e2e.test_workers import TWO, folder_of, no_process_is_left, processes, replaced
from tests.executable import PATIENCE_SECONDS, environment, run_bookstore, wait_until

__all__ = ["no_process_is_left"]

pytestmark = pytest.mark.e2e

# With a short time that a worker has beyond its drain. One that runs needs much less, on a busy machine too.
_SERVE_WITH_SHORT_MARGIN = """
import asyncio, sys
from bookstore_grpc.server import supervisor
from bookstore_grpc.server.settings import Settings
from bookstore_grpc.telemetry.logs import configure_logging

configure_logging(level="debug", log_format="json")
settings = Settings(
    workers=2, listen=("127.0.0.1:0",), database_url=sys.argv[1], drain_seconds=0, log_level="debug"
)
sys.exit(0 if asyncio.run(supervisor.serve(settings, kill_margin_seconds=6)) else 3)
"""


def test_a_worker_that_does_not_stop_in_time_is_killed_and_logged(tmp_path: Path, sqlite_url: str) -> None:
    with supervising(tmp_path, "-c", _SERVE_WITH_SHORT_MARGIN, sqlite_url) as process:
        assert process.stderr is not None
        while '"serving"' not in process.stderr.readline():
            pass
        (stuck,) = [pid for pid, arguments in processes(tmp_path).items() if arguments[-1] == "1"]
        os.kill(stuck, signal.SIGSTOP)
        process.terminate()
        lines = [json.loads(line) for line in process.communicate(timeout=PATIENCE_SECONDS)[1].splitlines()]

    assert process.returncode == 3
    assert [line["pid"] for line in lines if line["event"] == "worker killed"] == [stuck]
    assert [line["worker"] for line in lines if line["event"] == "worker stopped"] == [0]


@pytest.mark.thorough
def test_a_worker_that_cannot_start_again_is_retried_until_it_can(start: Start, tmp_path: Path) -> None:
    folder = tmp_path / "database"
    folder.mkdir()
    server = start(f"sqlite+aiosqlite:///{folder}/bookstore.db", *TWO)
    with replaced(server, 0) as pid:
        folder.rename(tmp_path / "away")
        os.kill(pid, signal.SIGKILL)
        failed = server.wait_for_event("worker start failed")
        assert failed["worker"] == 0
        assert "unable to open database file" in failed["cause"]
        (tmp_path / "away").rename(folder)


@contextmanager
def supervising(folder: Path, *arguments: str) -> Iterator["subprocess.Popen[str]"]:
    """Run Python as a supervisor whose standard error is a pipe."""
    process = subprocess.Popen(
        [sys.executable, *arguments],
        stdin=subprocess.DEVNULL,
        stderr=subprocess.PIPE,
        text=True,
        cwd=folder,
        env=environment(),
    )
    try:
        yield process
    finally:
        process.kill()
        process.communicate()


@contextmanager
def starting(folder: Path, sqlite_url: str) -> Iterator["subprocess.Popen[str]"]:
    """Start a server without its installed command, and run the block before its worker 1 serves."""
    serve = ("-m", "bookstore_grpc", "serve", *TWO, "--listen", "127.0.0.1:0", "--database-url", sqlite_url)
    with supervising(folder, *serve) as process:
        wait_until(lambda: len(processes(folder)) == 1 + 2, "worker 1 has been started")
        yield process


def test_a_signal_before_all_workers_serve_ends_with_status_0(tmp_path: Path, sqlite_url: str) -> None:
    """Ctrl-C reaches a worker that cannot handle it yet, too."""
    with starting(tmp_path, sqlite_url) as process:
        for pid in processes(tmp_path):
            with suppress(ProcessLookupError):  # the supervisor, which was first, has already ended the worker
                os.kill(pid, signal.SIGINT)
        lines = [json.loads(line) for line in process.communicate(timeout=PATIENCE_SECONDS)[1].splitlines()]

    assert process.returncode == 0
    events = [line["event"] for line in lines]
    assert "serving" not in events
    # One that is signalled while it still imports ends immediately and logs nothing.
    assert events.count("worker stopped") in (1, 2)
    assert {line["level"] for line in lines} <= {"info", "debug"}
    assert events[-1] == "stopped"


def test_a_worker_that_ends_before_it_served_ends_the_start(tmp_path: Path, sqlite_url: str) -> None:
    with starting(tmp_path, sqlite_url) as process:
        (pid,) = [pid for pid, arguments in processes(tmp_path).items() if arguments[-1] == "1"]
        os.kill(pid, signal.SIGKILL)
        _, errors = process.communicate(timeout=PATIENCE_SECONDS)

    assert process.returncode == 1
    assert errors.endswith("Error: Worker 1 ended before it served (SIGKILL).\n")


@pytest.fixture
def used_address() -> Iterator[str]:
    with socket.create_server(("127.0.0.1", 0)) as listening:
        yield f"127.0.0.1:{listening.getsockname()[1]}"


def test_what_keeps_all_workers_from_starting_is_reported_once(
    tmp_path: Path, sqlite_url: str, used_address: str
) -> None:
    (tmp_path / "grpc_reflection.py").write_text("raise ModuleNotFoundError(name='grpc_reflection')")
    no_folder = f"sqlite+aiosqlite:///{tmp_path}/none/bookstore.db"
    for arguments, variables, error in [
        (["--listen", used_address], {}, f"Cannot listen on {used_address}: "),
        (["--database-url", no_folder], {}, f"Cannot use the database sqlite {tmp_path}/none/bookstore.db: "),
        (["--listen", "unix:socket"], {}, "Several workers cannot share unix:socket. Serve it with --workers 1"),
        (["--listen", "0.0.0.0:0"], {}, "0.0.0.0:0 can be reached from other machines"),
        ([], {"PYTHONPATH": str(tmp_path)}, "`bookstore serve` needs the extra [server] (no module 'grpc_refl"),
    ]:
        listen = () if "--listen" in arguments else ("--listen", "127.0.0.1:0")
        finished = run_bookstore(
            "serve",
            *("--workers", "3", *listen, *arguments),
            cwd=tmp_path,
            variables={"BOOKSTORE_DATABASE_URL": sqlite_url, **variables},
        )
        assert finished.status == 1
        assert finished.errors.startswith(f"Error: {error}")
        assert len(finished.errors.splitlines()) == 1


def test_auto_is_a_worker_for_each_core_and_plaintext_is_warned_of_once(start: Start, sqlite_url: str) -> None:
    server = start(sqlite_url, "--workers", "auto", "--listen", "0.0.0.0:0", "--insecure")

    assert [line["event"] for line in server.log_lines() if line["level"] == "warning"] == [
        "serving in plaintext to other machines"
    ]
    cores = len(os.sched_getaffinity(server.process.pid))
    assert len(processes(folder_of(server))) == (1 + cores if cores > 1 else 1)
    assert run_bookstore("health", "--server", f"127.0.0.1:{server.address.rpartition(':')[2]}").status == 0
