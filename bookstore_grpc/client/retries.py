"""Retry policy of the client: exponential backoff with jitter.

A call that the server has not started may be retried whatever it does. A call that may have started is retried only if
it is idempotent: a read, or a create with its idempotency key (`request_id`). The call's deadline bounds all attempts.
"""

import random

import grpc

from bookstore_grpc.errors import BookstoreError, CallInterrupted, ResourceExhausted, ServerDraining, Unavailable

# Attempts when the service itself reports a failure. It is unlikely to recover soon, so fail before the deadline.
ATTEMPTS_MAX = 4

_BACKOFF_FIRST_SECONDS = 0.05
_BACKOFF_MAX_SECONDS = 1.0
_DOUBLINGS_MAX = 10


def retry_delay_seconds(
    error: BookstoreError,
    code: grpc.StatusCode,
    *,
    attempts: int,
    is_idempotent: bool,
    attempts_max: float = ATTEMPTS_MAX,
) -> float | None:
    """Return the delay before the next attempt, with jitter, or None if the call must not be retried.

    `attempts` counts the attempts so far. `attempts_max` bounds them while the service itself reports a failure.
    """
    if isinstance(error, ResourceExhausted):
        # A call rejected by a limit has not started. Without a reason the message was too long for gRPC.
        return _with_jitter(error.retry_seconds) if error.reason else None
    if not isinstance(error, Unavailable):
        return None
    # gRPC's core cancels calls that it has not handed over. Only a handler sets a request id.
    is_rejected_by_core = code is grpc.StatusCode.CANCELLED and error.request_id is None
    has_not_started = is_rejected_by_core or isinstance(error, ServerDraining)
    if not (has_not_started or is_idempotent):
        return None
    # A server that shuts down is replaced: another one can take the call soon.
    if error.reason and not isinstance(error, ServerDraining | CallInterrupted):
        return _with_jitter(error.retry_seconds) if attempts < attempts_max else None
    return backoff_seconds(attempts)


def backoff_seconds(attempts: int) -> float:
    """Return the delay after so many attempts: exponential, with jitter."""
    ceiling = min(_BACKOFF_FIRST_SECONDS * 2.0 ** min(attempts - 1, _DOUBLINGS_MAX), _BACKOFF_MAX_SECONDS)
    return ceiling * random.uniform(0.2, 1)  # noqa: S311  not used for security


def _with_jitter(seconds: float) -> float:
    return seconds * random.uniform(1, 1.2)  # noqa: S311
