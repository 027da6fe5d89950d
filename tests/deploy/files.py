"""The files of deploy/ as data: the variables of each way of running the server, and the time that it has to stop."""

import os
import re
from collections.abc import Mapping
from pathlib import Path
from typing import Any, NamedTuple
from unittest.mock import patch

import yaml

from bookstore_grpc.cli.server import serve
from bookstore_grpc.server.settings import Settings
from deploy.envoy import edge
from tests.executable import environment

DEPLOY = Path(__file__).parents[2] / "deploy"
COMPOSE = DEPLOY / "compose.yaml"
ENVOY = DEPLOY / "envoy"
KUBERNETES = DEPLOY / "kubernetes"
MANIFESTS = sorted(set(KUBERNETES.glob("*.yaml")) - {KUBERNETES / "kustomization.yaml"})
UNIT = DEPLOY / "systemd/bookstore.service"

# The Secret holds it, and compose.yaml puts one together from a password that is not here.
SECRET_URL = {"BOOKSTORE_DATABASE_URL": "postgresql+asyncpg://bookstore@db.example/bookstore"}

_UNIT_SECONDS = {"s": 1, "m": 60, "h": 3_600}


class Way(NamedTuple):
    """A way of running the server: its variables, and how many seconds it has from SIGTERM on."""

    variables: dict[str, str]
    grace_seconds: float


def compose() -> dict[str, Any]:
    """Return the compose file with its anchors followed."""
    loaded: dict[str, Any] = yaml.safe_load(COMPOSE.read_text())
    return loaded


def resources() -> list[dict[str, Any]]:
    """Return what the manifests describe, in the order of files."""
    return [resource for path in MANIFESTS for resource in yaml.safe_load_all(path.read_text())]


def resource(kind: str, name: str | None = None) -> dict[str, Any]:
    """Return the one resource of a kind, or of a kind and a name."""
    (found,) = (
        resource
        for resource in resources()
        if resource["kind"] == kind and name in (None, resource["metadata"]["name"])
    )
    return found


def pod(kind: str) -> dict[str, Any]:
    """Return the pod that a Deployment or a Job makes, as its spec."""
    spec: dict[str, Any] = resource(kind)["spec"]["template"]["spec"]
    return spec


def image_variables() -> dict[str, str]:
    text = re.sub(r"\\\n", " ", (DEPLOY / "Dockerfile").read_text())
    words = [word for line in text.splitlines() if line.startswith("ENV ") for word in line.split()[1:]]
    return dict(word.split("=", 1) for word in words if word.startswith("BOOKSTORE_"))


def kubernetes_variables() -> dict[str, str]:
    """Return the variables of the image with those of the ConfigMap and the Secret."""
    return image_variables() | SECRET_URL | _assignments((KUBERNETES / "settings.env").read_text())


def unit_option(name: str) -> list[str]:
    """Return the values of an option of the systemd unit."""
    return re.findall(rf"^{name}=(.*)$", UNIT.read_text(), re.MULTILINE)


def run_by_docker() -> Way:
    (stop_timeout,) = re.findall(r"--stop-timeout (\d+)", (DEPLOY / "README.md").read_text())
    return Way(image_variables() | {"BOOKSTORE_INSECURE": "1"}, float(stop_timeout))


def run_by_compose() -> Way:
    server = compose()["services"]["server"]
    variables = {name: value for name, value in server["environment"].items() if name.startswith("BOOKSTORE_")}
    return Way(image_variables() | variables, seconds(server["stop_grace_period"]))


def run_by_kubernetes() -> Way:
    return Way(kubernetes_variables(), pod("Deployment")["terminationGracePeriodSeconds"])


def run_by_systemd() -> Way:
    (grace,) = unit_option("TimeoutStopSec")
    return Way(dict(assignment.split("=", 1) for assignment in unit_option("Environment")), float(grace))


def run_by_systemd_as_the_example_has_it() -> Way:
    unit = run_by_systemd()
    example = (DEPLOY / "systemd/bookstore.env").read_text().replace("#BOOKSTORE_", "BOOKSTORE_")
    return unit._replace(variables=unit.variables | _assignments(example))


def run_by_make_edge() -> Way:
    return Way(edge.variables(edge.Ports().servers[0]), edge.GRACE_SECONDS)


WAYS = (
    run_by_docker,
    run_by_compose,
    run_by_kubernetes,
    run_by_systemd,
    run_by_systemd_as_the_example_has_it,
    run_by_make_edge,
)


def settings_from(variables: Mapping[str, str]) -> Settings:
    """Read variables as `bookstore serve` does. Raises `click.UsageError` for an invalid value."""
    with patch.dict(os.environ, environment(**variables), clear=True):
        return Settings(**serve.make_context("serve", []).params)


def seconds(duration: str) -> float:
    """Read a duration as compose files have them, as in 1m30s."""
    parts = re.findall(r"(\d+)([hms])", duration)
    assert "".join(number + unit for number, unit in parts) == duration
    return float(sum(int(number) * _UNIT_SECONDS[unit] for number, unit in parts))


def _assignments(text: str) -> dict[str, str]:
    return dict(line.split("=", 1) for line in text.splitlines() if line and not line.startswith("#"))
