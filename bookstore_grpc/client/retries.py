"""When a client sends a call again: by whether it has begun, whether it may be done twice, and who has failed it.

What has not begun may be sent again whatever it is. What may have begun is sent again only if it is idempotent: a read,
or a create with its request id. The deadline of the call bounds everything.
"""

import random

import grpc

from bookstore_grpc.errors import BookstoreError, CallInterrupted, ResourceExhausted, ServerDraining, Unavailable

# What the service itself cannot do now, it cannot do much later either, so a caller is told before its deadline.
ATTEMPTS_MAX = 4

_BACKOFF_FIRST_SECONDS = 0.05
_BACKOFF_MAX_SECONDS = 1.0
_DOUBLINGS_MAX = 10


def retry_delay_seconds(
    error: BookstoreError, code: grpc.StatusCode, *, attempts: int, is_idempotent: bool
) -> float | None:
    """Return after how long to send a call again that has failed `attempts` times, or None for never.

    Delays are spread at random, so that calls which failed together do not come back together.
    """
    if isinstance(error, ResourceExhausted):
        # What a limit has refused has not begun. Without a reason it is the message that is too long.
        return _spread(error.retry_seconds) if error.reason else None
    if not isinstance(error, Unavailable):
        return None
    # gRPC in a server cancels what it has not handed over. What has a request id a handler has had.
    is_turned_away = code is grpc.StatusCode.CANCELLED and error.request_id is None
    has_not_begun = is_turned_away or isinstance(error, ServerDraining)
    if not (has_not_begun or is_idempotent):
        return None
    # Where a server ends, another one, or the next in its place, is asked soon.
    if error.reason and not isinstance(error, ServerDraining | CallInterrupted):
        return _spread(error.retry_seconds) if attempts < ATTEMPTS_MAX else None
    ceiling = min(_BACKOFF_FIRST_SECONDS * 2.0 ** min(attempts - 1, _DOUBLINGS_MAX), _BACKOFF_MAX_SECONDS)
    return ceiling * random.uniform(0.2, 1)  # noqa: S311  it guards no secret


def _spread(seconds: float) -> float:
    return seconds * random.uniform(1, 1.2)  # noqa: S311
