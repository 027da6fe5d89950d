"""Watchers that record what they receive, resume at any server, and can be killed; and one that polls."""

import asyncio
import random
import time
from collections.abc import Callable, Sequence

import grpc
from bookstore.v1 import books_pb2

from tests.history.records import BookState, Change, Place, Response, Stream, Watcher
from tests.history.writers import LAST_BOOK, Stubs

_RESUME_SECONDS = 0.05
_CHECKPOINT_SECONDS = 1
# How many of the last responses a watcher that is killed may not have stored.
_LOST_MAX = 3


class Changes:
    """The changes that watchers receive, each of which is decoded and kept once."""

    def __init__(self) -> None:
        self._known: dict[bytes, Change] = {}

    def decode(self, messages: Sequence[books_pb2.BookChange]) -> list[Change]:
        found = []
        for message in messages:
            key = message.SerializeToString(deterministic=True)
            if key not in self._known:
                self._known[key] = Change.of(message)
            found.append(self._known[key])
        return found


class RecordingWatcher:
    """Receives until the last book comes. `pause_seconds` is how long it takes over a response."""

    def __init__(
        self,
        stubs: Stubs,
        changes: Changes,
        chance: random.Random,
        *,
        name: str,
        start: str,
        filter: str = "",
        matches: Callable[[BookState], bool] | None = None,
        pause_seconds: float = 0.0,
    ) -> None:
        self.record = Watcher(name, start, matches)
        self.responses = 0
        self.is_in_a_hurry = False
        self._stubs = stubs
        self._changes = changes
        self._chance = chance
        self._request = books_pb2.WatchBooksRequest(filter=filter, start=books_pb2.WatchBooksRequest.Start.Value(start))
        self._request.checkpoint_interval.seconds = _CHECKPOINT_SECONDS
        self._pause_seconds = pause_seconds
        self._call: grpc.aio.UnaryStreamCall[books_pb2.WatchBooksRequest, books_pb2.WatchBooksResponse] | None = None
        self._is_killed = False

    def kill(self) -> None:
        """End the stream, and forget some of the last responses, as a watcher does that had not stored them yet."""
        if self._call is not None:
            self._is_killed = True
            self._call.cancel()

    def retire(self) -> None:
        """End without the last book."""
        self.record.is_complete = False
        self.kill()

    async def run(self) -> None:
        place: Place | None = None
        while self.record.is_complete:
            stream = Stream(opened=time.monotonic(), resumed_at=place)
            self.record.streams.append(stream)
            self._request.resume_token = self.record.response(place).token if place else ""
            self._call = self._chance.choice(self._stubs).WatchBooks(self._request)
            try:
                if await self._receive(stream):
                    return
                stream.error = "OK"
            except grpc.aio.AioRpcError as error:
                stream.error = error.code().name
                if error.code() not in (grpc.StatusCode.UNAVAILABLE, grpc.StatusCode.CANCELLED):
                    stream.error += f" {error.details()}"
            except asyncio.CancelledError:
                if not self._is_killed:
                    raise
            self._call = None
            place = self._place_after(stream)
            self._is_killed = False
            await asyncio.sleep(_RESUME_SECONDS)

    async def _receive(self, stream: Stream) -> bool:
        """Receive until the stream ends, or the last book comes, for which it returns true."""
        assert self._call is not None
        async for message in self._call:
            changes = self._changes.decode(message.changes)
            response = Response(
                changes, message.resume_token, message.continues, message.existing_sent, at=time.monotonic()
            )
            stream.responses.append(response)
            self.responses += 1
            if any(change.book.name == LAST_BOOK for change in changes):
                self._call.cancel()
                return True
            if self._pause_seconds and not self.is_in_a_hurry:
                await asyncio.sleep(self._pause_seconds)
        return False

    def _place_after(self, stream: Stream) -> Place | None:
        if not stream.responses:
            return stream.resumed_at
        lost = self._chance.randint(0, _LOST_MAX) if self._is_killed else 0
        return Place(len(self.record.streams) - 1, max(0, len(stream.responses) - 1 - lost))


class Poller:
    """Reads pages of ListBookChanges until the last book comes. Pages divide calls, so they are recorded as one."""

    def __init__(self, stubs: Stubs, changes: Changes, chance: random.Random, *, name: str) -> None:
        self._response = Response([], "")
        self.record = Watcher(name, streams=[Stream(responses=[self._response])])
        self.responses = 0
        self._stubs = stubs
        self._changes = changes
        self._chance = chance

    async def run(self) -> None:
        request = books_pb2.ListBookChangesRequest()
        while not any(change.book.name == LAST_BOOK for change in self._response.changes[-1_000:]):
            request.page_size = self._chance.randint(1, 1_000)
            try:
                page = await self._chance.choice(self._stubs).ListBookChanges(request, timeout=10)
            except grpc.aio.AioRpcError as error:
                if error.code() not in (grpc.StatusCode.UNAVAILABLE, grpc.StatusCode.DEADLINE_EXCEEDED):
                    raise
                await asyncio.sleep(_RESUME_SECONDS)
                continue
            self._response.changes += self._changes.decode(page.changes)
            request.page_token = self._response.token = page.next_page_token
            self.responses += 1
            if not page.more_changes:
                await asyncio.sleep(_RESUME_SECONDS)
