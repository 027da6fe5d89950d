"""JSON through Envoy and JSON by a server differ as deploy/envoy/README.md says: both get each request."""

import asyncio
import http.client
import json
import re
from collections.abc import Callable, Mapping
from pathlib import Path
from typing import TYPE_CHECKING, NamedTuple

import pytest
from bookstore.v1 import books_pb2

from tests.envoy.callers import ask
from tests.envoy.edge import Edge
from tests.gateway.client import Response
from tests.rpc.calls import create, get

if TYPE_CHECKING:
    from tests.rpc.calls import Stub

README = Path(__file__).parents[2] / "deploy/envoy/README.md"
BOOK = {"name": "N", "author": "A", "releaseYear": 1}


class Request(NamedTuple):
    """An HTTP request about a stored book."""

    verb: str
    target: str
    body: object = None
    headers: Mapping[str, str] = {}


def _about(book: books_pb2.Book) -> str:
    return f"/v1/books/{book.id}"


REQUESTS: Mapping[str, Callable[[books_pb2.Book], Request]] = {
    "`POST /v1/books`": lambda _: Request("POST", "/v1/books", BOOK),
    "a body with an unknown field": lambda _: Request(
        "POST", "/v1/books:batchCreate", {"requests": [{"book": BOOK, "x": 1}]}
    ),
    "`GET` of a book with `If-None-Match`": lambda at: Request(
        "GET", _about(at), None, {"if-none-match": f'"{at.etag}"'}
    ),
    "a write with `If-Match`": lambda at: Request("DELETE", _about(at), None, {"if-match": f'"{at.etag}"'}),
    '`PATCH` with a field that is `""` or `null`': lambda at: Request(
        "PATCH", _about(at), {"author": "", "name": None}
    ),
    "`PATCH` without a body": lambda at: Request("PATCH", _about(at), "", {"content-type": "application/json"}),
    "`PUT` with `?updateMask=author`": lambda at: Request("PUT", f"{_about(at)}?updateMask=author", BOOK),
    "`GET` with a body": lambda at: Request("GET", _about(at), {}),
    "a parameter twice": lambda _: Request("GET", "/v1/books?pageSize=1&pageSize=2"),
    "a wrong verb for this path": lambda at: Request("POST", _about(at), BOOK),
    "`HEAD /v1/books`": lambda _: Request("HEAD", "/v1/books"),
    "`/v1/books/`, with a slash at the end": lambda _: Request("GET", "/v1/books/"),
    "`/v1/books%2F1`": lambda at: Request("GET", f"/v1/books%2F{at.id}"),
    "a header with `_` in its name": lambda at: Request("GET", _about(at), None, {"x_y": "z"}),
    "20 KB of headers": lambda at: Request("GET", _about(at), None, {"x": "y" * 20_000}),
    "50 KB of headers": lambda at: Request("GET", _about(at), None, {"x": "y" * 50_000}),
    "`DELETE` with `grpc-timeout: 1n`": lambda at: Request("DELETE", _about(at), None, {"grpc-timeout": "1n"}),
    "another host name": lambda at: Request("GET", _about(at), None, {"host": "books.example"}),
    "the pages `/`, `/docs`, `/openapi.json`": lambda _: Request("GET", "/"),
}


def rows() -> dict[str, tuple[str, str]]:
    """Return the table: the responses of a server and of Envoy, by request."""
    table = README.read_text().split("<!-- differences:")[1].split("<!-- end of differences")[0]
    cells = [re.split(r" \| ", line.strip("| ")) for line in table.splitlines() if line.startswith("| ")][1:]
    return {request: (itself, envoy) for request, itself, envoy in cells}


def ask_itself(address: str, request: Request) -> int:
    """Send a request to a server's own HTTP, and return the status."""
    connection = http.client.HTTPConnection(address, timeout=30)
    try:
        connection.request(request.verb, request.target, *encoded(request))
        return connection.getresponse().status
    finally:
        connection.close()


def encoded(request: Request) -> tuple[bytes | None, dict[str, str]]:
    headers = dict(request.headers)
    if request.body is None:
        return None, headers
    headers.setdefault("content-type", "application/json")
    return b"" if request.body == "" else json.dumps(request.body).encode(), headers


@pytest.fixture(scope="module", autouse=True)
async def connected(edge: Edge) -> None:
    """Let each of Envoy's threads connect to each server.

    gRPC's core applies its limit of headers to a connection only once the peer has acknowledged its settings.
    """
    for _ in range(40):
        await asyncio.to_thread(through_envoy, edge, Request("GET", "/v1/books"))


@pytest.fixture
async def books(stub: "Stub") -> list[books_pb2.Book]:
    """Two equal books."""
    return [await create(stub) for _ in range(2)]


def test_every_row_has_a_request() -> None:
    assert list(rows()) == list(REQUESTS)


@pytest.mark.parametrize("name", REQUESTS)
async def test_both_respond_as_the_table_says(edge: Edge, books: list[books_pb2.Book], name: str) -> None:
    itself, envoy = (int(cell[:3]) for cell in rows()[name])
    address = str(edge.servers[0].wait_for_event("serving")["http"])
    assert await asyncio.to_thread(ask_itself, address, REQUESTS[name](books[0])) == itself
    response = await asyncio.to_thread(through_envoy, edge, REQUESTS[name](books[1]))
    assert response.status == envoy
    assert not {"etag", "location", "allow"} & response.headers.keys()


def through_envoy(edge: Edge, request: Request) -> Response:
    return ask(edge.envoy.address, edge.envoy.ca, request.verb, request.target, *encoded(request))


async def test_fields_are_written_through_envoy_as_the_table_says(
    edge: Edge, stub: "Stub", books: list[books_pb2.Book]
) -> None:
    (unchanged, replaced) = books
    for name in ('`PATCH` with a field that is `""` or `null`', "`PATCH` without a body", "a write with `If-Match`"):
        await asyncio.to_thread(through_envoy, edge, REQUESTS[name](unchanged))
    assert await get(stub, unchanged.id) == unchanged

    partial = Request("PUT", _about(replaced), {"author": "Somebody"})
    assert (await asyncio.to_thread(through_envoy, edge, partial)).status == 400
    whole = REQUESTS["`PUT` with `?updateMask=author`"](replaced)
    assert (await asyncio.to_thread(through_envoy, edge, whole)).json["name"] == "N"


async def test_long_responses_are_compressed_for_clients_that_accept_it(
    edge: Edge, books: list[books_pb2.Book]
) -> None:
    many = Request("GET", "/v1/books:batchGet?" + "&".join([f"ids={books[0].id}"] * 100))
    plain = await asyncio.to_thread(through_envoy, edge, many)
    short = await asyncio.to_thread(through_envoy, edge, many._replace(headers={"accept-encoding": "gzip"}))
    assert short.headers["content-encoding"] == "gzip"
    assert len(short.body) * 10 < len(plain.body)


@pytest.mark.parametrize(
    ("request_", "status", "code"),
    [
        (Request("POST", "/v1/books", {"name": "x" * (9 << 20)}), 413, 8),
        (Request("POST", "/v1/books", BOOK, {"content-type": "text/plain"}), 415, 3),
        (Request("POST", "/v1/books", [BOOK]), 400, 3),
        (Request("POST", "/v1/books", BOOK | {"releaseYear": "x"}), 400, 3),
        (Request("POST", "/v1/books?x=y", BOOK), 400, 3),
        (Request("GET", "/v1/books?x=y"), 400, 3),
        (Request("GET", "/v1/books/x"), 400, 3),
        (Request("PATCH", "/v1/books/1", {"id": "2"}), 400, 3),
        (Request("GET", "/v2/books"), 404, 5),
    ],
    ids=lambda value: f"{value.verb} {value.target}" if isinstance(value, Request) else "",
)
async def test_errors_of_envoy_are_a_status_in_json(edge: Edge, request_: Request, status: int, code: int) -> None:
    response = await asyncio.to_thread(through_envoy, edge, request_)
    assert (response.status, response.headers["content-type"]) == (status, "application/json")
    assert response.json.keys() == {"code", "message"}
    assert response.json["code"] == code
    assert response.json["message"]
