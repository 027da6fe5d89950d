"""A client of the JSON API, over the standard library; and one by hand, for what no library would send."""

import asyncio
import http.client
import json
import socket
import ssl
from collections.abc import Mapping
from contextlib import suppress
from typing import Any, NamedTuple

from google.protobuf import json_format
from google.rpc import error_details_pb2, status_pb2

from bookstore_grpc.errors import Rule

_SECONDS = 30

JSON = {"Content-Type": "application/json"}


class Response(NamedTuple):
    """What came back: names of headers are in lower case."""

    status: int
    headers: Mapping[str, str]
    body: bytes

    @property
    def json(self) -> Any:
        return json.loads(self.body)


async def ask(
    address: str,
    verb: str,
    path: str,
    body: Any = None,
    *,
    tls: ssl.SSLContext | None = None,
    **headers: str,
) -> Response:
    """Send a request on a connection of its own. What is no bytes is sent as JSON."""
    return await asyncio.to_thread(ask_and_wait, address, verb, path, body, tls=tls, **headers)


def ask_and_wait(
    address: str, verb: str, path: str, body: Any = None, *, tls: ssl.SSLContext | None = None, **headers: str
) -> Response:
    connection = (
        http.client.HTTPSConnection(address, timeout=_SECONDS, context=tls)
        if tls
        else http.client.HTTPConnection(address, timeout=_SECONDS)
    )
    try:
        return response_on(connection, verb, path, body, **headers)
    finally:
        connection.close()


def response_on(
    connection: http.client.HTTPConnection, verb: str, path: str, body: Any = None, /, **headers: str
) -> Response:
    """Send a request on a connection that is there; `content_type` is the header Content-Type."""
    sent = {name.replace("_", "-"): value for name, value in headers.items()}
    if body is not None and "content-type" not in sent:
        sent |= JSON
    data = body if body is None or isinstance(body, bytes) else json.dumps(body).encode()
    connection.request(verb, path, body=data, headers=sent)
    response = connection.getresponse()
    headers_of_response = {name.lower(): value for name, value in response.getheaders()}
    return Response(response.status, headers_of_response, response.read())


class HttpRejection(NamedTuple):
    """A response with an error, and its details."""

    status: int
    code: int
    message: str
    reason: str
    metadata: dict[str, str]
    violations: dict[str, str]
    rules: dict[str, str]
    details: list[str]
    headers: Mapping[str, str]


def rejection_from_response(response: Response) -> HttpRejection:
    """Check what holds for every error, and return its details."""
    assert response.status >= 400, response
    assert response.headers["content-type"] == "application/json"
    assert response.headers["x-content-type-options"] == "nosniff"
    status = json_format.Parse(response.body, status_pb2.Status())
    info = error_details_pb2.ErrorInfo()
    bad_request = error_details_pb2.BadRequest()
    request = error_details_pb2.RequestInfo()
    for detail in status.details:
        assert detail.Unpack(info) or detail.Unpack(bad_request) or detail.Unpack(request) or detail.type_url
    assert info.domain == "bookstore.v1"
    assert request.request_id == response.headers["x-request-id"]
    violations: dict[str, str] = {}
    rules: dict[str, str] = {}
    for each in bad_request.field_violations:
        assert each.field not in violations, "reported twice"
        violations[each.field] = each.description
        rules[each.field] = Rule(each.reason)
    return HttpRejection(
        response.status,
        status.code,
        status.message,
        info.reason,
        dict(info.metadata),
        violations,
        rules,
        details_of(status),
        response.headers,
    )


def details_of(status: status_pb2.Status) -> list[str]:
    """Return the details as texts that can be compared, without the request id."""
    return [f"{detail}" for detail in status.details if not detail.Unpack(error_details_pb2.RequestInfo())]


async def rejected(address: str, verb: str, path: str, body: Any = None, **options: Any) -> HttpRejection:
    return rejection_from_response(await ask(address, verb, path, body, **options))


class Wire:
    """A connection on which a test sends what it likes."""

    def __init__(self, address: str, *, receive_buffer_bytes: int = 0) -> None:
        host, _, port = address.rpartition(":")
        self.socket = socket.socket(socket.AF_INET6 if host.startswith("[") else socket.AF_INET)
        if receive_buffer_bytes:
            self.socket.setsockopt(socket.SOL_SOCKET, socket.SO_RCVBUF, receive_buffer_bytes)
        self.socket.settimeout(_SECONDS)
        self.socket.connect((host.strip("[]"), int(port)))

    def __enter__(self) -> "Wire":
        return self

    def __exit__(self, *_: object) -> None:
        self.socket.close()

    def send(self, data: bytes) -> None:
        self.socket.sendall(data)

    def read_until(self, end: bytes) -> bytes:
        """Return what comes, up to an end that must come."""
        received = b""
        while end not in received:
            data = self.socket.recv(65_536)
            assert data, received
            received += data
        return received

    def read_to_end(self, seconds: float = _SECONDS) -> bytes:
        """Return what is received until the peer closes the connection, which it must within the time."""
        self.socket.settimeout(seconds)
        received = b""
        with suppress(ConnectionError):
            while data := self.socket.recv(65_536):
                received += data
        return received


def head(verb: str, path: str, **headers: str) -> bytes:
    """The head of a request; `content_length` is the header Content-Length."""
    every = {"host": "localhost", **headers}
    lines = [f"{verb} {path} HTTP/1.1", *(f"{name.replace('_', '-')}: {value}" for name, value in every.items())]
    return "".join(f"{line}\r\n" for line in [*lines, ""]).encode()
