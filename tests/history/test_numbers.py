"""The numbers of changes have to be in the order of commits: with others the checker finds what watchers miss."""

from collections.abc import AsyncIterator, Sequence
from contextlib import AsyncExitStack, asynccontextmanager

import pytest
from sqlalchemy import text
from sqlalchemy.ext.asyncio import AsyncConnection

from bookstore_grpc.dal import change_log
from bookstore_grpc.dal.database import Database
from bookstore_grpc.server.app import running_server
from tests.conftest import settings_for
from tests.history.checker import check, violations
from tests.history.recording import Recording, recording
from tests.history.violations import Guarantee

# Numbers that are taken without a lock until the commit, which some transactions come to later than others.
SEQUENCE = "unordered_numbers"
LOG_UNORDERED = f"""
INSERT INTO book_changes (number, remaining, type, change_time, book, previous_book)
SELECT nextval('{SEQUENCE}'), given.*
FROM unnest($1::integer[], $2::smallint[], $3::bigint[], $4::text[], $5::text[]) AS given
"""
NOTIFY_LATER = text(f"SELECT pg_notify('{change_log.CHANNEL}', ''), pg_sleep(0.02 * random())")


async def log_unordered(connection: AsyncConnection, rows: Sequence[Sequence[object]]) -> None:
    await connection.exec_driver_sql(LOG_UNORDERED, tuple(map(list, zip(*rows, strict=True))))
    await connection.execute(NOTIFY_LATER)


async def migrated(url: str, *statements: str) -> None:
    database = Database(url, pool_size=1, timeout_seconds=10)
    await database.migrate()

    async def work(connection: AsyncConnection) -> None:
        for statement in statements:
            await connection.execute(text(statement))

    await database.write(work)
    await database.close()


@asynccontextmanager
async def two_servers(url: str) -> AsyncIterator[Recording]:
    """Record a history at two servers in this process."""
    async with AsyncExitStack() as stack:
        servers = [await stack.enter_async_context(running_server(settings_for(url))) for _ in range(2)]
        async with recording([server.addresses[0] for server in servers]) as recorded:
            yield recorded


async def test_watchers_at_two_servers_of_one_process_receive_what_the_contract_says(any_database_url: str) -> None:
    await migrated(any_database_url)
    async with two_servers(any_database_url) as recorded:
        await recorded.until_progress()
        recorded.kill_watchers()
        recorded.watch_again()
        await recorded.until_progress()
    check(recorded.history)


@pytest.mark.parametrize("any_database_url", [pytest.param("postgresql", marks=pytest.mark.postgresql)], indirect=True)
async def test_numbers_that_are_not_in_the_order_of_commits_are_found_as_gaps(
    any_database_url: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setitem(change_log._LOGGERS, "postgresql", log_unordered)
    await migrated(any_database_url, f"CREATE SEQUENCE {SEQUENCE}")
    async with two_servers(any_database_url) as recorded:
        for _ in range(3):
            await recorded.until_progress()
    gaps = [each for each in violations(recorded.history) if each.guarantee is Guarantee.RELIABLE]
    assert any("is missing between" in each.what for each in gaps), violations(recorded.history)
