"""An optional text is part of every way in and out once the contract, the table of fields and a migration have it."""

import csv
import io
import json
import subprocess
import sys
import uuid
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any, NamedTuple
from urllib.request import Request, urlopen

import pytest

from tests.added_field import GENERATED, WRITTEN, add_to_contract, add_to_table, changed_files, copied
from tests.executable import PATIENCE_SECONDS, environment, run_bookstore, serving

pytestmark = pytest.mark.e2e

FOLDERS = ("bookstore_grpc", "generated", "protos")
HTTP = ("--http-listen", "127.0.0.1:0")
EMMA = ("--name", "Emma", "--author", "Jane Austen", "--release-year", 1815)

_CLIENT = """
import asyncio
import sys

import grpc
from bookstore.v1 import books_pb2, books_pb2_grpc
from google.protobuf.field_mask_pb2 import FieldMask

from bookstore_grpc.client import BookstoreClient
from bookstore_grpc.errors import InvalidRequest


async def error_of(call):
    try:
        await call
    except (InvalidRequest, TypeError) as error:
        return error


async def main(server):
    async with BookstoreClient(server) as client:
        book = await client.create_book(name="N", author="A", release_year=1, isbn=" 978-0 ")
        assert book.isbn == "978-0"
        assert (await client.create_book(name="N", author="A", release_year=1)).isbn == ""
        assert (await client.update_book(book.id, name="M")).isbn == "978-0"
        assert (await client.update_book(book.id, name="N", isbn="978-1")).isbn == "978-1"
        assert (await client.update_book(book.id, isbn=None)).isbn == "978-1"
        assert (await client.update_book(book.id, isbn="")).isbn == ""
        assert "'isbm'" in str(await error_of(client.update_book(book.id, isbm="978-2")))
        (violation,) = (await error_of(client.update_book(book.id, isbn="9" * 18))).violations
        assert violation == ("book.isbn", "has 18 code points, more than 17", "TOO_LONG")
        messages = [books_pb2.Book(name=str(each), author="A", release_year=1, isbn=f"979-{each}") for each in range(3)]
        assert [each.isbn for each in await client.create_books(messages)] == ["979-0", "979-1", "979-2"]
        listed = [each.isbn async for each in client.list_books(filter="isbn:979", order_by="isbn desc")]
        assert listed == ["979-2", "979-1", "979-0"]
        walk = client.list_books(filter="isbn:* isbn = '979*'", order_by="isbn", page_size=1)
        assert [each.isbn async for each in walk] == sorted(listed)
    async with grpc.aio.insecure_channel(server) as channel:
        stub = books_pb2_grpc.BookServiceStub(channel)

        async def update(isbn, *paths, **values):
            changes = books_pb2.Book(id=book.id, isbn=isbn, **values)
            request = books_pb2.UpdateBookRequest(book=changes, update_mask=FieldMask(paths=paths))
            return (await stub.UpdateBook(request)).isbn

        everything = {"name": "N", "author": "A", "release_year": 1}
        assert await update("978-3") == "978-3"  # what is present changes
        assert await update("", name="M") == "978-3"
        assert await update("", "isbn") == ""
        assert await update("978-4", "*", **everything) == "978-4"
        assert await update("", "*", **everything) == ""


asyncio.run(main(sys.argv[1]))
"""


@pytest.fixture(scope="module")
def copy(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A copy of the project to which the recipe was applied."""
    copy = copied(tmp_path_factory.mktemp("added") / "copy", *FOLDERS, "Makefile")
    add_to_contract(copy)
    add_to_table(copy)
    return copy


class Catalogue(NamedTuple):
    """A server of the copy, and the copy's command for it."""

    address: str
    http: str
    variables: dict[str, str]

    def succeed(self, *arguments: object, stdin: str = "") -> str:
        variables = {"BOOKSTORE_SERVER": self.address, **self.variables}
        finished = run_bookstore(*arguments, stdin=stdin.encode(), variables=variables)
        assert finished.status == 0, finished.errors
        return finished.output

    def books(self, verb: str, *arguments: object) -> list[dict[str, Any]]:
        books: list[dict[str, Any]] = json.loads(self.succeed(verb, *arguments, "--output", "json"))
        return books

    def over_http(self, verb: str, path: str, body: object = None) -> Any:
        data = None if body is None else json.dumps(body).encode()
        request = Request(f"{self.http}{path}", data, {"Content-Type": "application/json"}, method=verb)
        with urlopen(request, timeout=PATIENCE_SECONDS) as response:
            return json.load(response)


@pytest.fixture(scope="module")
def serve_copy(copy: Path) -> Callable[[Path], Any]:
    variables = {"PYTHONPATH": f"{copy}:{copy / 'generated'}"}

    @contextmanager
    def serve(folder: Path) -> Iterator[Catalogue]:
        url = f"sqlite+aiosqlite:///{folder}/bookstore.db"
        with serving(url, folder / "log", *HTTP, **variables) as server:
            http = server.wait_for_event("serving")["http"]
            yield Catalogue(server.address, f"http://{http}", variables)

    return serve


@pytest.fixture(scope="module")
def catalogue(serve_copy: Callable[[Path], Any], tmp_path_factory: pytest.TempPathFactory) -> Iterator[Catalogue]:
    with serve_copy(tmp_path_factory.mktemp("catalogue")) as catalogue:
        yield catalogue


def test_the_recipe_writes_three_files_and_generates_the_rest(copy: Path) -> None:
    assert changed_files(copy, *FOLDERS) == WRITTEN | GENERATED


def test_the_command_sets_filters_orders_and_clears_the_field(catalogue: Catalogue) -> None:
    (emma,) = catalogue.books("create", *EMMA, "--isbn", "978-E")
    (other,) = catalogue.books("create", *EMMA)

    assert (emma["isbn"], other["isbn"]) == ("978-E", "")
    assert catalogue.books("list", "--filter", "isbn:978-e") == [emma]
    assert catalogue.books("list", "--filter", "978-e") == [emma]
    assert catalogue.books("list", "--filter", "name = Emma", "--order-by", "isbn") == [other, emma]
    (row,) = csv.DictReader(io.StringIO(catalogue.succeed("get", emma["id"], "--output", "csv")))
    assert row == {field: str(value) for field, value in emma.items()}
    assert catalogue.books("update", emma["id"], "--isbn", "978-F")[0]["isbn"] == "978-F"
    assert catalogue.books("update", emma["id"], "--isbn", "")[0]["isbn"] == ""
    assert "--isbn TEXT " in catalogue.succeed("create", "--help")
    assert "give --name, --author, --release-year or --isbn" in _failure(catalogue, "update", emma["id"])


def test_a_client_and_a_stub_set_and_clear_the_field(catalogue: Catalogue) -> None:
    done = subprocess.run(
        [sys.executable, "-c", _CLIENT, catalogue.address],
        env=environment(**catalogue.variables),
        capture_output=True,
        text=True,
        timeout=PATIENCE_SECONDS,
        check=False,
    )
    assert done.returncode == 0, done.stderr


def test_the_field_is_json_over_http_and_the_document_has_its_bound(catalogue: Catalogue) -> None:
    book = {"name": "Over HTTP", "author": "A", "releaseYear": 1}
    created = catalogue.over_http("POST", "/v1/books", {**book, "isbn": "978-H"})
    catalogue.over_http("POST", "/v1/books", book)

    listed = catalogue.over_http("GET", "/v1/books?filter=name:http&order_by=isbn%20desc")["books"]
    assert [each.get("isbn") for each in listed] == ["978-H", None]
    path = f"/v1/books/{created['id']}"
    assert "isbn" not in catalogue.over_http("PATCH", path, {"isbn": ""})
    assert catalogue.over_http("PATCH", path, {"isbn": "978-I"})["isbn"] == "978-I"
    assert "isbn" not in catalogue.over_http("PUT", path, book)

    schemas = catalogue.over_http("GET", "/openapi.json")["components"]["schemas"]
    for name in ("Book", "Book-Input", "Book-Patch"):
        assert schemas[name]["properties"]["isbn"] == {
            "type": "string",
            "description": "The ISBN, at most 17 code points; empty if it is unknown.",
            "maxLength": 17,
            "examples": ["978-X"],
        }
        assert "isbn" not in schemas[name].get("required", ())


@pytest.mark.parametrize("file_format", ["csv", "jsonl"])
def test_the_field_is_exported_and_imported_and_its_column_is_optional(
    catalogue: Catalogue, tmp_path: Path, file_format: str
) -> None:
    author = f"Exported {file_format}"
    of_author = ("--filter", f'author = "{author}"')
    path = tmp_path / f"books.{file_format}"
    for isbn in ("", "978-X"):
        catalogue.succeed("create", "--name", "N", "--author", author, "--release-year", 1, "--isbn", isbn)

    catalogue.succeed("export", path, *of_author)
    catalogue.succeed("import", path)

    assert [book["isbn"] for book in catalogue.books("list", *of_author)] == ["", "978-X"] * 2
    without = {"csv": f"name,author,release_year\nN,{author},1\n"}.get(
        file_format, json.dumps({"name": "N", "author": author, "release_year": 1})
    )
    catalogue.succeed("import", "-", "--format", file_format, stdin=without)
    assert [book["isbn"] for book in catalogue.books("list", *of_author)] == ["", "978-X"] * 2 + [""]


def test_books_request_ids_and_page_tokens_of_the_version_before_stay_valid(
    serve_copy: Callable[[Path], Any], tmp_path: Path
) -> None:
    create = ("create", *EMMA, "--request-id", uuid.uuid4())
    with serving(f"sqlite+aiosqlite:///{tmp_path}/bookstore.db", tmp_path / "log-before", *HTTP) as server:
        before = Catalogue(server.address, f"http://{server.wait_for_event('serving')['http']}", {})
        (emma,) = before.books(*create)
        before.succeed("create", *EMMA)
        token = before.over_http("GET", "/v1/books?order_by=name&page_size=1")["nextPageToken"]

    with serve_copy(tmp_path) as after:
        assert after.books(*create) == [{**emma, "isbn": ""}]
        page = after.over_http("GET", f"/v1/books?order_by=name&page_token={token}")
        assert [book["id"] for book in page["books"]] == [str(emma["id"] + 1)]


def _failure(catalogue: Catalogue, *arguments: object) -> str:
    finished = run_bookstore(*arguments, variables={"BOOKSTORE_SERVER": catalogue.address, **catalogue.variables})
    assert finished.status != 0
    return finished.errors
