"""An HTTP/2 client for gRPC calls in plaintext that does only what a load generator of streams needs.

h2load cannot read a stream without an end. grpc.aio takes about as long to receive a response as a server takes to send
it, and its own queue would then be measured. This client takes a few microseconds for a response.
"""

import asyncio
from collections.abc import Callable
from dataclasses import dataclass, field
from typing import cast

_PREFACE = b"PRI * HTTP/2.0\r\n\r\nSM\r\n\r\n"
_DATA, _HEADERS, _RST_STREAM, _SETTINGS, _PING, _WINDOW_UPDATE = 0x0, 0x1, 0x3, 0x4, 0x6, 0x8
_END_STREAM, _ACK, _END_HEADERS = 0x1, 0x1, 0x4
_INITIAL_WINDOW_SIZE = 0x4
_FRAME_HEADER_BYTES = 9
_MESSAGE_HEADER_BYTES = 5
# Such that no window needs an update: two gigabytes.
_WINDOW_MAX = 2**31 - 1
_WINDOW_DEFAULT = 65_535


@dataclass
class _Call:
    on_message: Callable[[bytes], None]
    on_end: Callable[[], None]
    received: bytearray = field(default_factory=bytearray)


class Connection(asyncio.Protocol):
    """A connection to a server. It ignores the server's flow control, so its requests must be small."""

    def __init__(self, authority: str) -> None:
        self._authority = authority
        self._calls: dict[int, _Call] = {}
        self._next_id = 1
        self._received = bytearray()
        self._transport: asyncio.Transport

    def call(
        self, path: str, request: bytes, *, on_message: Callable[[bytes], None], on_end: Callable[[], None]
    ) -> None:
        """Start a call of the method `path`. Each response is passed to `on_message`.

        `on_end` is called when the call or the connection ends, unless `close` ends it.
        """
        stream = self._next_id
        self._next_id += 2
        self._calls[stream] = _Call(on_message, on_end)
        message = b"\0" + len(request).to_bytes(4, "big") + request
        self._transport.write(
            _frame(_HEADERS, _END_HEADERS, stream, _header_block(self._authority, path))
            + _frame(_DATA, _END_STREAM, stream, message)
        )

    def close(self) -> None:
        """Close the connection, which cancels its calls."""
        self._calls.clear()
        self._transport.close()

    def connection_made(self, transport: asyncio.BaseTransport) -> None:
        """Send what has to come first."""
        self._transport = cast(asyncio.Transport, transport)  # uvloop's is not a subclass
        window = _INITIAL_WINDOW_SIZE.to_bytes(2, "big") + _WINDOW_MAX.to_bytes(4, "big")
        update = (_WINDOW_MAX - _WINDOW_DEFAULT).to_bytes(4, "big")
        self._transport.write(_PREFACE + _frame(_SETTINGS, 0, 0, window) + _frame(_WINDOW_UPDATE, 0, 0, update))

    def connection_lost(self, exc: Exception | None) -> None:
        """End all calls."""
        for stream in [*self._calls]:
            self._end(stream)

    def data_received(self, data: bytes) -> None:
        """Process all frames that have arrived completely."""
        received = self._received
        received += data
        start = 0
        while len(received) - start >= _FRAME_HEADER_BYTES:
            end = start + _FRAME_HEADER_BYTES + int.from_bytes(received[start : start + 3], "big")
            if len(received) < end:
                break
            kind, flags = received[start + 3], received[start + 4]
            stream = int.from_bytes(received[start + 5 : start + _FRAME_HEADER_BYTES], "big")
            self._process(kind, flags, stream, received[start + _FRAME_HEADER_BYTES : end])
            start = end
        del received[:start]

    def _process(self, kind: int, flags: int, stream: int, payload: bytearray) -> None:
        if kind == _DATA:
            self._receive(stream, payload)
        elif kind in (_SETTINGS, _PING) and not flags & _ACK:
            self._transport.write(_frame(kind, _ACK, 0, payload if kind == _PING else b""))
        if kind == _RST_STREAM or (kind in (_DATA, _HEADERS) and flags & _END_STREAM):
            self._end(stream)

    def _receive(self, stream: int, payload: bytearray) -> None:
        call = self._calls.get(stream)
        if call is None:
            return
        received = call.received
        received += payload
        while len(received) >= _MESSAGE_HEADER_BYTES:
            end = _MESSAGE_HEADER_BYTES + int.from_bytes(received[1:_MESSAGE_HEADER_BYTES], "big")
            if len(received) < end:
                break
            call.on_message(bytes(received[_MESSAGE_HEADER_BYTES:end]))
            del received[:end]

    def _end(self, stream: int) -> None:
        if call := self._calls.pop(stream, None):
            call.on_end()


async def connect(address: str) -> Connection:
    """Connect to HOST:PORT."""
    host, _, port = address.rpartition(":")
    _, connection = await asyncio.get_running_loop().create_connection(lambda: Connection(address), host, int(port))
    return connection


def _frame(kind: int, flags: int, stream: int, payload: bytes | bytearray) -> bytes:
    return len(payload).to_bytes(3, "big") + bytes([kind, flags]) + stream.to_bytes(4, "big") + payload


def _header_block(authority: str, path: str) -> bytes:
    """Return the headers of a gRPC call in HPACK, as literals that are not indexed."""
    headers = {
        ":method": "POST",
        ":scheme": "http",
        ":path": path,
        ":authority": authority,
        "te": "trailers",
        "content-type": "application/grpc",
    }
    return b"".join(b"\0" + _literal(name) + _literal(value) for name, value in headers.items())


def _literal(text: str) -> bytes:
    """Return a text of at most 126 ASCII characters."""
    return bytes([len(text)]) + text.encode()
