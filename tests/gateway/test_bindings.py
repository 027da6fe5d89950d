"""What is called over HTTP stands in the descriptors: of this service, and of any other."""

from collections.abc import AsyncIterator

import pytest
from bookstore.v1 import books_pb2
from google.api.http_pb2 import HttpRule
from google.protobuf.descriptor import ServiceDescriptor

from bookstore_grpc.gateway.bindings import Routes, bindings
from bookstore_grpc.service.servicer import BOOK_SERVICE
from tests.gateway.client import ask, rejected
from tests.gateway.servers import http_server_with
from tests.gateway.shelves import RULES, Librarian, shelf_service


def test_every_rpc_of_the_contract_can_be_called() -> None:
    found = {(binding.method.name, binding.verb, binding.template, binding.body) for binding in bindings(BOOK_SERVICE)}
    assert found == {
        ("CreateBook", "POST", "/v1/books", "book"),
        ("GetBook", "GET", "/v1/books/{id}", ""),
        ("ListBooks", "GET", "/v1/books", ""),
        ("UpdateBook", "PATCH", "/v1/books/{book.id}", "book"),
        ("UpdateBook", "PUT", "/v1/books/{book.id}", "book"),
        ("DeleteBook", "DELETE", "/v1/books/{id}", ""),
        ("BatchGetBooks", "GET", "/v1/books:batchGet", ""),
        ("BatchCreateBooks", "POST", "/v1/books:batchCreate", "*"),
        ("BatchUpdateBooks", "POST", "/v1/books:batchUpdate", "*"),
        ("BatchDeleteBooks", "POST", "/v1/books:batchDelete", "*"),
        ("PurgeBooks", "POST", "/v1/books:purge", "*"),
        ("WatchBooks", "GET", "/v1/books:watch", ""),
        ("ListBookChanges", "GET", "/v1/books:changes", ""),
    }
    assert {name for name, *_ in found} == {method.name for method in BOOK_SERVICE.methods}


@pytest.fixture(scope="module")
def service() -> ServiceDescriptor:
    return shelf_service()


@pytest.fixture(scope="module")
async def shelves(service: ServiceDescriptor) -> AsyncIterator[str]:
    async with http_server_with(Librarian(service), service) as server:
        yield server.http_address


@pytest.mark.parametrize(
    ("verb", "path", "name"),
    [
        ("GET", "/v1/shelves/top", "shelves/top"),
        ("GET", "/v1/shelves/top:dusty", "shelves/top:dusty"),
        ("GET", "/v1/shelves/%C3%A9tag%C3%A8re", "shelves/étagère"),
        ("GET", "/v2/shelves/top/rows/2", "shelves/top/rows/2"),
        ("GET", "/v3/anything/at/all", "anything/at/all"),
        ("LOCK", "/v1/shelves/top", "shelves/top locked"),
        ("LOCK", "/v1/shelves/top?gently=true", "shelves/top locked gently"),
    ],
)
async def test_an_rpc_of_another_service_is_served_according_to_its_options(
    shelves: str, verb: str, path: str, name: str
) -> None:
    response = await ask(shelves, verb, path)
    assert (response.status, response.json["name"]) == (200, name)


async def test_a_custom_verb_at_the_end_of_a_path_is_not_part_of_the_name(shelves: str) -> None:
    response = await ask(shelves, "POST", "/v1/shelves/top:dust", {"gently": True, "times": "3"})
    assert (response.status, response.json) == (200, {"name": "shelves/top dusted gently", "room": "3"})


async def test_a_post_without_a_body_needs_a_content_type_that_no_form_has(shelves: str) -> None:
    rejection = await rejected(shelves, "POST", "/v1/shelves/top:close")
    assert (rejection.status, rejection.reason) == (415, "MEDIA_TYPE_UNSUPPORTED")
    response = await ask(shelves, "POST", "/v1/shelves/top:close", content_type="application/json")
    assert (response.status, response.json) == (200, {"name": "shelves/top closed"})


@pytest.mark.parametrize(
    ("name", "location"),
    [
        ("shelves/top", "/v1/shelves/top"),
        ("shelves/é\r\nSet-Cookie: a=b", "/v1/shelves/%C3%A9%0D%0ASet-Cookie%3A%20a%3Db"),
    ],
)
async def test_a_create_of_another_service_tells_where_its_resource_is(shelves: str, name: str, location: str) -> None:
    response = await ask(shelves, "POST", "/v1/shelves", {"name": name})
    assert (response.status, response.headers["location"]) == (201, location)
    assert (await ask(shelves, "GET", location)).json["name"] == name


@pytest.mark.parametrize(
    ("verb", "path", "status"),
    [
        ("GET", "/v1/shelves/top/rows", 404),
        ("GET", "/v1/shelves/", 404),
        ("GET", "/v2/shelves/top", 404),
        ("GET", "/v3/", 404),
        ("GET", "/v1/shelves/top/", 404),
        ("DELETE", "/v1/shelves/top", 405),
        ("POST", "/v1/shelves/top", 405),
        ("LOCK", "/v3/shelves/top", 405),
    ],
)
async def test_paths_and_verbs_that_match_no_template_are_not_found(
    shelves: str, verb: str, path: str, status: int
) -> None:
    assert (await rejected(shelves, verb, path)).status == status


async def test_an_rpc_without_the_option_is_for_grpc_alone(service: ServiceDescriptor) -> None:
    assert "MoveShelf" not in {binding.method.name for binding in bindings(service)}
    assert "MoveShelf" in service.methods_by_name


@pytest.mark.parametrize(
    ("rule", "streams", "sentence"),
    [
        (HttpRule(get="/v1/shelf", response_body="name"), (), r"shelves\.v1\.Shelves\.GetShelf: neither"),
        (HttpRule(get="/v1/shelf"), ("GetShelf",), r"shelves\.v1\.Shelves\.GetShelf: neither"),
        (HttpRule(get="/v1/shelf", additional_bindings=[HttpRule(get="/v1/shelf")]), (), "another"),
    ],
    ids=["response_body", "stream of requests", "bound twice"],
)
def test_an_unsupported_binding_is_rejected_at_the_start(
    rule: HttpRule, streams: tuple[str, ...], sentence: str
) -> None:
    service = shelf_service({"GetShelf": ("ShelfRequest", "Shelf", rule)}, streams_of_requests=streams)
    with pytest.raises(ValueError, match=sentence):
        Routes(bindings(service))


def test_a_stream_of_requests_that_is_for_grpc_alone_is_let_be() -> None:
    service = shelf_service({"MoveShelf": RULES["MoveShelf"]}, streams_of_requests=["MoveShelf"])
    assert bindings(service) == ()


def test_a_path_is_made_of_the_values_that_it_is_parsed_into() -> None:
    for binding in bindings(BOOK_SERVICE):
        path = binding.path(dict.fromkeys(binding.path_fields, "12"))
        route = Routes(bindings(BOOK_SERVICE)).find(path)
        assert route is not None
        assert route.bindings[binding.verb] == binding
        assert route.values == ("12",) * len(binding.path_fields)
    assert books_pb2.DESCRIPTOR.services_by_name["BookService"] is BOOK_SERVICE
