"""A watch of a real server: what others write, through its restarts."""

import asyncio
from pathlib import Path

import pytest
from bookstore.v1.books_pb2 import BookChange

from bookstore_grpc.client import BookstoreClient, BookWatch
from bookstore_grpc.errors import InvalidFilter, InvalidResumeToken
from bookstore_grpc.server.app import running_server
from tests.conftest import settings_for

PATIENCE_SECONDS = 20


async def take(watch: BookWatch, how_many: int) -> list[tuple[str, int, str]]:
    async with asyncio.timeout(PATIENCE_SECONDS):
        changes = [await anext(watch) for _ in range(how_many)]
    return [(BookChange.Type.Name(change.type), change.book.id, change.book.name) for change in changes]


async def test_a_watch_yields_existing_books_and_then_each_change(client: BookstoreClient) -> None:
    first = await client.create_book(name="One", author="A", release_year=1)
    watch = client.watch_books(start="existing")
    assert await take(watch, 1) == [("EXISTING", first.id, "One")]
    second = await client.create_book(name="Two", author="A", release_year=2)
    await client.update_book(first.id, name="Uno")
    await client.delete_book(second.id)

    assert await take(watch, 3) == [
        ("CREATED", second.id, "Two"),
        ("UPDATED", first.id, "Uno"),
        ("DELETED", second.id, "Two"),
    ]
    assert watch.existing_sent


async def test_a_resumed_watch_and_a_list_continue_after_the_same_change(client: BookstoreClient) -> None:
    await client.create_book(name="First", author="A", release_year=1)
    watch = client.watch_books(start="existing")
    await take(watch, 1)
    ids = [(await client.create_book(name=f"N{number}", author="A", release_year=1)).id for number in range(3)]
    async with asyncio.timeout(PATIENCE_SECONDS):
        first = await anext(watch)

    resumed = await take(client.watch_books(resume_token=first.resume_token), 2)
    listed = [change.book.id async for change in client.list_book_changes(page_token=first.resume_token)]

    assert [book_id for _, book_id, _ in resumed] == listed == ids[1:]


async def test_a_watch_goes_on_when_its_server_is_replaced(tmp_path: Path) -> None:
    url = f"sqlite+aiosqlite:///{tmp_path}/bookstore.db"
    async with running_server(settings_for(url)) as server:
        address = server.addresses[0]
        client = BookstoreClient(address)
        watch = client.watch_books(start="existing")
        book = await client.create_book(name="One", author="A", release_year=1)
        before = await take(watch, 1)
        waiting = asyncio.ensure_future(take(watch, 1))
    async with running_server(settings_for(url, listen=(address,))):
        await client.update_book(book.id, name="Two")
        after = await waiting
        await client.close()

    assert before + after == [("EXISTING", book.id, "One"), ("UPDATED", book.id, "Two")]


async def test_what_the_server_rejects_is_raised(client: BookstoreClient) -> None:
    with pytest.raises(InvalidFilter, match="price"):
        await take(client.watch_books(filter="price > 3"), 1)
    with pytest.raises(InvalidFilter, match="price"):
        await client.list_change_page(filter="price > 3")
    with pytest.raises(InvalidResumeToken):
        await take(client.watch_books(resume_token="nonsense"), 1)
    with pytest.raises(InvalidResumeToken):
        await client.list_change_page(page_token="nonsense")
