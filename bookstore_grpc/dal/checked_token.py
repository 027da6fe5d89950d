"""Tokens that callers return unchanged: values, and a digest of them and of what the token is for.

The digest protects against mistakes, not against forgery: a forged token reveals nothing that a filter would not.
"""

import json
from base64 import urlsafe_b64decode, urlsafe_b64encode
from collections.abc import Sequence
from hashlib import blake2b
from typing import Any

from bookstore_grpc.limits import PAGE_TOKEN_MAX_CODE_POINTS

_DIGEST_BYTES = 8


def token_from_values(values: Sequence[object], *, purpose: object) -> str:
    """Return the token of values that are numbers and texts. `purpose` is anything that JSON can encode."""
    payload = json.dumps(values, ensure_ascii=False, separators=(",", ":")).encode()
    return urlsafe_b64encode(_digest(payload, purpose) + payload).rstrip(b"=").decode()


def values_from_token(token: str, *, purpose: object) -> Any:
    """Return the values of a token, which a caller may have forged.

    Raises `ValueError` or `RecursionError` if it is damaged, or was made for another purpose.
    """
    if len(token) > PAGE_TOKEN_MAX_CODE_POINTS:
        raise ValueError("longer than any token")
    content = urlsafe_b64decode(token.encode("ascii") + b"=" * (-len(token) % 4))
    digest, payload = content[:_DIGEST_BYTES], content[_DIGEST_BYTES:]
    if digest != _digest(payload, purpose) or urlsafe_b64encode(content).rstrip(b"=") != token.encode():
        raise ValueError("damaged, or made for another purpose")
    return json.loads(payload)


def _digest(payload: bytes, purpose: object) -> bytes:
    return blake2b(payload, digest_size=_DIGEST_BYTES, key=blake2b(json.dumps(purpose).encode()).digest()).digest()
