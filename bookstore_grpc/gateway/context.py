"""A call that came over HTTP, as the guard, the gates and the observers of calls see it."""

import asyncio
import ipaddress
from collections.abc import Collection, Iterator, Mapping
from contextlib import contextmanager
from typing import Any, NoReturn
from urllib.parse import quote

import grpc
from google.rpc import status_pb2

from bookstore_grpc.metadata import REQUEST_ID_KEY, STATUS_DETAILS_KEY
from bookstore_grpc.net.http_server import CALLER, Caller

_Metadata = tuple[tuple[str, str | bytes], ...]


class HttpContext:
    """Answers for an HTTP request what grpc.aio's context of a call would, as far as anybody asks.

    Headers are the metadata. What `abort` was told is kept, for the answer.
    """

    def __init__(self, scope: Mapping[str, Any]) -> None:
        self._scope = scope
        self._metadata = tuple((name.decode("latin-1"), value.decode("latin-1")) for name, value in scope["headers"])
        self._caller: Caller = scope["state"][CALLER]
        self._code = grpc.StatusCode.OK
        self.path: str = scope["path"]
        self.query: bytes = scope["query_string"]
        # What is answered to HEAD is what would be to GET, and its body is left out on the way.
        self.verb: str = "GET" if scope["method"] == "HEAD" else scope["method"]
        self.request_id = ""
        self.status = status_pb2.Status()

    def header(self, name: str) -> str | None:
        """Answer a header, of several the first."""
        return next((value for key, value in self._metadata if key == name), None)

    @contextmanager
    def ended_with_caller(self) -> Iterator[None]:
        """Cancel the block when the caller goes, as gRPC cancels the calls of one who does, and leave it then."""
        task = asyncio.current_task()
        assert task is not None  # noqa: S101  uvicorn runs each request in a task of its own
        self._caller.task = task
        try:
            yield
        except asyncio.CancelledError:
            if not self._caller.has_gone:
                raise
            task.uncancel()
        finally:
            self._caller.task = None

    @property
    def is_json(self) -> bool:
        """Whether the body is said to be JSON."""
        return (self.header("content-type") or "").partition(";")[0].strip().lower() == "application/json"

    def invocation_metadata(self) -> Collection[tuple[str, str | bytes]]:
        """Answer the headers."""
        return self._metadata

    def set_trailing_metadata(self, metadata: _Metadata) -> None:
        """Take note of the request id, which goes back in a header."""
        self.request_id = str(dict(metadata)[REQUEST_ID_KEY])

    def time_remaining(self) -> None:
        """Answer that HTTP knows no deadlines."""

    def done(self) -> bool:
        """Answer that nobody but the handler ends the call."""
        return False

    def code(self) -> grpc.StatusCode:
        """Answer the status that the call has been aborted with, or OK."""
        return self._code

    def peer(self) -> str:
        """Answer the other side's address, as gRPC spells it."""
        host, port = self._scope["client"] or ("", 0)
        try:
            is_v6 = ipaddress.ip_address(host).version == 6
        except ValueError:
            return "unknown:"
        return f"ipv6:{quote(f'[{host}]', safe=':')}:{port}" if is_v6 else f"ipv4:{host}:{port}"

    def auth_context(self) -> Mapping[str, list[bytes]]:
        """Answer the names in the client's certificate, under gRPC's keys."""
        certificate = self._caller.certificate
        subject = [pair for part in certificate.get("subject", ()) for pair in part]
        alternatives = certificate.get("subjectAltName", ())
        return {
            "x509_common_name": [name.encode() for kind, name in subject if kind == "commonName"],
            # A DirName is a tuple, which gRPC leaves out too.
            "x509_subject_alternative_name": [name.encode() for _, name in alternatives if isinstance(name, str)],
        }

    async def abort(self, code: grpc.StatusCode, message: str = "", trailing_metadata: _Metadata = ()) -> NoReturn:
        """Keep the status for the answer, and end the call."""
        self._code = code
        details = dict(trailing_metadata).get(STATUS_DETAILS_KEY)
        if isinstance(details, bytes):
            self.status = status_pb2.Status.FromString(details)
        else:
            self.status = status_pb2.Status(code=code.value[0], message=message)
        raise grpc.aio.AbortError
