"""Responses that a draining server holds back until GOAWAY has gone out (docs/decisions/0015-drain.md)."""

import asyncio
from collections.abc import AsyncIterator, Callable
from contextlib import asynccontextmanager

from bookstore_grpc.calls.call import Call
from bookstore_grpc.limits import HELD_RESPONSES_MAX_BYTES

# No call received for so long means that the held responses have quietened the clients; and how often to look. A client
# may take as long to send its next call if its network is slow or its machine busy.
_QUIET_SECONDS = 0.1
_QUIET_CHECKS_MAX = 15
# Responses are not held for callers whose deadline may expire meanwhile.
_LEAST_REMAINING_SECONDS = 2
# What a held call takes besides its response, about.
_HELD_CALL_BYTES = 16 * 1024


class HeldResponses:
    """Holds back the responses of unary gRPC calls while a drain asks for it.

    A caller that waits for a response sends nothing, and the client of one that does not wait queues its calls when its
    connection has as many under way as it may. So hardly any request is in transit, and a connection can be closed
    without losing one. Calls still start and run all the while.
    """

    def __init__(self, *, count_received: Callable[[], int]) -> None:
        self._count_received = count_received
        self._release: asyncio.Event | None = None
        self._held_bytes = 0

    @asynccontextmanager
    async def holding(self) -> AsyncIterator[None]:
        """Hold responses until the end of the block, which starts when few calls are received, or after a moment."""
        self._release = asyncio.Event()
        try:
            await self._until_quiet()
            yield
        finally:
            self._release.set()
            self._release = None

    async def wait(self, call: Call) -> None:
        """Wait while responses are held, unless the caller's deadline is near or too much is held already."""
        if self._release is None or self._held_bytes > HELD_RESPONSES_MAX_BYTES:
            return
        remaining = call.context.time_remaining()
        if remaining is not None and remaining <= _LEAST_REMAINING_SECONDS:
            return
        held_bytes = call.response_bytes + _HELD_CALL_BYTES
        self._held_bytes += held_bytes
        try:
            await self._release.wait()
        finally:
            self._held_bytes -= held_bytes

    async def _until_quiet(self) -> None:
        for _ in range(_QUIET_CHECKS_MAX):
            received = self._count_received()
            await asyncio.sleep(_QUIET_SECONDS)
            if self._count_received() == received:
                return
