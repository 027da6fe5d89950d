"""The limit on watches, which are endless streams: how many a process has, and how many of them one caller."""

from collections import Counter
from collections.abc import Iterator
from contextlib import contextmanager

from bookstore_grpc.calls.call import Call
from bookstore_grpc.errors import ResourceExhausted

# Watches end seldom, so trying again at once is of no use.
_RETRY_SECONDS = 10


class WatchLimit:
    """Admits `max_watchers` watches, and `max_watchers_per_caller` of each caller."""

    def __init__(self, *, max_watchers: int = 1_000, max_watchers_per_caller: int = 100) -> None:
        self._max_watchers = max_watchers
        self._max_watchers_per_caller = max_watchers_per_caller
        self._by_caller: Counter[str] = Counter()

    @property
    def count(self) -> int:
        """How many watches there are."""
        return self._by_caller.total()

    @contextmanager
    def slot(self, call: Call) -> Iterator[None]:
        """Count a watch in the block. Raises `ResourceExhausted` if there are too many."""
        caller = call.caller_or_host
        if self.count >= self._max_watchers:
            raise ResourceExhausted(
                "The server has too many watchers; try again later, or on another server.",
                limit="watchers",
                retry_seconds=_RETRY_SECONDS,
            )
        if self._by_caller[caller] >= self._max_watchers_per_caller:
            raise ResourceExhausted(
                f"This caller has {self._max_watchers_per_caller} watches; end one of them first.",
                limit="watchers_per_caller",
                retry_seconds=_RETRY_SECONDS,
            )
        self._by_caller[caller] += 1
        try:
            yield
        finally:
            self._by_caller[caller] -= 1
            if not self._by_caller[caller]:
                del self._by_caller[caller]
