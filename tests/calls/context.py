"""A call's context without a transport, for what is tested without a server."""

from collections.abc import Sequence

from bookstore_grpc.calls.context import Metadata


class PlainContext:
    """A `CallContext` with the values that it is given."""

    def __init__(
        self, metadata: Metadata = (), *, seconds: float | None = None, sent_status: str | None = None
    ) -> None:
        self._metadata = metadata
        self._seconds = seconds
        self._sent_status = sent_status

    def metadata(self) -> Metadata:
        return self._metadata

    def peer(self) -> str:
        return "ipv4:127.0.0.1:1"

    def time_remaining(self) -> float | None:
        return self._seconds

    def certificate_names(self) -> Sequence[str]:
        return ()

    def sent_status(self) -> str | None:
        return self._sent_status
