"""Three ways to make the same call: gRPC, gRPC-Web, and JSON by the HTTP bindings of the contract."""

import base64
import http.client
import json
import re
import ssl
from collections.abc import Awaitable, Callable, Mapping
from contextlib import suppress
from typing import Any, NamedTuple
from urllib.parse import quote, unquote, urlencode

import grpc
from bookstore.v1 import books_pb2
from google.protobuf import json_format
from google.protobuf.message import Message
from google.protobuf.message_factory import GetMessageClass
from google.rpc import error_details_pb2, status_pb2

from bookstore_grpc.gateway.bindings import Binding, bindings
from tests.gateway.client import Response
from tests.rpc.calls import DETAILS_KEY

SERVICE = books_pb2.DESCRIPTOR.services_by_name["BookService"]
BINDINGS = {binding.method.name: binding for binding in reversed(bindings(SERVICE))}

_TRAILERS = 0x80


class Outcome(NamedTuple):
    """A message, or a status with its details, without what differs from call to call."""

    message: Message | None
    status: status_pb2.Status

    @property
    def reason(self) -> str:
        for detail in self.status.details:
            info = error_details_pb2.ErrorInfo()
            if detail.Unpack(info):
                return info.reason
        return ""


Way = Callable[[str, Message], Awaitable[Outcome]]


def ask(
    address: str, ca: str, verb: str, target: str, body: bytes | None = None, headers: Mapping[str, str] | None = None
) -> Response:
    """Send a request over TLS and HTTP/1.1."""
    context = ssl.create_default_context(cafile=ca)
    connection = http.client.HTTPSConnection(address, context=context, timeout=30)
    try:
        with suppress(OSError):  # a body that is too long gets its response before it is read
            connection.request(verb, target, body, dict(headers or {}))
        response = connection.getresponse()
        received = {name.lower(): value for name, value in response.getheaders()}
        return Response(response.status, received, response.read())
    finally:
        connection.close()


def json_request(method: str, request: Message) -> tuple[str, str, bytes | None]:
    """Return verb, path with query, and body of a request by its binding."""
    binding: Binding = BINDINGS[method]
    fields = json_format.MessageToDict(request)
    path = binding.path({name: quote(_take(fields, name)) for name in binding.path_fields})
    body: bytes | None = None
    if binding.body == "*":
        body, fields = json.dumps(fields).encode(), {}
    elif binding.body:
        body = json.dumps(fields.pop(binding.body, {})).encode()
    query = urlencode(fields, doseq=True)
    return binding.verb, f"{path}?{query}" if query else path, body


def status_from_json(response: Response) -> status_pb2.Status:
    """Read a `google.rpc.Status`."""
    assert response.headers["content-type"] == "application/json", response
    return json_format.Parse(response.body, status_pb2.Status())


def outcome_from_json(method: str, response: Response) -> Outcome:
    if response.status != 200:
        return Outcome(None, without_request_id(status_from_json(response)))
    return Outcome(json_format.Parse(response.body, _response_class(method)()), status_pb2.Status())


def web_headers(**others: str) -> dict[str, str]:
    return {"content-type": "application/grpc-web+proto", "x-grpc-web": "1", **others}


def outcome_from_web(method: str, response: Response) -> Outcome:
    """Read a response of gRPC-Web: frames of messages, then one of trailers, or all in the headers."""
    assert response.status == 200, response
    assert response.headers["content-type"].startswith("application/grpc-web"), response
    messages, trailers = [], dict(response.headers)
    body = response.body
    while body:
        size = int.from_bytes(body[1:5], "big")
        kind, data, body = body[0], body[5 : 5 + size], body[5 + size :]
        if kind & _TRAILERS:
            trailers |= dict(re.split(": ?", line, maxsplit=1) for line in data.decode().splitlines())
        else:
            messages.append(data)
    if trailers["grpc-status"] != "0":
        details = trailers.get(DETAILS_KEY, "")
        status = status_pb2.Status.FromString(base64.b64decode(details + "=" * (-len(details) % 4)))
        if not details:
            status = status_pb2.Status(code=int(trailers["grpc-status"]), message=unquote(trailers["grpc-message"]))
        assert status.code == int(trailers["grpc-status"])
        assert status.message == unquote(trailers["grpc-message"])
        return Outcome(None, without_request_id(status))
    (message,) = messages
    return Outcome(_response_class(method).FromString(message), status_pb2.Status())


def framed(message: bytes) -> bytes:
    """Return a message with the prefix of its frame in gRPC."""
    return b"\x00" + len(message).to_bytes(4, "big") + message


async def outcome_of(channel: grpc.aio.Channel, method: str, request: Message, **metadata: str) -> Outcome:
    """Make a call by gRPC."""
    call: grpc.aio.UnaryUnaryMultiCallable[Any, Any] = channel.unary_unary(
        path_of(method),
        request_serializer=lambda message: message.SerializeToString(),
        response_deserializer=_response_class(method).FromString,
    )
    try:
        return Outcome(await call(request, metadata=tuple(metadata.items()), timeout=30), status_pb2.Status())
    except grpc.aio.AioRpcError as error:
        details = dict(error.trailing_metadata() or ()).get(DETAILS_KEY)
        status = status_pb2.Status(code=error.code().value[0], message=error.details() or "")
        if isinstance(details, bytes):
            status = status_pb2.Status.FromString(details)
        return Outcome(None, without_request_id(status))


def path_of(method: str) -> str:
    return f"/{SERVICE.full_name}/{method}"


def without_request_id(status: status_pb2.Status) -> status_pb2.Status:
    """Remove the request id; a status of gRPC itself has no details."""
    if not status.details:
        return status
    request_info = error_details_pb2.RequestInfo()
    (position,) = [at for at, detail in enumerate(status.details) if detail.Unpack(request_info)]
    assert request_info.request_id
    del status.details[position]
    return status


def _response_class(method: str) -> Any:
    return GetMessageClass(SERVICE.methods_by_name[method].output_type)


def _take(fields: dict[str, Any], path: str) -> str:
    """Remove a field from nested messages and return its value."""
    *parents, last = path.split(".")
    for parent in parents:
        fields = fields.setdefault(parent, {})
    return str(fields.pop(last, "0"))
