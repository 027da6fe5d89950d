"""The interface by which the call pipeline accesses a call's transport."""

from collections.abc import Collection, Sequence
from typing import Protocol

Metadata = Collection[tuple[str, str | bytes]]


class CallContext(Protocol):
    """One call, as its transport sees it. Each adapter implements this."""

    def metadata(self) -> Metadata:
        """Return the call's metadata; over HTTP these are the headers."""

    def peer(self) -> str:
        """Return the address of the client in gRPC's format, such as `ipv4:127.0.0.1:50000`."""

    def time_remaining(self) -> float | None:
        """Return the seconds until the caller's deadline, or None without one."""

    def certificate_names(self) -> Sequence[str]:
        """Return the names in the verified client certificate: subject alternative names, then common names."""

    def sent_status(self) -> str | None:
        """Return the name of the status that was already sent to the caller, or None."""


class CallEnded(Exception):
    """The transport has already ended the call, with the status of this name. Nothing is left to send."""

    def __init__(self, status: str) -> None:
        super().__init__(status)
        self.status = status
