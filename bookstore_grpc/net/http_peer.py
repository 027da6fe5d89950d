"""The client of an HTTP connection, as its requests see it."""

import asyncio
from collections.abc import Callable, Mapping
from typing import Any

# The key of the `Caller` in the `state` of a request's ASGI scope.
CALLER = "caller"


class Caller:
    """The client's certificate, in the form of `ssl`, and whether the client has disconnected.

    `task`, which handles the client's current request, is cancelled when the client disconnects. `abort` closes the
    connection immediately, whatever is unsent. `give_way` lets it be evicted for a new connection while it responds.
    """

    def __init__(
        self,
        certificate: Mapping[str, Any] | None,
        *,
        abort: Callable[[], object],
        give_way: Callable[[], object],
    ) -> None:
        self.certificate = certificate or {}
        self.abort = abort
        self.give_way = give_way
        self.is_disconnected = False
        self.task: asyncio.Task[Any] | None = None

    def disconnect(self) -> None:
        """Record that the client has disconnected, and cancel its task."""
        self.is_disconnected = True
        if self.task is not None:
            self.task.cancel()
