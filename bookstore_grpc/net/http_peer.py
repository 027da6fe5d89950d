"""The client of an HTTP connection, as requests on it see it."""

import asyncio
from collections.abc import Mapping
from typing import Any

# The key of the caller in the state of a request's ASGI scope.
CALLER = "caller"


class Caller:
    """The client's certificate, as `ssl` describes it, and whether it has disconnected.

    The `task` that works for it is cancelled when it disconnects.
    """

    def __init__(self, certificate: Mapping[str, Any] | None) -> None:
        self.certificate = certificate or {}
        self.is_disconnected = False
        self.task: asyncio.Task[Any] | None = None

    def disconnect(self) -> None:
        """Note that it has disconnected."""
        self.is_disconnected = True
        if self.task is not None:
            self.task.cancel()
