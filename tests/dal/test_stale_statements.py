"""Prepared statements that the server no longer takes are prepared anew, and no call fails."""

import asyncio
from collections.abc import Awaitable, Callable
from typing import Any

import pytest
from sqlalchemy import text

from bookstore_grpc.dal.books import BookDAL
from bookstore_grpc.dal.database import Database
from bookstore_grpc.dal.records import BookChanges, BookDraft

pytestmark = pytest.mark.databases("postgresql")

_STATEMENTS = 20


async def on_each_connection(database: Database, work: Callable[[Any], Awaitable[Any]]) -> None:
    """Run `work` on every pooled connection of the driver."""
    for engine in (database._reader, database._writer, database._prober):
        pooled = [await engine.raw_connection() for _ in range(engine.pool.size())]  # type: ignore[attr-defined]
        for connection in pooled:
            await work(connection.driver_connection)
        for connection in pooled:
            connection.close()


async def change_a_column(database: Database) -> None:
    """As a migration does (0A000)."""
    async with database._writer.begin() as connection:
        await connection.execute(text("ALTER TABLE books ALTER COLUMN name TYPE text"))


async def forget_statements(database: Database) -> None:
    """As a pooler does that gives a client another session (26000)."""
    await on_each_connection(database, lambda connection: connection.execute("DEALLOCATE ALL"))


async def take_names(database: Database) -> None:
    """As another client of a pooler does (42P05)."""

    async def take(connection: Any) -> None:
        await connection.execute("DEALLOCATE ALL")
        connection._statements.clear()
        for number in range(_STATEMENTS):
            await connection.execute(f"PREPARE bookstore_{number} AS SELECT 1")

    await on_each_connection(database, take)


@pytest.mark.parametrize("make_stale", [change_a_column, forget_statements, take_names])
async def test_stale_statements_fail_no_call(
    own_database: Database, make_stale: Callable[[Database], Awaitable[None]]
) -> None:
    books = BookDAL(own_database)

    async def call_each() -> None:
        record, other = await books.create_books([BookDraft("Dune", "Frank Herbert", 1965)] * 2)
        assert await books.get_book(record.id) == record
        changed = await books.update_book(record.id, BookChanges(author="Somebody"))
        await books.delete_book(other.id)
        page = await books.list_books(page_size=1_000, page_token="", filter="", order_by="")
        assert changed in page.books

    await asyncio.gather(*(call_each() for _ in range(8)))
    await make_stale(own_database)
    await asyncio.gather(*(call_each() for _ in range(8)))
    await own_database.ping()
