"""Callers of every RPC, which record failures and check that no call took effect twice."""

import asyncio
import itertools
from collections import Counter
from collections.abc import Awaitable, Callable

from bookstore.v1 import books_pb2

from bookstore_grpc.client import BookstoreClient
from bookstore_grpc.limits import BATCH_MAX


class Callers:
    """Call every RPC continuously through one client, each from a caller of its own, on a database of their own."""

    def __init__(self, client: BookstoreClient, *, doomed_batches: int = 1) -> None:
        self._client = client
        self._doomed_batches = doomed_batches
        self._years = itertools.count(1)
        self._updated = books_pb2.Book()
        self._doomed: list[int] = []
        self._created: list[int] = []
        self.counts: Counter[str] = Counter()
        self.failures: list[Exception] = []

    async def call_while(self, work: Awaitable[object]) -> None:
        """Call while `work` is under way; a call under way at its end is finished."""
        self._updated = await self._client.create_book(name="Updated", author="Anon", release_year=0)
        for _ in range(self._doomed_batches):
            self._doomed += [book.id for book in await self._client.create_books([_book("Doomed")] * BATCH_MAX)]
        is_over = asyncio.Event()
        writes = [self._update, self._delete, self._create, self._create_many, self._change_many, self._purge]
        calls = [*writes, self._read, self._ask_health]
        tasks = [asyncio.create_task(self._call_continuously(call, is_over)) for call in calls]
        try:
            await work
        finally:
            is_over.set()
            await asyncio.gather(*tasks)

    async def check(self) -> None:
        """Raise unless all calls succeeded and each took effect once."""
        assert not self.failures, self.failures[:3]
        assert len(self.counts) == 8
        stored = [book async for book in self._client.list_books()]
        assert sorted(book.id for book in stored if book.name == "Created") == sorted(self._created)
        assert sorted(book.id for book in stored if book.name == "Doomed") == sorted(self._doomed)

    async def _call_continuously(self, call: Callable[[], Awaitable[None]], is_over: asyncio.Event) -> None:
        while not is_over.is_set():
            try:
                await call()
                self.counts[call.__name__] += 1
            except Exception as error:  # counted, and reported all at once
                self.failures.append(error)
            await asyncio.sleep(0.005)

    async def _update(self) -> None:
        # Done twice, the etag would not be the current one.
        book, year = self._updated, next(self._years) % 2_000
        self._updated = await self._client.update_book(book.id, release_year=year, etag=book.etag)

    async def _delete(self) -> None:
        if self._doomed:
            await self._client.delete_book(self._doomed[-1])  # done twice, there would be no such book
            self._doomed.pop()

    async def _create(self) -> None:
        self._created.append((await self._client.create_book(name="Created", author="Anon", release_year=1)).id)

    async def _create_many(self) -> None:
        self._created += [book.id for book in await self._client.create_books([_book("Created")] * 5)]

    async def _change_many(self) -> None:
        # Done twice, the etags of the updates would not be the current ones, and there would be no such books.
        books = await self._client.create_books([_book("Passing")] * 2)
        changes = [
            books_pb2.UpdateBookRequest(book=books_pb2.Book(id=book.id, etag=book.etag, name="Changed"))
            for book in books
        ]
        changed = await self._client.update_books(changes)
        await self._client.delete_books([book.id for book in changed], etags=[book.etag for book in changed])

    async def _purge(self) -> None:
        doomed = await self._client.create_books([_book("Purged")] * 3)
        response = await self._client.purge_books(f"id >= {doomed[0].id} name = Purged", force=True)
        assert (response.purge_count, response.more_matching) == (3, False)

    async def _read(self) -> None:
        await self._client.get_book(self._updated.id)
        await self._client.get_books([self._updated.id])
        await self._client.list_page(page_size=5, include_total=True)

    async def _ask_health(self) -> None:
        await self._client.health()


def _book(name: str) -> books_pb2.Book:
    return books_pb2.Book(name=name, author="Anon", release_year=1)
