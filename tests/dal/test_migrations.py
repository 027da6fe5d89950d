"""Migrations: up, down and up again, in step with the models, and by several servers at once."""

import asyncio
import re
import sqlite3
from collections.abc import AsyncIterator, Callable
from contextlib import closing
from pathlib import Path
from typing import Any

import pytest
from alembic.autogenerate import compare_metadata
from alembic.migration import MigrationContext
from sqlalchemy import Connection, String, inspect, text
from sqlalchemy.engine import make_url
from sqlalchemy.ext.asyncio import AsyncConnection, create_async_engine

from bookstore_grpc.dal import migrations
from bookstore_grpc.dal.books import BookDAL
from bookstore_grpc.dal.database import Database
from bookstore_grpc.dal.models import Base
from bookstore_grpc.dal.records import BookDraft
from bookstore_grpc.errors import DatabaseUnavailable
from tests.conftest import LogLines, new_database
from tests.dal.conftest import execute

_TABLES = {"books", "create_requests", "book_counts", "book_changes", "change_log"}
_DRAFT = BookDraft("Dune", "Frank Herbert", 1965)


@pytest.fixture
async def other_database(kind: str, tmp_path: Path) -> AsyncIterator[Database]:
    """A second empty database."""
    folder = tmp_path / "other"
    folder.mkdir()
    async for url in new_database(kind, folder):
        database = Database(url, pool_size=2, timeout_seconds=10)
        yield database
        await database.close()


async def _tables(database: Database) -> set[str]:
    async def work(connection: AsyncConnection) -> set[str]:
        tables = await connection.run_sync(lambda sync: inspect(sync).get_table_names())
        return {table for table in tables if not table.startswith("books_search")}

    return await database.write(work)


async def _downgrade(database: Database, revision: str) -> None:
    await database.write(lambda connection: connection.run_sync(migrations.downgrade, revision))


async def test_up_from_nothing_down_to_nothing_and_up_again(fresh_database: Database) -> None:
    assert await fresh_database.is_behind()
    for _ in range(2):
        assert await fresh_database.migrate() == migrations.newest_revision()
        assert not await fresh_database.is_behind()
        assert await _tables(fresh_database) == {*_TABLES, "alembic_version"}
        books = BookDAL(fresh_database)
        record = await books.create_book(_DRAFT)
        assert await books.get_book(record.id) == record
        await _downgrade(fresh_database, "base")
        assert await fresh_database.is_behind()
        assert not await _tables(fresh_database) & _TABLES


async def test_every_revision_can_be_reached_one_by_one(fresh_database: Database) -> None:
    revisions = [script.revision for script in migrations._script().walk_revisions()]
    assert revisions
    for revision in reversed(revisions):
        await fresh_database.write(
            lambda connection, revision=revision: connection.run_sync(migrations.upgrade, revision)  # type: ignore[misc]
        )
        assert await fresh_database.is_behind() == (revision != migrations.newest_revision())
    for revision in [*revisions[1:], "base"]:
        await _downgrade(fresh_database, revision)
        assert await fresh_database.is_behind()


async def test_migrating_again_keeps_the_books(fresh_database: Database) -> None:
    await fresh_database.migrate()
    record = await BookDAL(fresh_database).create_book(_DRAFT)
    assert await fresh_database.migrate() == migrations.newest_revision()
    assert await BookDAL(fresh_database).get_book(record.id) == record


def is_of_search_index(name: str | None) -> bool:
    """Return whether an object belongs to the search index, which the models do not have."""
    return name is not None and "books_search" in name


async def test_alembic_finds_no_difference_to_the_models(own_database: Database) -> None:
    def compare(connection: Connection) -> list[Any]:
        dialect = connection.dialect.name
        options = {
            "compare_type": True,
            "compare_server_default": True,
            "include_object": lambda item, *_: item.info.get("only_on", dialect) == dialect,
            "include_name": lambda name, *_: not is_of_search_index(name),
        }
        return list(compare_metadata(MigrationContext.configure(connection, opts=options), Base.metadata))

    assert await own_database.write(lambda connection: connection.run_sync(compare)) == []


_NAMES = ", ".join(f"'{table}'" for table in sorted(_TABLES))
# What the databases themselves say of the tables: also of collations, computed columns and counters, at which
# Alembic does not look. Triggers belong to the migrations alone; tests/dal/test_totals.py is about them.
_DESCRIBE = {
    "sqlite": [f"SELECT type, name, sql FROM sqlite_master WHERE tbl_name IN ({_NAMES}) AND type <> 'trigger'"],
    "postgresql": [
        "SELECT table_name, column_name, ordinal_position, data_type, character_maximum_length, is_nullable, "
        "column_default, collation_name, is_generated, generation_expression FROM information_schema.columns "
        f"WHERE table_name IN ({_NAMES})",
        f"SELECT indexname, indexdef FROM pg_indexes WHERE tablename IN ({_NAMES})",
        "SELECT conname, pg_get_constraintdef(oid) FROM pg_constraint WHERE conrelid = 'books'::regclass",
    ],
    "mariadb": [f"SHOW CREATE TABLE {table}" for table in sorted(_TABLES)],
}


async def _description(database: Database) -> list[str]:
    async def work(connection: AsyncConnection) -> list[str]:
        lines = []
        for statement in _DESCRIBE[database.dialect]:
            for row in await connection.execute(text(statement)):
                if any(is_of_search_index(value) for value in row if isinstance(value, str)):
                    continue
                # The order of indexes and white space are no part of a table. SQLite appends a column that is added,
                # behind the constraints and without a line of its own.
                parts = [part for value in row for part in re.split(r"\n|, (?=\w+ [A-Z])", str(value))]
                lines += [part.strip(" \n\t,)") for part in parts]
        return sorted(filter(None, lines))

    return await database.write(work)


async def test_database_itself_describes_migrated_and_modelled_tables_alike(
    own_database: Database, other_database: Database
) -> None:
    await other_database.write(lambda connection: connection.run_sync(Base.metadata.create_all))
    description = await _description(own_database)
    assert description == await _description(other_database)
    assert any("ix_books_author_head" in line for line in description)


async def test_text_compares_by_code_point_and_ids_count_up(own_database: Database) -> None:
    description = "\n".join(await _description(own_database))
    texts = {column.name for column in Base.metadata.tables["books"].columns if isinstance(column.type, String)}
    assert texts >= {"name", "author", "name_folded", "author_folded", "author_head"}
    match own_database.dialect:
        case "sqlite":
            assert "AUTOINCREMENT" in description
            assert "GENERATED ALWAYS AS (substr(author, 1, 255)) STORED" in description
            assert "COLLATE" not in description  # BINARY, by default
        case "postgresql":
            columns = await _column_collations(own_database)
            assert columns == dict.fromkeys(texts, "C")
            assert "nextval(" in description
            assert "ALWAYS" in description
        case _:
            columns = await _column_collations(own_database)
            assert set(columns) == texts
            assert set(columns.values()) == {"utf8mb4_nopad_bin"}
            assert "AUTO_INCREMENT" in description
            assert "GENERATED ALWAYS AS (substr(`author`,1,255)) STORED" in description


async def _column_collations(database: Database) -> dict[str, str]:
    async def work(connection: AsyncConnection) -> dict[str, str]:
        schema = "current_schema()" if database.dialect == "postgresql" else "database()"
        rows = await connection.execute(
            text(
                "SELECT column_name, collation_name FROM information_schema.columns "
                f"WHERE table_name = 'books' AND table_schema = {schema} AND collation_name IS NOT NULL"
            )
        )
        return {row[0]: row[1] for row in rows}

    return await database.write(work)


async def test_several_servers_may_migrate_at_once(fresh_url: str) -> None:
    databases = [Database(fresh_url, pool_size=1, timeout_seconds=20) for _ in range(4)]
    revisions = await asyncio.gather(*(database.migrate() for database in databases))
    assert set(revisions) == {migrations.newest_revision()}
    record = await BookDAL(databases[0]).create_book(_DRAFT)
    assert await BookDAL(databases[3]).get_book(record.id) == record
    for database in databases:
        await database.close()


async def test_database_of_a_newer_version_is_served_and_left_as_it_is(own_database: Database) -> None:
    await execute(own_database, "UPDATE alembic_version SET version_num = 'from_the_future'")
    before = await _description(own_database)
    assert not await own_database.is_behind()
    assert await own_database.migrate() == "from_the_future"
    assert await _description(own_database) == before


async def test_a_conflicting_table_is_an_error_before_anything_is_created(fresh_database: Database) -> None:
    await execute(fresh_database, "CREATE TABLE create_requests (x INTEGER)")
    for call in (fresh_database.migrate, fresh_database.is_behind):
        with pytest.raises(DatabaseUnavailable, match="a table create_requests that no migration has created"):
            await call()
    assert await _tables(fresh_database) == {"create_requests"}
    await execute(fresh_database, "DROP TABLE create_requests")
    assert await fresh_database.migrate() == migrations.newest_revision()


async def test_an_interrupted_migration_is_an_error_with_instructions(own_database: Database) -> None:
    """On MariaDB a process that is killed leaves half of one."""
    await execute(own_database, "DELETE FROM alembic_version")
    await execute(own_database, "DROP TABLE create_requests")
    for call in (own_database.migrate, own_database.is_behind):
        with pytest.raises(
            DatabaseUnavailable,
            match="if none is running, drop books and book_counts and book_changes and change_log and run",
        ):
            await call()
    await execute(own_database, *(f"DROP TABLE {table}" for table in _TABLES - {"create_requests"}))
    assert await own_database.migrate() == migrations.newest_revision()


@pytest.mark.databases("mariadb")
async def test_a_migration_that_was_interrupted_between_its_statements_is_completed(
    fresh_database: Database, other_database: Database
) -> None:
    await fresh_database.migrate()
    await execute(fresh_database, "DROP INDEX ix_books_author_sort_key ON books")
    await execute(fresh_database, "UPDATE alembic_version SET version_num = '0001'")
    assert await fresh_database.is_behind()
    assert await fresh_database.migrate() == await other_database.migrate()
    assert await _description(fresh_database) == await _description(other_database)


_VERSION_TABLE = "CREATE TABLE alembic_version (version_num VARCHAR(32) NOT NULL PRIMARY KEY)"
_OTHERS = {
    "another revision": [_VERSION_TABLE, "INSERT INTO alembic_version VALUES ('ae1027a6acf')"],
    "our revision": [_VERSION_TABLE, "INSERT INTO alembic_version VALUES ('0001')", "CREATE TABLE pets (id INTEGER)"],
    "our revision and a table of books": [
        _VERSION_TABLE,
        "INSERT INTO alembic_version VALUES ('0001')",
        "CREATE TABLE books (id INTEGER, title VARCHAR(20))",
    ],
    "no revision yet": [_VERSION_TABLE, "CREATE TABLE pets (id INTEGER)"],
    "several revisions": [_VERSION_TABLE, "INSERT INTO alembic_version VALUES ('0001'), ('0002')"],
    "a table of books": ["CREATE TABLE books (id INTEGER, title VARCHAR(20))"],
    "a view of books": ["CREATE VIEW books AS SELECT 1 AS id"],
}


@pytest.mark.parametrize("statements", _OTHERS.values(), ids=_OTHERS)
async def test_the_database_of_another_program_is_rejected_and_not_changed(
    fresh_database: Database, statements: list[str]
) -> None:
    await execute(fresh_database, *statements)
    before = await _tables(fresh_database)
    for call in (fresh_database.migrate, fresh_database.is_behind):
        with pytest.raises(DatabaseUnavailable, match="its own database"):
            await call()
    assert await _tables(fresh_database) == before


async def test_several_revisions_of_a_shared_version_table_are_rejected(own_database: Database) -> None:
    await execute(own_database, "INSERT INTO alembic_version VALUES ('ae1027a6acf')")
    ours = migrations.newest_revision()
    for call in (own_database.migrate, own_database.is_behind):
        with pytest.raises(DatabaseUnavailable, match=f"alembic_version '{ours}', 'ae1027a6acf' is another program's"):
            await call()


async def test_other_tables_in_the_database_do_not_matter(fresh_database: Database) -> None:
    await execute(fresh_database, "CREATE TABLE pets (id INTEGER)")
    assert await fresh_database.migrate() == migrations.newest_revision()
    assert not await fresh_database.is_behind()


async def test_a_migration_that_is_broken_off_is_there_as_a_whole_or_not_at_all(
    fresh_database: Database, monkeypatch: pytest.MonkeyPatch
) -> None:
    upgrade, has_begun = migrations.upgrade, asyncio.Event()
    nap = {"sqlite": "SELECT 1", "postgresql": "SELECT pg_sleep(0.5)", "mariadb": "SELECT SLEEP(0.5)"}

    def slow_upgrade(connection: Connection, *, on_locked: Callable[[], None]) -> str:
        def nap_with_lock() -> None:
            on_locked()
            has_begun.set()
            connection.execute(text(nap[fresh_database.dialect]))

        return upgrade(connection, on_locked=nap_with_lock)

    monkeypatch.setattr(migrations, "upgrade", slow_upgrade)
    migration = asyncio.create_task(fresh_database.migrate())
    await has_begun.wait()
    migration.cancel()
    with pytest.raises(asyncio.CancelledError):
        await migration
    made = await _tables(fresh_database) & _TABLES
    assert made == (set() if fresh_database.dialect == "postgresql" else _TABLES)
    assert await fresh_database.migrate() == migrations.newest_revision()


async def test_printed_sql_builds_a_database_that_is_not_behind(fresh_database: Database, fresh_url: str) -> None:
    script = migrations.upgrade_sql(fresh_database.url)
    for table in _TABLES:
        assert re.search(f"CREATE TABLE (IF NOT EXISTS )?{table}", script)
    await _run_script(fresh_url, script)
    assert not await fresh_database.is_behind()
    assert await fresh_database.migrate() == migrations.newest_revision()
    record = await BookDAL(fresh_database).create_book(_DRAFT)
    assert await BookDAL(fresh_database).get_book(record.id) == record


async def test_printed_sql_builds_the_same_tables(own_database: Database, other_database: Database) -> None:
    url = other_database.url.render_as_string(hide_password=False)
    await _run_script(url, migrations.upgrade_sql(other_database.url))
    assert await _description(other_database) == await _description(own_database)


@pytest.mark.parametrize(
    "url",
    ["sqlite:///nowhere/books.db", "postgresql+asyncpg://nowhere.invalid/x", "mariadb+asyncmy://nowhere.invalid/x"],
)
def test_printing_sql_connects_to_nothing(url: str) -> None:
    assert "CREATE TABLE books" in migrations.upgrade_sql(make_url(url))


async def _run_script(url: str, script: str) -> None:
    """Run a script statement by statement, as the database's own shell would."""
    if url.startswith("sqlite"):
        with closing(sqlite3.connect(make_url(url).database or "")) as connection:
            connection.executescript(script)
            connection.commit()
        return
    engine = create_async_engine(url, isolation_level="AUTOCOMMIT")
    async with engine.connect() as connection:
        for statement in script.split(";\n"):
            lines = [line for line in statement.splitlines() if line.strip() and not line.startswith("--")]
            if lines:
                await connection.exec_driver_sql("\n".join(lines))
    await engine.dispose()


_TAKE_THE_LOCK = {
    "sqlite": "SELECT 1",  # the transaction that takes it holds it
    "postgresql": f"SELECT pg_advisory_xact_lock({migrations._LOCK_KEY})",
    "mariadb": f"SELECT GET_LOCK({migrations._LOCK_NAME_SQL}, 0)",
}


async def test_migrating_gives_up_when_another_server_goes_on_migrating(
    fresh_database: Database, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(migrations, "_LOCK_SECONDS", 1)
    url = fresh_database.url.render_as_string(hide_password=False)
    other = Database(url, pool_size=1, timeout_seconds=1)

    async def migrate_meanwhile(connection: AsyncConnection) -> None:
        await connection.execute(text(_TAKE_THE_LOCK[fresh_database.dialect]))
        with pytest.raises(DatabaseUnavailable):
            await other.migrate()

    await fresh_database.write(migrate_meanwhile)
    await other.close()
    assert await fresh_database.is_behind()


@pytest.mark.databases("mariadb")  # where the lock is not that of the transaction
async def test_a_migration_is_committed_before_another_server_may_begin_its_own(fresh_database: Database) -> None:
    other = Database(fresh_database.url.render_as_string(hide_password=False), pool_size=1, timeout_seconds=10)

    async def migrate_both(connection: AsyncConnection) -> None:
        revision = await connection.run_sync(migrations.upgrade)
        assert await other.migrate() == revision

    await fresh_database.write(migrate_both)
    await other.close()


async def test_a_migration_of_another_database_on_the_server_is_not_waited_for(
    fresh_database: Database, other_database: Database, log_lines: LogLines
) -> None:
    async def migrate_meanwhile(connection: AsyncConnection) -> None:
        await connection.execute(text(_TAKE_THE_LOCK[fresh_database.dialect]))
        await other_database.migrate()

    await fresh_database.write(migrate_meanwhile)
    assert not await other_database.is_behind()
    assert not [line for line in log_lines() if "waiting" in line["event"]]
