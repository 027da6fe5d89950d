"""A client of Server-Sent Events that shows what comes on the wire: events, comments, and how the response ends."""

import asyncio
import json
from collections.abc import AsyncIterator, Mapping
from contextlib import asynccontextmanager
from typing import Any, NamedTuple

from tests.gateway.client import head

_SECONDS = 30


class Event(NamedTuple):
    """An event, or a comment, whose only field has no name."""

    fields: Mapping[str, str]

    @property
    def json(self) -> Any:
        return json.loads(self.fields["data"])

    @property
    def is_comment(self) -> bool:
        return self.fields.keys() == {""}


class EventResponse:
    """The response to one request, on a connection of its own."""

    def __init__(self, reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        self.status = 0
        self.headers: Mapping[str, str] = {}
        self._reader = reader
        self._writer = writer
        self._text = ""

    async def start(self, request: bytes) -> None:
        self._writer.write(request)
        async with asyncio.timeout(_SECONDS):
            first, *lines = (await self._reader.readuntil(b"\r\n\r\n")).decode().strip().split("\r\n")
        self.status = int(first.split()[1])
        self.headers = dict(line.split(": ", 1) for line in lines)

    async def next(self) -> Event | None:
        """Return the next event or comment, or None at the end of the response."""
        async with asyncio.timeout(_SECONDS):
            while "\n\n" not in self._text:
                data = await self._chunk()
                if not data:
                    assert self._text == "", "the response ends within an event"
                    return None
                self._text += data.decode()
        block, _, self._text = self._text.partition("\n\n")
        fields: dict[str, str] = {}
        for line in block.split("\n"):
            name, _, value = line.partition(":")
            assert name not in fields, "each field has one line"
            fields[name] = value.removeprefix(" ")
        return Event(fields)

    async def event(self) -> Event:
        """Return the next event, which must come."""
        event = await self.next()
        assert event is not None
        return event

    async def rest(self) -> list[Event]:
        """Return all further events and comments."""
        found: list[Event] = []
        while (event := await self.next()) is not None:
            found.append(event)
        return found

    async def body(self) -> bytes:
        """Return the body of a response that is no stream."""
        return await self._reader.readexactly(int(self.headers["content-length"]))

    async def until_closed(self) -> bytes:
        """Return what comes after the response until the server closes the connection."""
        async with asyncio.timeout(_SECONDS):
            return await self._reader.read()

    async def _chunk(self) -> bytes:
        size = int(await self._reader.readuntil(b"\r\n"), 16)
        data = await self._reader.readexactly(size + 2)
        return data[:-2]


@asynccontextmanager
async def watching(address: str, path: str, *, verb: str = "GET", **headers: str) -> AsyncIterator[EventResponse]:
    """Send a request and yield the response once its head is there. At the end the client disconnects."""
    host, _, port = address.rpartition(":")
    reader, writer = await asyncio.open_connection(host, int(port))
    try:
        response = EventResponse(reader, writer)
        await response.start(head(verb, path, **headers))
        yield response
    finally:
        writer.transport.abort()
