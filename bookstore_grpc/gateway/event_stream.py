"""Responses of server-streaming RPCs as Server-Sent Events, which browsers read by EventSource.

The format is that of https://html.spec.whatwg.org/multipage/server-sent-events.html.
"""

import asyncio
from collections.abc import AsyncIterator, Callable
from contextlib import asynccontextmanager
from functools import lru_cache
from typing import Any

from google.protobuf.descriptor import FieldDescriptor, MethodDescriptor
from google.protobuf.message import Message
from google.protobuf.message_factory import GetMessageClass

from bookstore_grpc.gateway.json_codec import json_from_message
from bookstore_grpc.gateway.requests import RESUME_TOKEN
from bookstore_grpc.gateway.responses import NOSNIFF, Header
from bookstore_grpc.limits import EVENT_CACHE_MAX, JSON_RESPONSE_CACHE_ENTRY_MAX_BYTES
from bookstore_grpc.metadata import REQUEST_ID_KEY
from bookstore_grpc.net.asgi import Send

MEDIA_TYPE = "text/event-stream"
# Proxies close a connection on which nothing comes for about a minute.
KEEP_ALIVE_SECONDS = 15

_HEADERS: tuple[Header, ...] = (
    (b"content-type", MEDIA_TYPE.encode()),
    (b"cache-control", b"no-store"),
    NOSNIFF,
    (b"x-accel-buffering", b"no"),  # nginx would collect events
    # A client that resumes after the end of a stream, such as that of a draining server, then connects anew.
    (b"connection", b"close"),
)
_COMMENT = b":\n\n"
# How long the error that ends a stream may wait for a client that does not read.
_ERROR_SECONDS = 0.5


class EventEncoder:
    """Encodes the responses of one RPC as events. The id of an event is the field `resume_token`, if there is one."""

    def __init__(self, method: MethodDescriptor) -> None:
        self._message_class = GetMessageClass(method.output_type)
        field = method.output_type.fields_by_name.get(RESUME_TOKEN)
        self._has_token = field is not None and field.type == FieldDescriptor.TYPE_STRING
        self._cached_event = lru_cache(EVENT_CACHE_MAX)(self._event_from_bytes)

    def encode(self, response: Message | bytes) -> bytes:
        """Return the event for a message or for its serialized form."""
        if not isinstance(response, bytes):
            return self._event(response)
        # Streams that run at the same time mostly have the same responses.
        is_short = len(response) <= JSON_RESPONSE_CACHE_ENTRY_MAX_BYTES
        return (self._cached_event if is_short else self._event_from_bytes)(response)

    def _event_from_bytes(self, data: bytes) -> bytes:
        return self._event(self._message_class.FromString(data))

    def _event(self, message: Any) -> bytes:
        data = json_from_message(message)
        token: str = message.resume_token if self._has_token else ""
        # Line breaks would end the field, and headers can hold only ASCII in every client.
        if token and token.isascii() and token.isprintable():
            return b"id: %b\ndata: %b\n\n" % (token.encode(), data)
        return b"data: %b\n\n" % data


class EventStream:
    """The response that the events of one call are sent in.

    Each event is written as a whole or not at all, also if the call is cancelled meanwhile. Writing waits while the
    client does not read (backpressure). A comment is written after each `keep_alive_seconds` without an event. `abort`
    closes the connection.
    """

    def __init__(self, send: Send, *, request_id: str, keep_alive_seconds: float, abort: Callable[[], object]) -> None:
        self.is_started = False
        self._send = send
        self._request_id = request_id
        self._keep_alive_seconds = keep_alive_seconds
        self._abort = abort
        self._writing = asyncio.Lock()
        self._written_at = asyncio.get_running_loop().time()

    async def start(self) -> None:
        """Send the head of the response, if it is not sent yet."""
        async with self._writing:
            await self._start()

    async def write(self, event: bytes) -> None:
        """Write an event. The first one starts the response."""
        async with self._writing:
            await self._start()
            await self._send({"type": "http.response.body", "body": event, "more_body": True})
            self._written_at = asyncio.get_running_loop().time()

    async def end(self, *, error: bytes | None = None) -> None:
        """End the response, with an event for the JSON of an error. A client that does not read may miss the error."""
        last = b"" if error is None else b"event: status\ndata: %b\n\n" % error
        timer = asyncio.get_running_loop().call_later(_ERROR_SECONDS, self._abort) if last else None
        try:
            await self._send({"type": "http.response.body", "body": last})
        finally:
            if timer:
                timer.cancel()

    @asynccontextmanager
    async def kept_alive(self) -> AsyncIterator[None]:
        """Write comments during the block. If no event has come yet, the first of them starts the response."""
        task = asyncio.create_task(self._keep_alive())
        try:
            yield
        finally:
            task.cancel()

    async def _keep_alive(self) -> None:
        loop = asyncio.get_running_loop()
        while True:
            idle_seconds = loop.time() - self._written_at
            if idle_seconds < self._keep_alive_seconds:
                await asyncio.sleep(self._keep_alive_seconds - idle_seconds)
            else:
                await self.write(_COMMENT)

    async def _start(self) -> None:
        if not self.is_started:
            headers = [*_HEADERS, (REQUEST_ID_KEY.encode(), self._request_id.encode())]
            await self._send({"type": "http.response.start", "status": 200, "headers": headers})
            self.is_started = True
