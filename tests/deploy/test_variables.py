"""deploy/ matches the server: variables, values, ports, and the time to stop."""

import re
from collections.abc import Callable, Iterator

import pytest
import yaml

from bookstore_grpc.cli import main
from bookstore_grpc.compat import uvicorn as connections
from bookstore_grpc.rpc import server
from bookstore_grpc.server import app, commands
from bookstore_grpc.telemetry import otlp as trace_export
from tests.deploy.files import (
    DEPLOY,
    WAYS,
    Way,
    compose,
    image_variables,
    pod,
    resource,
    run_by_compose,
    run_by_kubernetes,
    run_by_systemd_as_the_example_has_it,
    settings_from,
)

# After the last call: the stop of gRPC and of the metrics endpoint, traces, connections, a thread that hangs.
_ENDING_SECONDS = (
    server._STOP_MARGIN_SECONDS
    + connections.STOP_SECONDS
    + trace_export._FLUSH_SECONDS
    + app._CLOSE_SECONDS
    + commands._HANGING_SECONDS
)


def known_variables() -> Iterator[str]:
    yield "BOOKSTORE_TOKEN"  # of no flag, for `ps` shows flags to everyone
    for command in main.commands.values():
        for parameter in command.params:
            if isinstance(parameter.envvar, str):
                yield parameter.envvar


def port(address: str) -> int:
    return int(address.rpartition(":")[2])


def test_all_variables_in_deploy_exist() -> None:
    files = [path for path in DEPLOY.rglob("*") if path.is_file() and path.parent.name != "__pycache__"]
    texts = [path.read_text() for path in files]
    named = {name for text in texts for name in re.findall(r"BOOKSTORE_[A-Z_]*[A-Z]", text)}
    assert "BOOKSTORE_DRAIN_SECONDS" in named
    assert named <= set(known_variables())


@pytest.mark.parametrize("way", WAYS)
def test_the_settings_of_each_deployment_are_valid(way: Callable[[], Way]) -> None:
    variables = way().variables
    assert variables
    settings = settings_from(variables)
    settings.verify()


@pytest.mark.parametrize("way", WAYS)
def test_the_server_is_not_killed_while_it_drains(way: Callable[[], Way]) -> None:
    variables, grace_seconds = way()
    settings = settings_from(variables)
    assert grace_seconds > settings.drain_delay_seconds + settings.drain_seconds + _ENDING_SECONDS


def test_ports_match_the_addresses_of_the_server() -> None:
    listens = {port(address) for address in settings_from(image_variables()).listen}
    exposed = re.findall(r"^EXPOSE (\d+)$", (DEPLOY / "Dockerfile").read_text(), re.MULTILINE)
    assert set(map(int, exposed)) == listens
    assert re.findall(r"--publish 127\.0\.0\.1:\d+:(\d+)", (DEPLOY / "README.md").read_text()) == exposed

    settings = settings_from(run_by_compose().variables)
    targets = {port(published) for published in compose()["services"]["server"]["ports"]}
    assert targets == {*map(port, (*settings.listen, settings.http_listen, settings.metrics_listen))}

    settings = settings_from(run_by_kubernetes().variables)
    named = {each["name"]: each["containerPort"] for each in pod("Deployment")["containers"][0]["ports"]}
    assert named == {"grpc": port(settings.listen[0]), "metrics": port(settings.metrics_listen)}
    for name in ("bookstore", "bookstore-headless"):
        assert resource("Service", name)["spec"]["ports"] == [
            {"name": "grpc", "port": named["grpc"], "targetPort": "grpc"}
        ]
    rules = resource("NetworkPolicy")["spec"]["ingress"]
    assert {each["port"] for rule in rules for each in rule["ports"]} == set(named)


def test_prometheus_scrapes_the_address_of_the_units_example() -> None:
    jobs = yaml.safe_load((DEPLOY / "prometheus/prometheus.yml").read_text())["scrape_configs"]
    targets = [target for job in jobs for config in job["static_configs"] for target in config["targets"]]
    assert targets == [settings_from(run_by_systemd_as_the_example_has_it().variables).metrics_listen]
