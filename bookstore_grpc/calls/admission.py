"""Admission: how many calls a server takes in, and that it takes in no more than it can refuse in passing.

A call that gRPC has handed over costs half as much to refuse as to answer. Under several times the load that a server
can bear it would do nothing else. So beyond some refusals a second, calls are left with gRPC, which keeps a bounded
number waiting and turns away the others at next to no cost.
"""

import asyncio
import time
from collections.abc import Callable, Coroutine
from contextvars import ContextVar, copy_context
from typing import Any

import grpc

from bookstore_grpc.errors import ResourceExhausted

# About a tenth of a core.
_REFUSALS_PER_SECOND = 500
_REFUSALS_AT_ONCE = 500
_LOOK_AGAIN_SECONDS = 0.01

# What grpc.aio calls the coroutine that asks its core for the next call of a method. Under another name calls would be
# taken in whatever is under way, which tests/calls/test_admission.py would show.
_ASKING_FOR_A_CALL = "AioServer._request_registered_call"

_admission: ContextVar["Admission | None"] = ContextVar("admission", default=None)


class Admission:
    """Counts the calls under way and refuses those beyond `max_concurrent_calls`.

    `now` answers seconds that never go back.
    """

    def __init__(self, *, max_concurrent_calls: int = 500, now: Callable[[], float] = time.monotonic) -> None:
        self._max_concurrent_calls = max_concurrent_calls
        self._now = now
        self._under_way = 0
        self._refusals_left = float(_REFUSALS_AT_ONCE)
        self._counted_at = now()
        self._held_back: list[asyncio.Future[None]] = []

    @property
    def has_backlog(self) -> bool:
        """Whether calls that have come are left with gRPC."""
        return bool(self._held_back)

    def enter(self) -> None:
        """Count a call as under way, be it refused or not."""
        self._under_way += 1

    def leave(self) -> None:
        """Take note that a call has ended."""
        self._under_way -= 1
        self._let_in()

    def check_room(self) -> None:
        """Raise `ResourceExhausted` if more calls are under way than may be."""
        if self._under_way > self._max_concurrent_calls:
            # Calls over HTTP come unasked, and are not to be refused at the cost of those that wait with gRPC.
            self._refusals_left = max(0.0, self._refusals_left - 1)
            raise ResourceExhausted("The server has too many calls under way; try again.", limit="concurrent_calls")

    async def start(self, server: grpc.aio.Server) -> None:
        """Start a gRPC server, and decide from now on when it asks its core for calls.

        The loop gets a task factory, in place of one that it may have had.
        """
        context = copy_context()
        context.run(_admission.set, self)
        loop = asyncio.get_running_loop()
        loop.set_task_factory(_task)
        await loop.create_task(server.start(), context=context)

    def may_ask(self) -> bool:
        """Tell whether there is room for a call, or the time to refuse it."""
        if self._under_way < self._max_concurrent_calls:
            return True
        now = self._now()
        earned = (now - self._counted_at) * _REFUSALS_PER_SECOND
        self._refusals_left = min(_REFUSALS_AT_ONCE, self._refusals_left + earned)
        self._counted_at = now
        return self._refusals_left >= 1

    async def ask_in_time(self, asking: Coroutine[Any, Any, Any]) -> Any:
        """Ask for a call when it may come."""
        try:
            while not self.may_ask():
                loop = asyncio.get_running_loop()
                if not self._held_back:
                    loop.call_later(_LOOK_AGAIN_SECONDS, self._let_in)
                held_back = loop.create_future()
                self._held_back.append(held_back)
                await held_back
        except asyncio.CancelledError:  # the server ends
            asking.close()
            raise
        return await asking

    def _let_in(self) -> None:
        """Let all look again who were held back; those in excess hold back themselves."""
        if self._held_back:
            for held_back in self._held_back:
                if not held_back.done():
                    held_back.set_result(None)
            self._held_back.clear()


def _task(loop: asyncio.AbstractEventLoop, coroutine: Any, **options: Any) -> "asyncio.Task[Any]":
    # The tasks of a server have the context in which it was started.
    admission = _admission.get()
    if (
        admission is not None
        and getattr(coroutine, "__qualname__", "") == _ASKING_FOR_A_CALL
        and not admission.may_ask()
    ):
        coroutine = admission.ask_in_time(coroutine)
    return asyncio.Task(coroutine, loop=loop, **options)
