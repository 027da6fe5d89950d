"""The calls in progress, and what ends them: their deadlines, and the drain of a server."""

import asyncio
import math
import time
from typing import Any

from bookstore_grpc.errors import CallInterrupted, ServerDraining

_CANCEL_SECONDS = 1
# The event loop's clock has this resolution, so its timer may fire this much early.
_CLOCK_SECONDS = 0.001


class CallsInProgress:
    """The tasks of the calls in progress: unary calls, which a drain waits for, and streams, which it ends.

    One timer cancels them at their deadlines (docs/decisions/0021-cost-of-a-call.md).
    """

    def __init__(self) -> None:
        self.is_draining = False
        self._is_cancelling_all = False
        self._ends_at: dict[asyncio.Task[Any], float] = {}  # of all calls
        self._streams: set[asyncio.Task[Any]] = set()
        self._late: set[asyncio.Task[Any]] = set()
        self._timer: asyncio.TimerHandle | None = None
        self._timer_at = math.inf

    def add(self, task: asyncio.Task[Any], *, ends_at: float, is_stream: bool) -> None:
        """Register the task of a call, to be cancelled at `ends_at` (`time.perf_counter`)."""
        self._ends_at[task] = ends_at
        if is_stream:
            self._streams.add(task)
        if ends_at < self._timer_at:
            self._start_timer(ends_at)

    def discard(self, task: asyncio.Task[Any]) -> None:
        """Unregister the task of a call that has ended."""
        self._ends_at.pop(task, None)
        self._streams.discard(task)
        if task in self._late:
            self._late.discard(task)
            task.uncancel()

    def is_late(self, task: asyncio.Task[Any]) -> bool:
        """Return whether a task was cancelled at its deadline, and by nothing else."""
        return task in self._late and task.cancelling() == 1

    async def drain(self, *, grace_seconds: float) -> bool:
        """Cancel the streams, which may be endless, and wait for the unary calls.

        Unary calls still in progress after `grace_seconds` are cancelled too. Returns whether all calls ended in time.
        """
        self.is_draining = True
        for task in self._streams:
            task.cancel()
        if await self._have_ended(grace_seconds):
            return True
        self._is_cancelling_all = True
        for task in self._ends_at:
            task.cancel()
        await self._have_ended(_CANCEL_SECONDS)
        return False

    def cancelled_by_drain(self, *, is_stream: bool) -> CallInterrupted | ServerDraining | None:
        """Return the error of a call that the drain has cancelled, or None if the drain has not cancelled it."""
        if is_stream:
            return ServerDraining() if self.is_draining else None  # streams only report, so nothing is left unfinished
        return CallInterrupted() if self._is_cancelling_all else None

    def _start_timer(self, ends_at: float) -> None:
        if self._timer:
            self._timer.cancel()
        self._timer_at = ends_at
        self._timer = asyncio.get_running_loop().call_later(ends_at - time.perf_counter(), self._cancel_late)

    def _cancel_late(self) -> None:
        """Cancel the calls whose deadline has passed, and start the timer for the next deadline."""
        late_at = time.perf_counter() + _CLOCK_SECONDS
        next_at = math.inf
        for task, ends_at in self._ends_at.items():
            if ends_at > late_at:
                next_at = min(next_at, ends_at)
            elif task not in self._late:
                self._late.add(task)
                task.cancel()
        self._timer, self._timer_at = None, math.inf
        if next_at < math.inf:
            self._start_timer(next_at)

    async def _have_ended(self, seconds: float) -> bool:
        try:
            async with asyncio.timeout(seconds):
                while self._ends_at:
                    await asyncio.wait(self._ends_at)
        except TimeoutError:
            return False
        return True
