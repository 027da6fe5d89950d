"""The verbs for single books, and what they print."""

import csv
import io
import json
import uuid

import pytest

from tests.cli.conftest import OPTIONAL_FIELDS, Catalogue
from tests.executable import run_bookstore

HEADER = "ID        NAME                                          AUTHOR                          YEAR"


def test_create_prints_the_stored_book(catalogue: Catalogue) -> None:
    finished = run_bookstore(
        *("create", "--name", " Emma ", "--author", "Jane Austen", "--release-year", 1815),
        variables={"BOOKSTORE_SERVER": catalogue.address},
    )

    assert (finished.status, finished.errors) == (0, "")
    header, row = finished.output.splitlines()
    assert header == HEADER
    assert (
        row.split(maxsplit=1)[1] == "Emma                                          Jane Austen                     1815"
    )
    assert catalogue.rows() == [("Emma", "Jane Austen", 1815)]


def test_create_with_one_request_id_twice_stores_one_book(catalogue: Catalogue) -> None:
    create = ("create", "--name", "N", "--author", "A", "--release-year", -8, "--request-id", uuid.uuid4())

    assert catalogue.succeed(*create) == catalogue.succeed(*create)
    assert len(catalogue.rows()) == 1


def test_a_negative_year_is_a_value_and_not_a_flag(catalogue: Catalogue) -> None:
    assert catalogue.create("Iliad", "Homer", -750)["release_year"] == -750
    assert catalogue.create("Zero", "Nobody", 0)["release_year"] == 0


def test_get_prints_books_in_the_order_of_their_ids(catalogue: Catalogue) -> None:
    first, second = catalogue.create("One"), catalogue.create("Two")

    output = catalogue.succeed("get", second["id"], first["id"], second["id"], "--output", "json")

    assert json.loads(output) == [second, first, second]


def test_json_has_every_field_unchanged(catalogue: Catalogue) -> None:
    book = catalogue.create('紅樓夢 "q" \\ é', "曹雪芹", 1791)

    fields = ["id", "name", "author", "release_year", "create_time", "update_time", "etag"]
    assert list(book) == [*fields, *OPTIONAL_FIELDS]
    assert book["name"] == '紅樓夢 "q" \\ é'
    assert book["create_time"] == book["update_time"]
    assert book["create_time"].endswith("Z")


def test_csv_has_a_header_and_quotes_where_they_are_needed(catalogue: Catalogue) -> None:
    book = catalogue.create('A "quoted", title', "A, B")

    output = catalogue.succeed("get", book["id"], "--output", "csv")

    (row,) = csv.DictReader(io.StringIO(output))
    assert row == {field: str(value) for field, value in book.items()}


def test_update_changes_the_given_fields_and_prints_the_book(catalogue: Catalogue) -> None:
    book = catalogue.create("N", "A", 1)

    output = catalogue.succeed("update", book["id"], "--release-year", 0, "--output", "json")

    (updated,) = json.loads(output)
    assert (updated["name"], updated["author"], updated["release_year"]) == ("N", "A", 0)
    assert updated["etag"] != book["etag"]
    assert "New" in catalogue.succeed("update", book["id"], "--name", "New", "--author", "B")
    assert catalogue.rows() == [("New", "B", 0)]


def test_delete_reports_the_deleted_book(catalogue: Catalogue) -> None:
    book = catalogue.create("N")

    assert catalogue.succeed("delete", book["id"]) == f"Book {book['id']} deleted.\n"
    assert catalogue.rows() == []


def test_update_and_delete_accept_only_the_current_etag(catalogue: Catalogue) -> None:
    book = catalogue.create("N")

    (updated,) = json.loads(
        catalogue.succeed("update", book["id"], "--name", "New", "--etag", book["etag"], "--output", "json")
    )
    for verb in (("update", book["id"], "--name", "Newer"), ("delete", book["id"])):
        rejected = catalogue.run(*verb, "--etag", book["etag"])
        assert rejected.status == 1
        assert "[ETAG_MISMATCH]" in rejected.errors
    assert catalogue.rows() == [("New", "Anon", 2000)]
    catalogue.succeed("delete", book["id"], "--etag", updated["etag"])


@pytest.mark.parametrize("arguments", [(), ("--service", "bookstore.v1.BookService")], ids=["server", "service"])
def test_health_of_a_server_that_is_serving_is_printed_with_status_0(
    catalogue: Catalogue, arguments: tuple[str, ...]
) -> None:
    assert catalogue.succeed("health", *arguments) == "SERVING\n"


def test_health_of_an_unknown_service_is_status_1(catalogue: Catalogue) -> None:
    finished = catalogue.run("health", "--service", "bookstore.v9.BookService")

    assert finished == (1, "SERVICE_UNKNOWN\n", "")


def test_version_prints_the_version() -> None:
    finished = run_bookstore("version")

    assert finished == (0, "0.1.0\n", "")


def test_help_lists_every_verb() -> None:
    finished = run_bookstore("--help")

    assert finished.status == 0
    verbs = ("serve", "migrate", "version", "health", "create", "get", "list", "update", "delete")
    for verb in (*verbs, "import", "export", "watch", "relay"):
        assert f"\n  {verb} " in finished.output
