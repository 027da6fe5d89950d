"""The `CallContext` of calls over gRPC."""

from collections.abc import Sequence
from typing import Any

from bookstore_grpc.calls.context import Metadata

# Keys of gRPC's authentication context.
_CERTIFICATE_KEYS = ("x509_subject_alternative_name", "x509_common_name")


class RpcContext:
    """Adapts grpc.aio's context to `CallContext`. One is created for each call, so it is small."""

    __slots__ = ("_context",)

    def __init__(self, context: Any) -> None:
        self._context = context

    def metadata(self) -> Metadata:
        """Return the metadata sent by the client."""
        return self._context.invocation_metadata() or ()

    def peer(self) -> str:
        """Return the address of the client."""
        return str(self._context.peer())

    def time_remaining(self) -> float | None:
        """Return the seconds until the caller's deadline, or None without one."""
        remaining: float | None = self._context.time_remaining()
        return remaining

    def certificate_names(self) -> Sequence[str]:
        """Return the names in the client's certificate."""
        properties = self._context.auth_context()
        return [name.decode(errors="replace") for key in _CERTIFICATE_KEYS for name in properties.get(key, ())]

    def sent_status(self) -> str | None:
        """Return the name of the status that a servicer has set by `abort`, or None."""
        return str(self._context.code().name) if self._context.done() else None
