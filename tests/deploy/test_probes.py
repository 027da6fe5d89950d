"""The server with the variables and commands of the manifests, probed and stopped as by Kubernetes."""

import http.client
import signal
import time
from collections.abc import AsyncIterator
from pathlib import Path
from typing import Any

import pytest

from tests.certificates import Authority
from tests.conftest import DATABASES, new_database
from tests.deploy.files import kubernetes_variables, pod, settings_from
from tests.executable import Finished, Serving, run_bookstore, wait_until

pytestmark = [pytest.mark.e2e, pytest.mark.thorough]


@pytest.fixture(params=DATABASES[:2])
async def database_url(request: pytest.FixtureRequest, tmp_path: Path) -> AsyncIterator[str]:
    async for url in new_database(request.param, tmp_path):
        yield url


def probe(server: Serving, name: str) -> int:
    """Send the request of the probe of that name, as the kubelet does, and return the status."""
    (container,) = pod("Deployment")["containers"]
    question: dict[str, Any] = container[name]
    address = str(server.wait_for_event("serving")["metrics"])
    connection = http.client.HTTPConnection(address, timeout=question.get("timeoutSeconds", 1))
    try:
        connection.request("GET", question["httpGet"]["path"])
        return connection.getresponse().status
    finally:
        connection.close()


def test_a_pod_starts_serves_and_stops_within_its_grace_period(database_url: str, tmp_path: Path) -> None:
    authority = Authority()
    certificate = authority.server()
    (tmp_path / "tls.crt").write_bytes(certificate.pem)
    (tmp_path / "tls.key").write_bytes(certificate.key)
    ca = authority.write(tmp_path)
    (mount,) = pod("Deployment")["containers"][0]["volumeMounts"]
    variables = {
        name: value.replace(mount["mountPath"], str(tmp_path)) for name, value in kubernetes_variables().items()
    }
    variables |= {"BOOKSTORE_LISTEN": "127.0.0.1:0", "BOOKSTORE_METRICS_LISTEN": "127.0.0.1:0"}
    del variables["BOOKSTORE_DATABASE_URL"]

    (job,) = pod("Job")["containers"]
    migrated = run_bookstore(*job["args"], variables={"BOOKSTORE_DATABASE_URL": database_url})
    assert migrated.status == 0, migrated.errors

    (container,) = pod("Deployment")["containers"]
    assert container["args"] == ["serve"]
    server = Serving(database_url, tmp_path / "log", **variables)
    try:
        assert [probe(server, name) for name in ("startupProbe", "readinessProbe", "livenessProbe")] == [200] * 3

        def call() -> Finished:
            return run_bookstore("list", "--server", server.address, "--ca", ca)

        assert call().status == 0

        began = time.monotonic()
        server.process.send_signal(signal.SIGTERM)
        wait_until(lambda: probe(server, "readinessProbe") == 503, "no more calls are sent to it")
        # Nodes that have not noticed still send calls.
        assert call().status == 0
        assert probe(server, "livenessProbe") == 200
        delay_seconds = settings_from(variables).drain_delay_seconds
        assert time.monotonic() - began < delay_seconds
        assert server.wait(pod("Deployment")["terminationGracePeriodSeconds"]) == 0
        assert time.monotonic() - began >= delay_seconds
    finally:
        server.end()
