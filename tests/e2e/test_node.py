"""A client in Node, with only the .proto and @grpc/grpc-js."""

import json
import os
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest

from tests import node
from tests.executable import Serving

pytestmark = [pytest.mark.e2e, pytest.mark.thorough, pytest.mark.timeout(300)]

RunNode = Callable[..., Any]


@pytest.fixture(scope="module")
def run_node(node_folder: Path) -> RunNode:
    """Run a script of the folder with the protos and arguments, and return the JSON that it prints."""

    def run(script: str, address: str, *arguments: object) -> Any:
        return json.loads(node.succeed(*node.command(script, address, *arguments), cwd=node_folder))

    return run


@pytest.fixture(scope="module")
def result(shared_server: Serving, run_node: RunNode) -> Any:
    """Return the responses that the client in Node got."""
    return run_node("call.js", shared_server.address)


def test_a_book_is_created_with_all_its_fields(result: Any) -> None:
    created = result["created"]

    assert (created["name"], created["author"], created["release_year"]) == ("Año Nuevo 元旦", "Nobody", 0)
    assert int(created["id"]) > 0
    assert created["etag"]
    assert created["create_time"] == created["update_time"]


def test_an_update_by_mask_is_returned_by_get_and_list(result: Any) -> None:
    updated = result["updated"]

    assert (updated["name"], updated["author"]) == ("Año Nuevo 元旦", "Somebody")
    assert updated["etag"] != result["created"]["etag"]
    assert result["read"] == updated
    assert result["listed"]["books"] == [updated]


def test_an_error_has_its_details(result: Any) -> None:
    invalid = result["invalid"]

    assert invalid["code"] == "INVALID_ARGUMENT"
    assert invalid["requestId"] == "from-node"
    assert invalid["details"]["google.rpc.ErrorInfo"]["reason"] == "INVALID_FIELD"
    violations = invalid["details"]["google.rpc.BadRequest"]["fieldViolations"]
    assert [violation["field"] for violation in violations] == ["book.name", "book.release_year"]


def test_the_largest_id_is_not_rounded(result: Any) -> None:
    missing = result["missing"]

    assert missing["code"] == "NOT_FOUND"
    assert missing["message"] == "There is no book 9223372036854775807."
    resource = missing["details"]["google.rpc.ResourceInfo"]
    assert resource["resourceName"] == "books/9223372036854775807"


@pytest.mark.parametrize("count", [1, 128, 1_000])
def test_all_calls_in_flight_on_one_connection_succeed(shared_server: Serving, run_node: RunNode, count: int) -> None:
    assert run_node("in_flight.js", shared_server.address, count) == {"OK": 2 * count}


def test_the_lock_file_names_no_registry() -> None:
    """npm then fetches from the registry that it is configured for."""
    packages = json.loads((node.SOURCE / "package-lock.json").read_text())["packages"]

    assert not [name for name, package in packages.items() if "resolved" in package]
    assert not os.path.exists(node.SOURCE / ".npmrc")
