"""Shared by gRPC and HTTP calls: a load, and one real call that shows its effect."""

from collections.abc import Callable
from dataclasses import dataclass
from typing import Protocol

from benchmarks.load import Load, Outcome
from benchmarks.operations import Operation


@dataclass(frozen=True, kw_only=True)
class Prepared:
    """A load, and how to verify its responses.

    `call` makes the call once with an ordinary client, raises `BenchmarkError` if the response is not as expected, and
    returns the size of the longest such response in bytes. Responses of the load have the same size, or on average at
    most `allowance_bytes` less: for example, the fraction of a second takes 4 bytes instead of 5 in a quarter of cases.
    """

    load: Load
    call: Callable[[], int]
    allowance_bytes: int = 0
    books_per_call: int = 0
    renames_to: str = ""  # what the new names of an update start with
    renamed: Callable[[Outcome], float] = lambda _outcome: 0  # the number of books with such names after the load


class Calls(Protocol):
    """The calls of a running server."""

    def prepare(self, operation: Operation, *, run: int) -> Prepared | None:
        """Return the load of an operation, or None if it has none. `run` makes new names unique."""
