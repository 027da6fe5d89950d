"""What keeps a server from starting is one line on standard error, with exit status 1: addresses, URLs, packages."""

import socket
from collections.abc import Mapping
from pathlib import Path

import pytest

from tests.e2e.conftest import Start
from tests.executable import Finished, run_bookstore

pytestmark = pytest.mark.e2e


def failed_serve(
    database_url: str, *arguments: str, cwd: Path | None = None, variables: Mapping[str, str] | None = None
) -> Finished:
    """Serve, which has to fail."""
    listen = () if "--listen" in arguments else ("--listen", "127.0.0.1:0")
    variables = {"BOOKSTORE_DATABASE_URL": database_url, **(variables or {})}
    finished = run_bookstore("serve", *listen, *arguments, cwd=cwd, seconds=20, variables=variables)
    assert finished.status == 1
    assert "Error: " in finished.errors
    assert finished.output == ""
    return finished


def test_a_port_in_use_is_reported(sqlite_url: str) -> None:
    with socket.create_server(("127.0.0.1", 0)) as listening:
        address = f"127.0.0.1:{listening.getsockname()[1]}"
        finished = failed_serve(sqlite_url, "--listen", address)

    assert f"Cannot listen on {address}: the address is in use. " in finished.errors
    assert "--listen" in finished.errors


def test_two_servers_do_not_share_a_port(start: Start, sqlite_url: str, tmp_path: Path) -> None:
    server = start(sqlite_url)

    finished = failed_serve(f"sqlite+aiosqlite:///{tmp_path}/other.db", "--listen", server.address)

    assert f"Cannot listen on {server.address}" in finished.errors


def test_a_unix_socket_is_served_by_one_server(start: Start, sqlite_url: str, tmp_path: Path) -> None:
    address = "unix:socket"  # relative: the path of a socket is short, a test's folder may not be
    server = start(sqlite_url, "--listen", address)

    second = failed_serve(sqlite_url, "--listen", address, cwd=tmp_path)

    assert server.addresses == [address]
    assert f"Cannot listen on {address}" in second.errors
    assert run_bookstore("health", "--server", address, cwd=tmp_path).output == "SERVING\n"


def test_the_socket_of_a_killed_server_is_replaced(start: Start, sqlite_url: str, tmp_path: Path) -> None:
    killed = start(sqlite_url, "--listen", "unix:socket")
    killed.end()
    assert (tmp_path / "socket").exists()

    start(sqlite_url, "--listen", "unix:socket")

    assert run_bookstore("health", "--server", "unix:socket", cwd=tmp_path).output == "SERVING\n"


def test_several_addresses_are_served_at_once(start: Start, sqlite_url: str, tmp_path: Path) -> None:
    server = start(sqlite_url, "--listen", "127.0.0.1:0", "--listen", "[::1]:0", "--listen", "unix:socket")

    assert len(server.addresses) == 3
    for address in server.addresses:
        assert run_bookstore("health", "--server", address, cwd=tmp_path).output == "SERVING\n"


@pytest.mark.parametrize("address", ["50051", "127.0.0.1", "127.0.0.1:http", "127.0.0.1:65536", ":50051", "unix:"])
def test_an_invalid_address_is_reported(sqlite_url: str, address: str) -> None:
    finished = failed_serve(sqlite_url, "--listen", address)

    assert f"The address '{address}' is neither HOST:PORT nor unix:PATH." in finished.errors


def test_an_address_of_another_machine_is_reported(sqlite_url: str) -> None:
    finished = failed_serve(sqlite_url, "--insecure", "--listen", "192.0.2.1:0")  # RFC 5737: never this machine's

    assert "Cannot listen on 192.0.2.1:0: the address is not this machine's. " in finished.errors


def test_a_socket_that_cannot_be_created_is_reported_with_the_cause(sqlite_url: str, tmp_path: Path) -> None:
    (tmp_path / "plain").touch()
    for address, cause in (
        ("unix:/no/such/folder/socket", "there is no directory /no/such/folder"),
        ("unix:plain", "plain exists and is not a socket"),
        (f"unix:{'x' * 120}", "AF_UNIX path too long"),
    ):
        finished = failed_serve(sqlite_url, "--listen", address, cwd=tmp_path)
        assert f"Cannot listen on {address}: {cause}. " in finished.errors
    assert (tmp_path / "plain").is_file()


def test_a_name_that_does_not_resolve_is_reported(sqlite_url: str) -> None:
    finished = failed_serve(sqlite_url, "--insecure", "--listen", "no-such-host.invalid:0")

    assert "Cannot listen on no-such-host.invalid:0: the name does not resolve (" in finished.errors


@pytest.mark.parametrize("address", ["0.0.0.0:0", "[::]:0", "192.0.2.1:0", "example.com:0"])
def test_plaintext_to_other_machines_needs_a_flag(sqlite_url: str, address: str) -> None:
    assert "--insecure" in failed_serve(sqlite_url, "--listen", address).errors


def test_with_that_flag_plaintext_is_served_and_warned_of(start: Start, sqlite_url: str) -> None:
    server = start(sqlite_url, "--listen", "0.0.0.0:0", "--insecure")

    (warning,) = [line for line in server.log_lines() if line["level"] == "warning"]
    assert warning["address"] == "0.0.0.0:0"


@pytest.mark.parametrize(
    ("url", "error"),
    [
        ("oracle+oracledb://u:{}@db/x", "starts with 'oracle+oracledb'; supported are sqlite+aiosqlite"),
        ("http://u:{}@db/x", "starts with 'http'"),
        ("postgresql+psycopg2://u:{}@db/x", "use postgresql+asyncpg"),
        ("postgresql+asyncpg://u:{}@db:port/x", "cannot be read"),
        ("u:{}@db/x", "cannot be read"),
        ("sqlite+aiosqlite://", "needs a file"),
        ("sqlite+aiosqlite:///:memory:", "needs a file"),
        ("sqlite+aiosqlite:///file:x?mode=memory&uri=true", "needs a file"),
    ],
    ids=lambda value: value[:40],
)
def test_the_url_of_an_unsupported_database_is_reported(url: str, error: str) -> None:
    finished = failed_serve(url.format("hunter2%2F%40%23"))

    assert error in finished.errors
    assert "hunter2" not in finished.errors


@pytest.mark.parametrize("arguments", [["serve"], ["migrate"], ["backup", "copy.db"]], ids=" ".join)
def test_an_empty_variable_creates_no_database(arguments: list[str], tmp_path: Path) -> None:
    finished = run_bookstore(*arguments, cwd=tmp_path, variables={"BOOKSTORE_DATABASE_URL": ""})

    assert finished.status == 2
    assert "Error: The variable BOOKSTORE_DATABASE_URL is empty" in finished.errors
    assert list(tmp_path.iterdir()) == []


@pytest.mark.parametrize("module", ["asyncpg", "asyncmy", "aiosqlite"])
def test_a_missing_driver_is_reported_with_its_extra(tmp_path: Path, module: str) -> None:
    hide(module, tmp_path)
    database, extra = {
        "asyncpg": ("postgresql", "postgresql"),
        "asyncmy": ("mariadb", "mariadb"),
        "aiosqlite": ("sqlite", "server"),
    }[module]
    url = f"{database}://127.0.0.1:1/x" if database != "sqlite" else f"sqlite:///{tmp_path}/x.db"

    finished = failed_serve(url, variables={"PYTHONPATH": str(tmp_path)})

    assert f"pip install 'bookstore-grpc[{extra}]'" in finished.errors


@pytest.mark.parametrize("module", ["sqlalchemy", "structlog", "alembic", "lark", "grpc_reflection"])
def test_a_missing_package_of_the_server_is_reported_with_its_extra(
    sqlite_url: str, tmp_path: Path, module: str
) -> None:
    hide(module, tmp_path)

    finished = failed_serve(sqlite_url, variables={"PYTHONPATH": str(tmp_path)})

    assert f"`bookstore serve` needs the extra [server] (no module '{module}'" in finished.errors
    assert "pip install 'bookstore-grpc[server]'" in finished.errors


def hide(module: str, folder: Path) -> None:
    """Make importing a package fail, as if it were not installed, where the folder is the first to be searched."""
    (folder / f"{module}.py").write_text(f"raise ModuleNotFoundError(name={module!r})")
