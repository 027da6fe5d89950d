"""Settings: each is documented, a flag overrides a variable and that the default; logs as JSON and for a terminal."""

import json
import os
import pty
import re
from pathlib import Path

import pytest

from bookstore_grpc.server.settings import settings_fields
from tests.certificates import Authority
from tests.e2e.conftest import Start
from tests.executable import PATIENCE_SECONDS, end_process, run_bookstore, start_bookstore
from tests.tokens import AUDIENCE, ISSUER, Issuer

pytestmark = pytest.mark.e2e


def test_help_documents_each_setting_with_its_variable_and_default() -> None:
    finished = run_bookstore("serve", "--help")
    shown = re.sub(r"\s+", " ", finished.output)

    assert finished.status == 0
    for setting in settings_fields():
        flag = "--" + setting.name.replace("_", "-")
        assert f" {flag} " in shown
        assert (
            re.sub(r"\s+", " ", setting.metadata["help"]) in shown.replace("- ", "-")
            or setting.metadata["help"] in shown
        )
        assert f"env var: BOOKSTORE_{setting.name.upper()}" in shown
    assert "default: 127.0.0.1:50051" in shown or "default: (127.0.0.1:50051)" in shown
    assert "default: sqlite+aiosqlite:///bookstore.db" in shown


def grace_seconds(start: Start, database_url: str, *arguments: str, **variables: str) -> object:
    """Return the drain_seconds in use, which the server logs when it drains."""
    server = start(database_url, *arguments, **variables)
    assert server.stop() == 0
    return server.wait_for_event("draining")["grace_seconds"]


def test_a_flag_overrides_a_variable_and_a_variable_the_default(start: Start, sqlite_url: str) -> None:
    assert grace_seconds(start, sqlite_url) == 20
    assert grace_seconds(start, sqlite_url, BOOKSTORE_DRAIN_SECONDS="7") == 7
    assert grace_seconds(start, sqlite_url, "--drain-seconds", "3", BOOKSTORE_DRAIN_SECONDS="7") == 3


def test_the_variable_of_addresses_may_have_several(start: Start, sqlite_url: str) -> None:
    server = start(sqlite_url, BOOKSTORE_LISTEN="127.0.0.1:0 127.0.0.1:0")

    assert len(set(server.addresses)) == 2
    for address in server.addresses:
        assert run_bookstore("health", "--server", address).status == 0


@pytest.mark.parametrize(
    "variables",
    [
        {"BOOKSTORE_POOL_SIZE": "many"},
        {"BOOKSTORE_DRAIN_SECONDS": "-1"},
        {"BOOKSTORE_LOG_LEVEL": "loud"},
        {"BOOKSTORE_INSECURE": "perhaps"},
    ],
    ids=" ".join,
)
def test_an_invalid_variable_is_reported_with_its_flag(variables: dict[str, str]) -> None:
    finished = run_bookstore("serve", variables=variables)

    (name,) = variables
    assert finished.status == 2
    assert "--" + name.removeprefix("BOOKSTORE_").lower().replace("_", "-") in finished.errors


def test_without_a_terminal_every_line_of_the_log_is_json(start: Start, sqlite_url: str) -> None:
    server = start(sqlite_url, "--log-level", "debug")
    run_bookstore("get", 1, "--server", server.address)
    run_bookstore("list", "--server", server.address)
    assert server.stop() == 0

    lines = [json.loads(line) for line in server.log_text().splitlines()]
    assert all({"event", "level", "timestamp"} <= line.keys() for line in lines)
    serving = lines[0]
    assert serving["event"] == "serving"
    assert serving["pid"] == server.process.pid
    (refused,) = [line for line in lines if line["event"] == "call rejected"]
    assert refused["reason"] == "BOOK_NOT_FOUND"
    assert refused["request_id"]
    assert refused["method"] == "/bookstore.v1.BookService/BatchGetBooks"


def test_the_request_id_that_an_error_shows_is_in_the_log(start: Start, sqlite_url: str) -> None:
    server = start(sqlite_url)

    errors = run_bookstore("get", 1, "--server", server.address).errors

    (shown,) = re.findall(r"\(request id (\w+)\)", errors)
    assert server.wait_for_event("call rejected")["request_id"] == shown


def test_on_a_terminal_the_log_is_formatted_for_people(sqlite_url: str) -> None:
    terminal, server_end = pty.openpty()
    with open(server_end, "wb", buffering=0) as stream:
        variables = {"BOOKSTORE_DATABASE_URL": sqlite_url, "TERM": "xterm"}
        process = start_bookstore("serve", "--listen", "127.0.0.1:0", stdout=stream, stderr=stream, variables=variables)
    shown = ""
    try:
        while not re.search(r"serving\b.*\n", shown):
            shown += os.read(terminal, 4_096).decode()
        process.terminate()
        status = process.wait(PATIENCE_SECONDS)
    finally:
        end_process(process)
        os.close(terminal)

    assert status == 0
    assert "127.0.0.1:" in shown
    assert "\x1b[" in shown
    assert not shown.lstrip().startswith("{")


@pytest.mark.parametrize(("log_format", "is_json"), [("json", True), ("console", False)])
def test_the_format_can_be_chosen(sqlite_url: str, log_format: str, is_json: bool, tmp_path: Path) -> None:
    finished = run_bookstore(
        "serve",
        *("--log-format", log_format, "--insecure", "--listen", "192.0.2.1:0", "--database-url", sqlite_url),
    )

    warning = finished.errors.splitlines()[0]
    assert "plaintext" in warning
    assert warning.startswith("{") is is_json
    assert "\x1b[" not in warning


@pytest.mark.parametrize("worker_count", ["1", "2"])
def test_all_contradictions_are_reported_together(sqlite_url: str, worker_count: str, tmp_path: Path) -> None:
    arguments = ("--listen", "0.0.0.0:0", "--tls-key", "a.key", "--token-issuer", "i", "--metrics-listen", "nowhere")
    finished = run_bookstore("serve", "--workers", worker_count, *arguments, "--database-url", sqlite_url, cwd=tmp_path)

    assert finished.status == 1
    first, *problems = finished.errors.splitlines()
    assert first == "Error: 4 settings cannot be used:"
    assert [problem.split()[:3] for problem in problems] == [
        ["-", "0.0.0.0:0", "can"],
        ["-", "TLS", "needs"],
        ["-", "Tokens", "cannot"],
        ["-", "The", "address"],
    ]
    assert list(tmp_path.iterdir()) == []


def test_an_unknown_variable_is_warned_of_by_name_without_its_value(start: Start, sqlite_url: str) -> None:
    unknown = {"BOOKSTORE_TLS_CLIENT_CAS": "hunter2"}
    others = {"BOOKSTORE_TEST_X": "x", "BOOKSTORE_SERVICE_HOST": "h", "BOOKSTORE_PORT_50051_TCP_ADDR": "a"}
    server = start(sqlite_url, **unknown, **others, BOOKSTORE_TOKEN="t", BOOKSTORE_SERVER="s")
    (warning,) = [line for line in server.log_lines() if line["level"] == "warning"]
    assert (warning["event"], warning["variable"]) == ("unknown variable", "BOOKSTORE_TLS_CLIENT_CAS")
    assert "hunter2" not in server.log_text()

    health = run_bookstore("health", "--server", server.address, variables={**unknown, **others})
    assert health.status == 0
    assert health.errors == "Warning: BOOKSTORE_TLS_CLIENT_CAS is not a variable of this command and has no effect.\n"


@pytest.mark.parametrize("worker_count", ["1", "2"])
def test_the_serving_line_names_the_security_in_use(
    start: Start, sqlite_url: str, tmp_path: Path, worker_count: str
) -> None:
    authority, issuer = Authority(), Issuer()
    cert, key = authority.server().write(tmp_path, "server")
    tls = ("--tls-cert", cert, "--tls-key", key)
    tokens = ("--jwks-file", str(issuer.write_jwks(tmp_path / "jwks")))
    names = ("--token-issuer", ISSUER, "--token-audience", AUDIENCE)
    everything = (*tls, "--tls-client-ca", authority.write(tmp_path), *tokens, *names)
    for arguments, in_use in (((), [False] * 3), (tls, [True, False, False]), (everything, [True] * 3)):
        server = start(sqlite_url, "--workers", worker_count, *arguments)
        line = server.wait_for_event("serving")
        assert [line[name] for name in ("tls", "mutual_tls", "tokens")] == in_use
        assert server.stop() == 0
