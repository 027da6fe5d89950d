"""Metrics and probes of the installed command over HTTP: with one process, with workers, and under faults."""

import asyncio
import os
import shutil
import signal
import subprocess
from pathlib import Path

import grpc
import pytest
from bookstore.v1 import books_pb2, books_pb2_grpc

from tests.e2e.conftest import Start
from tests.executable import BOOKSTORE, PATIENCE_SECONDS, Serving, environment, run_bookstore, wait_until
from tests.metrics import ask, call_all_at_once, metrics_address, number
from tests.tokens import Issuer

pytestmark = pytest.mark.e2e

METRICS = ("--metrics-listen", "127.0.0.1:0")


async def call_everything(address: str, times: int) -> None:
    async def one(number: int) -> None:
        # A connection of its own, so that several workers get some.
        options = [("grpc.use_local_subchannel_pool", 1)]
        async with grpc.aio.insecure_channel(address, options=options) as channel:
            stub = books_pb2_grpc.BookServiceStub(channel)
            book = books_pb2.Book(name=f"N{number}", author="A", release_year=1)
            await stub.CreateBook(books_pb2.CreateBookRequest(book=book), timeout=60)
            await stub.GetBook(books_pb2.GetBookRequest(id=999_999), timeout=60).code()
            unknown: grpc.aio.UnaryUnaryMultiCallable[bytes, bytes] = channel.unary_unary(f"/a/Nonsense{number}")
            await unknown(b"", timeout=60).code()

    await asyncio.gather(*(one(number) for number in range(times)))


@pytest.mark.parametrize("workers", ["1", "2"])
def test_calls_of_all_processes_are_counted(workers: str, sqlite_url: str, start: Start) -> None:
    server = start(sqlite_url, *METRICS, "--workers", workers)
    asyncio.run(call_everything(server.address, 20))
    create = "/bookstore.v1.BookService/CreateBook"
    assert number(server, "bookstore_calls_total", method=create, status="OK") == 20
    assert number(server, "bookstore_calls_total", status="NOT_FOUND", reason="BOOK_NOT_FOUND") == 20
    assert number(server, "bookstore_calls_total", method="unknown") == 20
    assert number(server, "bookstore_call_duration_seconds_count", method=create) == 20
    assert number(server, "bookstore_group_commit_writes_sum") == 20
    assert number(server, "bookstore_request_bytes_total", method=create) > 20
    assert number(server, "bookstore_calls_in_flight") == 0
    assert number(server, "bookstore_ready") == int(workers)
    assert number(server, "bookstore_build_info") == 1
    assert "Nonsense" not in ask(server, "/metrics")[1]


def test_calls_beyond_a_limit_are_counted_by_its_name(sqlite_url: str, start: Start) -> None:
    server = start(sqlite_url, *METRICS, "--rate-limit-per-second", "0.01", "--rate-limit-burst", "3")
    assert asyncio.run(call_all_at_once(server.address, 1, 10)) == {"NOT_FOUND": 3, "RESOURCE_EXHAUSTED": 7}
    assert number(server, "bookstore_calls_rejected_total", limit="rate") == 7


def worker_pids(server: Serving) -> list[int]:
    """The workers in the order in which they were started."""
    children = Path(f"/proc/{server.process.pid}/task/{server.process.pid}/children").read_text().split()
    return [int(pid) for pid in children]


@pytest.mark.thorough
def test_an_unresponsive_worker_is_logged_and_not_ready_until_it_responds_again(sqlite_url: str, start: Start) -> None:
    server = start(sqlite_url, *METRICS, "--workers", "2")
    assert ask(server, "/readyz") == (200, "ok\n")
    first, second = pids = worker_pids(server)
    try:
        os.kill(second, signal.SIGSTOP)
        line = server.wait_for_event("worker unresponsive")
        assert (line["worker"], line["pid"], line["level"]) == (1, second, "error")
        assert ask(server, "/readyz") == (200, "1 of 2 workers ready: worker 1: unresponsive: no heartbeat for 5 s\n")
        assert number(server, "bookstore_ready") == 1
        os.kill(first, signal.SIGSTOP)
        wait_until(lambda: ask(server, "/readyz")[0] == 503, "none is ready")
        reasons = ", ".join(f"worker {index}: unresponsive: no heartbeat for 5 s" for index in range(2))
        everything = f"0 of 2 workers ready: {reasons}\n"
        assert ask(server, "/readyz")[1] == everything
        assert number(server, "bookstore_ready") == 0
        assert ask(server, "/livez")[0] == 200
    finally:
        for pid in pids:
            os.kill(pid, signal.SIGCONT)
    wait_until(lambda: ask(server, "/readyz") == (200, "ok\n"), "both are ready again")
    assert number(server, "bookstore_ready") == 2

    def pids_of(event: str) -> list[int]:
        return sorted(line["pid"] for line in server.log_lines() if line["event"] == event)

    wait_until(lambda: pids_of("worker responsive again") == sorted(pids), "each recovery is logged")
    assert pids_of("worker unresponsive") == sorted(pids)


def metrics_folders(folder: Path) -> list[Path]:
    return list(folder.glob("bookstore-metrics-*"))


@pytest.fixture
def temporary(tmp_path: Path) -> Path:
    """A folder for temporary files."""
    folder = tmp_path / "temporary"
    folder.mkdir()
    return folder


def test_workers_without_a_temporary_folder_end_with_an_error_message(sqlite_url: str, temporary: Path) -> None:
    variables = environment(TMPDIR=str(temporary))
    without_files = ["sh", "-c", 'ulimit -f 0 && exec "$@"', "sh"]  # by the shell: a fork of this process is unsafe
    done = subprocess.run(
        [
            *without_files,
            BOOKSTORE,
            "serve",
            *METRICS,
            "--workers",
            "2",
            "--listen",
            "127.0.0.1:0",
            "--database-url",
            sqlite_url,
        ],
        # Coverage could write nothing either, and would report that.
        env={name: value for name, value in variables.items() if not name.startswith("COVERAGE_")},
        cwd=temporary,
        capture_output=True,
        text=True,
        timeout=PATIENCE_SECONDS,
        check=False,
    )
    assert done.returncode == 1
    (line,) = done.stderr.splitlines()
    assert line.startswith(
        "Error: Several workers need a temporary directory for their metrics, which cannot be created ("
    )
    assert "TMPDIR" in line


def test_a_worker_is_replaced_and_counted_after_the_folder_of_metrics_was_removed(
    sqlite_url: str, start: Start, temporary: Path
) -> None:
    server = start(sqlite_url, *METRICS, "--workers", "2", TMPDIR=str(temporary))
    (folder,) = metrics_folders(temporary)
    shutil.rmtree(folder)
    assert ask(server, "/readyz") == (200, "ok\n")
    for _ in range(2):
        assert number(server, "bookstore_ready") == 2
    assert number(server, "bookstore_build_info") == 0
    os.kill(worker_pids(server)[0], signal.SIGKILL)
    server.wait_for_event("worker serving")
    wait_until(lambda: number(server, "bookstore_build_info") == 1, "the new worker counts")
    assert ask(server, "/readyz") == (200, "ok\n")
    lost = [line for line in server.log_lines() if line["event"].startswith("metrics lost")]
    assert [line["folder"] for line in lost] == [str(folder)]
    assert "Traceback" not in server.log_text()
    assert "start failed" not in server.log_text()
    assert server.stop() == 0
    assert metrics_folders(temporary) == []


@pytest.mark.parametrize("signals", [1, 2])
def test_the_folder_of_metrics_is_removed_at_the_end(
    signals: int, sqlite_url: str, start: Start, temporary: Path
) -> None:
    arguments = ("--workers", "2", "--drain-delay-seconds", "0" if signals == 1 else "60")
    server = start(sqlite_url, *METRICS, *arguments, TMPDIR=str(temporary))
    assert len(metrics_folders(temporary)) == 1
    server.process.send_signal(signal.SIGTERM)
    if signals == 2:
        server.wait_for_event("draining")
        server.process.send_signal(signal.SIGTERM)
    assert server.wait() == (0 if signals == 1 else -signal.SIGTERM)
    assert metrics_folders(temporary) == []


def test_counts_of_a_killed_worker_are_kept_and_its_gauges_are_not(sqlite_url: str, start: Start) -> None:
    server = start(sqlite_url, *METRICS, "--workers", "2")
    asyncio.run(call_everything(server.address, 20))
    os.kill(worker_pids(server)[0], signal.SIGKILL)
    server.wait_for_event("worker ended")
    server.wait_for_event("worker serving")
    wait_until(lambda: number(server, "bookstore_ready") == 2, "both workers are ready")
    assert number(server, "bookstore_calls_total", method="/bookstore.v1.BookService/CreateBook") == 20


def test_probes_respond_and_other_paths_are_not_found(sqlite_url: str, start: Start) -> None:
    server = start(sqlite_url, *METRICS)
    assert ask(server, "/livez") == (200, "ok\n")
    assert ask(server, "/readyz") == (200, "ok\n")
    assert ask(server, "/readyz", "HEAD") == (200, "")
    assert ask(server, "/metrics", "POST")[0] == 405
    status, text = ask(server, "/")
    assert status == 404
    assert "/metrics" in text


@pytest.mark.parametrize("workers", ["1", "2"])
def test_a_draining_server_is_alive_and_not_ready(workers: str, sqlite_url: str, start: Start) -> None:
    server = start(sqlite_url, *METRICS, "--workers", workers, "--drain-delay-seconds", "3")
    wait_until(lambda: ask(server, "/readyz")[0] == 200, "it is ready")
    server.process.send_signal(signal.SIGTERM)
    wait_until(lambda: ask(server, "/readyz") == (503, "draining\n"), "it is not ready")
    assert ask(server, "/livez")[0] == 200
    assert server.wait() == 0


@pytest.mark.parametrize("workers", ["1", "2"])
def test_a_server_without_its_database_is_alive_and_not_ready(
    workers: str, sqlite_file: Path, sqlite_url: str, start: Start
) -> None:
    server = start(sqlite_url, *METRICS, "--workers", workers, "--health-interval-seconds", "0.1")
    wait_until(lambda: ask(server, "/readyz")[0] == 200, "it is ready")
    sqlite_file.rename(sqlite_file.with_suffix(".away"))
    reason = "database unavailable"
    if workers == "2":
        reason = f"0 of 2 workers ready: worker 0: {reason}, worker 1: {reason}"
    wait_until(lambda: ask(server, "/readyz") == (503, f"{reason}\n"), "it is not ready, with the reason")
    assert ask(server, "/livez")[0] == 200
    run_bookstore("get", "1", "--server", server.address)
    assert number(server, "bookstore_database_errors_total") >= 1
    sqlite_file.with_suffix(".away").rename(sqlite_file)
    wait_until(lambda: ask(server, "/readyz")[0] == 200, "it is ready again")


def test_a_port_in_use_is_reported(sqlite_url: str, start: Start, tmp_path: Path) -> None:
    server = start(sqlite_url, *METRICS)
    used = metrics_address(server)
    for workers in ("1", "2"):
        finished = run_bookstore(
            *("serve", "--database-url", f"sqlite+aiosqlite:///{tmp_path}/other.db", "--listen", "127.0.0.1:0"),
            *("--metrics-listen", used, "--workers", workers),
        )
        assert finished.status == 1
        assert f"Cannot listen on {used}" in finished.errors


@pytest.mark.parametrize("address", ["nonsense", "unix:/tmp/socket", "127.0.0.1:99999"])
def test_an_invalid_address_is_reported(address: str, sqlite_url: str) -> None:
    finished = run_bookstore("serve", "--database-url", sqlite_url, "--metrics-listen", address)
    assert finished.status == 1
    assert address in finished.errors


def test_failures_to_reload_keys_are_counted(sqlite_url: str, start: Start, tmp_path: Path) -> None:
    jwks = Issuer().write_jwks(tmp_path / "jwks")
    server = start(
        sqlite_url,
        *METRICS,
        *("--jwks-file", str(jwks), "--jwks-refresh-seconds", "1", "--token-issuer", "i", "--token-audience", "a"),
    )
    jwks.unlink()
    wait_until(lambda: number(server, "bookstore_refresh_failures_total", what="keys") >= 1, "the failure is counted")
