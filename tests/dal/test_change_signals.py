"""How a watcher learns of commits: those of its own process, and those of others on each kind of database."""

import asyncio
import gc
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager

import pytest
from sqlalchemy import text
from sqlalchemy.ext.asyncio import AsyncConnection

from bookstore_grpc.dal import change_signals
from bookstore_grpc.dal.books import BookDAL
from bookstore_grpc.dal.change_log import CHANNEL
from bookstore_grpc.dal.change_signals import ChangeSignals
from bookstore_grpc.dal.database import Database
from bookstore_grpc.dal.postgresql_listener import PostgresqlListener
from tests.conftest import LogLines
from tests.dal.change_logs import DRAFT, WAIT_SECONDS, Pages, empty_log, next_changes, next_page, until_true, watching
from tests.dal.conftest import execute, statements_of
from tests.pgbouncer import pgbouncer

_POLLS = ("_POLL_SECONDS_ON_SQLITE", "_POLL_SECONDS", "_POLL_SECONDS_WHILE_NOTIFIED")
# Longer than any test waits.
_NEVER_SECONDS = 3_600.0
_LISTENERS = "FROM pg_stat_activity WHERE datname = current_database() AND query LIKE 'LISTEN%'"


@pytest.fixture
async def books(database: Database) -> BookDAL:
    await empty_log(database)
    return BookDAL(database)


@pytest.fixture
def no_polling(monkeypatch: pytest.MonkeyPatch) -> None:
    for name in _POLLS:
        monkeypatch.setattr(change_signals, name, _NEVER_SECONDS)


@pytest.fixture
def no_polling_while_notified(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(change_signals, "_POLL_SECONDS_WHILE_NOTIFIED", _NEVER_SECONDS)


@asynccontextmanager
async def _watcher(books: BookDAL) -> AsyncIterator[tuple[Pages, ChangeSignals]]:
    """Watch within a block, in which the tail is waiting for signals."""
    async with watching(books) as pages:
        await next_page(pages)
        tail = books.changes._tails._tail
        assert tail is not None
        signals = tail.signals
        await until_true(lambda: signals._timer and (not signals._connecting or signals._connecting.done()))
        yield pages, signals


def _listener(signals: ChangeSignals) -> PostgresqlListener:
    assert signals._listener is not None
    return signals._listener


async def _terminate_listeners(database: Database) -> int:
    async def terminate(connection: AsyncConnection) -> int:
        result = await connection.execute(text(f"SELECT pg_terminate_backend(pid) {_LISTENERS}"))
        return len(result.all())

    return await database.write(terminate)


@pytest.mark.usefixtures("no_polling")
async def test_a_commit_of_this_process_is_signalled(books: BookDAL) -> None:
    async with _watcher(books) as (pages, _):
        created = await books.create_book(DRAFT)
        assert [change.record for change in await next_changes(pages, 1)] == [created]
        await books.purge_books("id > 0", seconds=60)
        assert [change.record for change in await next_changes(pages, 1)] == [created]


@pytest.mark.usefixtures("no_polling")
async def test_a_commit_that_another_process_reports_is_read_at_once(books: BookDAL, twin: Database) -> None:
    async with _watcher(books) as (pages, _):
        created = await BookDAL(twin).create_book(DRAFT)
        books.changes.others_committed()
        assert [change.record for change in await next_changes(pages, 1)] == [created]


async def test_commits_are_reported_to_other_processes(database: Database) -> None:
    reported = 0

    def report() -> None:
        nonlocal reported
        reported += 1

    books = BookDAL(database, on_changes_committed=report)
    created = await books.create_book(DRAFT)
    assert reported == 1
    await books.delete_book(created.id)
    assert reported == 2
    books.changes.others_committed()
    assert reported == 2


async def test_commits_of_another_server_are_seen(books: BookDAL, twin: Database) -> None:
    others = BookDAL(twin)
    async with _watcher(books) as (pages, _):
        for _ in range(3):
            created = await others.create_book(DRAFT)
            assert [change.record for change in await next_changes(pages, 1)] == [created]


@pytest.mark.databases("sqlite")
async def test_sqlite_is_not_read_while_nobody_commits(database: Database, books: BookDAL, twin: Database) -> None:
    async with _watcher(books) as (pages, _):
        await BookDAL(twin).create_book(DRAFT)
        await next_changes(pages, 1)
        await asyncio.sleep(0.1)  # the last poll that finds a commit
        with statements_of(database) as statements:
            await asyncio.sleep(0.3)
        # Collecting them takes a new connection, by which the version is another one once.
        assert len([each for each in statements if "book_changes" in each]) <= 1


@pytest.mark.databases("sqlite")
async def test_a_signal_while_nobody_waits_is_kept(database: Database) -> None:
    signals = ChangeSignals(database)
    signals.changes_committed()
    signals.changes_committed()
    assert await signals.wait()
    assert not await signals.wait()  # until the first poll


@pytest.mark.databases("postgresql")
@pytest.mark.usefixtures("no_polling")
async def test_postgresql_notifies_of_commits_of_another_server(books: BookDAL, twin: Database) -> None:
    others = BookDAL(twin)
    async with _watcher(books) as (pages, signals):
        assert _listener(signals).is_listening
        for _ in range(3):
            created = await others.create_book(DRAFT)
            assert [change.record for change in await next_changes(pages, 1)] == [created]


@pytest.mark.databases("postgresql")
@pytest.mark.usefixtures("no_polling_while_notified")
async def test_postgresql_is_polled_while_the_connection_that_listens_is_lost(
    database: Database, books: BookDAL, twin: Database, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(change_signals, "_LISTEN_AGAIN_SECONDS", _NEVER_SECONDS)
    async with _watcher(books) as (pages, signals):
        assert await _terminate_listeners(database) == 1
        await until_true(lambda: not _listener(signals).is_listening)
        created = await BookDAL(twin).create_book(DRAFT)
        assert [change.record for change in await next_changes(pages, 1)] == [created]
        assert not _listener(signals).is_listening


@pytest.mark.databases("postgresql")
async def test_postgresql_is_polled_while_no_further_connection_can_be_made(
    database: Database, own_database: Database, log_lines: LogLines, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(change_signals, "_LISTEN_AGAIN_SECONDS", 0)
    books, name = BookDAL(own_database), own_database.url.database
    await books.create_book(DRAFT)
    await books.changes.earliest_time()  # now it has a connection that reads
    await execute(database, f"ALTER DATABASE {name} ALLOW_CONNECTIONS false")
    async with _watcher(books) as (pages, signals):
        assert not _listener(signals).is_listening
        created = await books.create_book(DRAFT)
        assert [change.record for change in await next_changes(pages, 1)] == [created]
        line = next(line for line in log_lines() if line["event"] == "listening for changes failed")
        assert line["action"] == "polling instead"
        assert "not currently accepting connections" in line["cause"]
        await execute(database, f"ALTER DATABASE {name} ALLOW_CONNECTIONS true")
        await until_true(lambda: _listener(signals).is_listening)


@pytest.mark.databases("postgresql")
@pytest.mark.usefixtures("no_polling_while_notified")
async def test_postgresql_is_listened_to_again_after_the_connection_was_lost(
    database: Database, books: BookDAL, twin: Database, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(change_signals, "_LISTEN_AGAIN_SECONDS", 0)
    async with _watcher(books) as (pages, signals):
        assert await _terminate_listeners(database) == 1
        await until_true(lambda: not _listener(signals).is_listening)
        await until_true(lambda: _listener(signals).is_listening)
        created = await BookDAL(twin).create_book(DRAFT)
        assert [change.record for change in await next_changes(pages, 1)] == [created]


@pytest.mark.databases("postgresql")
async def test_postgresql_is_listened_to_anew_when_notifications_do_not_come(
    books: BookDAL, twin: Database, monkeypatch: pytest.MonkeyPatch
) -> None:
    """As over a connection that a firewall has dropped without a word."""
    monkeypatch.setattr(change_signals, "_POLL_SECONDS_WHILE_NOTIFIED", 0.02)
    monkeypatch.setattr(change_signals, "_LISTEN_AGAIN_SECONDS", 0)
    others = BookDAL(twin)
    async with _watcher(books) as (pages, signals):
        before = _listener(signals)._pooled
        await before.driver_connection.execute("UNLISTEN *")
        async with asyncio.timeout(WAIT_SECONDS):
            while _listener(signals)._pooled is before:
                await others.create_book(DRAFT)
                await next_changes(pages, 1)
        await until_true(lambda: _listener(signals).is_listening)


@pytest.mark.databases("postgresql")
async def test_the_connection_that_listens_is_closed_with_the_last_watcher(database: Database, books: BookDAL) -> None:
    listeners = text(f"SELECT count(*) {_LISTENERS}")

    async def count(connection: AsyncConnection) -> int:
        return int((await connection.execute(listeners)).scalar_one())

    async with _watcher(books):
        assert await database.write(count) == 1
    async with asyncio.timeout(WAIT_SECONDS):
        while await database.write(count):  # noqa: ASYNC110  the server closes it
            await asyncio.sleep(0.01)


@pytest.mark.databases("postgresql")
async def test_a_listener_that_is_cancelled_while_it_connects_logs_no_error(database: Database) -> None:
    loop, errors = asyncio.get_running_loop(), list[str]()
    loop.set_exception_handler(lambda _loop, context: errors.append(context["message"]))
    try:
        for moment in range(80):
            listener = PostgresqlListener(database, CHANNEL, lambda: None)
            starting = asyncio.create_task(listener.start())
            await asyncio.sleep(moment / 20_000)
            starting.cancel()
            await asyncio.wait([starting])
            await listener.stop()
        await database._tasks.wait(seconds=WAIT_SECONDS)
        gc.collect()  # which logs what nobody has retrieved
    finally:
        loop.set_exception_handler(None)
    assert errors == []


@pytest.mark.databases("postgresql")
@pytest.mark.parametrize("pool_mode", ["transaction", "session"])
async def test_postgresql_behind_pgbouncer_is_polled(fresh_url: str, pool_mode: str, log_lines: LogLines) -> None:
    with pgbouncer(fresh_url, pool_mode=pool_mode) as url:
        pooled, direct = (
            Database(url, pool_size=3, timeout_seconds=10),
            Database(fresh_url, pool_size=3, timeout_seconds=10),
        )
        try:
            await direct.migrate()
            async with _watcher(BookDAL(pooled)) as (pages, signals):
                assert (_listener(signals).is_unsupported, _listener(signals).is_listening) == (True, False)
                for _ in range(2):
                    created = await BookDAL(direct).create_book(DRAFT)
                    assert [change.record for change in await next_changes(pages, 1)] == [created]
        finally:
            await pooled.close()
            await direct.close()
    assert not [line for line in log_lines() if line["level"] == "warning"]
