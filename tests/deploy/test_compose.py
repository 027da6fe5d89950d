"""The compose file: valid by the specification's schema, on the loopback only, and without a password."""

import importlib.util
import subprocess
import sys
import tomllib

import pytest

from tests.conftest import require
from tests.deploy.files import COMPOSE, DEPLOY, compose

SERVICES = compose()["services"]


@pytest.mark.check
def test_the_file_is_valid_by_the_schema_of_the_specification() -> None:
    require(importlib.util.find_spec("check_jsonschema"), "check-jsonschema is missing (`make check` installs it)")
    done = subprocess.run(
        [sys.executable, "-m", "check_jsonschema", "--builtin-schema", "vendor.compose-spec", str(COMPOSE)],
        capture_output=True,
        text=True,
        timeout=60,
        check=False,
    )
    assert done.returncode == 0, done.stdout + done.stderr


def test_the_image_has_the_version_of_the_package() -> None:
    project = tomllib.loads((DEPLOY.parent / "pyproject.toml").read_text())["project"]
    for name in ("server", "migrate"):
        assert SERVICES[name]["image"] == f"bookstore-grpc:{project['version']}"
        # Both from the folder above, where the Dockerfile finds what it copies.
        build = SERVICES[name]["build"]
        assert (COMPOSE.parent / build["context"] / build["dockerfile"]).samefile(DEPLOY / "Dockerfile")


def test_ports_are_published_on_the_loopback_only() -> None:
    published = [port for service in SERVICES.values() for port in service.get("ports", [])]
    assert published
    assert all(port.startswith("127.0.0.1:") for port in published)


def test_the_service_is_read_only_and_without_privileges() -> None:
    for name in ("server", "migrate"):
        service = SERVICES[name]
        assert service["read_only"] is True
        assert service["user"] == "10001:10001"
        assert service["cap_drop"] == ["ALL"]
        assert service["security_opt"] == ["no-new-privileges:true"]


def test_the_server_starts_after_the_migration_and_that_after_the_database() -> None:
    assert SERVICES["postgresql"]["healthcheck"]["test"][1] == "pg_isready"
    assert SERVICES["migrate"]["depends_on"] == {"postgresql": {"condition": "service_healthy"}}
    assert SERVICES["migrate"]["command"] == ["migrate"]
    assert SERVICES["migrate"]["restart"] == "no"
    assert SERVICES["server"]["depends_on"]["migrate"] == {"condition": "service_completed_successfully"}


def test_the_password_is_required_and_not_in_the_repository() -> None:
    passwords = {
        value for service in SERVICES.values() for name, value in service["environment"].items() if "PASS" in name
    }
    (password,) = passwords
    assert password.startswith("${POSTGRES_PASSWORD:?")
    ignored = (DEPLOY.parent / ".gitignore").read_text().splitlines()
    assert "/deploy/.env" in ignored
