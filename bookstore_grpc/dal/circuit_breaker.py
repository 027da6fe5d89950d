"""The circuit breaker: calls do not wait for a database that the probe has found unavailable."""

import asyncio
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager

from bookstore_grpc.errors import DatabaseUnavailable

#: The message to a caller whose wait was ended.
NO_RESPONSE = "The database does not respond; try again."

# The time limit of a call while the breaker is open: enough to find that the database is back.
_TRIAL_SECONDS = 1


class CircuitBreaker:
    """Bounds the waits for a database while it is unavailable, as the caller that probes it reports.

    A database whose host is down or cut off sends no error, so a call would wait for ever. The probe notices first.
    """

    def __init__(self) -> None:
        self._is_open = False
        self._waits: set[asyncio.Timeout] = set()

    def trip(self) -> None:
        """Open the breaker: end every wait now, and give later calls one second."""
        self._is_open = True
        for wait in self._waits:
            if not wait.expired():
                wait.reschedule(0)

    def reset(self) -> None:
        """Close the breaker: later calls may wait without limit again."""
        self._is_open = False

    @asynccontextmanager
    async def bounded_wait(self) -> AsyncIterator[None]:
        """Surround a wait for the database. Raises `DatabaseUnavailable` when the breaker opens or its limit ends."""
        try:
            async with asyncio.timeout(_TRIAL_SECONDS if self._is_open else None) as wait:
                self._waits.add(wait)
                try:
                    yield
                finally:
                    self._waits.discard(wait)
        except TimeoutError:
            late = TimeoutError("it did not respond in time")  # asyncio's own has no text
            raise DatabaseUnavailable(NO_RESPONSE) from late
