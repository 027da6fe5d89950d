"""The configuration of Envoy: consistent with the behaviour and limits of the servers, and on the loopback."""

import re
from typing import Any

import yaml
from google.protobuf.descriptor_pb2 import FileDescriptorSet

from bookstore_grpc.auth.authentication import READ, SCOPES_BY_METHOD
from bookstore_grpc.errors import ServerDraining
from bookstore_grpc.limits import CHECKPOINT_SECONDS_MAX
from bookstore_grpc.server.settings import Settings
from deploy.envoy.descriptors import descriptor_set
from deploy.envoy.edge import Ports, variables
from tests.deploy.files import DEPLOY, ENVOY, settings_from

GENERATED = DEPLOY.parent / "generated"
CONFIG: dict[str, Any] = yaml.safe_load((ENVOY / "envoy.yaml").read_text())
(LISTENER,) = CONFIG["static_resources"]["listeners"]
(CLUSTER,) = CONFIG["static_resources"]["clusters"]
HTTP = LISTENER["filter_chains"][0]["filters"][0]["typed_config"]
ROUTES = HTTP["route_config"]["virtual_hosts"][0]["routes"]
SETTINGS = Settings()
WATCH = "/bookstore.v1.BookService/WatchBooks"


def seconds(duration: str) -> float:
    return float(duration.removesuffix("s"))


def route_of(method: str) -> dict[str, Any]:
    """Return the route that a call takes."""
    for each in ROUTES:
        match = each["match"]
        if "safe_regex" in match and re.fullmatch(match["safe_regex"]["regex"], method):
            break
        if "prefix" in match and method.startswith(match["prefix"]):
            break
    route: dict[str, Any] = each["route"]
    return route


def test_only_reads_are_retried_after_every_failure() -> None:
    always = {"connect-failure", "refused-stream", "cancelled"}
    for method, scope in SCOPES_BY_METHOD.items():
        conditions = {*route_of(method)["retry_policy"]["retry_on"].split(",")}
        if scope == READ:
            assert conditions == always | {"reset", "unavailable"}
        else:
            assert conditions == always | {"reset-before-request", "retriable-headers"}


def test_a_server_that_stops_is_recognized_by_its_message() -> None:
    (write,) = {method for method, scope in SCOPES_BY_METHOD.items() if scope != READ and "/CreateBook" in method}
    (header,) = route_of(write)["retry_policy"]["retriable_headers"]
    assert header == {"name": "grpc-message", "string_match": {"exact": ServerDraining().message}}


def test_the_limits_of_the_servers_apply_before_those_of_envoy() -> None:
    for method in SCOPES_BY_METHOD:
        if method != WATCH:
            assert seconds(route_of(method)["timeout"]) > SETTINGS.max_call_seconds
    servers = CLUSTER["load_assignment"]["endpoints"][0]["lb_endpoints"]
    (limits,) = CLUSTER["circuit_breakers"]["thresholds"]
    calls = len(servers) * (SETTINGS.max_concurrent_calls + SETTINGS.max_waiting_calls)
    assert limits["max_requests"] == limits["max_pending_requests"] == calls
    http2 = http2_options()
    assert http2["max_concurrent_streams"] == SETTINGS.max_calls_per_connection
    assert limits["max_connections"] * http2["max_concurrent_streams"] >= calls


def test_a_watch_is_ended_by_no_timeout_of_envoy() -> None:
    assert seconds(route_of(WATCH)["timeout"]) == 0
    assert seconds(route_of(WATCH)["idle_timeout"]) > CHECKPOINT_SECONDS_MAX


def test_a_json_body_may_be_as_long_as_a_message() -> None:
    found = re.findall(r"max_request_bytes: (\d+)", (ENVOY / "envoy.yaml").read_text())
    assert {*map(int, found)} == {SETTINGS.max_message_bytes}


def test_pings_are_not_more_frequent_than_servers_allow() -> None:
    assert seconds(http2_options()["connection_keepalive"]["interval"]) > SETTINGS.keepalive_least_seconds


def test_a_server_that_stops_is_unhealthy_before_it_rejects_calls() -> None:
    (check,) = CLUSTER["health_checks"]
    most = check["unhealthy_threshold"] * (seconds(check["interval"]) + seconds(check["interval_jitter"]))
    assert settings_from(variables(50051)).drain_delay_seconds > most


def test_plaintext_to_servers_is_on_the_loopback_only() -> None:
    assert "transport_socket" not in CLUSTER
    for address in addresses():
        assert address["address"] == "127.0.0.1"


def test_the_admin_interface_is_on_the_loopback_only() -> None:
    assert CONFIG["admin"]["address"]["socket_address"] == {"address": "127.0.0.1", "port_value": Ports().admin}


def test_make_edge_uses_the_ports_of_the_file() -> None:
    assert LISTENER["address"]["socket_address"]["port_value"] == Ports().edge
    assert tuple(address["port_value"] for address in addresses()) == Ports().servers
    for port in Ports().servers:
        assert settings_from(variables(port)).listen == (f"127.0.0.1:{port}",)


def test_descriptors_are_ordered_by_their_imports() -> None:
    known: set[str] = set()
    for file in descriptor_set().file:
        assert {*file.dependency} <= known
        known.add(file.name)
    assert "google/rpc/error_details.proto" in known


def test_the_descriptors_of_the_contract_are_those_of_protoc() -> None:
    """With the names in JSON, which some readers need and Python's descriptors lack."""
    written = FileDescriptorSet.FromString((GENERATED / "bookstore/v1/books.binpb").read_bytes()).file[-1]
    written.ClearField("source_code_info")
    (ours,) = (file for file in descriptor_set().file if file.name == written.name)
    assert ours == written


def addresses() -> list[dict[str, Any]]:
    servers = CLUSTER["load_assignment"]["endpoints"][0]["lb_endpoints"]
    return [server["endpoint"]["address"]["socket_address"] for server in servers]


def http2_options() -> dict[str, Any]:
    (options,) = CLUSTER["typed_extension_protocol_options"].values()
    http2: dict[str, Any] = options["explicit_http_config"]["http2_protocol_options"]
    return http2
