"""What can be told of everything that goes to the database for a call."""

from collections.abc import Sequence
from contextvars import Context
from typing import Protocol


class DatabaseObserver(Protocol):
    """Is told of reads and of groups of writes when they have ended. It must not raise.

    `summary` is what was done, as in "SELECT books", without any value. `started_ns` is in nanoseconds since
    1970-01-01T00:00:00Z. `error` is what was raised, if anything.
    """

    def read_ended(self, summary: str, started_ns: int, error: BaseException | None) -> None:
        """Take note of a read, in the context of the call that it was for."""

    def group_ended(
        self, summary: str, callers: Sequence[Context], started_ns: int, error: BaseException | None
    ) -> None:
        """Take note of a transaction, or the attempt at one, before its callers know; `callers` are their contexts."""
