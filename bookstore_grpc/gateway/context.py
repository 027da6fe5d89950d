"""The `CallContext` of calls over HTTP, and access to the request."""

import asyncio
import ipaddress
from collections.abc import Iterator, Mapping, Sequence
from contextlib import contextmanager
from typing import Any
from urllib.parse import quote

from bookstore_grpc.calls.context import Metadata
from bookstore_grpc.net.http_peer import CALLER, Caller


class HttpContext:
    """The `CallContext` of a call over HTTP, whose metadata are the headers."""

    def __init__(self, scope: Mapping[str, Any]) -> None:
        self._metadata = tuple((name.decode("latin-1"), value.decode("latin-1")) for name, value in scope["headers"])
        self._client: tuple[str, int] = scope["client"] or ("", 0)
        self._caller: Caller = scope["state"][CALLER]
        self.path: str = scope["path"]
        self.query: bytes = scope["query_string"]
        # HEAD is handled as GET; the HTTP server omits the body.
        self.is_head: bool = scope["method"] == "HEAD"
        self.verb: str = "GET" if self.is_head else scope["method"]

    def header(self, name: str) -> str | None:
        """Return the first header of a name, or None."""
        return next((value for key, value in self._metadata if key == name), None)

    @contextmanager
    def ended_with_caller(self) -> Iterator[None]:
        """Cancel the block when the client disconnects, as gRPC does, and continue after it."""
        task = asyncio.current_task()
        assert task is not None  # noqa: S101  uvicorn runs each request in a separate task
        self._caller.task = task
        try:
            yield
        except asyncio.CancelledError:
            if not self._caller.is_disconnected:
                raise
            task.uncancel()
        finally:
            self._caller.task = None

    def give_way(self) -> None:
        """Let the connection be evicted for a new one at the limit, although its response has not ended."""
        self._caller.give_way()

    def abort(self) -> None:
        """Close the connection immediately, whatever is unsent."""
        self._caller.abort()

    @property
    def is_json(self) -> bool:
        """Whether the body is declared to be JSON."""
        return (self.header("content-type") or "").partition(";")[0].strip().lower() == "application/json"

    def metadata(self) -> Metadata:
        """Return the headers."""
        return self._metadata

    def peer(self) -> str:
        """Return the address of the client in gRPC's format."""
        host, port = self._client
        try:
            is_v6 = ipaddress.ip_address(host).version == 6
        except ValueError:
            return "unknown:"
        return f"ipv6:{quote(f'[{host}]', safe=':')}:{port}" if is_v6 else f"ipv4:{host}:{port}"

    def time_remaining(self) -> float | None:
        """Return None: HTTP has no deadlines."""
        return None

    def certificate_names(self) -> Sequence[str]:
        """Return the names in the client's certificate."""
        certificate = self._caller.certificate
        alternatives = certificate.get("subjectAltName", ())
        subject = [pair for part in certificate.get("subject", ()) for pair in part]
        return [
            *(
                name for _, name in alternatives if isinstance(name, str)
            ),  # a DirName is a tuple, and omitted by gRPC too
            *(name for kind, name in subject if kind == "commonName"),
        ]

    def sent_status(self) -> str | None:
        """Return None: only the gateway sends a status, after the call."""
        return None
