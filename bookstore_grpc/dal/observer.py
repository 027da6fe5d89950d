"""The observer interface of the DAL, which tracing implements."""

from collections.abc import Sequence
from contextvars import Context
from typing import Protocol


class DatabaseObserver(Protocol):
    """Is called at the end of every read and of every write transaction. Its methods must not raise.

    `summary` names the statements, as in "SELECT books", without any value. `started_ns` is in nanoseconds since
    1970-01-01T00:00:00Z. `error` is what was raised, if anything.
    """

    def read_ended(self, summary: str, started_ns: int, error: BaseException | None) -> None:
        """Record a read, in the context of its call."""

    def batch_ended(
        self, summary: str, callers: Sequence[Context], started_ns: int, error: BaseException | None
    ) -> None:
        """Record a transaction, including failed ones, before its callers resume. `callers` are their contexts."""
