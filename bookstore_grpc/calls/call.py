"""A call as the pipeline's checks and observers see it."""

import math
import random
from collections.abc import Awaitable, Callable
from dataclasses import dataclass
from typing import Any, NamedTuple, Protocol

from bookstore_grpc.calls.context import CallContext, Metadata
from bookstore_grpc.metadata import (
    REQUEST_ID_KEY,
    REQUEST_ID_PATTERN,
    TRACEPARENT_KEY,
    trace_id_from_traceparent,
)

HEALTH_PREFIX = "/grpc.health.v1.Health/"
UNKNOWN_METHOD = "unknown"


@dataclass(slots=True)
class Call:
    """One call. `method` is its full name, or `UNKNOWN_METHOD` if the server has no such method.

    `caller` is set by authentication: the subject of a token or the name in a certificate. `trace_id` is that of the
    caller's trace, or of one that an observer started, and `span` is that observer's span. `peer` is set before the
    request is read, because gRPC no longer knows it once a call is cancelled. `valid_until` (`time.time`) is when the
    caller's token expires. A call that `is_watch` is an endless stream of responses.
    """

    method: str
    request_id: str
    metadata: Metadata
    context: CallContext
    caller: str = ""
    peer: str = ""
    trace_id: str = ""
    span: Any = None
    request_bytes: int = 0
    response_bytes: int = 0
    valid_until: float = math.inf
    is_watch: bool = False

    @property
    def caller_or_host(self) -> str:
        """The caller, or without authentication its address without the port, to count calls by."""
        # The "=" separates names from addresses, because a name may look like an address.
        return f"={self.caller}" if self.caller else self.context.peer().rpartition(":")[0]


class Outcome(NamedTuple):
    """How a call ended: the name of its status, the reason given to the caller, and the error, if any."""

    status: str
    seconds: float
    reason: str = ""
    error: BaseException | None = None


# A check returns to admit a call, or raises the error that rejects it. Checks run before the request is read.
Check = Callable[[Call], Awaitable[None]]


class Observer(Protocol):
    """Is notified of the start and end of every call, within the call's task. Exceptions that it raises are logged."""

    def call_began(self, call: Call) -> None:
        """Handle the start of a call, before its request is read."""

    def call_ended(self, call: Call, outcome: Outcome) -> None:
        """Handle the end of a call, before its status is sent to the caller."""


def new_call(method: str, context: CallContext) -> Call:
    """Return the call that a transport has received.

    Its request id is the one sent by the caller if that is valid, otherwise a new one.
    """
    metadata = context.metadata()
    request_id = trace_id = ""
    for key, value in metadata:
        if key == REQUEST_ID_KEY and isinstance(value, str) and REQUEST_ID_PATTERN.fullmatch(value):
            request_id = request_id or value
        elif key == TRACEPARENT_KEY and isinstance(value, str):
            trace_id = trace_id_from_traceparent(value)
    # Not a secret. `os.urandom` would release the interpreter lock, and wait for it again.
    request_id = request_id or f"{random.getrandbits(128):032x}"
    return Call(method, request_id, metadata, context, trace_id=trace_id)
