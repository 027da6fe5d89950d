"""What the two kinds of calls, gRPC and HTTP, have in common: a load, and one real call that shows what it does."""

from collections.abc import Callable
from dataclasses import dataclass
from typing import Protocol

from benchmarks.load import Load, Outcome
from benchmarks.operations import Operation


@dataclass(frozen=True, kw_only=True)
class Prepared:
    """A load, and the means to account for its answers.

    `call` makes the call once through an ordinary client, raises `BenchmarkError` unless the answer is as it should
    be, and tells how many bytes the longest such answer has. An answer of the load has exactly as many, or, where a
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
    """The calls of a server that runs."""

    def prepare(self, operation: Operation, *, run: int) -> Prepared | None:
        """Prepare the load of an operation; None where there is none. `run` makes its new names new."""
