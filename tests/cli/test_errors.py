"""Error messages and exit statuses: 1 for what the service rejects, 2 for wrong use of the command."""

import socket
import time
from collections.abc import Iterator

import pytest

from tests.cli.conftest import Catalogue, run_verb, with_optional_columns
from tests.executable import run_bookstore

BOOK = ("--name", "N", "--author", "A", "--release-year", 1)


@pytest.mark.parametrize(
    ("arguments", "expected"),
    [
        pytest.param(
            ("create", "--name", " ", "--author", "A", "--release-year", 10_000),
            ["book.name: is required", "book.release_year: is 10000", "[INVALID_FIELD]"],
            id="every violation",
        ),
        pytest.param(
            ("create", "--name", "x" * 501, "--author", "y" * 1_001, "--release-year", 1),
            ["book.name: has 501 code points", "book.author: has 1,001 code points"],
            id="too long",
        ),
        pytest.param(
            ("create", "--name", "a\x07b", "--author", "A", "--release-year", 1),
            ["book.name: holds the control character U+0007"],
            id="control character",
        ),
        pytest.param(
            ("create", *BOOK, "--request-id", "7"), ["request_id: is not a UUID", "[INVALID_FIELD]"], id="request id"
        ),
        pytest.param(("get", 4_000_000_000), ["There is no book 4000000000.", "[BOOK_NOT_FOUND]"], id="get"),
        pytest.param(
            ("get", 2**63 - 1, 2**63 - 2),
            ["There are no books 9223372036854775807, 9223372036854775806."],
            id="several",
        ),
        pytest.param(("get", 0), ["ids[0]: is 0, but ids are positive", "[INVALID_FIELD]"], id="id 0"),
        pytest.param(("get", "--", -1), ["ids[0]: is -1"], id="negative id"),
        pytest.param(("update", 4_000_000_000, "--name", "N"), ["[BOOK_NOT_FOUND]"], id="update"),
        pytest.param(("update", 0, "--name", " "), ["book.id", "name: is required"], id="invalid update"),
        pytest.param(("update", 1, "--name", ""), ["name: is required"], id="update to nothing"),
        pytest.param(("delete", 4_000_000_000), ["[BOOK_NOT_FOUND]"], id="delete"),
        pytest.param(("list", "--filter", "name ="), ["filter: ", "[INVALID_FILTER]"], id="filter"),
        pytest.param(("list", "--filter", "price > 3"), ["filter: ", "price"], id="unknown field"),
        pytest.param(("list", "--all", "--filter", "price > 3"), ["[INVALID_FILTER]"], id="filter and all"),
        pytest.param(("list", "--order-by", "price"), ["order_by: ", "[INVALID_ORDER_BY]"], id="order"),
        pytest.param(("list", "--page-size", -1), ["page_size: is -1", "[INVALID_FIELD]"], id="page size"),
        pytest.param(("export", "-", "--filter", "price > 3"), ["[INVALID_FILTER]"], id="export filter"),
    ],
)
def test_a_rejected_request_is_reported_with_field_and_reason(
    catalogue: Catalogue, arguments: tuple[object, ...], expected: list[str]
) -> None:
    rejected = catalogue.run(*arguments)

    assert rejected.status == 1
    assert rejected.errors.startswith("Error: ")
    assert "(request id " in rejected.errors
    for words in expected:
        assert words in rejected.errors


@pytest.mark.parametrize(
    "arguments",
    [
        ("create", "--name", "N"),
        ("create", *BOOK[:-1], "MDCCC"),
        ("create", *BOOK[:-1], 2**31),
        ("create", *BOOK, "--price", 3),
        ("get",),
        ("get", "one"),
        ("get", 2**63),
        ("list", "--all", "--limit", 3),
        ("list", "--limit", 0),
        ("list", "--output", "xml"),
        ("update", 1),
        ("update", "--name", "N"),
        ("delete",),
        ("health", "--timeout-seconds", 0),
        ("health", "--timeout-seconds", "soon"),
        ("import", "no-such-file.csv"),
        ("import", "/dev"),
        ("export",),
        ("export", "books.txt"),
        ("export", "/dev"),
        ("burn",),
        ("serve", "--pool-size", 0),
        ("serve", "--log-level", "loud"),
        ("serve", "--drain-seconds", -1),
    ],
    ids=lambda arguments: " ".join(map(str, arguments)),
)
def test_wrong_use_is_status_2(arguments: tuple[object, ...]) -> None:
    finished = run_verb(*arguments, variables={"BOOKSTORE_SERVER": "127.0.0.1:1"})

    assert finished.status == 2
    assert finished.output == ""
    assert "Usage: bookstore" in finished.errors


@pytest.mark.parametrize(
    "arguments",
    [
        pytest.param(("create", "--name", b"\xff\xfe", "--author", "A", "--release-year", 1), id="create"),
        pytest.param(("update", 1, "--author", b"\xff"), id="update"),
        pytest.param(("list", "--filter", b"\xff"), id="list"),
        pytest.param(("delete", 1, "--etag", b"\xff"), id="delete"),
        pytest.param(("health", "--service", b"\xff"), id="health"),
    ],
)
def test_an_argument_that_is_not_unicode_is_an_error_with_a_message(
    catalogue: Catalogue, arguments: tuple[object, ...]
) -> None:
    rejected = catalogue.run(*arguments)

    assert rejected.status in (1, 2)
    assert rejected.errors.startswith(("Error: ", "Usage: "))


@pytest.mark.parametrize(
    "arguments", [("get", 4_000_000_000), ("get",), ("list", "--filter", b"\xff")], ids=["status 1", "2", "no unicode"]
)
def test_a_process_ends_with_the_same_status_and_message(catalogue: Catalogue, arguments: tuple[object, ...]) -> None:
    expected = catalogue.run(*arguments)

    finished = run_bookstore(*arguments, variables={"BOOKSTORE_SERVER": catalogue.address})

    assert (finished.status, finished.output) == (expected.status, expected.output)
    assert finished.errors.partition(" (request id ")[0] == expected.errors.partition(" (request id ")[0]


@pytest.fixture
def closed_address() -> Iterator[str]:
    """A port where nothing listens, and nothing can while the test runs."""
    with socket.socket() as bound:
        bound.bind(("127.0.0.1", 0))
        yield f"127.0.0.1:{bound.getsockname()[1]}"


@pytest.mark.parametrize(
    "arguments",
    [
        ("health",),
        ("list",),
        ("get", 1),
        ("create", *BOOK),
        ("update", 1, "--name", "N"),
        ("delete", 1),
        ("export", "-"),
    ],
    ids=lambda arguments: str(arguments[0]),
)
def test_without_a_server_every_verb_reports_its_address_and_the_cause(
    closed_address: str, arguments: tuple[object, ...]
) -> None:
    finished = run_verb(*arguments, variables={"BOOKSTORE_SERVER": closed_address})

    assert finished.status == 1
    assert finished.output in ("", with_optional_columns("name,author,release_year\r\n"))
    assert f"Error: Could not connect to {closed_address}: " in finished.errors
    assert "Connection refused" in finished.errors
    assert "--server" in finished.errors


@pytest.mark.parametrize(
    ("address", "cause"),
    [
        ("no-such-host.invalid:50051", "address lookup failed for no-such-host.invalid:50051: "),
        ("nonsense", "address lookup failed for nonsense: "),
        ("unix:/no/such/socket", "No such file or directory"),
        (":::", "address lookup failed"),
        ("http://x y", "Failed to parse port in name: http://x y"),
    ],
)
def test_an_address_that_cannot_be_used_is_reported_with_the_cause(address: str, cause: str) -> None:
    finished = run_verb("health", "--server", address, "--timeout-seconds", 5)

    assert finished.status == 1
    assert finished.errors.startswith("Error: ")
    assert cause in finished.errors


def test_without_a_server_a_verb_does_not_wait_for_one(closed_address: str) -> None:
    began = time.monotonic()
    finished = run_verb("list", "--server", closed_address, "--timeout-seconds", 600)

    assert "Connection refused" in finished.errors
    assert time.monotonic() - began < 10


def test_a_server_that_does_not_respond_is_given_up_after_the_timeout() -> None:
    with socket.create_server(("127.0.0.1", 0)) as silent:
        address = f"127.0.0.1:{silent.getsockname()[1]}"
        finished = run_verb("list", "--server", address, "--timeout-seconds", 0.3)

    assert finished.status == 1
    assert finished.errors.startswith(f"Error: {address} did not respond in time: Could not connect.")


def test_the_flag_takes_precedence_over_the_variable(catalogue: Catalogue, closed_address: str) -> None:
    by_flag = run_verb("health", "--server", catalogue.address, variables={"BOOKSTORE_SERVER": closed_address})
    by_variable = run_verb("health", variables={"BOOKSTORE_SERVER": catalogue.address})

    assert by_flag == by_variable == (0, "SERVING\n", "")


def test_help_names_the_variables_of_the_connection() -> None:
    output = run_verb("list", "--help").output

    assert "BOOKSTORE_SERVER" in output
    assert "BOOKSTORE_TIMEOUT_SECONDS" in output


@pytest.mark.parametrize("name", ["BOOKSTORE_SERVER", "BOOKSTORE_CA", "BOOKSTORE_TOKEN", "BOOKSTORE_TOKEN_FILE"])
def test_an_empty_variable_is_rejected_and_nothing_is_sent(name: str, closed_address: str) -> None:
    server = () if name == "BOOKSTORE_SERVER" else ("--server", closed_address)
    finished = run_verb("list", *server, variables={name: ""})

    assert finished.status == 2
    assert f"Error: The variable {name} is empty: give it a value, or unset it." in finished.errors


def test_an_empty_address_is_rejected() -> None:
    finished = run_verb("list", "--server", "")

    assert finished.status == 2
    assert "Error: --server is empty: give it a value, or leave it out." in finished.errors
