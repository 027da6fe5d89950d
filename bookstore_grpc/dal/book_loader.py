"""Grouped reads: concurrent reads of single books share a statement (docs/decisions/0023-driver-reads.md)."""

import asyncio
from collections.abc import Awaitable, Callable, Mapping, Sequence

from bookstore_grpc.dal.records import BookRecord

_Load = Callable[[Sequence[int]], Awaitable[Mapping[int, BookRecord]]]


class _Group:
    """The reads that share a statement."""

    def __init__(self) -> None:
        self.reads: list[tuple[int, asyncio.Future[BookRecord | None]]] = []
        self.task: asyncio.Task[None] | None = None
        self.has_begun = False

    def awaited(self) -> list[tuple[int, asyncio.Future[BookRecord | None]]]:
        return [(book_id, future) for book_id, future in self.reads if not future.done()]

    def cancel_if_abandoned(self) -> None:
        if self.task and self.has_begun and not self.awaited():
            self.task.cancel()


class BookLoader:
    """Reads books one by one for its callers, and in groups from the database.

    At most `concurrent_max` groups are read at a time; the reads that arrive in the meantime form the next one. There
    is no timer: a single read starts immediately. A group is read after its calls have arrived, so a book is never
    older than at the call. If `load` fails, it fails the whole group.
    """

    def __init__(self, load: _Load, *, concurrent_max: int) -> None:
        self._load = load
        self._concurrent_max = concurrent_max
        self._running = 0
        self._next = _Group()

    async def get(self, book_id: int) -> BookRecord | None:
        """Return a book, or None if there is none with this id. Raises what `load` raises."""
        future: asyncio.Future[BookRecord | None] = asyncio.get_running_loop().create_future()
        group = self._next
        group.reads.append((book_id, future))
        self._start_next()
        try:
            return await future
        except asyncio.CancelledError:
            group.cancel_if_abandoned()
            raise

    def _start_next(self) -> None:
        if self._next.task is None and self._running < self._concurrent_max:
            self._running += 1
            self._next.task = asyncio.create_task(self._run(self._next))
            self._next.task.add_done_callback(self._on_done)

    async def _run(self, group: _Group) -> None:
        group.has_begun = True
        self._next = _Group()
        ids = {book_id for book_id, _ in group.awaited()}
        if not ids:
            return
        try:
            found = await self._load(list(ids))
        except Exception as error:
            for _, future in group.awaited():
                future.set_exception(error)
        else:
            for book_id, future in group.awaited():
                future.set_result(found.get(book_id))

    def _on_done(self, _task: asyncio.Task[None]) -> None:
        self._running -= 1
        if self._next.reads:
            self._start_next()
