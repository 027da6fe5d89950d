"""Outcomes of calls to HTTP answers: statuses, headers, JSON."""

from collections.abc import Mapping
from functools import lru_cache
from typing import Any, NamedTuple

import grpc
from google.protobuf.message import Message
from google.protobuf.message_factory import GetMessageClass
from google.rpc import error_details_pb2, status_pb2

from bookstore_grpc.errors import (
    HostUnknown,
    MediaTypeUnsupported,
    MethodUnknown,
    RequestTooLarge,
    ServerDraining,
    VerbNotAllowed,
)
from bookstore_grpc.gateway.bindings import Binding
from bookstore_grpc.gateway.json_codec import json_from_message
from bookstore_grpc.gateway.requests import ANY, etag_from_header
from bookstore_grpc.limits import JSON_ANSWER_KEPT_MAX_BYTES, JSON_ANSWERS_KEPT_MAX
from bookstore_grpc.net.asgi import Send

Header = tuple[bytes, bytes]

_JSON = (b"content-type", b"application/json")
# Answers are of this moment and this caller; with its etag one can be asked for again.
_UNCACHED = (b"cache-control", b"private, no-cache")
_NOSNIFF = (b"x-content-type-options", b"nosniff")
_HEADERS: tuple[Header, ...] = (_JSON, _UNCACHED, _NOSNIFF)

# google/rpc/code.proto has these in its comments.
STATUSES: Mapping[grpc.StatusCode, int] = {
    grpc.StatusCode.OK: 200,
    grpc.StatusCode.INVALID_ARGUMENT: 400,
    grpc.StatusCode.FAILED_PRECONDITION: 400,
    grpc.StatusCode.OUT_OF_RANGE: 400,
    grpc.StatusCode.UNAUTHENTICATED: 401,
    grpc.StatusCode.PERMISSION_DENIED: 403,
    grpc.StatusCode.NOT_FOUND: 404,
    grpc.StatusCode.ALREADY_EXISTS: 409,
    grpc.StatusCode.ABORTED: 409,
    grpc.StatusCode.RESOURCE_EXHAUSTED: 429,
    grpc.StatusCode.CANCELLED: 499,
    grpc.StatusCode.UNKNOWN: 500,
    grpc.StatusCode.INTERNAL: 500,
    grpc.StatusCode.DATA_LOSS: 500,
    grpc.StatusCode.UNIMPLEMENTED: 501,
    grpc.StatusCode.UNAVAILABLE: 503,
    grpc.StatusCode.DEADLINE_EXCEEDED: 504,
}
# What HTTP has a word of its own for.
STATUSES_BY_REASON: Mapping[str, int] = {
    HostUnknown.reason: 403,
    MethodUnknown.reason: 404,
    VerbNotAllowed.reason: 405,
    RequestTooLarge.reason: 413,
    MediaTypeUnsupported.reason: 415,
}


class Answer(NamedTuple):
    """What goes back over HTTP."""

    status: int
    headers: tuple[Header, ...]
    body: bytes

    def with_header(self, name: str, value: str) -> "Answer":
        """Answer the same with a header more."""
        return self._replace(headers=(*self.headers, (name.encode(), value.encode())))

    async def send(self, send: Send) -> None:
        """Send it."""
        headers = list(self.headers)
        if self.status != 304:  # its length would be that of what is not sent
            headers.append((b"content-length", str(len(self.body)).encode()))
        await send({"type": "http.response.start", "status": self.status, "headers": headers})
        await send({"type": "http.response.body", "body": self.body})


class AnswerEncoder:
    """Makes the answers of one binding: of a create 201, whose `Location` is where the new resource can be had."""

    def __init__(self, binding: Binding, *, location: Binding | None) -> None:
        self._message_class = GetMessageClass(binding.method.output_type)
        self._has_etag = "etag" in binding.method.output_type.fields_by_name
        self._location = location
        self._is_get = binding.verb == "GET"
        self._kept_json = lru_cache(JSON_ANSWERS_KEPT_MAX)(self._json_from_bytes)

    def encode(self, answer: Message | bytes, *, if_none_match: str | None) -> Answer:
        """Answer a message, given as such or as its bytes."""
        if isinstance(answer, bytes):
            # A page that has been kept comes as the same bytes again.
            is_short = len(answer) <= JSON_ANSWER_KEPT_MAX_BYTES
            return Answer(200, _HEADERS, (self._kept_json if is_short else self._json_from_bytes)(answer))
        message: Any = answer
        headers = _HEADERS
        if self._has_etag and message.etag:
            headers += ((b"etag", f'"{message.etag}"'.encode()),)
            if self._is_get and if_none_match and _names(if_none_match, message.etag):
                return Answer(304, headers[1:], b"")
        if self._location is None:
            return Answer(200, headers, json_from_message(message))
        fields = {name: str(getattr(message, name)) for name in self._location.path_fields}
        return Answer(201, (*headers, (b"location", self._location.path(fields).encode())), json_from_message(message))

    def _json_from_bytes(self, data: bytes) -> bytes:
        return json_from_message(self._message_class.FromString(data))


def refusal(code: grpc.StatusCode, status: status_pb2.Status) -> Answer:
    """Answer a failure: the status as JSON, and in headers what HTTP's own tools look at."""
    reason = ""
    headers = _HEADERS
    info, retry = error_details_pb2.ErrorInfo(), error_details_pb2.RetryInfo()
    for detail in status.details:
        if detail.Unpack(info):
            reason = info.reason
        elif detail.Unpack(retry):
            # Whole seconds is all that this header knows.
            headers += ((b"retry-after", str(max(1, -(-retry.retry_delay.ToMilliseconds() // 1_000))).encode()),)
    if code is grpc.StatusCode.UNAUTHENTICATED:
        headers += ((b"www-authenticate", b"Bearer"),)
    if reason == ServerDraining.reason:
        headers += ((b"connection", b"close"),)  # another server may answer, on another connection
    return Answer(STATUSES_BY_REASON.get(reason, STATUSES[code]), headers, json_from_message(status))


def _names(if_none_match: str, etag: str) -> bool:
    return if_none_match == ANY or etag in map(etag_from_header, if_none_match.split(","))
