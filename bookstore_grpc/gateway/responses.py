"""Encoding of HTTP responses: status, headers and JSON of results and errors."""

import math
from collections.abc import Mapping
from functools import lru_cache
from typing import Any, NamedTuple

from google.protobuf.message import Message
from google.protobuf.message_factory import GetMessageClass

from bookstore_grpc.calls.status import status_from_error
from bookstore_grpc.errors import (
    BookstoreError,
    HostUnknown,
    MediaTypeUnsupported,
    MethodUnknown,
    RequestTooLarge,
    ResourceExhausted,
    ResumeTokenExpired,
    ServerDraining,
    Unauthenticated,
    Unavailable,
    VerbNotAllowed,
)
from bookstore_grpc.gateway.bindings import Binding
from bookstore_grpc.gateway.json_codec import json_from_message
from bookstore_grpc.gateway.requests import ANY, etag_from_header
from bookstore_grpc.limits import JSON_RESPONSE_CACHE_ENTRY_MAX_BYTES, JSON_RESPONSE_CACHE_MAX
from bookstore_grpc.net.asgi import Send

Header = tuple[bytes, bytes]

_JSON = (b"content-type", b"application/json")
# A response is for one caller, and caches must revalidate it by its etag.
_UNCACHED = (b"cache-control", b"private, no-cache")
NOSNIFF = (b"x-content-type-options", b"nosniff")
_HEADERS: tuple[Header, ...] = (_JSON, _UNCACHED, NOSNIFF)

# HTTP statuses by the name of the status code, from the comments of google/rpc/code.proto.
STATUSES: Mapping[str, int] = {
    "OK": 200,
    "INVALID_ARGUMENT": 400,
    "FAILED_PRECONDITION": 400,
    "OUT_OF_RANGE": 400,
    "UNAUTHENTICATED": 401,
    "PERMISSION_DENIED": 403,
    "NOT_FOUND": 404,
    "ALREADY_EXISTS": 409,
    "ABORTED": 409,
    "RESOURCE_EXHAUSTED": 429,
    "CANCELLED": 499,
    "UNKNOWN": 500,
    "INTERNAL": 500,
    "DATA_LOSS": 500,
    "UNIMPLEMENTED": 501,
    "UNAVAILABLE": 503,
    "DEADLINE_EXCEEDED": 504,
}
# Reasons with a more specific HTTP status.
STATUSES_BY_REASON: Mapping[str, int] = {
    HostUnknown.reason: 403,
    MethodUnknown.reason: 404,
    VerbNotAllowed.reason: 405,
    ResumeTokenExpired.reason: 410,
    RequestTooLarge.reason: 413,
    MediaTypeUnsupported.reason: 415,
}


class Response(NamedTuple):
    """A response over HTTP."""

    status: int
    headers: tuple[Header, ...]
    body: bytes

    def with_header(self, name: str, value: str) -> "Response":
        """Return the response with one more header."""
        return self._replace(headers=(*self.headers, (name.encode(), value.encode())))

    async def send(self, send: Send) -> None:
        """Send the response."""
        headers = list(self.headers)
        if self.status != 304:  # which has no body
            headers.append((b"content-length", str(len(self.body)).encode()))
        await send({"type": "http.response.start", "status": self.status, "headers": headers})
        await send({"type": "http.response.body", "body": self.body})


class ResponseEncoder:
    """Encodes the responses of one binding. A create returns 201 with the `Location` of the new resource."""

    def __init__(self, binding: Binding, *, location: Binding | None) -> None:
        self._message_class = GetMessageClass(binding.method.output_type)
        self._has_etag = "etag" in binding.method.output_type.fields_by_name
        self._location = location
        self._is_get = binding.verb == "GET"
        self._cached_json = lru_cache(JSON_RESPONSE_CACHE_MAX)(self._json_from_bytes)

    def encode(self, response: Message | bytes, *, if_none_match: str | None) -> Response:
        """Return the response for a message or for its serialized form."""
        if isinstance(response, bytes):
            # A page from the page cache has the same bytes each time.
            is_short = len(response) <= JSON_RESPONSE_CACHE_ENTRY_MAX_BYTES
            return Response(200, _HEADERS, (self._cached_json if is_short else self._json_from_bytes)(response))
        message: Any = response
        headers = _HEADERS
        if self._has_etag and message.etag:
            headers += ((b"etag", f'"{message.etag}"'.encode()),)
            if self._is_get and if_none_match and _names(if_none_match, message.etag):
                return Response(304, headers[1:], b"")
        if self._location is None:
            return Response(200, headers, json_from_message(message))
        fields = {name: str(getattr(message, name)) for name in self._location.path_fields}
        return Response(
            201, (*headers, (b"location", self._location.path(fields).encode())), json_from_message(message)
        )

    def _json_from_bytes(self, data: bytes) -> bytes:
        return json_from_message(self._message_class.FromString(data))


def response_from_error(error: BookstoreError, *, request_id: str) -> Response:
    """Return the response for an error: its status as JSON, and the corresponding headers."""
    status = status_from_error(error, request_id=request_id)
    headers = _HEADERS
    if isinstance(error, Unavailable | ResourceExhausted):
        seconds = math.ceil(round(error.retry_seconds, 3))  # the header has whole seconds
        headers += ((b"retry-after", str(max(1, seconds)).encode()),)
    if isinstance(error, Unauthenticated):
        headers += ((b"www-authenticate", b"Bearer"),)
    if isinstance(error, ServerDraining):
        headers += ((b"connection", b"close"),)  # a new connection may reach another server
    http_status = STATUSES_BY_REASON.get(status.reason, STATUSES[status.code])
    return Response(http_status, headers, json_from_message(status.details))


def _names(if_none_match: str, etag: str) -> bool:
    return if_none_match == ANY or etag in map(etag_from_header, if_none_match.split(","))
