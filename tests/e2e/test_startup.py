"""What keeps a server from starting is told in a sentence, with exit status 1 and without any password."""

import asyncio
import os
import re
import shutil
import socket
import sqlite3
import uuid
from collections.abc import AsyncIterator, Mapping
from contextlib import closing
from pathlib import Path
from urllib.parse import quote_plus

import pytest
from sqlalchemy.engine import make_url
from sqlalchemy.ext.asyncio import create_async_engine

from tests.e2e.conftest import Start
from tests.executable import Finished, run_bookstore

pytestmark = pytest.mark.e2e

PASSWORD = "hunter2/@#"
QUOTED_PASSWORD = quote_plus(PASSWORD)


def failed_serve(
    database_url: str, *arguments: str, cwd: Path | None = None, variables: Mapping[str, str] | None = None
) -> Finished:
    """Serve in vain."""
    listen = () if "--listen" in arguments else ("--listen", "127.0.0.1:0")
    variables = {"BOOKSTORE_DATABASE_URL": database_url, **(variables or {})}
    finished = run_bookstore("serve", *listen, *arguments, cwd=cwd, seconds=20, variables=variables)
    assert finished.status == 1
    assert "Error: " in finished.errors
    assert finished.output == ""
    return finished


def test_a_port_in_use_is_told(sqlite_url: str) -> None:
    with socket.create_server(("127.0.0.1", 0)) as listening:
        address = f"127.0.0.1:{listening.getsockname()[1]}"
        finished = failed_serve(sqlite_url, "--listen", address)

    assert f"Cannot listen on {address}: the address is in use. " in finished.errors
    assert "--listen" in finished.errors


def test_two_servers_do_not_share_a_port(start: Start, sqlite_url: str, tmp_path: Path) -> None:
    server = start(sqlite_url)

    finished = failed_serve(f"sqlite+aiosqlite:///{tmp_path}/other.db", "--listen", server.address)

    assert f"Cannot listen on {server.address}" in finished.errors


def test_a_unix_socket_serves_and_is_not_taken_over(start: Start, sqlite_url: str, tmp_path: Path) -> None:
    address = "unix:socket"  # relative: the path of a socket is short, a test's folder may not be
    server = start(sqlite_url, "--listen", address)

    second = failed_serve(sqlite_url, "--listen", address, cwd=tmp_path)

    assert server.addresses == [address]
    assert f"Cannot listen on {address}" in second.errors
    assert run_bookstore("health", "--server", address, cwd=tmp_path).output == "SERVING\n"


def test_a_socket_that_a_killed_server_left_is_no_obstacle(start: Start, sqlite_url: str, tmp_path: Path) -> None:
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
def test_an_address_of_another_form_is_told(sqlite_url: str, address: str) -> None:
    finished = failed_serve(sqlite_url, "--listen", address)

    assert f"The address '{address}' is neither HOST:PORT nor unix:PATH." in finished.errors


def test_an_address_of_another_machine_is_told(sqlite_url: str) -> None:
    finished = failed_serve(sqlite_url, "--insecure", "--listen", "192.0.2.1:0")  # RFC 5737: never this machine's

    assert "Cannot listen on 192.0.2.1:0: the address is not this machine's. " in finished.errors


def test_a_socket_that_cannot_be_had_is_told_with_the_cause(sqlite_url: str, tmp_path: Path) -> None:
    (tmp_path / "plain").touch()
    for address, cause in (
        ("unix:/no/such/folder/socket", "there is no folder /no/such/folder"),
        ("unix:plain", "plain is something else than a socket"),
        (f"unix:{'x' * 120}", "AF_UNIX path too long"),
    ):
        finished = failed_serve(sqlite_url, "--listen", address, cwd=tmp_path)
        assert f"Cannot listen on {address}: {cause}. " in finished.errors
    assert (tmp_path / "plain").is_file()


def test_a_name_that_does_not_resolve_is_told(sqlite_url: str) -> None:
    finished = failed_serve(sqlite_url, "--insecure", "--listen", "no-such-host.invalid:0")

    assert "Cannot listen on no-such-host.invalid:0: the name does not resolve (" in finished.errors


@pytest.mark.parametrize("address", ["0.0.0.0:0", "[::]:0", "192.0.2.1:0", "example.com:0"])
def test_plaintext_that_other_machines_can_reach_needs_a_word(sqlite_url: str, address: str) -> None:
    assert "--insecure" in failed_serve(sqlite_url, "--listen", address).errors


def test_with_that_word_it_is_served_and_warned_of(start: Start, sqlite_url: str) -> None:
    server = start(sqlite_url, "--listen", "0.0.0.0:0", "--insecure")

    (warning,) = [line for line in server.log_lines() if line["level"] == "warning"]
    assert warning["address"] == "0.0.0.0:0"


@pytest.mark.parametrize(
    ("url", "told"),
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
def test_a_url_of_no_supported_database_is_told(url: str, told: str) -> None:
    finished = failed_serve(url.format(QUOTED_PASSWORD))

    assert told in finished.errors
    assert "hunter2" not in finished.errors


@pytest.mark.parametrize("arguments", [["serve"], ["migrate"], ["backup", "copy.db"]], ids=" ".join)
def test_an_empty_variable_makes_no_database(arguments: list[str], tmp_path: Path) -> None:
    finished = run_bookstore(*arguments, cwd=tmp_path, variables={"BOOKSTORE_DATABASE_URL": ""})

    assert finished.status == 2
    assert "Error: The variable BOOKSTORE_DATABASE_URL is empty" in finished.errors
    assert list(tmp_path.iterdir()) == []


@pytest.mark.parametrize("verb", ["serve", "migrate"])
async def test_the_database_of_another_program_is_named_with_what_to_do(database_server_url: str, verb: str) -> None:
    engine = create_async_engine(database_server_url)
    async with engine.begin() as connection:
        await connection.exec_driver_sql("CREATE TABLE alembic_version (version_num VARCHAR(32) NOT NULL)")
        await connection.exec_driver_sql("INSERT INTO alembic_version VALUES ('0001')")
    await engine.dispose()

    variables = {"BOOKSTORE_DATABASE_URL": database_server_url, "BOOKSTORE_LISTEN": "127.0.0.1:0"}
    finished = await asyncio.to_thread(run_bookstore, verb, variables=variables)

    assert finished.status == 1
    assert re.fullmatch(
        r"Error: Cannot use the database \w+ \S+/\w+: its alembic_version '0001' is another program's, for it has no "
        r"table books of this service; give this service a database of its own\.\n",
        finished.errors,
    )


@pytest.mark.parametrize("scheme", ["postgresql+asyncpg", "mariadb+asyncmy"])
@pytest.mark.parametrize("verb", ["serve", "migrate"])
def test_a_host_that_does_not_answer_is_named_and_its_password_is_not(scheme: str, verb: str) -> None:
    with socket.socket() as bound:
        bound.bind(("127.0.0.1", 0))
        host = f"127.0.0.1:{bound.getsockname()[1]}"
        finished = run_bookstore(
            verb, variables={"BOOKSTORE_DATABASE_URL": f"{scheme}://me:{QUOTED_PASSWORD}@{host}/books"}
        )

    assert finished.status == 1
    assert f"Error: Cannot use the database {scheme.partition('+')[0]} {host}/books: " in finished.errors
    assert "hunter2" not in finished.output + finished.errors


@pytest.mark.parametrize("scheme", ["postgresql+asyncpg", "mariadb+asyncmy"])
@pytest.mark.parametrize("verb", ["serve", "migrate"])
def test_a_host_that_accepts_and_says_nothing_is_told_as_such(scheme: str, verb: str) -> None:
    with socket.create_server(("127.0.0.1", 0)) as mute:
        host = f"127.0.0.1:{mute.getsockname()[1]}"
        variables = {"BOOKSTORE_DATABASE_URL": f"{scheme}://{host}/books", "BOOKSTORE_LISTEN": "127.0.0.1:0"}
        finished = run_bookstore(verb, "--database-timeout-seconds", 0.3, variables=variables)

    assert finished.status == 1
    told = f"Cannot use the database {scheme.partition('+')[0]} {host}/books: it did not respond in time."
    assert finished.errors == f"Error: {told}\n"


@pytest.mark.parametrize("flag_or_variable", ["flag", "variable"])
@pytest.mark.parametrize(
    "url",
    [
        "postgresql+asyncpg://me:{}@127.0.0.1:1/books",
        "mariadb+asyncmy://me:{}@127.0.0.1:1/books",
        "postgresql+asyncpg://127.0.0.1:1/books?user=me&password={}",
        "postgresql+asyncpg://me:{}[@127.0.0.1:1/books",
        "postgresql+asyncpg://me:{}@127.0.0.1:1/books?no_such_option={}",
    ],
)
def test_a_password_is_never_shown(url: str, flag_or_variable: str) -> None:
    url = url.format(*[QUOTED_PASSWORD] * 2)
    in_flag = flag_or_variable == "flag"
    arguments = ["migrate", "--database-url", url] if in_flag else ["migrate"]

    finished = run_bookstore(*arguments, variables={} if in_flag else {"BOOKSTORE_DATABASE_URL": url})

    assert finished.status == 1
    assert "hunter2" not in finished.output + finished.errors
    if in_flag:
        assert "Warning: `ps` shows the password in --database-url" in finished.errors
    else:
        assert "Warning" not in finished.errors


@pytest.fixture
async def password_url(database_server_url: str) -> AsyncIterator[str]:
    """The URL of an empty database for a user with a password."""
    url = make_url(database_server_url)
    user = f"test_{uuid.uuid4().hex[:12]}"
    if url.get_backend_name() == "postgresql":
        begin = [f"CREATE ROLE {user} LOGIN SUPERUSER PASSWORD '{PASSWORD}'"]
        end = [f"DROP OWNED BY {user}", f"DROP ROLE {user}"]
    else:
        begin = [f"CREATE USER {user} IDENTIFIED BY '{PASSWORD}'", f"GRANT ALL ON {url.database}.* TO {user}"]
        end = [f"DROP USER {user}"]
    engine = create_async_engine(url, isolation_level="AUTOCOMMIT")
    async with engine.connect() as connection:
        for statement in begin:
            await connection.exec_driver_sql(statement)
        yield url.set(username=user, password=PASSWORD).render_as_string(hide_password=False)
        for statement in end:
            await connection.exec_driver_sql(statement)
    await engine.dispose()


def test_a_running_server_keeps_its_password_to_itself(password_url: str, start: Start) -> None:
    server = start(password_url, "--migrate", "--log-level", "debug")
    run_bookstore("list", "--server", server.address)

    assert server.stop() == 0
    assert "call answered" in server.log_text()
    assert "hunter2" not in server.log_text()


@pytest.mark.parametrize("module", ["asyncpg", "asyncmy", "aiosqlite"])
def test_a_missing_driver_is_named_with_the_extra_that_brings_it(tmp_path: Path, module: str) -> None:
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
def test_without_the_servers_packages_it_says_which_extra_is_missing(
    sqlite_url: str, tmp_path: Path, module: str
) -> None:
    hide(module, tmp_path)

    finished = failed_serve(sqlite_url, variables={"PYTHONPATH": str(tmp_path)})

    assert f"`bookstore serve` needs more than the client (no module '{module}'" in finished.errors
    assert "pip install 'bookstore-grpc[server]'" in finished.errors


def hide(module: str, folder: Path) -> None:
    """Make a folder that, in front of all others, behaves as if a package were not installed."""
    (folder / f"{module}.py").write_text(f"raise ModuleNotFoundError(name={module!r})")


def test_a_folder_that_is_not_there_is_told(tmp_path: Path) -> None:
    finished = failed_serve(f"sqlite+aiosqlite:///{tmp_path}/none/bookstore.db")

    assert f"Cannot use the database sqlite {tmp_path}/none/bookstore.db" in finished.errors
    assert not (tmp_path / "none").exists()


def test_a_folder_instead_of_a_file_is_told(tmp_path: Path) -> None:
    assert "Cannot use the database sqlite" in failed_serve(f"sqlite+aiosqlite:///{tmp_path}").errors


def test_a_file_that_is_no_database_is_told_and_left_as_it_is(sqlite_url: str, sqlite_file: Path) -> None:
    sqlite_file.write_bytes(b"Dear diary, " * 1_000)

    assert "file is not a database" in failed_serve(sqlite_url).errors
    assert sqlite_file.read_bytes() == b"Dear diary, " * 1_000


@pytest.mark.parametrize("state", ["migrated", "empty"])
def test_a_file_that_cannot_be_written_is_told(sqlite_url: str, sqlite_file: Path, state: str) -> None:
    """By SQLite's own word, since the superuser may write to any file."""
    if state == "migrated":
        run_bookstore("migrate", "--database-url", sqlite_url)
    else:
        sqlite_file.touch()

    finished = failed_serve(f"sqlite+aiosqlite:///file:{sqlite_file}?mode=ro&uri=true")

    assert "readonly database" in finished.errors


@pytest.mark.skipif(os.geteuid() == 0, reason="the superuser may write to any folder")
def test_a_folder_that_cannot_be_written_is_told(tmp_path: Path) -> None:
    folder = tmp_path / "fixed"
    folder.mkdir(mode=0o500)

    assert "Cannot use the database sqlite" in failed_serve(f"sqlite+aiosqlite:///{folder}/bookstore.db").errors


def test_tables_that_are_behind_are_told_with_what_to_run(start: Start, database_server_url: str) -> None:
    finished = failed_serve(database_server_url)
    assert "`bookstore migrate`" in finished.errors
    assert "--migrate" in finished.errors

    assert run_bookstore("migrate", variables={"BOOKSTORE_DATABASE_URL": database_server_url}).status == 0
    server = start(database_server_url)
    assert run_bookstore("health", "--server", server.address).output == "SERVING\n"


def test_serve_can_migrate_by_itself(start: Start, database_server_url: str) -> None:
    server = start(database_server_url, "--migrate")

    assert run_bookstore("list", "--server", server.address).status == 0


def test_a_database_that_is_not_there_is_told(database_server_url: str) -> None:
    url = make_url(database_server_url).set(database="no_such_database").render_as_string(hide_password=False)

    assert "/no_such_database: " in failed_serve(url).errors


def test_an_existing_file_is_served_as_it_is(start: Start, sqlite_url: str, sqlite_file: Path, tmp_path: Path) -> None:
    first = start(sqlite_url)
    create = ("create", "--name", "N", "--author", "A", "--release-year", "1", "--server")
    created = run_bookstore(*create, first.address).output
    assert first.stop() == 0
    # After a clean end the file alone is the whole catalogue.
    copy = shutil.copy(sqlite_file, tmp_path / "copy.db")

    second = start(f"sqlite+aiosqlite:///{copy}")

    assert run_bookstore("get", 1, "--server", second.address).output == created
    with closing(sqlite3.connect(copy)) as connection:
        assert connection.execute("PRAGMA integrity_check").fetchone() == ("ok",)
