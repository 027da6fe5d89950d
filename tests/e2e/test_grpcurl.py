"""grpcurl, which gets the contract by reflection."""

import json
import subprocess
import sys
from importlib import resources
from typing import Any

import pytest

from tests.conftest import require
from tests.executable import GRPCURL, PATIENCE_SECONDS, Serving

pytestmark = pytest.mark.e2e


class Grpcurl:
    def __init__(self, address: str) -> None:
        self._address = address

    def run(self, *flags: str, ask: tuple[str, ...]) -> subprocess.CompletedProcess[str]:
        return subprocess.run(
            [GRPCURL, "-plaintext", *flags, self._address, *ask],
            capture_output=True,
            text=True,
            timeout=PATIENCE_SECONDS,
            check=False,
        )

    def ask(self, *ask: str) -> str:
        done = self.run(ask=ask)
        assert done.returncode == 0, done.stderr
        return done.stdout

    def call(self, method: str, request: dict[str, Any]) -> Any:
        done = self.run("-d", json.dumps(request), ask=(f"bookstore.v1.BookService/{method}",))
        assert done.returncode == 0, done.stderr
        return json.loads(done.stdout)


@pytest.fixture(scope="module")
def grpcurl(shared_server: Serving) -> Grpcurl:
    require(GRPCURL.exists() and sys.platform == "linux", "grpcurl is not installed")
    return Grpcurl(shared_server.address)


def test_it_lists_the_services(grpcurl: Grpcurl) -> None:
    assert {"bookstore.v1.BookService", "grpc.health.v1.Health"} <= set(grpcurl.ask("list").split())
    assert grpcurl.ask("list", "bookstore.v1.BookService").split() == [
        f"bookstore.v1.BookService.{method}"
        for method in (
            "BatchCreateBooks",
            "BatchDeleteBooks",
            "BatchGetBooks",
            "BatchUpdateBooks",
            "CreateBook",
            "DeleteBook",
            "GetBook",
            "ListBookChanges",
            "ListBooks",
            "PurgeBooks",
            "UpdateBook",
            "WatchBooks",
        )
    ]


@pytest.mark.parametrize(
    ("symbol", "description"),
    [
        ("bookstore.v1.BookService", "rpc CreateBook ( .bookstore.v1.CreateBookRequest ) returns"),
        ("bookstore.v1.BookService.GetBook", 'get:"/v1/books/{id}"'),
        ("bookstore.v1.Book", "optional int32 release_year = 4"),
        ("bookstore.v1.ListBooksRequest", "string page_token = 2"),
    ],
)
def test_it_describes_services_methods_and_messages(grpcurl: Grpcurl, symbol: str, description: str) -> None:
    assert description in grpcurl.ask("describe", symbol)


def test_a_book_is_created_listed_updated_and_deleted(grpcurl: Grpcurl) -> None:
    created = grpcurl.call(
        "CreateBook", {"book": {"name": "Les Misérables", "author": "Victor Hugo", "release_year": 1862}}
    )
    listed = grpcurl.call("ListBooks", {"filter": "name:MISÉRABLES", "page_size": 5})
    updated = grpcurl.call(
        "UpdateBook",
        {"book": {"id": created["id"], "release_year": 0}, "update_mask": {"paths": ["release_year"]}},
    )

    assert listed == {"books": [created]}
    assert (updated["name"], updated["release_year"]) == ("Les Misérables", 0)
    assert grpcurl.call("DeleteBook", {"id": created["id"], "etag": updated["etag"]}) == {}
    assert grpcurl.call("ListBooks", {"filter": "name:MISÉRABLES"}) == {}


def test_an_error_is_shown_with_its_details(grpcurl: Grpcurl) -> None:
    request = json.dumps({"book": {"name": " ", "author": "A\x00"}})
    ask = ("bookstore.v1.BookService/CreateBook",)
    done = grpcurl.run("-format-error", "-rpc-header", "x-request-id: from-grpcurl", "-d", request, ask=ask)

    assert done.returncode != 0
    status = json.loads(done.stderr)
    info, request_info, bad_request = status["details"]
    assert status["code"] == 3
    assert info["@type"] == "type.googleapis.com/google.rpc.ErrorInfo"
    assert (info["reason"], info["domain"]) == ("INVALID_FIELD", "bookstore.v1")
    assert request_info["request_id"] == "from-grpcurl"
    assert [violation["field"] for violation in bad_request["field_violations"]] == [
        "book.name",
        "book.author",
        "book.release_year",
    ]


def test_health_is_checked_by_reflection_too(grpcurl: Grpcurl) -> None:
    done = grpcurl.run("-d", '{"service": "bookstore.v1.BookService"}', ask=("grpc.health.v1.Health/Check",))

    assert json.loads(done.stdout) == {"status": "SERVING"}


def test_the_shipped_descriptors_replace_reflection(grpcurl: Grpcurl) -> None:
    descriptors = resources.files("bookstore.v1").joinpath("books.binpb")
    listed = grpcurl.run("-protoset", str(descriptors), "-d", "{}", ask=("bookstore.v1.BookService/ListBooks",))

    assert listed.returncode == 0, listed.stderr
    json.loads(listed.stdout)
