"""Options of a single `BookstoreClient` call, validated before gRPC sees them.

gRPC itself treats a timeout of nan or 1e10 seconds as already expired, and fails on metadata that it cannot send with
an exception from its internals.
"""

import math
import re
import time
from collections.abc import Iterable, Mapping
from typing import Any, TypedDict, cast

from bookstore_grpc.client.book_fields import SETTABLE_FIELDS
from bookstore_grpc.metadata import AUTHORIZATION_KEY, REQUEST_ID_KEY, REQUEST_ID_PATTERN

Pairs = tuple[tuple[str, str | bytes], ...]
GivenMetadata = Mapping[str, str | bytes] | Iterable[tuple[str, str | bytes]]

# gRPC overflows on longer timeouts. Thirty years are as good as no timeout.
_TIMEOUT_MAX_SECONDS = 1e9

# https://github.com/grpc/grpc/blob/master/doc/PROTOCOL-HTTP2.md#requests
_KEY = re.compile(r"[0-9a-z_.-]+")
_TEXT = re.compile(r"[\x20-\x7e]*")
_RESERVED_PREFIX = "grpc-"
_RESERVED_KEYS = {
    AUTHORIZATION_KEY: "use the client's `token`",
    REQUEST_ID_KEY: "use `call_id`",
    **dict.fromkeys(
        ("connection", "content-length", "content-type", "host", "te", "transfer-encoding", "upgrade", "user-agent"),
        "HTTP uses it",
    ),
}


class CallOptions(TypedDict, total=False):
    """Options of a single call.

    `timeout_seconds` overrides the client's own. `metadata` is added to the client's own; keys that end in `-bin` take
    bytes, all others text. `call_id` (metadata `x-request-id`) identifies the call in the server's log and in errors:
    up to 128 letters, digits, dots, dashes and underscores. It is not the `request_id` of a create, the idempotency
    key.
    """

    timeout_seconds: float | None
    metadata: GivenMetadata
    call_id: str


class BookOptions(CallOptions, total=False):
    """Options of a call that stores a book: any settable field of the contract's `Book` too.

    Fields are accepted by the contract's descriptor, so one that is added works at once. Type checkers know those that
    are named here or in the method's signature; `Any` would let them pass misspelled options as well.
    """


def split_fields(options: BookOptions) -> tuple[dict[str, Any], CallOptions]:
    """Return the fields of a book among options, and the other options."""
    others = cast("dict[str, Any]", {**options})
    fields = {field.name: others.pop(field.name) for field in SETTABLE_FIELDS if field.name in others}
    return fields, cast("CallOptions", others)


def reusable(options: CallOptions) -> CallOptions:
    """Return options that can be used for several calls, with metadata read from an iterator only once."""
    if metadata := options.get("metadata"):
        return {**options, "metadata": checked_metadata(metadata)}
    return options


def checked_timeout(seconds: float | None) -> float:
    """Return a timeout in seconds, infinite for None. Raises `ValueError` for 0, negative numbers and nan."""
    if seconds is None:
        return math.inf
    if not seconds > 0:
        raise ValueError(f"a timeout must be a number of seconds above 0, or None for no timeout, not {seconds!r}")
    return seconds if seconds < _TIMEOUT_MAX_SECONDS else math.inf  # an int may exceed every float


def remaining_seconds(deadline: float) -> float | None:
    """Return the seconds until `deadline` (of `time.monotonic`) as gRPC expects them: None for no deadline."""
    seconds = deadline - time.monotonic()
    return seconds if seconds < _TIMEOUT_MAX_SECONDS else None


def checked_metadata(metadata: GivenMetadata) -> Pairs:
    """Return metadata as gRPC expects it. Raises `ValueError` for invalid or reserved keys and invalid values."""
    pairs = tuple(metadata.items() if isinstance(metadata, Mapping) else metadata)
    for pair in pairs:
        match pair:
            case (str() as key, str() | bytes() as value):
                _check(key, value)
            case _:
                raise ValueError(f"metadata must be pairs of a key and a value, not {pair!r}")
    return pairs


def checked_call_id(call_id: str) -> Pairs:
    """Return the metadata for a call id. Raises `ValueError` for an id that the server would replace."""
    if not REQUEST_ID_PATTERN.fullmatch(call_id):
        raise ValueError(
            f"{call_id!r} is not a valid call id: use 1 to 128 letters, digits, dots, dashes and underscores"
        )
    return ((REQUEST_ID_KEY, call_id),)


def _check(key: str, value: str | bytes) -> None:
    if not _KEY.fullmatch(key):
        raise ValueError(
            f"{key!r} is not a valid metadata key: use lower-case letters, digits, dots, dashes and underscores"
        )
    if key.startswith(_RESERVED_PREFIX):
        raise ValueError(f"metadata key {key!r} is reserved: gRPC uses it")
    if key in _RESERVED_KEYS:
        raise ValueError(f"metadata key {key!r} is reserved: {_RESERVED_KEYS[key]}")
    if key.endswith("-bin") != isinstance(value, bytes):
        raise ValueError(f"the value of {key!r} has the wrong type: keys that end in -bin take bytes, all others text")
    if isinstance(value, str) and not _TEXT.fullmatch(value):
        raise ValueError(f"the value of {key!r} is not printable ASCII: use a key that ends in -bin for other bytes")
