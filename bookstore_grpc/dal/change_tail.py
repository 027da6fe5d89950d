"""The tail of the log of changes: one reader for all watchers of a process.

It reads what is new once, keeps it in memory, and wakes the watchers. A watcher that is further behind than what is
kept reads the log itself, at its own pace, so that it makes no memory grow.
"""

import asyncio
from collections import deque
from collections.abc import AsyncIterator, Callable, Sequence
from contextlib import asynccontextmanager, suppress
from itertools import islice

import structlog

from bookstore_grpc.dal.change_log import ChangeReader, Position
from bookstore_grpc.dal.change_signals import ChangeSignals
from bookstore_grpc.dal.records import Change, code_points_of_change
from bookstore_grpc.errors import BookstoreError
from bookstore_grpc.limits import RECENT_CHANGES_MAX, RECENT_CHANGES_MAX_CODE_POINTS

_log = structlog.stdlib.get_logger("bookstore_grpc.dal.change_tail")

# Between two reads, so that under load one read returns the changes of several transactions.
_LEAST_SECONDS_BETWEEN_READS = 0.005
# So few that a thousand watchers look at them in some ten milliseconds.
_CHANGES_WITHOUT_TURN = 16


class RecentChanges:
    """The newest changes, without a gap, up to a position. Their number and the length of their texts are bounded."""

    def __init__(self, position: Position) -> None:
        self.position = position
        self._changes: deque[Change] = deque()
        self._code_points = 0

    def add(self, changes: Sequence[Change]) -> None:
        """Add the changes that follow the position."""
        self._changes.extend(changes)
        self._code_points += sum(map(code_points_of_change, changes))
        self.position = Position.of(changes[-1])
        while len(self._changes) > RECENT_CHANGES_MAX or self._code_points > RECENT_CHANGES_MAX_CODE_POINTS:
            self._code_points -= code_points_of_change(self._changes.popleft())

    def after(self, number: int) -> Sequence[Change] | None:
        """Return all changes with higher numbers, or None if some of them are no longer here."""
        count = self.position.number - number
        if count <= 0:
            return ()
        kept = len(self._changes)
        return None if count > kept else tuple(islice(self._changes, kept - count, None))


class ChangeTail:
    """Reads the changes after a position, until it fails or is stopped."""

    def __init__(self, reader: ChangeReader, signals: ChangeSignals, position: Position) -> None:
        self._reader = reader
        self.signals = signals
        self._recent = RecentChanges(position)
        self._moved = asyncio.Event()
        self._turn = asyncio.Lock()
        self._task = asyncio.create_task(self._run())
        self.watchers = 0

    @property
    def has_ended(self) -> bool:
        """Whether reading has failed."""
        return self._task.done()

    @property
    def number(self) -> int:
        """The number of the last change that has been read."""
        return self._recent.position.number

    def after(self, number: int) -> Sequence[Change] | None:
        """Return the changes after a number that have been read, or None if some of them are no longer in memory."""
        return self._recent.after(number)

    async def wait_after(self, number: int, *, seconds: float) -> None:
        """Wait until a change after a number has been read, at most for some seconds.

        Raises what reading has raised: `DatabaseUnavailable`, or `InvalidResumeToken` if the database has lost changes
        that were read before.
        """
        with suppress(TimeoutError):
            async with asyncio.timeout(seconds):
                while self.number <= number and not self._task.done():
                    await self._moved.wait()
        if self._task.done():
            self._task.result()

    async def take_turn(self, *, count: int) -> None:
        """Wait for one's turn to look at `count` changes, if they are many.

        All watchers are woken together, and would keep the event loop busy for as long as all of them take. So no two
        of them look at many changes in the same iteration of the loop, and other calls run in between.
        """
        if count > _CHANGES_WITHOUT_TURN:
            async with self._turn:
                await asyncio.sleep(0)

    async def stop(self) -> None:
        """Stop reading."""
        self._task.cancel()
        await asyncio.wait([self._task])
        if not self._task.cancelled():
            self._task.exception()  # it is known to the watchers

    async def _run(self) -> None:
        was_signalled = True
        self._task.add_done_callback(lambda _task: self._wake())
        try:
            async with self.signals.listening():
                while True:
                    changes = await self._reader.read_after(self._recent.position)
                    if not changes:
                        was_signalled = await self.signals.wait()
                        continue
                    self._recent.add(changes)
                    self._wake()
                    if not was_signalled:
                        await self.signals.changes_missed()
                    was_signalled = True  # there may be more
                    await asyncio.sleep(_LEAST_SECONDS_BETWEEN_READS)
        except BookstoreError as error:
            _log.warning("watching changes failed", cause=repr(error.__cause__ or error))
            raise

    def _wake(self) -> None:
        moved, self._moved = self._moved, asyncio.Event()
        moved.set()


class ChangeTails:
    """Has one tail while somebody watches. `new_signals` returns what tells a tail when there may be new changes."""

    def __init__(self, reader: ChangeReader, new_signals: Callable[[], ChangeSignals]) -> None:
        self._reader = reader
        self._new_signals = new_signals
        self._tail: ChangeTail | None = None

    @property
    def number(self) -> int:
        """The number of the last change that has been read, or 0 while nobody watches."""
        return self._tail.number if self._tail else 0

    def changes_committed(self) -> None:
        """Let the tail read at once what this process has committed."""
        if self._tail:
            self._tail.signals.changes_committed()

    @asynccontextmanager
    async def watching(self, position: Position) -> AsyncIterator[ChangeTail]:
        """Provide the tail, which has all changes after a position, that of the end of the log, or will have them."""
        tail = self._tail
        if tail is None or tail.has_ended:
            tail = self._tail = ChangeTail(self._reader, self._new_signals(), position)
        tail.watchers += 1
        try:
            yield tail
        finally:
            tail.watchers -= 1
            if not tail.watchers:
                if self._tail is tail:
                    self._tail = None
                await tail.stop()
