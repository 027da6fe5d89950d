"""A database that is unavailable, busy or broken: the errors that callers get, and the recovery."""

import asyncio
import os
import socket
import uuid
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager
from pathlib import Path
from typing import Any

import pytest
import uvloop
from sqlalchemy import exc, literal, select, text
from sqlalchemy.engine import make_url
from sqlalchemy.ext.asyncio import AsyncConnection

from bookstore_grpc.dal.books import BookDAL
from bookstore_grpc.dal.database import Database
from bookstore_grpc.dal.driver_errors import Conflict, ReadOnly, driver_error, startup_errors, translated_errors
from bookstore_grpc.dal.records import BookDraft
from bookstore_grpc.errors import BookstoreError, DatabaseUnavailable, StartupError
from tests.conftest import SERVER_VARIABLES, SERVERS, require
from tests.dal.conftest import execute

_DRAFT = BookDraft("Dune", "Frank Herbert", 1965)


class _SQLiteError(Exception):
    def __init__(self, code: int) -> None:
        super().__init__("secret")
        self.sqlite_errorcode = code


class _PostgreSQLError(Exception):
    def __init__(self, code: str) -> None:
        super().__init__("secret")
        self.sqlstate = code


def _driver_error(dialect: str, code: Any) -> exc.DBAPIError:
    causes = {"sqlite": _SQLiteError, "postgresql": _PostgreSQLError, "mariadb": Exception}
    return exc.DBAPIError("SELECT 1", {}, causes[dialect](code))


@pytest.mark.parametrize(
    ("dialect", "code", "expected"),
    [
        ("sqlite", 1555, Conflict),
        ("sqlite", 2067, Conflict),
        ("sqlite", 5, DatabaseUnavailable),
        ("sqlite", 261, DatabaseUnavailable),  # SQLITE_BUSY_RECOVERY
        ("sqlite", 7, DatabaseUnavailable),
        ("sqlite", 8, DatabaseUnavailable),
        ("sqlite", 1032, DatabaseUnavailable),  # SQLITE_READONLY_DBMOVED
        ("sqlite", 10, DatabaseUnavailable),
        ("sqlite", 13, DatabaseUnavailable),
        ("sqlite", 14, DatabaseUnavailable),
        ("sqlite", 26, DatabaseUnavailable),
        ("sqlite", 1, exc.DBAPIError),
        ("sqlite", 1299, exc.DBAPIError),  # SQLITE_CONSTRAINT_NOTNULL
        ("postgresql", "23505", Conflict),
        ("postgresql", "40001", Conflict),
        ("postgresql", "40P01", Conflict),
        ("postgresql", "08006", DatabaseUnavailable),
        ("postgresql", "28P01", DatabaseUnavailable),
        ("postgresql", "3D000", DatabaseUnavailable),
        ("postgresql", "53300", DatabaseUnavailable),
        ("postgresql", "57P01", DatabaseUnavailable),
        ("postgresql", "58030", DatabaseUnavailable),
        ("postgresql", "25006", ReadOnly),
        ("postgresql", "42501", DatabaseUnavailable),
        ("postgresql", "55000", DatabaseUnavailable),
        ("postgresql", "55P03", DatabaseUnavailable),
        ("postgresql", "25P03", DatabaseUnavailable),
        ("postgresql", "3F000", DatabaseUnavailable),
        ("postgresql", "42P01", DatabaseUnavailable),
        ("postgresql", "P0001", DatabaseUnavailable),
        ("postgresql", "XX001", DatabaseUnavailable),
        ("postgresql", "42601", exc.DBAPIError),
        ("postgresql", "42703", exc.DBAPIError),
        ("postgresql", "23502", exc.DBAPIError),
        ("postgresql", "", exc.DBAPIError),
        ("mariadb", 1062, Conflict),
        ("mariadb", 1213, Conflict),
        ("mariadb", 1020, Conflict),
        ("mariadb", 1412, Conflict),
        ("mariadb", 1028, DatabaseUnavailable),
        ("mariadb", 1030, DatabaseUnavailable),
        ("mariadb", 1034, DatabaseUnavailable),
        ("mariadb", 1036, DatabaseUnavailable),
        ("mariadb", 1038, DatabaseUnavailable),
        ("mariadb", 1047, DatabaseUnavailable),
        ("mariadb", 1146, DatabaseUnavailable),
        ("mariadb", 1317, DatabaseUnavailable),
        ("mariadb", 1644, DatabaseUnavailable),
        ("mariadb", 2026, DatabaseUnavailable),
        ("mariadb", 9001, DatabaseUnavailable),
        ("mariadb", 1054, exc.DBAPIError),
        ("mariadb", 1040, DatabaseUnavailable),
        ("mariadb", 1045, DatabaseUnavailable),
        ("mariadb", 1049, DatabaseUnavailable),
        ("mariadb", 1142, DatabaseUnavailable),
        ("mariadb", 1143, DatabaseUnavailable),
        ("mariadb", 1205, DatabaseUnavailable),
        ("mariadb", 1226, DatabaseUnavailable),
        ("mariadb", 1227, DatabaseUnavailable),
        ("mariadb", 1370, DatabaseUnavailable),
        ("mariadb", 1820, DatabaseUnavailable),
        ("mariadb", 1862, DatabaseUnavailable),
        ("mariadb", 1290, ReadOnly),
        ("mariadb", 1792, ReadOnly),
        ("mariadb", 1836, ReadOnly),
        ("mariadb", 2003, DatabaseUnavailable),
        ("mariadb", 2013, DatabaseUnavailable),
        ("mariadb", 4151, DatabaseUnavailable),
        ("mariadb", 1064, exc.DBAPIError),
        ("mariadb", 1048, exc.DBAPIError),
    ],
)
def test_error_codes_become_domain_errors(dialect: str, code: Any, expected: type[Exception]) -> None:
    with pytest.raises(expected) as caught, translated_errors(dialect):
        raise _driver_error(dialect, code)
    assert isinstance(caught.value, BookstoreError) == (expected is not exc.DBAPIError)
    if isinstance(caught.value, BookstoreError):
        assert "secret" not in caught.value.message


@pytest.mark.parametrize("dialect", ["sqlite", "postgresql", "mariadb"])
def test_lost_connection_is_unavailable_whatever_its_code(dialect: str) -> None:
    error = _driver_error(dialect, "00000" if dialect == "postgresql" else 0)
    error.connection_invalidated = True
    with pytest.raises(DatabaseUnavailable), translated_errors(dialect):
        raise error


async def test_defect_of_ours_is_not_called_unavailable(database: Database) -> None:
    async def work(connection: AsyncConnection) -> None:
        await connection.execute(text("SELECT nothing FROM books"))

    with pytest.raises(exc.DBAPIError):
        await database.write(work)
    await database.ping()


async def test_exception_of_the_work_rolls_back_and_passes(database: Database) -> None:
    async def work(connection: AsyncConnection) -> None:
        await connection.execute(text("DELETE FROM books"))
        raise LookupError("passes")

    record = await BookDAL(database).create_book(_DRAFT)
    with pytest.raises(LookupError, match="passes"):
        await database.write(work)
    assert await BookDAL(database).get_book(record.id) == record


async def test_conflict_runs_again_from_the_start_and_gives_up_in_the_end(database: Database) -> None:
    attempts = 0

    async def meet(_connection: AsyncConnection, *, times: int) -> str:
        nonlocal attempts
        attempts += 1
        if attempts <= times:
            raise Conflict("met another")
        return "done"

    assert await database.write(lambda connection: meet(connection, times=2)) == "done"
    assert attempts == 3
    with pytest.raises(DatabaseUnavailable):
        await database.write(lambda connection: meet(connection, times=1_000))
    assert 3 < attempts < 50


async def test_every_connection_busy_is_unavailable_and_freed_is_fine(
    migrated_database: Database, database_url: str
) -> None:
    narrow = Database(database_url, pool_size=1, timeout_seconds=0.2)
    try:
        async with narrow._reader.connect():
            if not narrow.is_embedded:  # SQLite reads inline what is short
                with pytest.raises(DatabaseUnavailable, match="busy"):
                    await narrow.read(select(literal(1)))
            await narrow.ping()
        assert [tuple(row) for row in await narrow.read(select(literal(1)))] == [(1,)]
        async with narrow._writer.connect():
            with pytest.raises(DatabaseUnavailable, match="busy"):
                await BookDAL(narrow).create_book(_DRAFT)
            assert [tuple(row) for row in await narrow.read(select(literal(1)))] == [(1,)]
        await BookDAL(narrow).create_book(_DRAFT)
    finally:
        await narrow.close()


# What follows is about servers: SQLite has neither host nor user.


@pytest.fixture(params=SERVERS)
def server_url(request: pytest.FixtureRequest) -> str:
    variable = SERVER_VARIABLES[request.param]
    require(os.environ.get(variable), f"{variable} is not set")
    return os.environ[variable]


@asynccontextmanager
async def _opened(url: Any) -> AsyncIterator[Database]:
    database = Database(url.render_as_string(hide_password=False), pool_size=2, timeout_seconds=2)
    try:
        yield database
    finally:
        await database.close()


async def _is_unavailable(database: Database) -> None:
    calls: list[Any] = [
        database.ping,
        database.migrate,
        database.is_behind,
        lambda: database.read(select(literal(1))),
        lambda: BookDAL(database).create_book(_DRAFT),
    ]
    for call in calls:
        with pytest.raises(DatabaseUnavailable) as caught:
            await call()
        assert "s3cret" not in caught.value.message


async def test_port_without_a_listener_is_unavailable(server_url: str) -> None:
    with socket.socket() as taken:
        taken.bind(("127.0.0.1", 0))
        async with _opened(make_url(server_url).set(host="127.0.0.1", port=taken.getsockname()[1])) as database:
            await _is_unavailable(database)


async def test_server_that_accepts_and_says_nothing_is_unavailable_after_the_timeout(server_url: str) -> None:
    with socket.socket() as mute:
        mute.bind(("127.0.0.1", 0))
        mute.listen()
        url = make_url(server_url).set(host="127.0.0.1", port=mute.getsockname()[1])
        database = Database(url.render_as_string(hide_password=False), pool_size=1, timeout_seconds=0.3)
        calls: list[Any] = [
            database.ping,
            database.migrate,
            database.is_behind,
            lambda: database.read(select(literal(1))),
            lambda: BookDAL(database).create_book(_DRAFT),
        ]
        async with asyncio.timeout(10):
            for call in calls:
                with pytest.raises(DatabaseUnavailable) as caught:
                    await call()
                assert str(driver_error(caught.value)) == "it did not respond in time"
        await database.close()


async def test_server_that_hangs_up_at_once_is_unavailable(server_url: str) -> None:
    def hang_up(_reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        writer.transport.abort()

    async def on_the_loop_of_production() -> None:
        async with (
            await asyncio.start_server(hang_up, "127.0.0.1", 0) as rude,
            _opened(make_url(server_url).set(host="127.0.0.1", port=rude.sockets[0].getsockname()[1])) as database,
        ):
            await _is_unavailable(database)

    # Drivers meet what the loop makes of it, and uvloop makes another thing of it.
    await asyncio.to_thread(uvloop.run, on_the_loop_of_production())


async def test_host_without_an_address_is_unavailable(server_url: str) -> None:
    async with _opened(make_url(server_url).set(host="nowhere.invalid")) as database:
        await _is_unavailable(database)


async def test_user_without_access_is_unavailable(server_url: str) -> None:
    async with _opened(make_url(server_url).set(username="nobody_we_know", password="s3cret")) as database:
        await _is_unavailable(database)


async def test_database_that_does_not_exist_is_unavailable(server_url: str) -> None:
    async with _opened(make_url(server_url).set(database=f"missing_{uuid.uuid4().hex}")) as database:
        await _is_unavailable(database)


_KILL = {
    "postgresql": (
        "SELECT pg_terminate_backend(pid) FROM pg_stat_activity "
        "WHERE datname = current_database() AND pid <> pg_backend_pid()"
    ),
    "mariadb": (
        "SELECT concat('KILL ', id) FROM information_schema.processlist WHERE db = database() AND id <> connection_id()"
    ),
}


async def _kill_connections(database: Database, url: str) -> int:
    """End every other connection to a database, on the server."""
    killer = Database(url, pool_size=1, timeout_seconds=10)
    async with killer._prober.connect() as connection:
        rows = (await connection.execute(text(_KILL[database.dialect]))).all()
        if database.dialect == "mariadb":
            for (statement,) in rows:
                await connection.execute(text(statement))
    await killer.close()
    return len(rows)


@pytest.mark.databases("postgresql", "mariadb")  # SQLite has no connections to a server
@pytest.mark.parametrize("call", ["ping", "read", "write"])
async def test_connection_killed_on_the_server_is_replaced(own_database: Database, fresh_url: str, call: str) -> None:
    books = BookDAL(own_database)
    record = await books.create_book(_DRAFT)

    async def go() -> None:
        match call:
            case "ping":
                await own_database.ping()
            case "read":
                assert await books.get_book(record.id) == record
            case _:
                await books.create_book(_DRAFT)

    await asyncio.gather(go(), go(), go())
    assert await _kill_connections(own_database, fresh_url) >= 1
    await asyncio.gather(go(), go(), go())


_REFUSE_WRITES = {
    "postgresql": [
        "CREATE FUNCTION refuse() RETURNS trigger LANGUAGE plpgsql AS $$ BEGIN RAISE EXCEPTION 'no writes'; END $$",
        "CREATE TRIGGER refuse BEFORE INSERT ON books FOR EACH ROW EXECUTE FUNCTION refuse()",
    ],
    "mariadb": [
        "CREATE TRIGGER refuse BEFORE INSERT ON books FOR EACH ROW SIGNAL SQLSTATE '45000' SET MESSAGE_TEXT = 'no'"
    ],
}


@pytest.mark.databases("postgresql", "mariadb")  # SQLite has no code for it
async def test_tables_that_are_away_for_a_while_are_unavailable_and_then_there_again(own_database: Database) -> None:
    books = BookDAL(own_database)
    record = await books.create_book(_DRAFT)
    await execute(own_database, "ALTER TABLE books RENAME TO books_of_before")
    with pytest.raises(DatabaseUnavailable):
        await books.get_book(record.id)
    with pytest.raises(DatabaseUnavailable):
        await books.create_book(_DRAFT)
    await execute(own_database, "ALTER TABLE books_of_before RENAME TO books")
    assert await books.get_book(record.id) == record


@pytest.mark.databases("postgresql", "mariadb")  # SQLite has no accounts
async def test_writes_that_a_trigger_of_the_operator_rejects_are_unavailable(own_database: Database) -> None:
    await execute(own_database, *_REFUSE_WRITES[own_database.dialect])
    with pytest.raises(DatabaseUnavailable):
        await BookDAL(own_database).create_book(_DRAFT)


@pytest.mark.databases("postgresql", "mariadb")  # SQLite has no connections to a server
async def test_connection_killed_within_a_write_leaves_nothing(own_database: Database, fresh_url: str) -> None:
    books = BookDAL(own_database)
    record = await books.create_book(_DRAFT)

    async def work(connection: AsyncConnection) -> None:
        await connection.execute(text("DELETE FROM books"))
        await _kill_connections(own_database, fresh_url)
        await connection.execute(text("DELETE FROM create_requests"))

    with pytest.raises(DatabaseUnavailable):
        await own_database.write(work)
    try:
        found = await books.get_book(record.id)
    except DatabaseUnavailable:
        found = await books.get_book(record.id)
    assert found == record


@pytest.mark.parametrize("defect", [ValueError("of ours"), TypeError("of ours"), KeyError("of ours")])
def test_a_defect_at_the_start_is_not_reported_as_an_option_of_the_url(defect: Exception) -> None:
    with pytest.raises(type(defect)) as caught, startup_errors("sqlite bookstore.db"):
        raise defect
    assert caught.value is defect


async def test_a_value_that_the_driver_does_not_accept_is_reported_as_such(tmp_path: Path) -> None:
    (tmp_path / "my.cnf").write_text("[client]\nport=blue\n")
    url = f"mariadb://u@127.0.0.1/books?read_default_file={tmp_path}/my.cnf"
    database = Database(url, pool_size=1, timeout_seconds=5)
    with pytest.raises(StartupError, match=r"an option that its driver rejects: .*'blue'"):
        await database.migrate()
    await database.close()
