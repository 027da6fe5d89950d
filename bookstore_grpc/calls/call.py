"""A call as those see it who stand around it: gates that may refuse it, and observers that tell of it."""

from collections.abc import Awaitable, Callable, Collection
from dataclasses import dataclass
from typing import Any, NamedTuple, Protocol

HEALTH_PREFIX = "/grpc.health.v1.Health/"
UNKNOWN_METHOD = "unknown"


@dataclass(slots=True)
class Call:
    """One call under way. `method` is its full name, or `UNKNOWN_METHOD` where the server has none such.

    `caller` is who makes it, once a gate has found out: a token's subject, or the name in a certificate. `trace_id` is
    that of the trace which its caller says that it belongs to, or which an observer has begun, and `span` its place
    there, as that observer has it. `peer` is the other side's address, once its request
    is waited for.
    """

    method: str
    request_id: str
    metadata: Collection[tuple[str, str | bytes]]
    context: Any
    caller: str = ""
    peer: str = ""
    trace_id: str = ""
    span: Any = None
    request_bytes: int = 0
    response_bytes: int = 0


class Outcome(NamedTuple):
    """How a call ended: the status's name, the reason that the caller was given, and what was raised, if anything."""

    status: str
    seconds: float
    reason: str = ""
    error: BaseException | None = None


# Lets a call pass, or raises the error that refuses it. It runs before the request is looked at.
Gate = Callable[[Call], Awaitable[None]]


class Observer(Protocol):
    """Is told of every call. What it does stands in each call's way; what it raises is logged."""

    def call_began(self, call: Call) -> None:
        """Take note of a call whose request is not yet read."""

    def call_ended(self, call: Call, outcome: Outcome) -> None:
        """Take note of the outcome, before the caller gets to know it."""
