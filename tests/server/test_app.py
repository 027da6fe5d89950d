"""Starting: what is rejected before any call is served, and the work in the background."""

import asyncio
import socket
import sqlite3
import uuid
from collections.abc import AsyncIterator, Callable
from contextlib import closing
from pathlib import Path

import grpc
import pytest
from bookstore.v1 import books_pb2, books_pb2_grpc
from sqlalchemy import text
from sqlalchemy.engine import make_url
from sqlalchemy.ext.asyncio import AsyncConnection

from bookstore_grpc.dal import migrations
from bookstore_grpc.dal.books import BookDAL
from bookstore_grpc.dal.database import Database
from bookstore_grpc.dal.records import BookDraft
from bookstore_grpc.errors import StartupError
from bookstore_grpc.limits import CREATE_REQUEST_RETENTION_HOURS
from bookstore_grpc.server import app, commands
from bookstore_grpc.server.app import running_server
from bookstore_grpc.server.settings import Settings, settings_fields
from bookstore_grpc.service.messages import entry_from_record
from tests.conftest import LogLines, new_database, settings_for
from tests.metrics import call_all_at_once


@pytest.fixture
async def empty_url(database_url: str, tmp_path: Path) -> AsyncIterator[str]:
    """The URL of a database without tables."""
    async for url in new_database(make_url(database_url).get_backend_name(), tmp_path):
        yield url


@pytest.fixture
def file_url(tmp_path: Path) -> str:
    return f"sqlite:///{tmp_path}/books.db"


async def _serves(settings: Settings) -> None:
    async with running_server(settings) as server, grpc.aio.insecure_channel(server.addresses[0]) as channel:
        stub: books_pb2_grpc.BookServiceAsyncStub = books_pb2_grpc.BookServiceStub(channel)
        book = books_pb2.Book(name="Dune", author="Frank Herbert", release_year=1965)
        created = await stub.CreateBook(books_pb2.CreateBookRequest(book=book))
        assert await stub.GetBook(books_pb2.GetBookRequest(id=created.id)) == created


async def _rejected(settings: Settings) -> str:
    with pytest.raises(StartupError) as caught:
        async with running_server(settings):
            pass
    return caught.value.message


async def _run(url: str, statement: str) -> None:
    database = Database(url, pool_size=1, timeout_seconds=10)

    async def work(connection: AsyncConnection) -> None:
        await connection.execute(text(statement))

    await database.write(work)
    await database.close()


async def test_database_behind_is_rejected_with_the_command_to_run(empty_url: str) -> None:
    settings = settings_for(empty_url)
    if empty_url.startswith("sqlite"):
        await _serves(settings)  # the embedded one is migrated as needed
        return
    message = await _rejected(settings)
    assert "Run `bookstore migrate`, or serve with --migrate." in message
    assert "behind this version" in message
    assert await commands.migrate(settings) == migrations.newest_revision()
    await _serves(settings)


async def test_serve_with_migrate_brings_the_tables(empty_url: str) -> None:
    for _ in range(2):
        await _serves(settings_for(empty_url, migrate=True))
    await _serves(settings_for(empty_url))


async def test_database_of_a_newer_version_is_served(empty_url: str) -> None:
    assert await commands.migrate(settings_for(empty_url)) == migrations.newest_revision()
    await _run(empty_url, "UPDATE alembic_version SET version_num = 'from_the_future'")
    await _serves(settings_for(empty_url))
    await _serves(settings_for(empty_url, migrate=True))


def test_migration_sql_needs_no_database() -> None:
    assert "CREATE TABLE books" in commands.migration_sql(settings_for("postgresql://u:p@nowhere.invalid/x"))


@pytest.mark.parametrize("address", ["0.0.0.0:0", "[::]:0", "example.org:50051", "192.0.2.1:50051", ":::0"])
async def test_address_that_others_can_reach_is_rejected_unless_insecure(file_url: str, address: str) -> None:
    message = await _rejected(settings_for(file_url, listen=("127.0.0.1:0", address)))
    assert message.startswith(f"{address} can be reached from other machines")
    assert "--insecure" in message


async def test_address_that_others_can_reach_is_warned_of_when_insecure(file_url: str, log_lines: LogLines) -> None:
    async with running_server(settings_for(file_url, listen=("0.0.0.0:0",), insecure=True)) as server:
        port = server.addresses[0].rpartition(":")[2]
        async with grpc.aio.insecure_channel(f"127.0.0.1:{port}") as channel:
            await channel.channel_ready()
    (line,) = [line for line in log_lines() if line["event"] == "serving in plaintext to other machines"]
    assert (line["level"], line["address"]) == ("warning", "0.0.0.0:0")


@pytest.mark.parametrize("address", ["127.0.0.1:0", "localhost:0", "[::1]:0", "127.9.9.9:0"])
async def test_local_address_is_served_without_a_warning(file_url: str, address: str, log_lines: LogLines) -> None:
    if address.startswith("[") and not socket.has_ipv6:
        pytest.skip("this machine has no IPv6")
    await _serves(settings_for(file_url, listen=(address,)))
    assert not [line for line in log_lines() if line["level"] == "warning"]


@pytest.mark.parametrize(
    "address",
    [
        "",
        "50051",
        ":50051",
        "localhost",
        "localhost:",
        "localhost:http",
        "localhost:65536",
        "127.0.0.1:-1",
        "unix:",
        "127.0.0.1:٣",
    ],
)
async def test_an_invalid_address_is_rejected(file_url: str, tmp_path: Path, address: str) -> None:
    message = await _rejected(settings_for(file_url, listen=("127.0.0.1:0", address)))
    assert message == f"The address {address!r} is neither HOST:PORT nor unix:PATH."
    assert not (tmp_path / "books.db").exists()


async def test_port_in_use_is_rejected(file_url: str) -> None:
    async with running_server(settings_for(file_url)) as server:
        message = await _rejected(settings_for(file_url, listen=(server.addresses[0],)))
    assert message.startswith(f"Cannot listen on {server.addresses[0]}")


async def test_the_largest_numbers_are_served_with(file_url: str) -> None:
    largest = {
        setting.name: setting.metadata["most"]
        for setting in settings_fields()
        if setting.type is int and setting.name != "pool_size"
    }
    async with (
        running_server(settings_for(file_url, rate_limit_per_second=1.0, **largest)) as server,
        grpc.aio.insecure_channel(server.addresses[0]) as channel,
    ):
        stub: books_pb2_grpc.BookServiceAsyncStub = books_pb2_grpc.BookServiceStub(channel)
        await stub.ListBooks(books_pb2.ListBooksRequest())


async def test_unix_socket_in_use_is_rejected_and_not_removed(file_url: str, tmp_path: Path) -> None:
    address = f"unix:{tmp_path}/socket"
    async with running_server(settings_for(file_url, listen=(address,))) as server:
        assert server.addresses == [address]
        message = await _rejected(settings_for(file_url, listen=(address,)))
        assert message.startswith(f"Cannot listen on {address}: another server is listening.")
        async with grpc.aio.insecure_channel(address) as channel:
            stub: books_pb2_grpc.BookServiceAsyncStub = books_pb2_grpc.BookServiceStub(channel)
            await stub.ListBooks(books_pb2.ListBooksRequest())


async def test_unix_socket_that_a_dead_server_left_is_replaced(file_url: str, tmp_path: Path) -> None:
    path = tmp_path / "socket"
    with socket.socket(socket.AF_UNIX) as dead:
        dead.bind(str(path))
    assert path.exists()
    await _serves(settings_for(file_url, listen=(f"unix:{path}",)))


@pytest.mark.parametrize(
    ("url", "said"),
    [
        ("oracle://u:s3cret@h/x", "starts with 'oracle'"),
        ("sqlite:////nonexistent/folder/books.db", "unable to open database file"),
        ("postgresql://u:s3cret@nowhere.invalid/x", "Cannot use the database postgresql nowhere.invalid/x"),
        ("mariadb://u:s3cret@nowhere.invalid/x", "Cannot use the database mariadb nowhere.invalid/x"),
        ("postgresql://u:s3cret@127.0.0.1:99999/x", ""),
        ("mariadb://u:s3cret@127.0.0.1:99999/x", ""),
    ],
)
async def test_unusable_database_is_an_error_without_its_password(url: str, said: str) -> None:
    pytest.importorskip("asyncpg")
    pytest.importorskip("asyncmy")
    for migrate in (False, True):
        message = await _rejected(settings_for(url, migrate=migrate, database_timeout_seconds=2.0))
        assert said in message
        assert "s3cret" not in message


@pytest.mark.databases("postgresql", "mariadb")  # SQLite's driver takes any option
async def test_option_of_the_url_that_the_driver_does_not_know_is_an_error(database_url: str) -> None:
    url = f"{database_url}{'&' if '?' in database_url else '?'}no_such_option=1"
    assert "no_such_option" in await _rejected(settings_for(url))


async def test_file_that_is_not_a_database_is_an_error(tmp_path: Path) -> None:
    path = tmp_path / "books.csv"
    path.write_text("name,author,release_year\n" * 100)
    assert "file is not a database" in await _rejected(settings_for(f"sqlite:///{path}"))


async def test_file_that_cannot_be_written_is_an_error(tmp_path: Path) -> None:
    with closing(sqlite3.connect(tmp_path / "books.db")) as connection:
        connection.execute("PRAGMA user_version = 1")
    read_only = f"sqlite:///file:{tmp_path}/books.db?mode=ro&uri=true"
    assert "readonly database" in await _rejected(settings_for(read_only))


async def _until(condition: Callable[[], bool]) -> None:
    async with asyncio.timeout(30):
        while not condition():  # noqa: ASYNC110  no event is set when it changes
            await asyncio.sleep(0.01)


async def test_books_without_an_entry_are_completed_while_serving(
    file_url: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(app, "_ENTRIES_CHECK_SECONDS", 0.05)
    await commands.migrate(settings_for(file_url))
    database = Database(file_url, pool_size=1, timeout_seconds=10)
    stored = await BookDAL(database).create_books([BookDraft(str(number), "x", 1) for number in range(300)])
    await database.close()

    def entries() -> dict[int, bytes]:
        with closing(sqlite3.connect(tmp_path / "books.db")) as connection:
            return dict(connection.execute("SELECT id, entry FROM books WHERE entry IS NOT NULL"))

    assert not entries()
    async with running_server(settings_for(file_url)):
        await _until(lambda: len(entries()) == len(stored))
    assert entries() == {record.id: entry_from_record(record) for record in stored}


async def test_old_request_ids_are_forgotten_while_serving(file_url: str, tmp_path: Path) -> None:
    await commands.migrate(settings_for(file_url))
    database = Database(file_url, pool_size=1, timeout_seconds=10)
    now = 1_767_225_600_000_000
    old = now - CREATE_REQUEST_RETENTION_HOURS * 3_600_000_000 - 1
    kept = BookDraft("kept", "x", 1, uuid.uuid4())
    await BookDAL(database, clock=lambda: old).create_book(kept._replace(name="old", request_id=uuid.uuid4()))
    await BookDAL(database, clock=lambda: now).create_book(kept)
    await database.close()

    def count() -> int:
        with closing(sqlite3.connect(tmp_path / "books.db")) as connection:
            (rows,) = connection.execute("SELECT count(*) FROM create_requests").fetchone()
        return int(rows)

    assert count() == 2
    async with running_server(settings_for(file_url), clock=lambda: now):
        await _until(lambda: count() < 2)
    assert count() == 1


async def test_housekeeping_that_cannot_write_is_logged_and_serving_goes_on(
    file_url: str, tmp_path: Path, log_lines: LogLines
) -> None:
    await commands.migrate(settings_for(file_url))
    with closing(sqlite3.connect(tmp_path / "books.db", isolation_level=None)) as other:
        settings = settings_for(file_url, database_timeout_seconds=0.1)
        async with running_server(settings, housekeeping_interval_seconds=0.1) as server:
            other.execute("BEGIN IMMEDIATE")
            await _until(lambda: any(line.get("task") == "old request ids" for line in log_lines()))
            other.execute("ROLLBACK")
            async with grpc.aio.insecure_channel(server.addresses[0]) as channel:
                stub: books_pb2_grpc.BookServiceAsyncStub = books_pb2_grpc.BookServiceStub(channel)
                await stub.ListBooks(books_pb2.ListBooksRequest())


async def test_calls_that_grpc_turns_away_are_known(file_url: str) -> None:
    settings = settings_for(file_url, metrics_listen="127.0.0.1:0", max_waiting_calls=1)
    async with running_server(settings) as server:
        statuses = await call_all_at_once(server.addresses[0], 4, 90)
        assert sum(statuses.values()) == 360
        assert server.backlog() == statuses["CANCELLED"] > 10


async def test_a_failed_sample_is_logged_and_the_next_is_taken(
    file_url: str, log_lines: LogLines, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(app, "_SAMPLE_SECONDS", 0.01)
    async with running_server(settings_for(file_url, metrics_listen="127.0.0.1:0")) as server:
        monkeypatch.setattr(server, "backlog", lambda: 1 // 0)
        await _until(lambda: sum(line["event"] == "background task failed" for line in log_lines()) > 1)
    assert (
        "ZeroDivisionError"
        in next(line for line in log_lines() if line["event"] == "background task failed")["exception"]
    )


async def test_port_is_free_again_after_a_start_that_failed(file_url: str) -> None:
    with socket.socket() as taken:
        taken.bind(("127.0.0.1", 0))
        taken.listen()
        port = taken.getsockname()[1]
        await _rejected(settings_for(file_url, listen=("127.0.0.1:0", f"127.0.0.1:{port}")))
    await _serves(settings_for(file_url, listen=(f"127.0.0.1:{port}",)))
