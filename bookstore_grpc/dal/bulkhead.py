"""A bulkhead: limits the number of concurrent slow reads, so that connections remain for fast ones."""

import asyncio
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager

from bookstore_grpc.errors import ResourceExhausted


class Bulkhead:
    """Admits `max_concurrent` callers at a time, in order of arrival.

    At most `waiting_max` callers wait, each for at most `wait_seconds`. `limit` is the name of the limit in the error.
    """

    def __init__(self, limit: str, *, max_concurrent: int, waiting_max: int, wait_seconds: float) -> None:
        self._limit = limit
        self._slots = asyncio.Semaphore(max_concurrent)
        self._waiting_max = waiting_max
        self._wait_seconds = wait_seconds
        self._waiting = 0
        self.running = 0

    @asynccontextmanager
    async def slot(self) -> AsyncIterator[None]:
        """Hold a slot. Raises `ResourceExhausted` if too many callers wait, or after `wait_seconds`."""
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
        return ResourceExhausted(f"Too many {self._limit} are in progress; try again.", limit=self._limit)
