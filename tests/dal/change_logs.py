"""The log of changes as the tests read it, and pages of watches that are awaited for a limited time."""

import asyncio
from collections.abc import AsyncGenerator, AsyncIterator, Callable, Sequence
from contextlib import aclosing, asynccontextmanager
from typing import Any

from sqlalchemy.ext.asyncio import AsyncConnection

from bookstore_grpc.dal.books import BookDAL
from bookstore_grpc.dal.change_log import ChangeReader, Position, log_changes
from bookstore_grpc.dal.database import Database
from bookstore_grpc.dal.records import BookDraft, BookRecord, Change, ChangePage, ChangeType
from bookstore_grpc.dal.watch import WatchStart
from tests.dal.conftest import execute

WAIT_SECONDS = 30
DRAFT = BookDraft("Dune", "Frank Herbert", 1965)

Pages = AsyncGenerator[ChangePage]


async def empty_log(database: Database) -> None:
    """Delete all changes; the next one has the number 1."""
    await execute(database, "DELETE FROM book_changes")


async def all_changes(database: Database) -> list[Change]:
    """Return the changes in the log from its start, which has not been trimmed."""
    reader, changes, position = ChangeReader(database), list[Change](), Position(0, 0)
    while some := await reader.read_after(position):
        changes += some
        position = Position.of(some[-1])
    return changes


def kinds(changes: Sequence[Change]) -> list[tuple[int, str]]:
    """Return the number and the type of each change."""
    return [(change.number, change.type.name) for change in changes]


def record(book_id: int = 1, *, name: str = "Dune", author: str = "Frank Herbert", time: int = 1) -> BookRecord:
    return BookRecord(book_id, name, author, 1965, time, time)


async def log_calls(database: Database, *calls: Sequence[Change]) -> None:
    """Write changes to the log in one transaction, without their books."""

    async def work(connection: AsyncConnection) -> None:
        await log_changes(connection, calls)

    await database.write(work)


async def log_creates(database: Database, times: Sequence[int]) -> None:
    """Write a call for each time of a change to the log."""
    await log_calls(database, *([Change(ChangeType.CREATED, record(), time=time)] for time in times))


@asynccontextmanager
async def watching(
    books: BookDAL,
    *,
    filter: str = "",
    resume_token: str = "",
    start: WatchStart = WatchStart.NOW,
    checkpoint_seconds: float = 60,
) -> AsyncIterator[Pages]:
    """Watch within a block."""
    pages = books.watch_books(
        filter=filter, resume_token=resume_token, start=start, checkpoint_seconds=checkpoint_seconds
    )
    async with aclosing(pages):
        yield pages


async def next_page(pages: Pages) -> ChangePage:
    async with asyncio.timeout(WAIT_SECONDS):
        return await anext(pages)


async def next_changes(pages: Pages, count: int) -> list[Change]:
    """Return the changes of the next pages, of which there must be `count`."""
    changes: list[Change] = []
    while len(changes) < count:
        changes += (await next_page(pages)).changes
    assert len(changes) == count
    return changes


async def until_true(condition: Callable[[], Any]) -> None:
    """Wait until a condition holds that sets no event."""
    async with asyncio.timeout(WAIT_SECONDS):
        while not condition():  # noqa: ASYNC110  the condition sets no event
            await asyncio.sleep(0.005)
