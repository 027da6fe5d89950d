"""What a database has to be: recent enough, and able to hold every text."""

import os
import sqlite3
import uuid
from collections.abc import AsyncIterator
from contextlib import closing
from pathlib import Path

import pytest
from sqlalchemy import text
from sqlalchemy.engine import URL, make_url
from sqlalchemy.ext.asyncio import create_async_engine

from bookstore_grpc.dal.books import BookDAL
from bookstore_grpc.dal.database import Database
from bookstore_grpc.dal.records import BookDraft
from bookstore_grpc.dal.server_checks import require_version
from bookstore_grpc.errors import DatabaseUnavailable
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
async def test_a_postgresql_that_cannot_hold_every_text_is_refused(encoding: str) -> None:
    options = f"ENCODING '{encoding}' TEMPLATE template0 LC_COLLATE 'C' LC_CTYPE 'C'"
    async for database in _database("postgresql", options):
        for call in (database.migrate, database.is_behind):
            with pytest.raises(DatabaseUnavailable, match=f"its encoding is {encoding}, which cannot hold every book"):
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
    ("dialect", "version", "told"),
    [
        ("sqlite", (3, 34, 1), "SQLite 3.34.1; this service needs 3.35 or later"),
        ("postgresql", (11, 22), "PostgreSQL 11.22; this service needs 12 or later"),
        ("mariadb", (10, 4, 34), "MariaDB 10.4.34; this service needs 10.5 or later"),
    ],
)
def test_a_database_that_is_too_old_is_refused(dialect: str, version: tuple[int, ...], told: str) -> None:
    with pytest.raises(DatabaseUnavailable, match=told):
        require_version(dialect, version)


@pytest.mark.parametrize(
    ("dialect", "version"), [("sqlite", (3, 35)), ("postgresql", (12, 0)), ("mariadb", (10, 5, 0)), ("mariadb", (11,))]
)
def test_the_least_versions_will_do(dialect: str, version: tuple[int, ...]) -> None:
    require_version(dialect, version)
