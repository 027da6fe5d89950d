"""What lies in deploy/, as data: the variables that each way of running gives to the server, and the time to end."""

import os
import re
from collections.abc import Mapping
from pathlib import Path
from typing import Any, NamedTuple
from unittest.mock import patch

import yaml

from bookstore_grpc.cli.server import serve
from bookstore_grpc.settings import Settings
from tests.executable import environment

DEPLOY = Path(__file__).parents[2] / "deploy"
COMPOSE = DEPLOY / "compose.yaml"
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
    """Answer the compose file with its anchors followed."""
    loaded: dict[str, Any] = yaml.safe_load(COMPOSE.read_text())
    return loaded


def resources() -> list[dict[str, Any]]:
    """Answer what the manifests describe, in the order of files."""
    return [resource for path in MANIFESTS for resource in yaml.safe_load_all(path.read_text())]


def resource(kind: str, name: str | None = None) -> dict[str, Any]:
    """Answer the one resource of a kind, or of a kind and a name."""
    (found,) = (
        resource
        for resource in resources()
        if resource["kind"] == kind and name in (None, resource["metadata"]["name"])
    )
    return found


def pod(kind: str) -> dict[str, Any]:
    """Answer the pod that a Deployment or a Job makes, as its spec."""
    spec: dict[str, Any] = resource(kind)["spec"]["template"]["spec"]
    return spec


def image_variables() -> dict[str, str]:
    text = re.sub(r"\\\n", " ", (DEPLOY / "Dockerfile").read_text())
    words = [word for line in text.splitlines() if line.startswith("ENV ") for word in line.split()[1:]]
    return dict(word.split("=", 1) for word in words if word.startswith("BOOKSTORE_"))


def kubernetes_variables() -> dict[str, str]:
    """Answer what the ConfigMap and the Secret make of those of the image."""
    return image_variables() | SECRET_URL | _assignments((KUBERNETES / "settings.env").read_text())


def unit_option(name: str) -> list[str]:
    """Answer the values of an option of the systemd unit."""
    return re.findall(rf"^{name}=(.*)$", UNIT.read_text(), re.MULTILINE)


def ways() -> dict[str, Way]:
    """Answer the ways of running that deploy/ knows, by their files."""
    server = compose()["services"]["server"]
    (stop_timeout,) = re.findall(r"--stop-timeout (\d+)", (DEPLOY / "README.md").read_text())
    unit = dict(assignment.split("=", 1) for assignment in unit_option("Environment"))
    (unit_grace,) = unit_option("TimeoutStopSec")
    example = (DEPLOY / "systemd/bookstore.env").read_text()
    return {
        "README.md": Way(image_variables() | {"BOOKSTORE_INSECURE": "1"}, float(stop_timeout)),
        "compose.yaml": Way(
            image_variables() | bookstore_variables(server["environment"]), seconds(server["stop_grace_period"])
        ),
        "kubernetes": Way(kubernetes_variables(), pod("Deployment")["terminationGracePeriodSeconds"]),
        "bookstore.service": Way(unit, float(unit_grace)),
        "bookstore.env": Way(unit | _assignments(example.replace("#BOOKSTORE_", "BOOKSTORE_")), float(unit_grace)),
    }


def bookstore_variables(variables: Mapping[str, str]) -> dict[str, str]:
    return {name: value for name, value in variables.items() if name.startswith("BOOKSTORE_")}


def settings_from(variables: Mapping[str, str]) -> Settings:
    """Read variables as `bookstore serve` does. Raises `click.UsageError` for a value that it refuses."""
    with patch.dict(os.environ, environment(**variables), clear=True):
        return Settings(**serve.make_context("serve", []).params)


def seconds(duration: str) -> float:
    """Read a duration as compose files have them, as in 1m30s."""
    parts = re.findall(r"(\d+)([hms])", duration)
    assert "".join(number + unit for number, unit in parts) == duration
    return float(sum(int(number) * _UNIT_SECONDS[unit] for number, unit in parts))


def _assignments(text: str) -> dict[str, str]:
    return dict(line.split("=", 1) for line in text.splitlines() if line and not line.startswith("#"))
