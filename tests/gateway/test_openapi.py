"""The document at /openapi.json: valid, made of the contract, and true of the API that it describes."""

import importlib.util
import json
import subprocess
import sys
import sysconfig
from collections.abc import AsyncIterator, Iterator
from pathlib import Path
from typing import Any
from urllib.parse import urlencode

import pytest
from bookstore.v1 import books_pb2
from google.protobuf.descriptor import ServiceDescriptor
from google.protobuf.descriptor_pb2 import FileDescriptorSet
from google.protobuf.descriptor_pool import DescriptorPool

from bookstore_grpc import errors
from bookstore_grpc.client import book_fields
from bookstore_grpc.errors import BookstoreError
from bookstore_grpc.gateway.openapi.comments import Comments, comments_of_contract
from bookstore_grpc.gateway.openapi.document import document_of, openapi_document
from bookstore_grpc.gateway.responses import STATUSES_BY_REASON
from bookstore_grpc.limits import BATCH_MAX
from tests.conftest import require
from tests.gateway.client import ask
from tests.gateway.servers import http_server
from tests.tokens import Issuer, token_settings

SERVICE = books_pb2.DESCRIPTOR.services_by_name["BookService"]
DOCUMENT: dict[str, Any] = json.loads(openapi_document(needs_token=False))
BOOK = {"name": "Emma", "author": "Jane Austen", "releaseYear": 1815}


@pytest.fixture(scope="module")
async def site(tmp_path_factory: pytest.TempPathFactory) -> AsyncIterator[str]:
    async with http_server(tmp_path_factory.mktemp("openapi")) as server:
        yield server.http_address


def operations(document: dict[str, Any] = DOCUMENT) -> Iterator[tuple[str, str, dict[str, Any]]]:
    """Each path, verb and operation."""
    for path, item in document["paths"].items():
        for verb, operation in item.items():
            yield path, verb.upper(), operation


def by_id(document: dict[str, Any] = DOCUMENT) -> dict[str, dict[str, Any]]:
    return {operation["operationId"]: operation for _, _, operation in operations(document)}


@pytest.mark.check
@pytest.mark.parametrize("needs_token", [True, False])
def test_the_document_is_valid_openapi_3_1(needs_token: bool) -> None:
    require(importlib.util.find_spec("openapi_spec_validator"), "openapi-spec-validator is missing (`make check`)")
    from openapi_spec_validator import OpenAPIV31SpecValidator

    document = json.loads(openapi_document(needs_token=needs_token))
    assert document["openapi"] == "3.1.0"
    OpenAPIV31SpecValidator(document).validate()


def test_the_document_is_made_once() -> None:
    assert openapi_document(needs_token=True) is openapi_document(needs_token=True)


async def test_every_server_has_its_own(site: str) -> None:
    response = await ask(site, "GET", "/openapi.json")
    assert (response.status, response.headers["content-type"]) == (200, "application/json")
    assert response.json == DOCUMENT


async def test_a_server_that_asks_for_tokens_gives_its_document_without_and_names_them_in_it(tmp_path: Path) -> None:
    async with http_server(tmp_path, **token_settings(Issuer().write_jwks(tmp_path / "jwks.json"))) as server:
        response = await ask(server.http_address, "GET", "/openapi.json")
    assert response.status == 200
    assert response.json["components"]["securitySchemes"]["token"]["scheme"] == "bearer"
    found = by_id(response.json)
    assert found["ListBooks"]["security"] == [{"token": ["books.read"]}]
    assert found["UpdateBookByPut"]["security"] == [{"token": ["books.write"]}]
    assert "books.write" in found["CreateBook"]["description"]


def test_a_server_that_asks_for_no_tokens_offers_no_place_for_one() -> None:
    assert "securitySchemes" not in DOCUMENT["components"]
    assert not [name for name, operation in by_id().items() if "security" in operation]


@pytest.mark.parametrize("method", list(SERVICE.methods), ids=lambda method: method.name)
def test_all_that_the_contract_says_of_an_rpc_stands_at_its_operation(method: Any) -> None:
    comment = comments_of_contract().of(method.full_name)
    operation = by_id()[method.name]
    assert comment.description
    assert operation["description"] == comment.description
    assert comment.description.startswith(operation["summary"])
    failures = "\n".join(response["description"] for response in operation["responses"].values())
    assert comment.errors or method.name == "ListBooks"
    for _, line in comment.errors:
        assert line in failures


def test_all_that_the_contract_says_of_fields_is_there() -> None:
    comments = comments_of_contract()
    text = json.dumps(DOCUMENT)
    for message in books_pb2.DESCRIPTOR.message_types_by_name.values():
        for field in message.fields:
            if field.full_name == "bookstore.v1.UpdateBookRequest.book":
                continue  # it is the body, whose description that is
            description = comments.of(field.full_name).description
            assert description, field.full_name
            assert json.dumps(description)[1:-1] in text, field.full_name
        for enum in message.enum_types:
            for value in enum.values:
                description = comments.of(f"{enum.full_name}.{value.name}").description
                assert description, value.name
                assert json.dumps(f"* `{value.name}`: {description}")[1:-1] in text, value.name


def test_every_reason_that_a_call_over_http_can_end_with_stands_under_its_status() -> None:
    never_at_a_path_of_the_document = {"METHOD_UNKNOWN", "VERB_NOT_ALLOWED"}
    only_its_children_are_raised = {"UNAVAILABLE"}
    reasons = {kind.reason for kind in _descendants(BookstoreError) if kind.reason}
    lines = {
        reason: {status for operation in by_id().values() for status in _statuses_of(operation, reason)}
        for reason in reasons - never_at_a_path_of_the_document - only_its_children_are_raised
    }
    assert len(lines) > 15
    assert {reason: statuses for reason, statuses in lines.items() if len(statuses) != 1} == {}
    for reason in STATUSES_BY_REASON.keys() & lines.keys():
        assert lines[reason] == {str(STATUSES_BY_REASON[reason])}


def _descendants(kind: type[BookstoreError]) -> Iterator[type[BookstoreError]]:
    for child in kind.__subclasses__():
        if child.__module__ == errors.__name__:
            yield child
            yield from _descendants(child)


def _statuses_of(operation: dict[str, Any], reason: str) -> Iterator[str]:
    for status, response in operation["responses"].items():
        if f"`{reason}`" in response["description"]:
            yield status


def test_what_http_adds_is_at_the_operations_that_it_is_for() -> None:
    found = {
        name: (
            "201" in operation["responses"],
            "304" in operation["responses"],
            "ETag" in next(iter(operation["responses"].values()))["headers"],
            {"413", "415"} <= operation["responses"].keys(),
            {p["$ref"].rpartition("/")[2] for p in operation["parameters"] if "$ref" in p} - {"X-Request-Id"},
        )
        for name, operation in by_id().items()
    }
    assert found == {
        "CreateBook": (True, False, True, True, set()),
        "GetBook": (False, True, True, False, {"If-None-Match"}),
        "ListBooks": (False, False, False, False, set()),
        "UpdateBook": (False, False, True, True, {"If-Match"}),
        "UpdateBookByPut": (False, False, True, True, {"If-Match"}),
        "DeleteBook": (False, False, False, False, {"If-Match"}),
        "BatchGetBooks": (False, False, False, False, set()),
        "BatchCreateBooks": (False, False, False, True, set()),
        "BatchUpdateBooks": (False, False, False, True, set()),
        "BatchDeleteBooks": (False, False, False, True, set()),
        "PurgeBooks": (False, False, False, True, set()),
        "WatchBooks": (False, False, False, False, {"Last-Event-ID"}),
        "ListBookChanges": (False, False, False, False, set()),
    }
    for operation in by_id().values():
        for status, response in operation["responses"].items():
            headers = response.get("headers", {})
            assert ("Retry-After" in headers) == (status in {"429", "503"})
            assert ("WWW-Authenticate" in headers) == (status == "401")
            assert ("X-Request-Id" in headers) == (status != "431")  # no call has come of that


def test_a_stream_has_its_responses_as_the_data_of_events() -> None:
    (success,) = [response for name, response in by_id()["WatchBooks"]["responses"].items() if name.startswith("2")]
    message = {"$ref": "#/components/schemas/WatchBooksResponse"}
    assert success["content"] == {"text/event-stream": {"schema": message}}
    for word in ("Server-Sent Events", "`id`", "`status`", "15 seconds"):
        assert word in success["description"]
    start = next(p for p in by_id()["WatchBooks"]["parameters"] if p.get("name") == "start")
    assert start["schema"] == {"type": "string", "enum": ["START_UNSPECIFIED", "NOW", "EARLIEST", "EXISTING"]}


def test_requests_allow_no_other_fields_and_responses_do() -> None:
    schemas = DOCUMENT["components"]["schemas"]
    assert schemas["Book-Input"]["required"] == ["name", "author", "releaseYear"]
    assert "required" not in schemas["Book-Patch"]
    assert [name for name, schema in schemas.items() if "additionalProperties" in schema] == [
        "BatchCreateBooksRequest",
        "BatchDeleteBooksRequest",
        "BatchUpdateBooksRequest",
        "Book-Input",
        "Book-Patch",
        "CreateBookRequest",
        "DeleteBookRequest",
        "PurgeBooksRequest",
        "UpdateBookRequest",
    ]
    assert schemas["UpdateBookRequest"]["properties"]["book"]["$ref"] == "#/components/schemas/Book-Patch"
    read_only = {name for name, schema in schemas["Book-Input"]["properties"].items() if schema.get("readOnly")}
    assert read_only == {"id", "createTime", "updateTime"}


async def test_the_examples_are_valid_requests(site: str) -> None:
    """In the order of the paths, which creates first; nothing but what is required."""
    responses = {}
    for path, verb, operation in sorted(operations(), key=lambda found: found[1] == "DELETE"):
        given = {p["name"]: p["example"] for p in operation["parameters"] if "example" in p}
        query = {name: value for name, value in given.items() if f"{{{name}}}" not in path}
        body = operation.get("requestBody", {}).get("content", {}).get("application/json", {}).get("example")
        is_stream = "text/event-stream" in operation["responses"].get("200", {}).get("content", {})
        sent_verb = "HEAD" if is_stream else verb  # the response to which has an end
        response = await ask(site, sent_verb, f"{path.format_map(given)}?{urlencode(query, doseq=True)}", body)
        responses[operation["operationId"]] = response.status
        assert str(response.status) in operation["responses"]
    assert responses == dict.fromkeys(by_id(), 200) | {"CreateBook": 201}


async def _violated(site: str, verb: str, path: str, body: Any = None, **query: Any) -> list[str]:
    response = await ask(site, verb, f"{path}?{urlencode(query, doseq=True)}", body)
    assert response.status in {200, 201, 400}, response
    details = response.json.get("details", [])
    return [violation["field"] for detail in details for violation in detail.get("fieldViolations", ())]


def _bounds(schema: dict[str, Any]) -> Iterator[tuple[Any, Any]]:
    """Values at the bounds of a schema, and beyond them."""
    if "minLength" in schema:
        yield "x" * schema["minLength"], "x" * (schema["minLength"] - 1)
    if "maxLength" in schema:
        yield "x" * schema["maxLength"], "x" * (schema["maxLength"] + 1)
    if "minimum" in schema:
        yield schema["minimum"], schema["minimum"] - 1
    if "maximum" in schema:
        yield schema["maximum"], schema["maximum"] + 1


async def test_the_bounds_of_a_book_are_those_that_the_api_has(site: str) -> None:
    bounded = 0
    names = {field.json_name: field.name for field in book_fields.FIELDS}
    for name, schema in DOCUMENT["components"]["schemas"]["Book-Input"]["properties"].items():
        for at, beyond in _bounds(schema):
            bounded += 1
            assert await _violated(site, "POST", "/v1/books", BOOK | {name: at}) == []
            fields = await _violated(site, "POST", "/v1/books", BOOK | {name: beyond})
            assert fields == [f"book.{names[name]}"]
    optional = [field for field in book_fields.SETTABLE_FIELDS if not field.is_required]
    assert bounded == 6 + len(optional)  # which have no least length


async def test_the_bounds_of_parameters_are_those_that_the_api_has(site: str) -> None:
    parameters = {p["name"]: p["schema"] for p in by_id()["ListBooks"]["parameters"] if "name" in p}
    assert await _violated(site, "GET", "/v1/books", pageSize=parameters["pageSize"]["minimum"]) == []
    assert await _violated(site, "GET", "/v1/books", pageSize=-1) == ["page_size"]
    ((at, beyond),) = _bounds(parameters["filter"])
    assert await _violated(site, "GET", "/v1/books", filter=at) == []
    assert await _violated(site, "GET", "/v1/books", filter=beyond) == ["filter"]
    ids = [p["schema"] for _, _, operation in operations() for p in operation["parameters"] if p.get("in") == "path"]
    assert [schema["minimum"] for schema in ids] == [1, 1, 1, 1]
    assert await _violated(site, "GET", "/v1/books/0") == ["id"]


async def test_the_bounds_of_batches_are_those_that_the_api_has(site: str) -> None:
    (ids,) = [p["schema"] for p in by_id()["BatchGetBooks"]["parameters"] if "name" in p]
    requests = DOCUMENT["components"]["schemas"]["BatchCreateBooksRequest"]["properties"]["requests"]
    assert (ids["minItems"], ids["maxItems"], ids["items"]["minimum"]) == (1, BATCH_MAX, 1)
    assert (requests["minItems"], requests["maxItems"]) == (1, BATCH_MAX)
    path = "/v1/books:batchCreate"
    assert await _violated(site, "POST", path, {"requests": []}) == ["requests"]
    assert await _violated(site, "POST", path, {"requests": [{"book": BOOK}] * (BATCH_MAX + 1)}) == ["requests"]
    response = await ask(site, "POST", path, {"requests": [{"book": BOOK}] * BATCH_MAX})
    assert response.status == 200
    book_id = response.json["books"][0]["id"]
    path = "/v1/books:batchGet"
    assert await _violated(site, "GET", path) == ["ids"]
    assert await _violated(site, "GET", path, ids=[0]) == ["ids[0]"]
    assert await _violated(site, "GET", path, ids=[book_id] * BATCH_MAX) == []
    assert await _violated(site, "GET", path, ids=[book_id] * (BATCH_MAX + 1)) == ["ids"]


LIBRARY = """
syntax = "proto3";
package library.v1;
import "google/api/annotations.proto";
import "google/api/field_behavior.proto";
import "google/protobuf/empty.proto";
import "google/protobuf/timestamp.proto";

service Library {
  // Moves a shelf. Mind your feet.
  //
  // NOT_FOUND `NO_SUCH_HALL`: there is
  // no such hall.
  rpc MoveShelf(MoveShelfRequest) returns (Shelf) {
    option (google.api.http) = {post: "/v1/{path=halls/*/shelves/*}:move" body: "shelf"};
  }
  rpc FindShelf(MoveShelfRequest) returns (google.protobuf.Empty) {
    option (google.api.http) = {
      get: "/v1/shelves"
      additional_bindings: {custom: {kind: "SEARCH" path: "/v1/shelves"}}
    };
  }
  rpc WatchShelves(WatchShelvesRequest) returns (stream Shelf) {
    option (google.api.http) = {get: "/v1/shelves:watch"};
  }
  rpc WatchHalls(MoveShelfRequest) returns (stream Shelf);
}

// Whether there is room.
enum Room {
  // Some.
  FREE = 0;
  FULL = 1;
}

message WatchShelvesRequest {
  // What to watch for.
  Room room = 1;
  string resume_token = 2;
}

message Shelf {
  // What the readers
  // call it.
  string shelf_name = 1 [(google.api.field_behavior) = REQUIRED];
  int64 room = 2;
  google.protobuf.Timestamp built = 3;
  enum Kind {OPEN = 0;}
  Kind kind = 4;
  bytes cover = 5;
  double width = 6;
  bool is_full = 7;
  Shelf above = 8;
  map<string, uint32> words = 9;
}

message MoveShelfRequest {
  string path = 1;
  Shelf shelf = 2;
}
"""


def _library(folder: Path) -> tuple[ServiceDescriptor, Comments]:
    (folder / "library.proto").write_text(LIBRARY)
    options = [f"-I{folder}", f"-I{sysconfig.get_path('purelib')}", "--include_imports", "--include_source_info"]
    output = f"--descriptor_set_out={folder}/library.binpb"
    subprocess.run([sys.executable, "-m", "grpc_tools.protoc", *options, output, "library.proto"], check=True)
    files = FileDescriptorSet.FromString((folder / "library.binpb").read_bytes()).file
    pool = DescriptorPool()
    for file in files:
        pool.Add(file)
    return pool.FindServiceByName("library.v1.Library"), Comments(files[-1])


def test_a_service_with_other_rpcs_messages_and_fields_appears_by_itself(tmp_path: Path) -> None:
    document = document_of(*_library(tmp_path), needs_token=True)
    move = document["paths"]["/v1/halls/{path}/shelves/{path2}:move"]["post"]
    assert (move["operationId"], move["summary"]) == ("MoveShelf", "Moves a shelf")
    assert move["description"] == "Moves a shelf. Mind your feet."
    assert "`NO_SUCH_HALL`: there is no such hall." in move["responses"]["404"]["description"]
    assert move["security"] == [{"token": []}]
    assert move["requestBody"]["content"]["application/json"]["schema"]["$ref"] == "#/components/schemas/Shelf-Input"

    shelf = document["components"]["schemas"]["Shelf-Input"]
    assert shelf["required"] == ["shelfName"]
    assert shelf["properties"] == {
        "shelfName": {"type": "string", "description": "What the readers call it."},
        "room": {"type": ["string", "integer"], "format": "int64", "pattern": "^-?[0-9]+$"},
        "built": {"type": "string", "format": "date-time"},
        "kind": {"type": "string", "enum": ["OPEN"]},
        "cover": {"type": "string", "contentEncoding": "base64"},
        "width": {"type": "number"},
        "isFull": {"type": "boolean"},
        "above": {"$ref": "#/components/schemas/Shelf-Input"},
        "words": {"type": "object", "additionalProperties": {"type": "integer", "format": "uint32"}},
    }
    assert document["components"]["schemas"]["Shelf"]["properties"]["room"]["type"] == "string"

    assert not [path for path in document["paths"] if "halls:" in path]
    watch = document["paths"]["/v1/shelves:watch"]["get"]
    assert watch["parameters"] == [
        {
            "name": "room",
            "in": "query",
            "description": "What to watch for.\n\n* `FREE`: Some.",
            "schema": {"type": "string", "enum": ["FREE", "FULL"]},
        },
        {"name": "resumeToken", "in": "query", "description": "", "schema": {"type": "string"}},
        {"$ref": "#/components/parameters/Last-Event-ID"},
        {"$ref": "#/components/parameters/X-Request-Id"},
    ]
    assert watch["responses"]["200"]["content"].keys() == {"text/event-stream"}

    find = document["paths"]["/v1/shelves"]["get"]
    names = [parameter["name"] for parameter in find["parameters"] if "name" in parameter]
    assert names[:4] == ["path", "shelf.shelfName", "shelf.room", "shelf.built"]
    assert find["responses"]["200"]["content"]["application/json"]["schema"] == {"type": "object"}
