"""Database calls in separate tasks, so that a cancelled caller does not wait for them."""

import asyncio
from collections.abc import Coroutine
from contextlib import suppress
from typing import Any, TypeVar

T = TypeVar("T")


class DetachedTasks:
    """The database calls in progress.

    A SQLite statement runs in a thread: if its task were cancelled, the connection would stay open and the file locked
    until garbage collection. So on SQLite (`cancels=False`) the calls of a cancelled caller run to completion. On other
    databases they are cancelled, which may take seconds if the server does not respond.
    """

    def __init__(self, *, cancels: bool) -> None:
        self._cancels = cancels
        self._tasks: set[asyncio.Task[Any]] = set()

    async def run(self, calls: Coroutine[Any, Any, T]) -> T:
        """Await database calls. If cancelled, it returns immediately, and the calls end in the background."""
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
            task.exception()  # mark it as retrieved, or asyncio would log it
