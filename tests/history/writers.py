"""Writers that change books by every call that can, at several servers, and record each call."""

import asyncio
import random
import time
import uuid
from collections.abc import AsyncIterator, Awaitable, Callable, Sequence
from contextlib import asynccontextmanager
from typing import Any

import grpc
from bookstore.v1 import books_pb2, books_pb2_grpc

from bookstore_grpc.limits import BATCH_MAX
from tests.history.records import CREATED, DELETED, UPDATED, Effect, Outcome, Write

WRITERS = 6
AUTHORS = ("Ann", "Bob")
# It matches the filter of every watcher, so that each of them receives it.
LAST_BOOK = "The last book"

_ATTEMPT_SECONDS = 10
_RETRY_SECONDS = 60
_PAUSE_SECONDS = 0.005
# With these a call has had no effect. With the others it may have had one.
_REJECTED = {grpc.StatusCode.NOT_FOUND, grpc.StatusCode.ABORTED}
_UNKNOWN = {grpc.StatusCode.UNAVAILABLE, grpc.StatusCode.DEADLINE_EXCEEDED, grpc.StatusCode.CANCELLED}
# Above this they delete.
_BOOKS_MAX = 4_000
# Two such texts in each of a thousand books are too many for one response.
_LONG = 460

Stubs = Sequence["books_pb2_grpc.BookServiceAsyncStub"]


class Writers:
    """Writers. They repeat creates, with their idempotency keys, and purges until these succeed."""

    def __init__(self, stubs: Stubs, chance: random.Random) -> None:
        self.writes: list[Write] = []
        self.calls = 0
        self.acknowledged = 0
        self._is_over = False
        self._stubs = stubs
        self._chance = chance
        self._names = 0
        self._etags: dict[int, str] = {}  # of the books that nobody deletes yet

    @asynccontextmanager
    async def writing(self) -> AsyncIterator[None]:
        """Write while a block runs; calls under way at its end are finished. Raises what a writer has raised."""
        self._is_over = False
        async with asyncio.TaskGroup() as group:
            for _ in range(WRITERS):
                group.create_task(self._write_continuously())
            try:
                yield
            finally:
                self._is_over = True

    async def until_acknowledged(self, count: int) -> None:
        """Wait until so many more calls have succeeded."""
        enough = self.acknowledged + count
        async with asyncio.timeout(_RETRY_SECONDS):
            while self.acknowledged < enough:  # noqa: ASYNC110  other tasks count it
                await asyncio.sleep(0.01)

    async def create_last_book(self, name: str = LAST_BOOK) -> None:
        """Create a book after which nothing is written."""
        await self._create([self._book(name, author=AUTHORS[0])], method="CreateBook")

    async def create_long_books(self) -> None:
        """Create as many books as a call may, whose texts are too long for one response."""
        books = [self._book(f"{self._new_name()} {'x' * _LONG}", author="y" * _LONG) for _ in range(BATCH_MAX)]
        await self._create(books, method="BatchCreateBooks")

    async def _write_continuously(self) -> None:
        calls: list[Callable[[], Awaitable[None]]] = [
            *[self._create_one, self._create_several] * 2,
            *[self._update_one, self._update_several] * 3,
            *(self._delete_one, self._delete_several, self._purge),
        ]
        while not self._is_over:
            await (self._chance.choice(calls)() if len(self._etags) < _BOOKS_MAX else self._delete_several())
            await asyncio.sleep(_PAUSE_SECONDS)

    async def _create_one(self) -> None:
        await self._create([self._book(self._new_name())], method="CreateBook")

    async def _create_several(self) -> None:
        books = [self._book(self._new_name()) for _ in range(self._chance.randint(2, 20))]
        await self._create(books, method="BatchCreateBooks")

    async def _create(self, books: Sequence[books_pb2.Book], *, method: str) -> None:
        created = await self._store(books, method=method)
        self._etags |= {book.id: book.etag for book in created}

    async def _store(self, books: Sequence[books_pb2.Book], *, method: str) -> Sequence[books_pb2.Book]:
        requests = [books_pb2.CreateBookRequest(book=book, request_id=str(uuid.uuid4())) for book in books]
        write = self._begin(method, [Effect(CREATED, 0, book.name) for book in books])
        is_batch = method == "BatchCreateBooks"
        request = books_pb2.BatchCreateBooksRequest(requests=requests) if is_batch else requests[0]
        response = await self._send(write, request, is_repeated=True)
        created: Sequence[books_pb2.Book] = response.books if is_batch else [response]
        write.etags = [book.etag for book in created]
        return created

    async def _update_one(self) -> None:
        for book_id in self._some_ids(1):
            request = self._update_request(book_id)
            write = self._begin("UpdateBook", [Effect(UPDATED, book_id, request.book.name)])
            if book := await self._send(write, request):
                self._note_updates(write, [book])

    async def _update_several(self) -> None:
        ids = self._some_ids(10)
        if not ids:
            return
        # One of them is updated twice.
        requests = [self._update_request(each) for each in [*ids, self._chance.choice(ids)]]
        requests[-1].book.etag = ""
        write = self._begin("BatchUpdateBooks", [Effect(UPDATED, each.book.id, each.book.name) for each in requests])
        if response := await self._send(write, books_pb2.BatchUpdateBooksRequest(requests=requests)):
            self._note_updates(write, response.books)

    def _update_request(self, book_id: int) -> books_pb2.UpdateBookRequest:
        book = self._book(self._new_name())
        book.id = book_id
        if self._chance.random() < 0.3:  # another writer may have changed the book
            book.etag = self._etags.get(book_id, "")
        return books_pb2.UpdateBookRequest(book=book)

    def _note_updates(self, write: Write, books: Sequence[books_pb2.Book]) -> None:
        write.etags = [book.etag for book in books]
        self._etags |= {book.id: book.etag for book in books if book.id in self._etags}

    async def _delete_one(self) -> None:
        for book_id in self._take_ids(1):
            await self._delete([book_id], "DeleteBook", books_pb2.DeleteBookRequest(id=book_id))

    async def _delete_several(self) -> None:
        if ids := self._take_ids(10):
            requests = [books_pb2.DeleteBookRequest(id=book_id) for book_id in ids]
            await self._delete(ids, "BatchDeleteBooks", books_pb2.BatchDeleteBooksRequest(requests=requests))

    async def _delete(self, ids: Sequence[int], method: str, request: object) -> None:
        await self._send(self._begin(method, [Effect(DELETED, book_id) for book_id in ids]), request)

    async def _purge(self) -> None:
        prefix = self._new_name()
        books = [self._book(f"{prefix} {number}") for number in range(self._chance.randint(1, 30))]
        doomed = [Effect(DELETED, book.id) for book in await self._store(books, method="BatchCreateBooks")]
        write = self._begin("PurgeBooks", doomed)
        write.is_atomic = False
        request = books_pb2.PurgeBooksRequest(filter=f'name = "{prefix} *"', force=True)
        purged = await self._send(write, request, is_repeated=True)
        if purged.purge_count < len(books):
            # An attempt without a response has deleted some, or it looked for them at a primary that no longer is one.
            write.outcome = Outcome.UNKNOWN

    def _begin(self, method: str, effects: list[Effect]) -> Write:
        write = Write(method, effects, began=time.monotonic())
        self.writes.append(write)
        self.calls += 1
        return write

    async def _send(self, write: Write, request: object, *, is_repeated: bool = False) -> Any:
        """Send a call and note its outcome. Returns its response, or None if it failed; repeated calls do not fail."""
        give_up = time.monotonic() + _RETRY_SECONDS
        while True:
            call = getattr(self._chance.choice(self._stubs), write.method)
            try:
                response = await call(request, timeout=_ATTEMPT_SECONDS)
            except grpc.aio.AioRpcError as error:
                if not is_repeated and error.code() in _REJECTED:
                    write.outcome, write.ended = Outcome.REJECTED, time.monotonic()
                    return None
                if error.code() not in _UNKNOWN or time.monotonic() > give_up:
                    raise
                await asyncio.sleep(0.05)
                if not is_repeated:
                    return None
            else:
                write.outcome, write.ended = Outcome.OK, time.monotonic()
                self.acknowledged += 1
                return response

    def _book(self, name: str, author: str = "") -> books_pb2.Book:
        author = author or self._chance.choice(AUTHORS)
        return books_pb2.Book(name=name, author=author, release_year=self._chance.randrange(2_000))

    def _new_name(self) -> str:
        self._names += 1
        return f"Book {self._names}"

    def _some_ids(self, count: int) -> list[int]:
        """Return up to so many different books, which others may use too."""
        return self._chance.sample(list(self._etags), min(count, len(self._etags)))

    def _take_ids(self, count: int) -> list[int]:
        """Return up to so many books, which no other call deletes."""
        ids = self._some_ids(count)
        for book_id in ids:
            del self._etags[book_id]
        return ids
