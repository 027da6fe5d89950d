"""Shared by gRPC and HTTP calls: a load, and one real call that shows its effect."""

from collections.abc import Callable
from dataclasses import dataclass
from typing import Protocol

from benchmarks.load import Load, Outcome
from benchmarks.operations import Operation


@dataclass(frozen=True, kw_only=True)
class Prepared:
    """A load, and how to verify its responses.

    `call` makes the call once through an ordinary client, raises `BenchmarkError` unless the response is as it should
    be, and tells how many bytes the longest such response has. A response of the load has exactly as many, or, where a
    time is in it, on average at most `allowance_bytes` fewer: the fraction of a second takes 4 bytes instead of 5 in a
    quarter of the cases.
    """

    load: Load
    call: Callable[[], int]
    allowance_bytes: int = 0
    books_per_call: int = 0
    renames_to: str = ""  # what the new names of an update start with
    renamed: Callable[[Outcome], float] = lambda _outcome: 0  # how many books the load has then given such names


class Calls(Protocol):
    """The calls of a running server."""

    def prepare(self, operation: Operation, *, run: int) -> Prepared | None:
        """Return the load of an operation, or None if it has none. `run` makes new names unique."""
