"""The audit of constraints.txt: it fails for a finding, and reports that it skips an unreachable service."""

import json
import re
import socket
import subprocess
import sys
import threading
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from pathlib import Path
from typing import Any

import pytest

from tests.conftest import require
from tests.executable import environment

ROOT = Path(__file__).parents[2]

# A package and a version, to the status and what is known of it.
Response = Callable[[str, str], tuple[int, Any]]


class OSV:
    """A service that speaks as OSV does, on the loopback."""

    def __init__(self, response: Response) -> None:
        self.asked: dict[str, str] = {}
        asked = self.asked

        class Handler(BaseHTTPRequestHandler):
            def do_POST(self) -> None:
                question = json.loads(self.rfile.read(int(self.headers["Content-Length"])))
                name, version = question["package"]["name"], question["version"]
                asked[name] = version
                status, found = response(name, version)
                body = json.dumps(found).encode()
                self.send_response(status)
                self.send_header("Content-Length", str(len(body)))
                self.end_headers()
                self.wfile.write(body)

            def log_message(self, format: str, *arguments: Any) -> None:
                """Keep quiet."""

        self.server = ThreadingHTTPServer(("127.0.0.1", 0), Handler)
        self.url = f"http://127.0.0.1:{self.server.server_port}/v1/query"


@contextmanager
def osv(response: Response) -> Iterator[OSV]:
    service = OSV(response)
    thread = threading.Thread(target=service.server.serve_forever, kwargs={"poll_interval": 0.05})
    thread.start()
    try:
        yield service
    finally:
        service.server.shutdown()
        thread.join()
        service.server.server_close()


def vulnerable(name: str) -> dict[str, Any]:
    versions = {"type": "ECOSYSTEM", "events": [{"introduced": "0"}, {"fixed": "9999"}]}
    affected = {"package": {"name": name, "ecosystem": "PyPI"}, "ranges": [versions]}
    return {"vulns": [{"id": f"PYSEC-2026-{name}", "summary": "Lets everyone in.", "affected": [affected]}]}


def knows(*names: str) -> Response:
    """Know of the old vulnerability that the service is tried with, and of those of `names`."""
    old = ("jinja2", "2.4.1")
    return lambda name, version: (200, vulnerable(name) if name in names or (name, version) == old else {})


def audit(url: str, *arguments: str) -> subprocess.CompletedProcess[str]:
    return subprocess.run(
        [sys.executable, ".ci/audit.py", *arguments],
        cwd=ROOT,
        env=environment(OSV_URL=url, NO_PROXY="127.0.0.1"),
        capture_output=True,
        text=True,
        timeout=100,
        check=False,
    )


@pytest.fixture
def pip_audit() -> None:
    require((Path(sys.executable).parent / "pip-audit").exists(), "pip-audit is missing (`make check` installs it)")


@pytest.mark.check
@pytest.mark.usefixtures("pip_audit")
def test_a_known_vulnerability_fails_and_is_named() -> None:
    with osv(knows("uvicorn")) as service:
        done = audit(service.url)
        assert done.returncode == 1
        assert "PYSEC-2026-uvicorn" in done.stdout
        passed_over = audit(service.url, "--ignore-vuln", "PYSEC-2026-uvicorn")
        assert passed_over.returncode == 0, passed_over.stderr


@pytest.mark.check
@pytest.mark.usefixtures("pip_audit")
def test_every_pinned_version_is_queried() -> None:
    with osv(knows()) as service:
        done = audit(service.url)
    assert done.returncode == 0, done.stdout + done.stderr
    assert "SKIPPED" not in done.stderr
    pins = re.findall(r"^([^#=]+)==(.+)$", (ROOT / "constraints.txt").read_text(), re.MULTILINE)
    expected = {re.sub(r"[-_.]+", "-", name).lower(): version for name, version in pins}
    assert expected.items() <= service.asked.items()


@pytest.mark.check
@pytest.mark.usefixtures("pip_audit")
def test_a_service_that_fails_midway_fails_the_audit() -> None:
    def response(name: str, _version: str) -> tuple[int, Any]:
        return (200, vulnerable(name)) if name == "jinja2" else (500, {})

    with osv(response) as service:
        assert audit(service.url).returncode != 0


@pytest.mark.parametrize(
    ("status", "found"), [(404, {}), (500, {}), (200, {}), (200, []), (200, {"vulns": []})], ids=str
)
def test_another_service_skips_the_audit_with_a_message(status: int, found: Any) -> None:
    with osv(lambda _name, _version: (status, found)) as service:
        done = audit(service.url)
    assert done.returncode == 0
    assert done.stderr.startswith(f"pip-audit SKIPPED: {service.url} ")
    assert list(service.asked) == ["jinja2"]


def test_an_unreachable_or_silent_service_skips_the_audit_soon_with_a_message() -> None:
    with socket.create_server(("127.0.0.1", 0)) as silent, socket.socket() as closed:
        closed.bind(("127.0.0.1", 0))
        for port, reason in (
            (closed.getsockname()[1], "Connection refused"),
            (silent.getsockname()[1], "did not respond within"),
        ):
            began = time.monotonic()
            done = audit(f"http://127.0.0.1:{port}/v1/query")
            assert done.returncode == 0
            assert done.stderr.startswith("pip-audit SKIPPED: ")
            assert reason in done.stderr
            assert time.monotonic() - began < 20
