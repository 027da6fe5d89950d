"""The rights that docs/operations.md lists: with them an account can migrate or serve; a missing one is reported."""

import asyncio
import re
from collections.abc import AsyncIterator
from contextlib import AsyncExitStack
from pathlib import Path
from typing import NamedTuple

import pytest

from bookstore_grpc.client import BookstoreClient
from bookstore_grpc.errors import DatabaseUnavailable
from tests.accounts import Account, account
from tests.e2e.conftest import Start
from tests.executable import Finished, Serving, run_bookstore

pytestmark = pytest.mark.e2e

OPERATIONS = Path(__file__).parents[2] / "docs/operations.md"


class Right(NamedTuple):
    """One right on one object of the database, as it is granted and revoked."""

    word: str
    object: str


class Accounts(NamedTuple):
    """The two accounts, and the rights that the page lists for each."""

    migrator: Account
    server: Account
    migrating: list[Right]
    serving: list[Right]

    async def grant(self, rights: list[Right], *, to: Account) -> None:
        await to.execute(*(f"GRANT {word} ON {object_} TO {{user}}" for word, object_ in rights))

    async def revoke(self, right: Right, *, of: Account) -> None:
        await of.execute(f"REVOKE {right.word} ON {right.object} FROM {{user}}")


def documented_rights(database: str, *, is_postgresql: bool) -> dict[str, list[Right]]:
    blocks = re.findall(r"<!-- rights:.*?-->\n```sql\n(.*?)```", OPERATIONS.read_text(), re.DOTALL)
    block = blocks[0 if is_postgresql else 1]
    rights: dict[str, list[Right]] = {"migrator": [], "server": []}
    for words, thing, names in re.findall(r"GRANT (.*?) ON (.*?) TO (.*?);", block):
        here = re.sub(r"(?<=DATABASE )bookstore|bookstore(?=\.)", database, thing)
        for name in names.split(", "):
            rights[name] += [Right(word, here) for word in words.split(", ")]
    return rights


@pytest.fixture
async def accounts(database_server_url: str) -> AsyncIterator[Accounts]:
    """Two accounts without any right in an empty database."""
    async with AsyncExitStack() as stack:
        migrator = await stack.enter_async_context(account(database_server_url))
        server = await stack.enter_async_context(account(database_server_url))
        if migrator.is_postgresql:
            await migrator.execute(
                "REVOKE ALL ON DATABASE {database} FROM PUBLIC", "REVOKE ALL ON SCHEMA public FROM PUBLIC"
            )
        rights = documented_rights(migrator.database, is_postgresql=migrator.is_postgresql)
        yield Accounts(migrator, server, rights["migrator"], rights["server"])


async def run(verb: str, user: Account) -> Finished:
    variables = {"BOOKSTORE_DATABASE_URL": user.url, "BOOKSTORE_LISTEN": "127.0.0.1:0"}
    return await asyncio.to_thread(run_bookstore, verb, variables=variables)


@pytest.fixture
async def migrated(accounts: Accounts) -> Accounts:
    """The accounts with all their rights, and the tables."""
    await accounts.grant(accounts.migrating, to=accounts.migrator)
    finished = await run("migrate", accounts.migrator)
    assert finished.status == 0, finished.errors
    await accounts.grant(accounts.serving, to=accounts.server)
    return accounts


# Of MariaDB's those that the migrations use.
@pytest.mark.parametrize(
    ("database_server_url", "word"),
    [
        pytest.param(kind, word, marks=getattr(pytest.mark, kind))
        for kind, words in {
            "postgresql": ["CONNECT", "CREATE"],
            "mariadb": ["CREATE", "INDEX", "INSERT", "LOCK TABLES", "SELECT", "TRIGGER"],
        }.items()
        for word in words
    ],
    indirect=["database_server_url"],
)
async def test_migrate_reports_a_missing_right(accounts: Accounts, word: str) -> None:
    assert word in [right.word for right in accounts.migrating]
    await accounts.grant([right for right in accounts.migrating if right.word != word], to=accounts.migrator)

    finished = await run("migrate", accounts.migrator)

    assert finished.status == 1
    assert re.search(r"Cannot use the database .*(permission denied for|command denied|Access denied)", finished.errors)


async def test_serve_reports_a_missing_right_at_the_start(migrated: Accounts) -> None:
    words = [("SELECT", "alembic_version"), ("SELECT", "create_requests"), ("DELETE", "create_requests")]
    missing = [right for right in migrated.serving if (right.word, right.object.rpartition(".")[2]) in words]
    assert len(missing) == len(words)
    for right in missing:
        await migrated.revoke(right, of=migrated.server)
        finished = await run("serve", migrated.server)
        await migrated.grant([right], to=migrated.server)

        assert finished.status == 1
        assert re.search(rf"denied .*{right.object.rpartition('.')[2]}", finished.errors.replace("`", ""))


async def do_everything(client: BookstoreClient) -> None:
    made = await client.create_book(name="Dune", author="Frank Herbert", release_year=1965)
    await client.update_book(made.id, release_year=1966)
    assert made.id in [book.id async for book in client.list_books()]
    other = await client.create_book(name="Emma", author="Jane Austen", release_year=1815)
    assert (await client.list_page(page_size=1, include_total=True)).total_size > 1
    await client.delete_books([made.id, other.id])


async def test_the_server_works_with_its_rights_and_logs_a_missing_one(migrated: Accounts, start: Start) -> None:
    server = await asyncio.to_thread(start, migrated.server.url)
    on_books = [right for right in migrated.serving if re.search(r"\bbooks(_id_seq)?$", right.object)]
    on_requests = [right for right in migrated.serving if right.object.endswith("create_requests")]
    on_counts = [right for right in migrated.serving if right.object.endswith("book_counts")]
    assert [right.word for right in on_counts] == ["SELECT"]
    assert len(on_books) >= 4
    async with BookstoreClient(server.address, timeout_seconds=2) as client:
        await do_everything(client)
        for right in on_books + on_counts + [right for right in on_requests if right.word != "DELETE"]:
            await migrated.revoke(right, of=migrated.server)
            with pytest.raises(DatabaseUnavailable):
                await do_everything(client)
            assert re.search(r"permission denied for|command denied", last_cause(server))
            await migrated.grant([right], to=migrated.server)
        await do_everything(client)
    assert await asyncio.to_thread(server.stop) == 0
    assert "Traceback" not in server.log_text()


def last_cause(server: Serving) -> str:
    cause: str = [line for line in server.log_lines() if line["event"] == "call failed"][-1]["cause"]
    return cause
