"""Responses that a draining server holds back until it has sent GOAWAY (docs/decisions/0015-drain.md)."""

import asyncio
from collections.abc import AsyncIterator, Callable
from contextlib import asynccontextmanager

from bookstore_grpc.calls.call import Call
from bookstore_grpc.limits import HELD_RESPONSES_MAX_BYTES

# The clients count as quiet, waiting for their held responses, after an interval without a received call. A client on a
# slow network or a busy machine may take longer to send its next call.
_QUIET_SECONDS = 0.1
_QUIET_CHECKS_MAX = 15
# Responses are not held for callers whose deadline could expire in the meantime.
_LEAST_REMAINING_SECONDS = 2
# The approximate memory of a held call in addition to its response.
_HELD_CALL_BYTES = 16 * 1024


class HeldResponses:
    """Holds back the responses of unary gRPC calls at the start of a drain.

    A caller that waits for a response sends nothing, and a client that does not wait queues further calls when its
    connection has reached its limit of calls. So hardly any request is in transit when GOAWAY is sent, and connections
    can be closed without losing calls. In the meantime calls are still accepted and run.
    """

    def __init__(self, *, count_received: Callable[[], int]) -> None:
        self._count_received = count_received
        self._release: asyncio.Event | None = None
        self._held_bytes = 0

    @asynccontextmanager
    async def holding(self) -> AsyncIterator[None]:
        """Hold responses until the end of the block. The block starts when the clients are quiet, or after 1.5 s."""
        self._release = asyncio.Event()
        try:
            await self._until_quiet()
            yield
        finally:
            self._release.set()
            self._release = None

    async def wait(self, call: Call) -> None:
        """Wait while responses are held, unless the caller's deadline is near or the memory limit is reached."""
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
