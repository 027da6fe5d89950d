"""The load of the watchers section: watches of one server, and creates whose changes each of them receives."""

import asyncio
import time
from collections.abc import AsyncIterator, Sequence
from contextlib import asynccontextmanager
from functools import partial
from itertools import count
from typing import NamedTuple

from bookstore.v1 import books_pb2

from benchmarks.books import author_name
from benchmarks.errors import BenchmarkError
from benchmarks.http2 import Connection, connect

MATCHES_ALL, MATCHES_NONE = "release_year >= 1900", "release_year < 1900"

_SERVICE = "/bookstore.v1.BookService"
_RELEASE_YEAR = 1950
# Fewer than a server permits by default.
_WATCHES_PER_CONNECTION = 90
# Opened at the same time: far fewer than the calls that may wait for a handler.
_OPENED_TOGETHER = 50
_TIMEOUT_SECONDS = 60


class Seen(NamedTuple):
    """A create, in seconds from its start: when its response came, and when each watcher had the change."""

    response_seconds: float
    watcher_seconds: list[float]


class Creator:
    """Creates books on a connection of its own."""

    def __init__(self, connection: Connection) -> None:
        self._connection = connection
        self._numbers = count()

    def next_name(self) -> str:
        """Return the name of the next book."""
        return f"A new book of this run: {next(self._numbers):08d}"

    async def create(self, name: str) -> None:
        """Create a book and check the response."""
        response: asyncio.Future[bytes] = asyncio.get_running_loop().create_future()

        def end() -> None:
            if not response.done():
                response.set_exception(BenchmarkError("CreateBook failed"))

        book = books_pb2.Book(name=name, author=author_name(0), release_year=_RELEASE_YEAR)
        request = books_pb2.CreateBookRequest(book=book).SerializeToString()
        self._connection.call(f"{_SERVICE}/CreateBook", request, on_message=response.set_result, on_end=end)
        created = books_pb2.Book.FromString(await response)
        if created.name != name:
            raise BenchmarkError(f"CreateBook returned {created} instead of {name!r}")


class Watches:
    """Open watches, numbered from 0. Every response is checked."""

    def __init__(self, connections: Sequence[Connection], *, size: int, is_matching: bool) -> None:
        self.size = size
        self._connections = connections
        self._is_matching = is_matching
        self._names: list[str] = []
        self._pending: set[int] = set()
        self._received_at: list[float] = []
        self._complete: asyncio.Future[None] | None = None
        self._failure: BenchmarkError | None = None

    async def open(self, filter: str) -> None:
        """Open all watches, some at a time, and wait for the first response of each."""
        request = books_pb2.WatchBooksRequest(filter=filter).SerializeToString()
        for first in range(0, self.size, _OPENED_TOGETHER):
            numbers = range(first, min(first + _OPENED_TOGETHER, self.size))
            complete = self._expect([], numbers)
            for number in numbers:
                self._connections[number % len(self._connections)].call(
                    f"{_SERVICE}/WatchBooks",
                    request,
                    on_message=partial(self._receive, number),
                    on_end=partial(self._fail, "a watch was rejected or has ended"),
                )
            await self._wait_for(complete)

    async def see(self, creator: Creator) -> Seen:
        """Create a book, and wait for its response and its change at every watcher that it matches."""
        name = creator.next_name()
        complete = self._expect([name], range(self.size) if self._is_matching else ())
        began = time.perf_counter()
        await creator.create(name)
        response_seconds = time.perf_counter() - began
        await self._wait_for(complete)
        return Seen(response_seconds, [at - began for at in self._received_at])

    def _expect(self, names: list[str], numbers: Sequence[int]) -> asyncio.Future[None]:
        """Return what is done when each of some watches has received the changes of books with these names."""
        self._names, self._pending, self._received_at = names, set(numbers), []
        self._complete = asyncio.get_running_loop().create_future()
        if self._failure:
            self._complete.set_exception(self._failure)
        elif not numbers:
            self._complete.set_result(None)
        return self._complete

    async def _wait_for(self, complete: asyncio.Future[None]) -> None:
        try:
            async with asyncio.timeout(_TIMEOUT_SECONDS):
                await complete
        except TimeoutError as error:
            raise BenchmarkError(f"{len(self._pending)} of {self.size} watchers received nothing") from error

    def _receive(self, number: int, payload: bytes) -> None:
        now = time.perf_counter()
        names = [change.book.name for change in books_pb2.WatchBooksResponse.FromString(payload).changes]
        if names != self._names:
            if names:  # otherwise it is a checkpoint
                self._fail(f"a watcher received {names} instead of {self._names}")
        elif number in self._pending:
            self._pending.remove(number)
            self._received_at.append(now)
            if not self._pending and self._complete and not self._complete.done():
                self._complete.set_result(None)
        elif names:
            self._fail(f"a watcher received {names}, which it has already or does not match its filter")

    def _fail(self, what: str) -> None:
        self._failure = self._failure or BenchmarkError(what)
        if self._complete and not self._complete.done():
            self._complete.set_exception(self._failure)


@asynccontextmanager
async def creating(address: str) -> AsyncIterator[Creator]:
    """Connect to a server to create books."""
    connection = await connect(address)
    try:
        yield Creator(connection)
    finally:
        connection.close()


@asynccontextmanager
async def watching(address: str, size: int, *, filter: str = "") -> AsyncIterator[Watches]:
    """Watch the changes of a server by `size` watchers while a block runs."""
    connections = [await connect(address) for _ in range(-(-size // _WATCHES_PER_CONNECTION))]
    try:
        watches = Watches(connections, size=size, is_matching=filter != MATCHES_NONE)
        await watches.open(filter)
        yield watches
    finally:
        for connection in connections:
            connection.close()
