"""Traces of the installed command: from a verb to SQL, with one process and with workers."""

import asyncio
import json
import re
import socket
import subprocess
from collections.abc import Iterator
from pathlib import Path

import pytest

from bookstore_grpc.client import BookstoreClient
from tests.collector import CLIENT, SERVER, Collector, collecting
from tests.e2e.conftest import Start
from tests.executable import BOOKSTORE, GRPCURL, PATIENCE_SECONDS, environment, run_bookstore, wait_until

pytestmark = pytest.mark.e2e

PARENT_ID = "00f067aa0ba902b7"


@pytest.fixture
def collector() -> Iterator[Collector]:
    with collecting() as collector:
        yield collector


def trace_id(number: int) -> str:
    return f"{number + 1:032x}"


@pytest.mark.parametrize("workers", [1, 2])
def test_a_verb_and_its_calls_belong_to_the_trace_of_the_shell(
    start: Start, sqlite_url: str, collector: Collector, workers: int
) -> None:
    server = start(sqlite_url, "--trace-endpoint", collector.endpoint, "--trace-ratio", "0", "--workers", str(workers))

    def workers_with_calls() -> set[int | None]:
        return {line.get("worker") for line in server.log_lines() if "method" in line}

    verbs = 0
    while len(workers_with_calls()) < workers:  # the kernel gives each connection to one of the workers
        assert verbs < 100
        number = verbs
        verbs += 1
        variables = {"TRACEPARENT": f"00-{trace_id(number)}-{PARENT_ID}-01", "TRACESTATE": f"vendor={number}"}
        done = run_bookstore(
            "create",
            "--name",
            "N",
            "--author",
            "A",
            "--release-year",
            1,
            "--server",
            server.address,
            variables=variables,
        )
        assert (done.status, done.errors) == (0, "")
    untraced = run_bookstore("list", "--server", server.address, variables={"TRACEPARENT": "nonsense"})
    assert untraced.status == 0
    assert server.stop() == 0  # buffered spans are sent at the end
    spans = collector.spans()
    assert len(spans) == 2 * verbs
    for number in range(verbs):
        call, written = sorted(
            (each for each in spans if each.trace_id == trace_id(number)), key=lambda span: span.kind
        )
        assert (call.kind, call.parent_id, call.trace_state) == (SERVER, PARENT_ID, f"vendor={number}")
        assert (written.kind, written.name, written.parent_id) == (CLIENT, "INSERT books", call.span_id)
    assert len({span.resource["process.pid"] for span in spans}) == workers
    logged = [line["trace_id"] for line in server.log_lines() if line.get("method", "").endswith("CreateBook")]
    assert sorted(logged) == [trace_id(number) for number in range(verbs)]


def test_an_unavailable_collector_is_logged_once_by_each_worker_and_does_not_fail_the_stop(
    start: Start, sqlite_url: str
) -> None:
    with collecting() as collector:
        endpoint = collector.endpoint
    server = start(
        sqlite_url,
        "--trace-endpoint",
        endpoint,
        "--workers",
        "2",
        OTEL_BSP_SCHEDULE_DELAY="100",
        OTEL_EXPORTER_OTLP_TIMEOUT="1",
    )
    assert run_bookstore("list", "--server", server.address).status == 0
    line = server.wait_for_event("traces not sent")
    assert line["endpoint"] == endpoint
    assert "UNAVAILABLE" in line["cause"]
    assert run_bookstore("list", "--server", server.address).status == 0
    assert server.stop() == 0
    warnings = [line["event"] for line in server.log_lines() if line["level"] in ("warning", "error")]
    assert set(warnings) == {"traces not sent"}
    assert len(warnings) <= 2  # one of each worker
    assert "Traceback" not in server.log_text()


async def call(address: str, times: int) -> None:
    async with BookstoreClient(address) as client:
        for _ in range(times):
            await client.list_page()


def test_dropped_spans_are_logged_once(start: Start, sqlite_url: str) -> None:
    with socket.create_server(("127.0.0.1", 0)) as unresponsive:
        endpoint = f"http://127.0.0.1:{unresponsive.getsockname()[1]}"
        small_queue = {"OTEL_BSP_MAX_QUEUE_SIZE": "10", "OTEL_BSP_MAX_EXPORT_BATCH_SIZE": "10"}
        server = start(sqlite_url, "--trace-endpoint", endpoint, **small_queue)
        asyncio.run(call(server.address, times=30))
        assert server.stop() == 0
    warnings = [line["event"] for line in server.log_lines() if line["level"] in ("warning", "error")]
    assert warnings == ["Queue full, dropping Span.", "traces not sent"]


@pytest.mark.parametrize("workers", ["1", pytest.param("2", marks=pytest.mark.thorough)])
def test_a_missing_extra_is_reported_with_the_command_to_install_it(
    sqlite_url: str, tmp_path: Path, workers: str
) -> None:
    # As if it were not installed: the interpreter imports this first.
    (tmp_path / "sitecustomize.py").write_text("import sys\nsys.modules['opentelemetry.sdk'] = None\n")
    done = subprocess.run(
        [BOOKSTORE, "serve", "--listen", "127.0.0.1:0", "--workers", workers, "--trace-endpoint", "http://127.0.0.1:1"],
        capture_output=True,
        text=True,
        env=environment(BOOKSTORE_DATABASE_URL=sqlite_url, PYTHONPATH=str(tmp_path)),
        timeout=PATIENCE_SECONDS,
        check=False,
    )
    assert done.returncode == 1
    (error,) = done.stderr.splitlines()
    assert re.search(r"^Error: Traces need .*pip install 'bookstore-grpc\[otel\]'\.$", error)


def test_each_worker_serves_its_own_channelz(start: Start, sqlite_url: str) -> None:
    server = start(sqlite_url, "--workers", "2", "--channelz-listen", "127.0.0.1:0")

    def lines() -> "dict[int, str]":
        serving = (line for line in server.log_lines() if line["event"] == "serving channelz")
        return {line["worker"]: line["address"] for line in serving}

    wait_until(lambda: len(lines()) == 2, "both have logged their addresses")

    def started() -> list[int]:
        printed = (grpcurl(address, "grpc.channelz.v1.Channelz/GetServers") for address in lines().values())
        return [int(json.loads(each)["server"][0]["data"].get("calls_started", 0)) for each in printed]

    calls = 0
    while not all(started()):  # the kernel gives each connection to one of the two
        assert calls < 50
        assert run_bookstore("list", "--server", server.address).status == 0
        calls += 1
    assert sum(started()) == calls


def grpcurl(address: str, method: str) -> str:
    command = [str(GRPCURL), "-plaintext", "-d", "{}", address, method]
    return subprocess.run(command, capture_output=True, text=True, check=True, timeout=PATIENCE_SECONDS).stdout
