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
        self._reported_at: float | None = None

    async def __call__(self, call: Callable[[], Awaitable[_Response]]) -> _Response:
        """Return the result of a call. Raises the last error when the outage lasts too long."""
        started = began = time.monotonic()
        while True:
            try:
                response = await call()
            except (Unavailable, DeadlineExceeded):
                is_first_attempt = began == started
                if not is_first_attempt and time.monotonic() + _RETRY_SECONDS >= started + self._outage_seconds:
                    raise
                self._report()
            else:
                # One that was sent before the outage may end during it.
                if self._reported_at is not None and began > self._reported_at:
                    self._reported_at = None
                return response
            await asyncio.sleep(_RETRY_SECONDS)
            began = time.monotonic()

    def _report(self) -> None:
        """Report the outage, unless another of the calls in flight has."""
        if self._reported_at is None:
            self._reported_at = time.monotonic()
            shown = f"{self._outage_seconds:,.1f}".removesuffix(".0")
            click.echo(f"The service is not responding; retrying for {shown} s.", err=True)
