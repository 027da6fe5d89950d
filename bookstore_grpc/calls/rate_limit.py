"""Rate limit: a check with a token bucket for each caller."""

import time
from collections import OrderedDict
from collections.abc import Callable
from typing import NamedTuple

from bookstore_grpc.calls.call import HEALTH_PREFIX, Call
from bookstore_grpc.errors import ResourceExhausted
from bookstore_grpc.limits import RATED_CALLERS_MAX


class _Bucket(NamedTuple):
    tokens: float
    filled_at: float


class RateLimit:
    """Admits `per_second` calls of each caller, and bursts of `burst` after a pause. Health checks are not counted.

    A caller is identified by authentication, or otherwise by its address without the port. Beyond `RATED_CALLERS_MAX`
    the least recent callers are forgotten, and have a full bucket again. `now` is a monotonic clock in seconds.
    """

    def __init__(self, *, per_second: float, burst: int, now: Callable[[], float] = time.monotonic) -> None:
        self._per_second = per_second
        self._burst = burst
        self._now = now
        self._buckets: OrderedDict[str, _Bucket] = OrderedDict()

    async def __call__(self, call: Call) -> None:
        """Take a token from the caller's bucket, or raise `ResourceExhausted`."""
        if call.method.startswith(HEALTH_PREFIX):
            return
        name = call.caller_or_host
        now = self._now()
        bucket = self._buckets.pop(name, None) or _Bucket(self._burst, now)
        tokens = min(self._burst, bucket.tokens + (now - bucket.filled_at) * self._per_second)
        is_empty = tokens < 1
        self._buckets[name] = _Bucket(tokens if is_empty else tokens - 1, now)
        if len(self._buckets) > RATED_CALLERS_MAX:
            self._buckets.popitem(last=False)
        if is_empty:
            raise ResourceExhausted(
                f"This caller makes more than {self._per_second:g} calls per second; try again later.",
                limit="rate",
                retry_seconds=(1 - tokens) / self._per_second,
            )
