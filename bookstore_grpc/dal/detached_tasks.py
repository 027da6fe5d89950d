"""Database calls in tasks of their own, so that a cancelled caller need not wait for their end."""

import asyncio
from collections.abc import Coroutine
from contextlib import suppress
from typing import Any, TypeVar

T = TypeVar("T")


class DetachedTasks:
    """The database calls under way.

    A SQLite statement runs in a thread: if its task were cancelled, the connection would stay open and the file locked
    until the garbage collector ran. So on SQLite (`cancels=False`) abandoned calls run to their end. Elsewhere they are
    cancelled, and may take seconds to disconnect from a server that does not respond.
    """

    def __init__(self, *, cancels: bool) -> None:
        self._cancels = cancels
        self._tasks: set[asyncio.Task[Any]] = set()

    async def run(self, calls: Coroutine[Any, Any, T]) -> T:
        """Await database calls. If this is cancelled it ends at once, and the calls in the background."""
        task = self.start(calls)
        try:
            return await asyncio.shield(task)
        finally:
            if self._cancels:
                task.cancel()

    def start(self, calls: Coroutine[Any, Any, T]) -> "asyncio.Task[T]":
        """Start database calls in the background."""
        task = asyncio.create_task(calls)
        self._tasks.add(task)
        task.add_done_callback(self._on_done)
        return task

    async def wait(self, *, seconds: float) -> None:
        """Wait until all calls have ended, those included that they start at their end, but at most so long."""
        with suppress(TimeoutError):
            async with asyncio.timeout(seconds):
                while self._tasks:
                    await asyncio.wait(self._tasks)

    def _on_done(self, task: asyncio.Task[Any]) -> None:
        self._tasks.discard(task)
        if not task.cancelled():
            task.exception()  # retrieved, or asyncio logs that nobody did
