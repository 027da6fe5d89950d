"""Admission control: load shedding beyond a number of concurrent calls, and backpressure beyond a rate of rejections.

A call that the transport has handed over costs half as much to reject as to serve. Under several times the load that a
server can bear it would do nothing else. So beyond some rejections a second, calls are left with the transport, if it
can hold them back: gRPC keeps a bounded number waiting and turns away the others at next to no cost.
"""

import asyncio
import time
from collections.abc import Callable

from bookstore_grpc.errors import ResourceExhausted

# About a tenth of a core.
_REJECTIONS_PER_SECOND = 500
_REJECTIONS_AT_ONCE = 500
_RETRY_SECONDS = 0.01


class Admission:
    """Counts the calls under way and rejects those beyond `max_concurrent_calls`.

    `now` is a monotonic clock in seconds.
    """

    def __init__(self, *, max_concurrent_calls: int = 500, now: Callable[[], float] = time.monotonic) -> None:
        self._max_concurrent_calls = max_concurrent_calls
        self._now = now
        self._under_way = 0
        self._rejections_left = float(_REJECTIONS_AT_ONCE)
        self._counted_at = now()
        self._held_back: list[asyncio.Future[None]] = []

    @property
    def has_backlog(self) -> bool:
        """Whether calls are held back in the transport."""
        return bool(self._held_back)

    def enter(self) -> None:
        """Count a call as under way, whether it is rejected or not."""
        self._under_way += 1

    def leave(self) -> None:
        """Note that a call has ended."""
        self._under_way -= 1
        self._wake_all()

    def check_room(self) -> None:
        """Raise `ResourceExhausted` if more calls are under way than allowed."""
        if self._under_way > self._max_concurrent_calls:
            # Calls over HTTP cannot be held back, and must not use up the rejections of those that can.
            self._rejections_left = max(0.0, self._rejections_left - 1)
            raise ResourceExhausted("The server has too many calls under way; try again.", limit="concurrent_calls")

    def may_receive(self) -> bool:
        """Return whether there is room for another call, or the time to reject it."""
        if self._under_way < self._max_concurrent_calls:
            return True
        now = self._now()
        earned = (now - self._counted_at) * _REJECTIONS_PER_SECOND
        self._rejections_left = min(_REJECTIONS_AT_ONCE, self._rejections_left + earned)
        self._counted_at = now
        return self._rejections_left >= 1

    async def until_may_receive(self) -> None:
        """Wait until `may_receive`."""
        while not self.may_receive():
            loop = asyncio.get_running_loop()
            if not self._held_back:
                loop.call_later(_RETRY_SECONDS, self._wake_all)
            held_back = loop.create_future()
            self._held_back.append(held_back)
            await held_back

    def _wake_all(self) -> None:
        """Let all that wait check again; those in excess go on waiting."""
        if self._held_back:
            for held_back in self._held_back:
                if not held_back.done():
                    held_back.set_result(None)
            self._held_back.clear()
