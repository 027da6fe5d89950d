"""The calls under way, and how a server that shuts down ends them."""

import asyncio
from typing import Any

from bookstore_grpc.errors import CallInterrupted, ServerDraining

_CANCEL_SECONDS = 1


class CallsUnderWay:
    """The tasks of the calls under way: unary calls, which a drain waits for, and streams, which it ends."""

    def __init__(self) -> None:
        self.is_draining = False
        self._is_cancelling_all = False
        self._unary_calls: set[asyncio.Task[Any]] = set()
        self._streams: set[asyncio.Task[Any]] = set()

    def add(self, task: asyncio.Task[Any], *, is_stream: bool) -> None:
        """Register the task of a call."""
        (self._streams if is_stream else self._unary_calls).add(task)

    def discard(self, task: asyncio.Task[Any], *, is_stream: bool) -> None:
        """Unregister the task of a call that has ended."""
        (self._streams if is_stream else self._unary_calls).discard(task)

    async def drain(self, *, grace_seconds: float) -> bool:
        """Cancel the streams, which have no end of their own, and wait for the unary calls; then cancel the rest.

        Return whether the unary calls ended by themselves.
        """
        self.is_draining = True
        for task in self._streams:
            task.cancel()
        if await self._have_ended(grace_seconds):
            return True
        self._is_cancelling_all = True
        for task in self._unary_calls | self._streams:
            task.cancel()
        await self._have_ended(_CANCEL_SECONDS)
        return False

    def cancelled_by_drain(self, *, is_stream: bool) -> CallInterrupted | ServerDraining | None:
        """Return the error of a call that the drain cancels, or None if the drain does not cancel such calls (yet)."""
        if is_stream:
            return ServerDraining() if self.is_draining else None  # streams only report; nothing is left half done
        return CallInterrupted() if self._is_cancelling_all else None

    async def _have_ended(self, seconds: float) -> bool:
        try:
            async with asyncio.timeout(seconds):
                while calls := self._unary_calls | self._streams:
                    await asyncio.wait(calls)
        except TimeoutError:
            return False
        return True
