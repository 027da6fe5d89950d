"""The calls of the contract over HTTP: on every database they return what they return over gRPC."""

import json
from typing import Any

import pytest
from bookstore.v1 import books_pb2
from google.protobuf import json_format
from google.protobuf.message import Message

from bookstore_grpc.rpc.server import Server
from tests.gateway.client import Response, ask, rejected
from tests.gateway.servers import FREE_PORT, http_server
from tests.rpc.calls import Stub, book, create, create_all, delete, get, list_page

DUNE = {"name": "Dune", "author": "Frank Herbert", "releaseYear": 1965}


def read(response: Response, kind: type[Message]) -> Any:
    assert response.status in (200, 201), response
    assert response.headers["content-type"] == "application/json"
    assert int(response.headers["content-length"]) == len(response.body)
    return json_format.Parse(response.body, kind())


async def test_a_created_book_is_the_one_that_grpc_gets(address: str, stub: Stub) -> None:
    response = await ask(address, "POST", "/v1/books", DUNE)
    made = read(response, books_pb2.Book)
    assert response.status == 201
    assert response.headers["location"] == f"/v1/books/{made.id}"
    assert response.headers["etag"] == f'"{made.etag}"'
    assert made == await get(stub, made.id)
    assert (made.name, made.author, made.release_year) == ("Dune", "Frank Herbert", 1965)
    assert response.json["id"] == str(made.id)


async def test_a_create_is_made_safe_by_its_request_id_across_both_ways(address: str, stub: Stub) -> None:
    request_id = "6f1e4c2a-58b1-4d0b-9c57-0e1f2a3b4c5d"
    made = await create(stub, request_id=request_id)
    for spelling in ("requestId", "request_id"):
        response = await ask(address, "POST", f"/v1/books?{spelling}={request_id}", DUNE)
        assert (response.status, read(response, books_pb2.Book)) == (201, made)
    other = await rejected(address, "POST", f"/v1/books?requestId={request_id}", {**DUNE, "name": "Other"})
    assert (other.status, other.reason) == (409, "REQUEST_ID_REUSED")


async def test_a_book_is_got(address: str, stub: Stub) -> None:
    made = await create(stub, 'Les Misérables 😀 "quoted"', release_year=0)
    response = await ask(address, "GET", f"/v1/books/{made.id}")
    assert read(response, books_pb2.Book) == made
    assert response.json["releaseYear"] == 0
    assert response.headers["etag"] == f'"{made.etag}"'
    assert response.headers["cache-control"] == "private, no-cache"


async def test_head_is_get_without_the_body(address: str, stub: Stub) -> None:
    made = await create(stub)
    for path in (f"/v1/books/{made.id}", "/v1/books", f"/v1/books:batchGet?ids={made.id}"):
        got, headed = await ask(address, "GET", path), await ask(address, "HEAD", path)
        assert (headed.status, headed.body) == (200, b"")
        for name in ("content-length", "content-type", "etag"):
            assert headed.headers.get(name) == got.headers.get(name)
    assert (await ask(address, "HEAD", "/v1/books/999999")).status == 404
    assert (await ask(address, "HEAD", "/v1/books:batchCreate")).status == 405


async def test_a_page_and_the_next_are_those_of_grpc(address: str, stub: Stub) -> None:
    await create_all(stub, [book(f"Book {number}", release_year=number) for number in range(1, 26)])
    token = ""
    for _ in range(3):
        order = {"pageSize": 10, "orderBy": "release_year desc", "filter": "release_year>0"}
        query = "&".join(f"{name}={str(value).replace(' ', '+').replace('>', '%3E')}" for name, value in order.items())
        response = await ask(address, "GET", f"/v1/books?{query}&pageToken={token}")
        page = read(response, books_pb2.ListBooksResponse)
        assert page == await list_page(
            stub, page_size=10, order_by="release_year desc", filter="release_year>0", page_token=token
        )
        token = page.next_page_token
    assert token == ""
    assert len(page.books) == 5


async def test_an_empty_list_is_an_empty_object(address: str) -> None:
    response = await ask(address, "GET", "/v1/books")
    assert (response.status, response.body) == (200, b"{}")


async def test_a_page_is_not_kept_beyond_a_write(address: str, stub: Stub) -> None:
    made = await create(stub)
    for name in ("One", "Two", "Three"):
        await ask(address, "PATCH", f"/v1/books/{made.id}", {"name": name})
        for _ in range(2):
            response = await ask(address, "GET", "/v1/books")
            assert [each["name"] for each in response.json["books"]] == [name]
    await delete(stub, made.id)
    assert (await ask(address, "GET", "/v1/books")).json == {}


async def test_patch_changes_what_it_is_sent(address: str, stub: Stub) -> None:
    made = await create(stub)
    response = await ask(address, "PATCH", f"/v1/books/{made.id}", {"releaseYear": 0})
    changed = read(response, books_pb2.Book)
    assert changed == await get(stub, made.id)
    assert (changed.name, changed.release_year, changed.etag != made.etag) == ("Dune", 0, True)
    assert response.headers["etag"] == f'"{changed.etag}"'
    same = await ask(address, "PATCH", f"/v1/books/{made.id}", {})
    assert read(same, books_pb2.Book) == changed


@pytest.mark.parametrize("mask", ["updateMask=name", "update_mask=name", "updateMask=name,id,etag"])
async def test_a_mask_takes_no_more_than_it_names(address: str, stub: Stub, mask: str) -> None:
    made = await create(stub)
    response = await ask(address, "PATCH", f"/v1/books/{made.id}?{mask}", {"name": "New", "author": "Ignored"})
    changed = read(response, books_pb2.Book)
    assert (changed.name, changed.author) == ("New", "Frank Herbert")
    assert changed == await get(stub, made.id)


@pytest.mark.parametrize("verb", ["PATCH", "PUT"])
@pytest.mark.parametrize("value", [None, "", " "], ids=repr)
async def test_a_required_field_cannot_be_removed(address: str, stub: Stub, verb: str, value: str | None) -> None:
    made = await create(stub)
    body = {"author": "A", "releaseYear": 5, "name": value}
    rejection = await rejected(address, verb, f"/v1/books/{made.id}", body)
    assert (rejection.status, rejection.reason) == (400, "INVALID_FIELD")
    assert rejection.violations.keys() == {"book.name"}
    no_year = await rejected(address, "PATCH", f"/v1/books/{made.id}", {"releaseYear": None})
    assert no_year.violations == {"book.release_year": "is required"}
    assert await get(stub, made.id) == made


async def test_put_replaces_the_whole_book(address: str, stub: Stub) -> None:
    made = await create(stub)
    replaced = read(await ask(address, "PUT", f"/v1/books/{made.id}", {**DUNE, "name": "Other"}), books_pb2.Book)
    assert replaced == await get(stub, made.id)
    lacking = await rejected(address, "PUT", f"/v1/books/{made.id}", {"name": "Only"})
    assert lacking.violations.keys() == {"book.author", "book.release_year"}
    partial = await rejected(address, "PUT", f"/v1/books/{made.id}?updateMask=name", DUNE)
    assert partial.violations.keys() == {"update_mask"}
    assert await get(stub, made.id) == replaced


async def test_a_response_can_be_sent_back_as_a_request(address: str, stub: Stub) -> None:
    made = await create(stub)
    returned = (await ask(address, "GET", f"/v1/books/{made.id}")).json
    for verb in ("PUT", "PATCH"):
        same = await ask(address, verb, f"/v1/books/{made.id}", returned)
        assert read(same, books_pb2.Book) == made


async def test_a_deleted_book_is_not_found(address: str, stub: Stub) -> None:
    made = await create(stub)
    response = await ask(address, "DELETE", f"/v1/books/{made.id}")
    assert (response.status, response.json) == (200, {})
    for verb, body in (("GET", None), ("DELETE", None), ("PATCH", {"name": "N"}), ("PUT", DUNE)):
        rejection = await rejected(address, verb, f"/v1/books/{made.id}", body)
        assert (rejection.status, rejection.reason) == (404, "BOOK_NOT_FOUND")


async def test_batches_are_those_of_grpc(address: str, stub: Stub) -> None:
    requests = [{"book": {**DUNE, "name": f"Book {number}"}} for number in range(3)]
    created = await ask(address, "POST", "/v1/books:batchCreate", {"requests": requests})
    assert created.status == 200
    assert "location" not in created.headers
    made = read(created, books_pb2.BatchCreateBooksResponse)
    ids = [each.id for each in made.books]
    assert [each.name for each in made.books] == ["Book 0", "Book 1", "Book 2"]
    wanted = [ids[2], ids[0], ids[2]]
    got = await ask(address, "GET", "/v1/books:batchGet?" + "&".join(f"ids={each}" for each in wanted))
    expected = await stub.BatchGetBooks(books_pb2.BatchGetBooksRequest(ids=wanted))
    assert read(got, books_pb2.BatchGetBooksResponse) == expected
    failed = await rejected(address, "POST", "/v1/books:batchCreate", {"requests": [*requests, {"book": {}}]})
    assert failed.violations.keys() == {f"requests[3].book.{each}" for each in ("name", "author", "release_year")}
    assert len((await list_page(stub)).books) == 3


@pytest.mark.parametrize("form", ['"{}"', 'W/"{}"', "{}", "*"])
async def test_what_matches_is_changed(address: str, stub: Stub, form: str) -> None:
    made = await create(stub)
    path = f"/v1/books/{made.id}"
    patched = await ask(address, "PATCH", path, {"name": "One"}, if_match=form.format(made.etag))
    put = await ask(address, "PUT", path, DUNE, if_match=form.format(patched.json["etag"]))
    assert (patched.status, put.status) == (200, 200)
    assert (await ask(address, "DELETE", path, if_match=form.format(put.json["etag"]))).status == 200


async def test_what_has_changed_meanwhile_is_left_as_it_is(address: str, stub: Stub) -> None:
    made = await create(stub)
    path = f"/v1/books/{made.id}"
    changed = read(await ask(address, "PATCH", path, {"name": "One"}), books_pb2.Book)
    stale = f'"{made.etag}"'
    for rejection in (
        await rejected(address, "PATCH", path, {"name": "Two"}, if_match=stale),
        await rejected(address, "PATCH", path, {"name": "Two", "etag": made.etag}),
        await rejected(address, "PUT", path, DUNE, if_match=stale),
        await rejected(address, "DELETE", path, if_match=stale),
        await rejected(address, "DELETE", f"{path}?etag={made.etag}"),
    ):
        assert (rejection.status, rejection.reason) == (409, "ETAG_MISMATCH")
    several = await rejected(address, "DELETE", path, if_match=f'"{made.etag}", "{changed.etag}"')
    assert (several.status, several.reason) == (400, "INVALID_FIELD")
    empty = await rejected(address, "DELETE", path, if_match="")
    assert (empty.status, set(empty.violations)) == (400, {"etag"})
    assert await get(stub, made.id) == changed


async def test_a_book_that_is_known_is_not_sent_again(address: str, stub: Stub) -> None:
    made = await create(stub)
    path = f"/v1/books/{made.id}"
    for known in (f'"{made.etag}"', f'W/"{made.etag}"', f'"other", "{made.etag}"', "*"):
        for verb in ("GET", "HEAD"):
            response = await ask(address, verb, path, if_none_match=known)
            assert (response.status, response.body) == (304, b"")
            assert response.headers["etag"] == f'"{made.etag}"'
            assert response.headers["x-request-id"]
            assert "content-length" not in response.headers
    assert (await ask(address, "GET", path, if_none_match='"other"')).status == 200
    assert (await ask(address, "PATCH", path, {"name": "N"}, if_none_match=f'"{made.etag}"')).status == 200


@pytest.mark.parametrize("content_type", ["application/json", "Application/JSON; charset=utf-8", "application/json;x"])
async def test_json_is_json_whatever_else_is_said_of_it(address: str, content_type: str) -> None:
    body = json.dumps({**DUNE, "name": "Émile"}, ensure_ascii=False).encode()
    response = await ask(address, "POST", "/v1/books", body, content_type=content_type)
    assert (response.status, response.json["name"]) == (201, "Émile")


async def test_the_largest_batch_goes_both_ways(server: Server, address: str) -> None:
    text = "é" * 500
    requests = [{"book": {"name": text, "author": text * 2, "releaseYear": 1}} for _ in range(1_000)]
    created = await ask(
        address, "POST", "/v1/books:batchCreate", json.dumps({"requests": requests}, ensure_ascii=False).encode()
    )
    assert len(read(created, books_pb2.BatchCreateBooksResponse).books) == 1_000


async def test_http_is_off_unless_asked_for(tmp_path: Any) -> None:
    async with http_server(tmp_path, http_listen="") as server:
        assert server.http_address == ""
    async with http_server(tmp_path, http_listen=FREE_PORT) as server:
        assert server.http_address.startswith("127.0.0.1:")
        assert (await ask(server.http_address, "GET", "/v1/books")).status == 200
