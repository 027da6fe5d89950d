"""What a transport tells the call pipeline about a call."""

from collections.abc import Collection, Sequence
from typing import Protocol

Metadata = Collection[tuple[str, str | bytes]]


class CallContext(Protocol):
    """The transport's side of one call. Each adapter implements it."""

    def metadata(self) -> Metadata:
        """Return the call's metadata: over HTTP, its headers."""

    def peer(self) -> str:
        """Return the address of the client as gRPC spells it, such as `ipv4:127.0.0.1:50000`."""

    def time_remaining(self) -> float | None:
        """Return the seconds until the caller's deadline, or None without one."""

    def certificate_names(self) -> Sequence[str]:
        """Return the names in the verified client certificate: subject alternative names, then common names."""

    def sent_status(self) -> str | None:
        """Return the name of the status that has been sent to the caller already, or None."""


class CallEnded(Exception):
    """The transport has ended the call by itself, with the status of this name; nothing is left to send."""

    def __init__(self, status: str) -> None:
        super().__init__(status)
        self.status = status
