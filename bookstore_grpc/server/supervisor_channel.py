"""A worker's end of the socket to its supervisor."""

import os
from collections.abc import Callable
from contextlib import suppress

from bookstore_grpc.server.worker_messages import Message, encode

_READ_BYTES = 4_096


class SupervisorChannel:
    """Sends messages to the supervisor, and receives that other workers have committed changes of books.

    The descriptor must not block: if the supervisor does not read, messages are dropped.
    """

    def __init__(self, descriptor: int) -> None:
        self.descriptor = descriptor
        self.on_changes_committed: Callable[[], None] = lambda: None

    def send(self, message: Message) -> None:
        """Send a message."""
        with suppress(OSError):
            os.write(self.descriptor, encode(message))

    def receive(self) -> bool:
        """Read what the supervisor has sent. Returns False once it has ended."""
        try:
            data = os.read(self.descriptor, _READ_BYTES)
        except BlockingIOError:
            return True
        except OSError:
            return False
        if data:
            self.on_changes_committed()
        return bool(data)
