"""A bulkhead: what may take long is done by a few at a time, so that it leaves room for what is short."""

import asyncio
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager

from bookstore_grpc.errors import ResourceExhausted


class Bulkhead:
    """Lets `at_once` of those that come go on, in their order, and `most_waiting` wait, for `wait_seconds` at most.

    `limit` says what there is too much of to those who are refused, in a word.
    """

    def __init__(self, limit: str, *, at_once: int, most_waiting: int, wait_seconds: float) -> None:
        self._limit = limit
        self._slots = asyncio.Semaphore(at_once)
        self._most_waiting = most_waiting
        self._wait_seconds = wait_seconds
        self._waiting = 0
        self.under_way = 0

    @asynccontextmanager
    async def slot(self) -> AsyncIterator[None]:
        """Surround what needs a slot. Raises `ResourceExhausted` where too many wait, or it would wait too long."""
        if self._slots.locked():
            await self._wait()
        else:
            await self._slots.acquire()
        self.under_way += 1
        try:
            yield
        finally:
            self.under_way -= 1
            self._slots.release()

    async def _wait(self) -> None:
        if self._waiting >= self._most_waiting:
            raise self._refusal()
        self._waiting += 1
        try:
            async with asyncio.timeout(self._wait_seconds):
                await self._slots.acquire()
        except TimeoutError:
            raise self._refusal() from None
        finally:
            self._waiting -= 1

    def _refusal(self) -> ResourceExhausted:
        return ResourceExhausted(f"Too many {self._limit} are under way; try again.", limit=self._limit)
