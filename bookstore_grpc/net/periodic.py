"""Periodic background work."""

import asyncio
from collections.abc import Awaitable, Callable
from contextlib import suppress

import structlog

_log = structlog.stdlib.get_logger("bookstore_grpc.net.periodic")


class PeriodicTask:
    """Runs `work` periodically between start and stop. An exception is logged and does not prevent the next run."""

    def __init__(
        self,
        name: str,
        work: Callable[[], Awaitable[None] | None],
        *,
        every_seconds: float,
        starts_at_once: bool = False,
    ) -> None:
        self._name = name
        self._work = work
        self._every_seconds = every_seconds
        self._starts_at_once = starts_at_once
        self._task: asyncio.Task[None] | None = None

    async def start(self) -> None:
        """Start; the first run is after one interval, unless the task `starts_at_once`."""
        self._task = asyncio.create_task(self._repeat())

    async def stop(self) -> None:
        """Cancel the current run and stop."""
        if self._task is not None:
            self._task.cancel()
            with suppress(asyncio.CancelledError):
                await self._task

    async def _repeat(self) -> None:
        if not self._starts_at_once:
            await asyncio.sleep(self._every_seconds)
        while True:
            try:
                waiting = self._work()
                if waiting is not None:
                    await waiting
            except Exception:  # a failed run must not end the task
                _log.warning("background task failed", task=self._name, exc_info=True)
            await asyncio.sleep(self._every_seconds)
