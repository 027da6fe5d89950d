"""A bulkhead: bounds how many slow reads run at once, so that they leave connections to fast ones."""

import asyncio
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager

from bookstore_grpc.errors import ResourceExhausted


class Bulkhead:
    """Admits at most `at_once` callers, in order of arrival; at most `waiting_max` wait, each for `wait_seconds`.

    `limit` names in a word what is bounded, for the callers that are rejected.
    """

    def __init__(self, limit: str, *, at_once: int, waiting_max: int, wait_seconds: float) -> None:
        self._limit = limit
        self._slots = asyncio.Semaphore(at_once)
        self._waiting_max = waiting_max
        self._wait_seconds = wait_seconds
        self._waiting = 0
        self.running = 0

    @asynccontextmanager
    async def slot(self) -> AsyncIterator[None]:
        """Hold a slot. Raises `ResourceExhausted` if too many wait, or after `wait_seconds`."""
        if self._slots.locked():
            await self._wait()
        else:
            await self._slots.acquire()
        self.running += 1
        try:
            yield
        finally:
            self.running -= 1
            self._slots.release()

    async def _wait(self) -> None:
        if self._waiting >= self._waiting_max:
            raise self._exhausted()
        self._waiting += 1
        try:
            async with asyncio.timeout(self._wait_seconds):
                await self._slots.acquire()
        except TimeoutError:
            raise self._exhausted() from None
        finally:
            self._waiting -= 1

    def _exhausted(self) -> ResourceExhausted:
        return ResourceExhausted(f"Too many {self._limit} are under way; try again.", limit=self._limit)
