"""The messages between the supervisor and its workers: one JSON object per line, over the socket between them.

All are from a worker to the supervisor, but for its settings, and for `ChangesCommitted`, which it also receives.
"""

import json
from dataclasses import asdict, dataclass
from typing import Any

from bookstore_grpc.server.settings import Settings


@dataclass(frozen=True, kw_only=True)
class Serving:
    """The worker listens. Its fields are those of the log event `serving`."""

    addresses: tuple[str, ...]
    database: str
    tls: bool
    mutual_tls: bool
    tokens: bool
    version: str
    pid: int
    http: str = ""

    def log_fields(self) -> dict[str, Any]:
        """Return the fields of the log event, without `http` where HTTP is not served."""
        fields = asdict(self)
        if not self.http:
            del fields["http"]
        return fields


@dataclass(frozen=True)
class Heartbeat:
    """The worker is alive. `why_not_ready` is "" if it is ready, `why_no_writes` if its database takes them."""

    why_not_ready: str
    why_no_writes: str = ""


@dataclass(frozen=True)
class StartFailed:
    """The worker cannot start with these settings."""

    error: str


@dataclass(frozen=True)
class ModuleMissing:
    """The worker lacks a package."""

    module: str


@dataclass(frozen=True)
class ChangesCommitted:
    """The worker has committed changes of books. The supervisor sends it on to all others, for their watchers."""


Message = Serving | Heartbeat | StartFailed | ModuleMissing | ChangesCommitted

_TYPES: dict[str, type[Message]] = {
    kind.__name__: kind for kind in (Serving, Heartbeat, StartFailed, ModuleMissing, ChangesCommitted)
}


def encode(message: Message) -> bytes:
    """Return the line that encodes a message."""
    return json.dumps({"type": type(message).__name__, **asdict(message)}).encode() + b"\n"


def decode(line: bytes) -> Message:
    """Return the message that a line encodes."""
    values = _with_tuples(json.loads(line))
    return _TYPES[values.pop("type")](**values)


def encode_settings(settings: Settings) -> bytes:
    """Return the line that encodes the settings of a worker."""
    return json.dumps(asdict(settings)).encode() + b"\n"


def decode_settings(line: str) -> Settings:
    """Return the settings that a line encodes."""
    return Settings(**_with_tuples(json.loads(line)))


def _with_tuples(values: dict[str, Any]) -> dict[str, Any]:
    return {name: tuple(value) if isinstance(value, list) else value for name, value in values.items()}
