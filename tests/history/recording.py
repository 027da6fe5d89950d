"""Records a history: writers and watchers at the servers of one database, while a block disturbs them."""

import asyncio
import random
import time
from collections.abc import AsyncIterator, Iterable, Iterator, Sequence
from contextlib import AsyncExitStack, asynccontextmanager

import grpc
from bookstore.v1 import books_pb2, books_pb2_grpc

from tests.history.records import BookState, History, Watcher, table_of
from tests.history.watching import Changes, Poller, RecordingWatcher
from tests.history.writers import AUTHORS, LAST_BOOK, Stubs, Writers

# Until writers and watchers go on after a fault.
_PROGRESS_SECONDS = 60
_PROGRESS_CALLS = 40
_WATCHERS_MAX = 12
_FROM_START = 3
_CHANNEL_OPTIONS = [
    ("grpc.use_local_subchannel_pool", 1),
    ("grpc.max_receive_message_length", 16 * 1024 * 1024),
    ("grpc.initial_reconnect_backoff_ms", 100),
    ("grpc.min_reconnect_backoff_ms", 100),
    ("grpc.max_reconnect_backoff_ms", 200),
]


class Recording:
    """Writers, and watchers of every kind. `history` is complete after the block of `recording`."""

    def __init__(self, stubs: Stubs, *, seed: int) -> None:
        self.history = History([], [])
        self.writers = Writers(stubs, random.Random(seed))
        self._stubs = stubs
        self._changes = Changes()
        self._chance = random.Random(seed + 1)
        self._watchers: list[RecordingWatcher] = []
        self._retired: list[RecordingWatcher] = []
        self._started = 0
        self._poller = Poller(stubs, self._changes, self._chance, name="pages")
        self._tasks: list[asyncio.Task[None]] = []

    async def begin(self) -> None:
        """Start watchers from the start of the log, on which there are a thousand books."""
        await self.writers.create_long_books()
        self._tasks = [asyncio.create_task(self._poller.run())]
        self._watch("EARLIEST")
        self._watch("EARLIEST", pause_seconds=0.02)
        self._watch_some("EARLIEST")
        self.watch_again()

    def watch_again(self) -> None:
        """Start watchers from the existing books and from now on, in place of earlier ones if there are many."""
        if len(self._watchers) > _WATCHERS_MAX:
            # Those from the start of the log stay.
            for watcher in self._watchers[_FROM_START : _FROM_START + 3]:
                watcher.retire()
                self._retired.append(watcher)
                self._watchers.remove(watcher)
        # It is slow, so that books change between two portions of the existing ones.
        self._watch("EXISTING", pause_seconds=0.05)
        self._watch_some("EXISTING")
        self._watch("NOW")

    def kill_watchers(self) -> None:
        for watcher in self._watchers:
            watcher.kill()

    async def until_progress(self) -> None:
        """Wait until calls are acknowledged, and every watcher has received something after that."""
        await self.writers.until_acknowledged(_PROGRESS_CALLS)
        responses = {watcher.record.name: watcher.responses for watcher in self._watchers}
        give_up = time.monotonic() + _PROGRESS_SECONDS
        while waiting := [
            name for watcher in self._watchers if watcher.responses <= responses[name := watcher.record.name]
        ]:
            assert time.monotonic() < give_up, f"{waiting} receive nothing"
            for task in self._tasks:
                if task.done():
                    task.result()
            await asyncio.sleep(0.01)

    async def finish(self) -> None:
        """Let the watchers end when nobody writes any more, and look at what is stored."""
        await self.writers.create_last_book()
        for watcher in self._watchers:
            watcher.is_in_a_hurry = True
        async with asyncio.timeout(_PROGRESS_SECONDS):
            await asyncio.gather(*self._tasks)
        last = Poller(self._stubs, self._changes, self._chance, name="pages at the end")
        await last.run()
        watchers = [last.record, self._poller.record, *(each.record for each in [*self._watchers, *self._retired])]
        last_number = last.record.streams[0].responses[0].changes[-1].number
        positions = await self._positions(set(_tokens_of_interest(watchers)), last_number)
        self.history = History(self.writers.writes, watchers, positions, table_of(await stored_books(self._stubs[0])))

    async def cancel(self) -> None:
        for task in self._tasks:
            task.cancel()
        await asyncio.gather(*self._tasks, return_exceptions=True)

    def _watch(self, start: str, *, pause_seconds: float = 0.0) -> None:
        name = f"all from {start}"
        self._start(
            RecordingWatcher(
                self._stubs, self._changes, self._chance, name=name, start=start, pause_seconds=pause_seconds
            )
        )

    def _watch_some(self, start: str) -> None:
        """Start a watcher with a filter, which books begin to match, and no longer match, by updates."""
        self._start(
            RecordingWatcher(
                self._stubs,
                self._changes,
                self._chance,
                name=f"some from {start}",
                start=start,
                filter=f'author = {AUTHORS[0]} AND (release_year < 1000 OR name = "{LAST_BOOK}")',
                matches=lambda book: (
                    book.author == AUTHORS[0] and (book.release_year < 1_000 or book.name == LAST_BOOK)
                ),
            )
        )

    def _start(self, watcher: RecordingWatcher) -> None:
        self._started += 1
        watcher.record.name = f"watcher {self._started}, {watcher.record.name}"
        self._watchers.append(watcher)
        self._tasks.append(asyncio.create_task(watcher.run()))

    async def _positions(self, tokens: Iterable[str], last_number: int) -> dict[str, int]:
        """Return the number after which each token continues: that before the next change, whatever it is."""

        async def position(token: str) -> int:
            request = books_pb2.ListBookChangesRequest(page_token=token, page_size=1)
            page = await self._stubs[0].ListBookChanges(request, timeout=30)
            return page.changes[0].number - 1 if page.changes else last_number

        return {token: await position(token) for token in tokens}


def _tokens_of_interest(watchers: Iterable[Watcher]) -> Iterator[str]:
    """Yield the tokens with which a watcher has resumed, those of checkpoints, and the first after existing books.

    A token among the existing books has no position in the log.
    """
    for watcher in watchers:
        for stream in watcher.streams:
            responses = [each for each in stream.responses if each.existing_sent]
            yield from (each.token for each in responses if not each.changes or each is responses[0])
            if stream.resumed_at and (resumed := watcher.response(stream.resumed_at)).existing_sent:
                yield resumed.token


@asynccontextmanager
async def recording(targets: Sequence[str], *, seed: int = 0) -> AsyncIterator[Recording]:
    """Record what happens at these servers in a block. A target that is named twice gets two connections."""
    async with connections(targets) as stubs:
        recorded = Recording(stubs, seed=seed)
        try:
            await recorded.begin()
            async with recorded.writers.writing():
                yield recorded
            await recorded.finish()
        finally:
            await recorded.cancel()


@asynccontextmanager
async def connections(targets: Sequence[str]) -> AsyncIterator[Stubs]:
    """Yield a stub for each target, with a connection of its own."""
    async with AsyncExitStack() as stack:
        stubs: list[books_pb2_grpc.BookServiceAsyncStub] = []
        for target in targets:
            channel = await stack.enter_async_context(grpc.aio.insecure_channel(target, options=_CHANNEL_OPTIONS))
            stubs.append(books_pb2_grpc.BookServiceStub(channel))
        yield stubs


async def stored_books(stub: "books_pb2_grpc.BookServiceAsyncStub") -> list[BookState]:
    """Return all books, while nobody writes."""
    request, books = books_pb2.ListBooksRequest(page_size=1_000), list[BookState]()
    while True:
        page = await stub.ListBooks(request, timeout=30)
        books += map(BookState.of, page.books)
        if not page.next_page_token:
            return books
        request.page_token = page.next_page_token
