"""A database that cannot be served is one line on standard error, with exit status 1 and without any password."""

import asyncio
import os
import re
import shutil
import socket
import sqlite3
import uuid
from collections.abc import AsyncIterator
from contextlib import closing
from pathlib import Path
from urllib.parse import quote_plus

import pytest
from sqlalchemy.engine import make_url
from sqlalchemy.ext.asyncio import create_async_engine

from tests.e2e.conftest import Start
from tests.e2e.test_startup import failed_serve
from tests.executable import run_bookstore

pytestmark = pytest.mark.e2e

PASSWORD = "hunter2/@#"
QUOTED_PASSWORD = quote_plus(PASSWORD)


@pytest.mark.parametrize("verb", ["serve", "migrate"])
async def test_the_database_of_another_program_is_reported_with_a_remedy(database_server_url: str, verb: str) -> None:
    engine = create_async_engine(database_server_url)
    async with engine.begin() as connection:
        await connection.exec_driver_sql("CREATE TABLE alembic_version (version_num VARCHAR(32) NOT NULL)")
        await connection.exec_driver_sql("INSERT INTO alembic_version VALUES ('0001')")
    await engine.dispose()

    variables = {"BOOKSTORE_DATABASE_URL": database_server_url, "BOOKSTORE_LISTEN": "127.0.0.1:0"}
    finished = await asyncio.to_thread(run_bookstore, verb, variables=variables)

    assert finished.status == 1
    assert re.fullmatch(
        r"Error: Cannot use the database \w+ \S+/\w+: its alembic_version '0001' is another program's, because it has "
        r"no table books of this service; give this service its own database\.\n",
        finished.errors,
    )


@pytest.mark.parametrize("scheme", ["postgresql+asyncpg", "mariadb+asyncmy"])
@pytest.mark.parametrize("verb", ["serve", "migrate"])
def test_an_unreachable_host_is_reported_without_its_password(scheme: str, verb: str) -> None:
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
def test_a_host_that_accepts_connections_and_does_not_respond_is_reported(scheme: str, verb: str) -> None:
    with socket.create_server(("127.0.0.1", 0)) as unresponsive:
        host = f"127.0.0.1:{unresponsive.getsockname()[1]}"
        variables = {"BOOKSTORE_DATABASE_URL": f"{scheme}://{host}/books", "BOOKSTORE_LISTEN": "127.0.0.1:0"}
        finished = run_bookstore(verb, "--database-timeout-seconds", 0.3, variables=variables)

    assert finished.status == 1
    error = f"Cannot use the database {scheme.partition('+')[0]} {host}/books: it did not respond in time."
    assert finished.errors == f"Error: {error}\n"


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


def test_a_running_server_does_not_log_its_password(password_url: str, start: Start) -> None:
    server = start(password_url, "--migrate", "--log-level", "debug")
    run_bookstore("list", "--server", server.address)

    assert server.stop() == 0
    assert "call finished" in server.log_text()
    assert "hunter2" not in server.log_text()


def test_a_missing_folder_is_reported(tmp_path: Path) -> None:
    finished = failed_serve(f"sqlite+aiosqlite:///{tmp_path}/none/bookstore.db")

    assert f"Cannot use the database sqlite {tmp_path}/none/bookstore.db" in finished.errors
    assert not (tmp_path / "none").exists()


def test_a_folder_instead_of_a_file_is_reported(tmp_path: Path) -> None:
    assert "Cannot use the database sqlite" in failed_serve(f"sqlite+aiosqlite:///{tmp_path}").errors


def test_a_file_that_is_not_a_database_is_reported_and_not_changed(sqlite_url: str, sqlite_file: Path) -> None:
    sqlite_file.write_bytes(b"Dear diary, " * 1_000)

    assert "file is not a database" in failed_serve(sqlite_url).errors
    assert sqlite_file.read_bytes() == b"Dear diary, " * 1_000


@pytest.mark.parametrize("state", ["migrated", "empty"])
def test_a_read_only_file_is_reported(sqlite_url: str, sqlite_file: Path, state: str) -> None:
    """SQLite opens it read-only, since the superuser may write to any file."""
    if state == "migrated":
        run_bookstore("migrate", "--database-url", sqlite_url)
    else:
        sqlite_file.touch()

    finished = failed_serve(f"sqlite+aiosqlite:///file:{sqlite_file}?mode=ro&uri=true")

    assert "readonly database" in finished.errors


@pytest.mark.skipif(os.geteuid() == 0, reason="the superuser may write to any folder")
def test_a_read_only_folder_is_reported(tmp_path: Path) -> None:
    folder = tmp_path / "fixed"
    folder.mkdir(mode=0o500)

    assert "Cannot use the database sqlite" in failed_serve(f"sqlite+aiosqlite:///{folder}/bookstore.db").errors


def test_missing_migrations_are_reported_with_the_command_to_run(start: Start, database_server_url: str) -> None:
    finished = failed_serve(database_server_url)
    assert "`bookstore migrate`" in finished.errors
    assert "--migrate" in finished.errors

    assert run_bookstore("migrate", variables={"BOOKSTORE_DATABASE_URL": database_server_url}).status == 0
    server = start(database_server_url)
    assert run_bookstore("health", "--server", server.address).output == "SERVING\n"


def test_serve_migrates_with_the_flag(start: Start, database_server_url: str) -> None:
    server = start(database_server_url, "--migrate")

    assert run_bookstore("list", "--server", server.address).status == 0


def test_a_missing_database_is_reported(database_server_url: str) -> None:
    url = make_url(database_server_url).set(database="no_such_database").render_as_string(hide_password=False)

    assert "/no_such_database: " in failed_serve(url).errors


def test_an_existing_file_is_served(start: Start, sqlite_url: str, sqlite_file: Path, tmp_path: Path) -> None:
    first = start(sqlite_url)
    create = ("create", "--name", "N", "--author", "A", "--release-year", "1", "--server")
    created = run_bookstore(*create, first.address).output
    assert first.stop() == 0
    # After a clean stop the file alone is the whole catalogue.
    copy = shutil.copy(sqlite_file, tmp_path / "copy.db")

    second = start(f"sqlite+aiosqlite:///{copy}")

    assert run_bookstore("get", 1, "--server", second.address).output == created
    with closing(sqlite3.connect(copy)) as connection:
        assert connection.execute("PRAGMA integrity_check").fetchone() == ("ok",)
