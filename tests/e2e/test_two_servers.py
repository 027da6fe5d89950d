"""Two server processes on one database behave as one."""

import asyncio
import uuid
from collections.abc import AsyncIterator

import pytest

from bookstore_grpc.client import BookstoreClient
from tests.e2e.conftest import Start

pytestmark = [pytest.mark.e2e, pytest.mark.thorough]

Clients = tuple[BookstoreClient, BookstoreClient]


@pytest.fixture
async def clients(any_database_url: str, start: Start) -> AsyncIterator[Clients]:
    """A client for each of two servers, which started at the same time on an empty database."""
    first, second = await asyncio.gather(*(asyncio.to_thread(start, any_database_url, "--migrate") for _ in range(2)))
    assert first.address != second.address
    async with BookstoreClient(first.address) as one, BookstoreClient(second.address) as other:
        yield one, other
    for server in (first, second):
        assert await asyncio.to_thread(server.stop) == 0, server.log_text()


async def test_concurrent_creates_with_one_request_id_create_one_book(clients: Clients) -> None:
    request_ids = [str(uuid.uuid4()) for _ in range(25)]

    async def race(request_id: str) -> int:
        books = await asyncio.gather(
            *(
                client.create_book(name=request_id, author="A", release_year=1, request_id=request_id)
                for _ in range(3)
                for client in clients
            )
        )
        assert all(book == books[0] for book in books)
        return books[0].id

    ids = [book_id for request_id in request_ids for book_id in [await race(request_id)]]

    assert len(set(ids)) == len(request_ids)
    for client in clients:
        assert [book.id async for book in client.list_books()] == sorted(ids)


async def test_concurrent_batches_with_the_same_request_ids_create_each_book_once(clients: Clients) -> None:
    one, other = clients
    template = await one.create_book(name="N", author="A", release_year=1)
    request_ids = [str(uuid.uuid4()) for _ in range(100)]

    forward, backward = await asyncio.gather(
        one.create_books([template] * 100, request_ids=request_ids),
        other.create_books([template] * 100, request_ids=request_ids[::-1]),
    )

    assert list(forward) == list(backward)[::-1]
    assert len([book async for book in one.list_books()]) == 1 + 100


async def test_concurrent_updates_of_different_fields_through_two_servers_are_all_stored(clients: Clients) -> None:
    one, other = clients
    created = await one.create_book(name="N", author="A", release_year=0)

    for number in range(1, 26):
        await asyncio.gather(
            one.update_book(created.id, name=f"N{number}"),
            other.update_book(created.id, author=f"A{number}"),
            one.update_book(created.id, release_year=number),
        )
        book = await other.get_book(created.id)
        assert (book.name, book.author, book.release_year) == (f"N{number}", f"A{number}", number)


async def test_a_create_through_one_server_is_listed_by_the_other_immediately(clients: Clients) -> None:
    one, other = clients
    listed = [book.id async for book in one.list_books()]
    for number in range(20):
        book = await other.create_book(name=f"Book {number}", author="Anon", release_year=number)
        listed.append(book.id)
        assert [book.id async for book in one.list_books()] == listed
