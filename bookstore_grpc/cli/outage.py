"""Retries that let a running import or export survive a restart of the server, its host or its database."""

import asyncio
import time
from collections.abc import Awaitable, Callable
from typing import TypeVar

import click

from bookstore_grpc.errors import DeadlineExceeded, Unavailable

# With the default timeout, retry for a minute. A longer outage needs an operator.
_OUTAGE_TIMEOUTS = 6
_RETRY_SECONDS = 1

_Response = TypeVar("_Response")


class OutageRetry:
    """Repeats an idempotent call during an outage of at most `_OUTAGE_TIMEOUTS` times `timeout_seconds`.

    `timeout_seconds` is the client's timeout for each call. At least one retry is made.
    """

    def __init__(self, timeout_seconds: float) -> None:
        self._outage_seconds = max(_OUTAGE_TIMEOUTS * timeout_seconds, 2 * _RETRY_SECONDS)

    async def __call__(self, call: Callable[[], Awaitable[_Response]]) -> _Response:
        """Return the result of a call. Raises the last error when the outage lasts too long."""
        give_up_at: float | None = None
        while True:
            started = time.monotonic()
            try:
                return await call()
            except (Unavailable, DeadlineExceeded):
                if give_up_at is None:
                    give_up_at = started + self._outage_seconds
                    shown = f"{self._outage_seconds:,.1f}".removesuffix(".0")
                    click.echo(f"The service is not responding; retrying for {shown} s.", err=True)
                if time.monotonic() + _RETRY_SECONDS >= give_up_at:
                    raise
            await asyncio.sleep(_RETRY_SECONDS)
