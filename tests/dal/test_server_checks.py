"""What a database has to be: recent enough, and able to hold every text."""

import asyncio
import os
import sqlite3
import uuid
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager, closing
from pathlib import Path

import pytest
from sqlalchemy import text
from sqlalchemy.engine import URL, make_url
from sqlalchemy.ext.asyncio import create_async_engine

from bookstore_grpc.dal.books import BookDAL
from bookstore_grpc.dal.database import Database
from bookstore_grpc.dal.driver_errors import startup_errors
from bookstore_grpc.dal.records import BookDraft
from bookstore_grpc.dal.server_checks import require_version
from bookstore_grpc.errors import DatabaseUnavailable, StartupError
from tests.conftest import SERVER_VARIABLES, require

_DRAFT = BookDraft("\u4e09\u4f53 \U0001f4d6", "\u5218\u6148\u6b23", 2008)


async def _execute(url: URL, statement: str) -> None:
    engine = create_async_engine(url, isolation_level="AUTOCOMMIT")
    async with engine.connect() as connection:
        await connection.execute(text(statement))
    await engine.dispose()


async def _database(kind: str, options: str) -> AsyncIterator[Database]:
    variable = SERVER_VARIABLES[kind]
    require(os.environ.get(variable), f"{variable} is not set")
    server = make_url(os.environ[variable])
    name = f"t_startup_{uuid.uuid4().hex[:12]}"
    await _execute(server, f"CREATE DATABASE {name} {options}")
    url = server.set(database=name).render_as_string(hide_password=False)
    database = Database(url, pool_size=1, timeout_seconds=10)
    yield database
    await database.close()
    await _execute(server, f"DROP DATABASE {name}")


@pytest.mark.postgresql
@pytest.mark.parametrize("encoding", ["LATIN1", "SQL_ASCII", "EUC_JP"])
async def test_a_postgresql_that_cannot_store_every_text_is_rejected(encoding: str) -> None:
    options = f"ENCODING '{encoding}' TEMPLATE template0 LC_COLLATE 'C' LC_CTYPE 'C'"
    async for database in _database("postgresql", options):
        for call in (database.migrate, database.is_behind):
            with pytest.raises(DatabaseUnavailable, match=f"its encoding is {encoding}, which cannot store every book"):
                await call()


@pytest.mark.mariadb
async def test_a_mariadb_of_another_character_set_holds_every_text() -> None:
    async for database in _database("mariadb", "CHARACTER SET latin1"):
        await database.migrate()
        record = await BookDAL(database).create_book(_DRAFT)
        assert (record.name, record.author) == (_DRAFT.name, _DRAFT.author)
        assert await BookDAL(database).get_book(record.id) == record


async def test_a_sqlite_file_in_utf_16_holds_every_text(tmp_path: Path) -> None:
    with closing(sqlite3.connect(tmp_path / "books.db")) as connection:
        connection.execute("PRAGMA encoding = 'UTF-16'")
        connection.execute("VACUUM")
    database = Database(f"sqlite:///{tmp_path}/books.db", pool_size=1, timeout_seconds=10)
    await database.migrate()
    record = await BookDAL(database).create_book(_DRAFT)
    assert await BookDAL(database).get_book(record.id) == record
    await database.close()


@pytest.mark.parametrize(
    ("dialect", "version", "expected"),
    [
        ("sqlite", (3, 34, 1), "SQLite 3.34.1; this service needs 3.35 or later"),
        ("postgresql", (11, 22), "PostgreSQL 11.22; this service needs 12 or later"),
        ("mariadb", (10, 4, 34), "MariaDB 10.4.34; this service needs 10.5 or later"),
    ],
)
def test_a_database_that_is_too_old_is_rejected(dialect: str, version: tuple[int, ...], expected: str) -> None:
    with pytest.raises(DatabaseUnavailable, match=expected):
        require_version(dialect, version)


@pytest.mark.parametrize(
    ("dialect", "version"), [("sqlite", (3, 35)), ("postgresql", (12, 0)), ("mariadb", (10, 5, 0)), ("mariadb", (11,))]
)
def test_the_least_versions_will_do(dialect: str, version: tuple[int, ...]) -> None:
    require_version(dialect, version)


class _MySQL:
    """What a MySQL 8 sends to a client without a password: there is none to test with. It has no TLS."""

    _OK = b"\0\0\0\2\0\0\0"
    _END = b"\xfe\0\0\2\0"
    _CAPABILITIES = 0x000F_A209

    def __init__(self, version: str) -> None:
        self._version = version.encode()

    async def serve(self, reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        low, high = self._CAPABILITIES & 0xFFFF, self._CAPABILITIES >> 16
        middle = low.to_bytes(2, "little") + b"\xff\2\0" + high.to_bytes(2, "little") + bytes([21]) + bytes(10)
        _send(writer, 0, b"\x0a8.0.36\0\1\0\0\0" + b"12345678\0" + middle + b"123456789012\0caching_sha2_password\0")
        if len(await _packet(reader)) == 32:  # a request for TLS
            _send(writer, 2, b"\xff" + (1043).to_bytes(2, "little") + b"#08S01Bad handshake")
            writer.close()
            return
        _send(writer, 2, self._OK)
        while packet := await _packet(reader):
            if packet == b"\3SELECT VERSION()":
                column = b"\3def\0\0\0\1v\0\x0c\x21\0\xff\0\0\0\xfd\0\0\0\0\0"
                row = bytes([len(self._version)]) + self._version
                _send(writer, 1, b"\1", column, self._END, row, self._END)
            elif packet.startswith(b"\3SET AUTOCOMMIT"):
                _send(writer, 1, self._OK)
            else:
                _send(writer, 1, b"\xff" + (1193).to_bytes(2, "little") + b"#HY000Unknown system variable")
        writer.close()


def _send(writer: asyncio.StreamWriter, number: int, *packets: bytes) -> None:
    for offset, packet in enumerate(packets):
        writer.write(len(packet).to_bytes(3, "little") + bytes([number + offset]) + packet)


async def _packet(reader: asyncio.StreamReader) -> bytes:
    """Return the next packet, or nothing at the end."""
    try:
        header = await reader.readexactly(4)
        return await reader.readexactly(int.from_bytes(header[:3], "little"))
    except (asyncio.IncompleteReadError, ConnectionError):
        return b""


@asynccontextmanager
async def _mysql(version: str, options: str = "") -> AsyncIterator[Database]:
    async with await asyncio.start_server(_MySQL(version).serve, "127.0.0.1", 0) as server:
        port = server.sockets[0].getsockname()[1]
        database = Database(f"mysql://u@127.0.0.1:{port}/books?{options}", pool_size=1, timeout_seconds=10)
        yield database
        await database.close()


@pytest.mark.parametrize(
    ("version", "options", "expected"),
    [
        ("8.0.36", "", "it is MySQL 8.0.36, and MariaDB is needed: MySQL has no INSERT ... RETURNING; use MariaDB"),
        ("10.11.6-MariaDB", "", "Unknown system variable"),  # behind a proxy that has MySQL's greeting
        ("8.0.36", "ssl-mode=REQUIRED", "it does not offer TLS, which the URL requires by ssl-mode or ssl_ca"),
    ],
)
async def test_mysql_is_rejected_with_what_to_use_instead(version: str, options: str, expected: str) -> None:
    async with _mysql(version, options) as database:
        with pytest.raises(StartupError, match=expected), startup_errors(database.description):
            await database.migrate()
