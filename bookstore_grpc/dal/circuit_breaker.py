"""The circuit breaker: calls fail fast while the health probe finds the database unavailable."""

import asyncio
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager

from bookstore_grpc.errors import DatabaseUnavailable

#: The message to a caller whose wait was cut short.
NO_RESPONSE = "The database does not respond; try again."

# The time limit of a call while the breaker is open: long enough for a call to succeed if the database is back.
_TRIAL_SECONDS = 1


class CircuitBreaker:
    """Bounds the waits for a database between `trip` and `reset`, which the health probe calls.

    A database whose host is down or whose network is cut sends no error, so without this a call would wait until its
    deadline.
    """

    def __init__(self) -> None:
        self._is_open = False
        self._waits: set[asyncio.Timeout] = set()

    def trip(self) -> None:
        """Open the breaker: end every current wait, and limit later ones to one second."""
        self._is_open = True
        for wait in self._waits:
            if not wait.expired():
                wait.reschedule(0)

    def reset(self) -> None:
        """Close the breaker: later calls may wait without a limit again."""
        self._is_open = False

    @asynccontextmanager
    async def bounded_wait(self) -> AsyncIterator[None]:
        """Bound a wait for the database. Raises `DatabaseUnavailable` when the breaker opens or the time limit ends."""
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
