"""Periodic background work."""

import asyncio
from collections.abc import Awaitable, Callable
from contextlib import suppress

import structlog

_log = structlog.stdlib.get_logger("bookstore_grpc.net.periodic")


class PeriodicTask:
    """Runs `work` at an interval from its start to its stop. An exception is logged, and the next run is tried."""

    def __init__(self, name: str, work: Callable[[], Awaitable[None] | None], *, every_seconds: float) -> None:
        self._name = name
        self._work = work
        self._every_seconds = every_seconds
        self._task: asyncio.Task[None] | None = None

    async def start(self) -> None:
        """Begin; the first run is after one interval."""
        self._task = asyncio.create_task(self._repeat())

    async def stop(self) -> None:
        """Cancel the run under way, and start no other."""
        if self._task is not None:
            self._task.cancel()
            with suppress(asyncio.CancelledError):
                await self._task

    async def _repeat(self) -> None:
        while True:
            await asyncio.sleep(self._every_seconds)
            try:
                waiting = self._work()
                if waiting is not None:
                    await waiting
            except Exception:  # no caller may be affected by it
                _log.warning("background work failed", work=self._name, exc_info=True)
