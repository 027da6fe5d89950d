"""What a caller of `BookstoreClient` may say for a single call, checked before gRPC sees it.

gRPC itself takes a timeout of nan or of 1e10 seconds for one that has passed, and ends a call with metadata that
cannot be sent by an exception of its internals.
"""

import math
import re
import time
from collections.abc import Iterable, Mapping
from typing import TypedDict

from bookstore_grpc.metadata import AUTHORIZATION_KEY, REQUEST_ID_KEY, REQUEST_ID_PATTERN

Pairs = tuple[tuple[str, str | bytes], ...]
GivenMetadata = Mapping[str, str | bytes] | Iterable[tuple[str, str | bytes]]

# Longer ones overflow in gRPC; thirty years are as good as none.
_TIMEOUT_MAX_SECONDS = 1e9

# https://github.com/grpc/grpc/blob/master/doc/PROTOCOL-HTTP2.md#requests
_KEY = re.compile(r"[0-9a-z_.-]+")
_TEXT = re.compile(r"[\x20-\x7e]*")
_RESERVED_PREFIX = "grpc-"
_RESERVED_KEYS = {
    AUTHORIZATION_KEY: "the client's `token` is for that",
    REQUEST_ID_KEY: "`call_id` is for that",
    **dict.fromkeys(
        ("connection", "content-length", "content-type", "host", "te", "transfer-encoding", "upgrade", "user-agent"),
        "it belongs to HTTP",
    ),
}


class CallOptions(TypedDict, total=False):
    """Options of a single call.

    `timeout_seconds` goes before the client's own. `metadata` is sent beside the client's own: keys with text, or
    keys that end in `-bin` with bytes. `call_id` names the call (`x-request-id`), in the server's log and in errors, by
    up to 128 letters, digits, dots, dashes and underscores; the `request_id` of a create is something else.
    """

    timeout_seconds: float | None
    metadata: GivenMetadata
    call_id: str


def reusable(options: CallOptions) -> CallOptions:
    """Return options for several calls: metadata may be given as an iterator, of which nothing is left after one."""
    if metadata := options.get("metadata"):
        return {**options, "metadata": checked_metadata(metadata)}
    return options


def checked_timeout(seconds: float | None) -> float:
    """Return a timeout, infinite for None. Raises `ValueError` for what is no time: 0, less, and nan."""
    if seconds is None:
        return math.inf
    if not seconds > 0:
        raise ValueError(f"a timeout is a number of seconds above 0, or None for none, and not {seconds!r}")
    return seconds if seconds < _TIMEOUT_MAX_SECONDS else math.inf  # an int may be more than any float


def remaining_seconds(give_up_at: float) -> float | None:
    """Return the time until `give_up_at`, by `time.monotonic`, as gRPC takes it: None where there is no end."""
    seconds = give_up_at - time.monotonic()
    return seconds if seconds < _TIMEOUT_MAX_SECONDS else None


def checked_metadata(metadata: GivenMetadata) -> Pairs:
    """Return metadata as gRPC takes it. Raises `ValueError` for what cannot be sent, or not by a caller."""
    pairs = tuple(metadata.items() if isinstance(metadata, Mapping) else metadata)
    for pair in pairs:
        match pair:
            case (str() as key, str() | bytes() as value):
                _check(key, value)
            case _:
                raise ValueError(f"metadata are pairs of a key and a value, and not {pair!r}")
    return pairs


def checked_call_id(call_id: str) -> Pairs:
    """Return the metadata that names a call. Raises `ValueError` for a name that the server would not take."""
    if not REQUEST_ID_PATTERN.fullmatch(call_id):
        raise ValueError(f"{call_id!r} is no id of a call: 1 to 128 letters, digits, dots, dashes and underscores")
    return ((REQUEST_ID_KEY, call_id),)


def _check(key: str, value: str | bytes) -> None:
    if not _KEY.fullmatch(key):
        raise ValueError(f"{key!r} is no key of metadata: lower-case letters, digits, dots, dashes and underscores")
    if key.startswith(_RESERVED_PREFIX):
        raise ValueError(f"{key!r} is not for callers: it belongs to gRPC")
    if key in _RESERVED_KEYS:
        raise ValueError(f"{key!r} is not for callers: {_RESERVED_KEYS[key]}")
    if key.endswith("-bin") != isinstance(value, bytes):
        raise ValueError(f"the value of {key!r} has the wrong type: bytes are for keys that end in -bin, and only they")
    if isinstance(value, str) and not _TEXT.fullmatch(value):
        raise ValueError(f"the value of {key!r} is no printable ASCII: a key that ends in -bin takes any bytes")
