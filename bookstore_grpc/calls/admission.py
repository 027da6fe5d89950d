"""Admission control: load shedding beyond a number of concurrent calls, and backpressure beyond a rate of rejections.

Rejecting a call in the process costs half as much as serving it. Under several times the load that a server can handle,
it would spend all its time on rejections. So beyond some rejections per second no further calls are accepted from the
transport, if it supports that: gRPC queues a bounded number of calls and rejects the others at almost no cost
(docs/decisions/0010).
"""

import asyncio
import time
from collections.abc import Callable

from bookstore_grpc.errors import ResourceExhausted

# About a tenth of a core.
_REJECTIONS_PER_SECOND = 500
_REJECTIONS_BURST = 500
_RETRY_SECONDS = 0.01
# A call that was received is counted after these turns of the event loop. At most this many are not counted yet: two of
# each method.
_TURNS_TO_ENTER = 2
_NOT_ENTERED_MAX = 32


class Admission:
    """Counts the calls in progress and rejects those beyond `max_concurrent_calls`.

    `now` is a monotonic clock in seconds.
    """

    def __init__(self, *, max_concurrent_calls: int = 500, now: Callable[[], float] = time.monotonic) -> None:
        self._max_concurrent_calls = max_concurrent_calls
        self._now = now
        self._in_progress = 0
        self._rejections_left = float(_REJECTIONS_BURST)
        self._counted_at = now()
        self._held_back: list[asyncio.Future[None]] = []

    @property
    def has_backlog(self) -> bool:
        """Whether calls are waiting in the transport (backpressure)."""
        return bool(self._held_back)

    def enter(self) -> None:
        """Count a call as in progress, whether it is then rejected or not."""
        self._in_progress += 1

    def leave(self) -> None:
        """Stop counting a call that has ended."""
        self._in_progress -= 1
        self._wake_all()

    def check_capacity(self) -> None:
        """Raise `ResourceExhausted` if more calls are in progress than allowed."""
        if self._in_progress > self._max_concurrent_calls:
            # Not below 0: calls over HTTP, which cannot be held back, must not use up the rejections of gRPC's calls.
            self._rejections_left = max(0.0, self._rejections_left - 1)
            raise ResourceExhausted("The server has too many calls in progress; try again.", limit="concurrent_calls")

    def may_receive(self) -> bool:
        """Return whether another call may be received: there is capacity for it, or for its rejection."""
        if self._in_progress < self._max_concurrent_calls:
            return True
        now = self._now()
        earned = (now - self._counted_at) * _REJECTIONS_PER_SECOND
        self._rejections_left = min(_REJECTIONS_BURST, self._rejections_left + earned)
        self._counted_at = now
        return self._rejections_left >= 1

    async def until_may_receive(self) -> None:
        """Wait until `may_receive` returns True. Near the limit, first wait until the calls received have entered."""
        if self._in_progress + _NOT_ENTERED_MAX < self._max_concurrent_calls:
            return
        for _ in range(_TURNS_TO_ENTER):
            await asyncio.sleep(0)
        while not self.may_receive():
            loop = asyncio.get_running_loop()
            if not self._held_back:
                loop.call_later(_RETRY_SECONDS, self._wake_all)
            held_back = loop.create_future()
            self._held_back.append(held_back)
            await held_back

    def _wake_all(self) -> None:
        """Make all waiting tasks check again; those beyond the capacity continue to wait."""
        if self._held_back:
            for held_back in self._held_back:
                if not held_back.done():
                    held_back.set_result(None)
            self._held_back.clear()
