"""Log lines, as a process of its own writes them."""

import json
import os
import pty
import socket
import subprocess
import sys
from datetime import UTC, datetime
from itertools import pairwise
from typing import Any

import pytest

_SCRIPT = """
import logging, sys, warnings
import structlog
from bookstore_grpc.telemetry.logs import configure_logging

worker = int(sys.argv[3]) if len(sys.argv) > 3 else None
configure_logging(level=sys.argv[1], log_format=sys.argv[2], worker=worker)
log = structlog.stdlib.get_logger("bookstore_grpc.test")
structlog.contextvars.bind_contextvars(request_id="r-1")
log.debug("a debug line")
log.info("an info line", count=3, name="Émile \\U0001f600")
log.warning("a warning")
logging.getLogger("sqlalchemy.engine").info("too low for a library")
logging.getLogger("sqlalchemy.pool.impl").error("a connection is broken")
logging.getLogger("sqlalchemy.engine").warning("from a %s", "library")
logging.getLogger("bookstore_grpc.dal").error("from our own, by the standard library")
warnings.warn("a python warning")
def fail(password):
    raise LookupError("what went wrong")

try:
    fail("hunter" + "2")
except LookupError:
    log.exception("an exception")
    logging.getLogger("asyncio").exception("an exception of a library")
structlog.contextvars.clear_contextvars()
log.error("without a call")
"""


def _lines(level: str, log_format: str, *worker: str) -> list[str]:
    command = [sys.executable, "-c", _SCRIPT, level, log_format, *worker]
    result = subprocess.run(command, capture_output=True, text=True, check=True, encoding="utf-8")
    assert result.stdout == ""
    return result.stderr.splitlines()


@pytest.fixture(scope="module")
def json_lines() -> dict[str, dict[str, Any]]:
    lines = [json.loads(line) for line in _lines("info", "json")]
    return {line["event"]: line for line in lines}


def test_every_line_is_json_with_level_time_and_event(json_lines: dict[str, dict[str, Any]]) -> None:
    for event, line in json_lines.items():
        assert event
        assert line["level"] in ("info", "warning", "error")
        age = datetime.now(UTC) - datetime.fromisoformat(line["timestamp"])
        assert age.total_seconds() < 600


def test_values_are_logged_unchanged_as_fields(json_lines: dict[str, dict[str, Any]]) -> None:
    line = json_lines["an info line"]
    assert (line["count"], line["name"]) == (3, "Émile \U0001f600")


def test_lines_of_libraries_are_in_the_same_form(json_lines: dict[str, dict[str, Any]]) -> None:
    assert json_lines["from a library"]["level"] == "warning"
    assert json_lines["from our own, by the standard library"]["level"] == "error"
    assert any("a python warning" in event for event in json_lines)


def test_lines_of_libraries_below_warning_are_left_out(json_lines: dict[str, dict[str, Any]]) -> None:
    assert "too low for a library" not in json_lines


def test_what_the_pool_says_of_broken_connections_is_left_out(json_lines: dict[str, dict[str, Any]]) -> None:
    assert "a connection is broken" not in json_lines


def test_request_id_stands_in_every_line_of_its_call_and_in_no_other(
    json_lines: dict[str, dict[str, Any]],
) -> None:
    for event, line in json_lines.items():
        assert line.get("request_id") == (None if event == "without a call" else "r-1")


def test_every_line_of_a_worker_tells_which_it_is(json_lines: dict[str, dict[str, Any]]) -> None:
    lines = [json.loads(line) for line in _lines("info", "json", "3")]
    assert [line["event"] for line in lines] == list(json_lines)
    assert {line["worker"] for line in lines} == {3}
    assert not any("worker" in line for line in json_lines.values())


@pytest.mark.parametrize("event", ["an exception", "an exception of a library"])
def test_exceptions_stand_in_their_line_with_their_trace(json_lines: dict[str, dict[str, Any]], event: str) -> None:
    trace = json_lines[event]["exception"]
    assert trace.startswith("Traceback (most recent call last)")
    assert trace.endswith("LookupError: what went wrong")


def test_a_line_is_one_write_however_long() -> None:
    """So that the lines of several processes stay whole."""
    script = _SCRIPT.replace('"a warning"', '"a warning" + 20_000 * "é"')
    ours, theirs = socket.socketpair(socket.AF_UNIX, socket.SOCK_SEQPACKET)  # which keeps writes apart
    with ours, theirs:
        process = subprocess.Popen([sys.executable, "-c", script, "debug", "json"], stderr=theirs.fileno())
        theirs.close()
        written = list(iter(lambda: ours.recv(100_000), b""))
        assert process.wait() == 0
    assert any(len(line) > 40_000 for line in written)
    for line in written:
        assert json.loads(line)
        assert line.endswith(b"\n")


_MANY_LINES = """
import asyncio, logging, time
import structlog
from bookstore_grpc.telemetry.logs import configure_logging, write_line

async def main():
    log = structlog.stdlib.get_logger("bookstore_grpc")
    for number in range(600):
        write_line(log, logging.INFO, "finished", {"number": number, "said_at": time.time()})
        if number == 300:
            await asyncio.sleep(0.1)
    write_line(log, logging.WARNING, "slow", {"number": 600, "said_at": time.time()})

configure_logging(level="info", log_format="json")
asyncio.run(main())
"""


def test_lines_that_wait_are_written_together_in_their_order_and_bear_their_own_time() -> None:
    ours, theirs = socket.socketpair(socket.AF_UNIX, socket.SOCK_SEQPACKET)  # which keeps writes apart
    with ours, theirs:
        process = subprocess.Popen([sys.executable, "-c", _MANY_LINES], stderr=theirs.fileno())
        theirs.close()
        written = list(iter(lambda: ours.recv(100_000), b""))
        assert process.wait() == 0
    assert len(written) < 60
    assert max(map(len, written)) <= 4_096
    assert all(text.endswith(b"\n") for text in written)
    lines = [json.loads(line) for text in written for line in text.splitlines()]
    assert [line["number"] for line in lines] == list(range(601))
    for line, following in pairwise(lines):
        told_at = datetime.fromisoformat(line["timestamp"]).timestamp()
        assert line["said_at"] - 0.001 <= told_at <= following["said_at"] + 0.001  # which is rounded
    assert lines[-1]["level"] == "warning"


@pytest.mark.parametrize("log_format", ["json", "console"])
def test_a_closed_log_pipe_does_not_fail_the_process(log_format: str) -> None:
    reading, writing = os.pipe()
    os.close(reading)
    script = _SCRIPT + "\nsys.stderr = None\n"  # else Python itself complains at the end
    done = subprocess.run([sys.executable, "-c", script, "debug", log_format], stderr=writing, check=False)
    os.close(writing)
    assert done.returncode == 0


@pytest.mark.parametrize(
    ("level", "shown"),
    [
        ("debug", ["a debug line", "an info line", "a warning", "an exception"]),
        ("info", ["an info line", "a warning", "an exception"]),
        ("warning", ["a warning", "an exception"]),
        ("error", ["an exception"]),
    ],
)
def test_level_is_the_least_that_is_shown(level: str, shown: list[str]) -> None:
    events = [json.loads(line)["event"] for line in _lines(level, "json")]
    ours = ["a debug line", "an info line", "a warning", "an exception"]
    assert [event for event in events if event in ours] == shown


def test_console_lines_are_for_people() -> None:
    text = "\n".join(_lines("info", "console"))
    assert "an info line" in text
    assert "count=3" in text
    assert "request_id=r-1" in text
    assert "LookupError: what went wrong" in text
    assert "hunter2" not in text  # though rich, which is installed here, would show what variables hold
    assert '{"' not in text
    assert "\x1b[" not in text  # colours are for terminals


def test_auto_is_json_where_standard_error_is_not_a_terminal() -> None:
    assert all(json.loads(line)["event"] for line in _lines("info", "auto"))


def test_auto_is_readable_on_a_terminal() -> None:
    terminal, standard_error = pty.openpty()
    with os.fdopen(terminal, "rb", buffering=0) as output:
        process = subprocess.Popen([sys.executable, "-c", _SCRIPT, "info", "auto"], stderr=standard_error)
        os.close(standard_error)
        written = b""
        try:
            while chunk := output.read(4_096):
                written += chunk
        except OSError:
            pass  # the error of a terminal whose other end is closed, on Linux
        assert process.wait() == 0
    assert b"an info line" in written
    assert b"\x1b[" in written
    assert b'"event"' not in written
