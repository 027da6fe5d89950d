"""HTTP/2 by hand, for clients that no library would be."""

import socket
import struct

PREFACE = b"PRI * HTTP/2.0\r\n\r\nSM\r\n\r\n"
DATA, HEADERS, RST_STREAM, SETTINGS, PING, CONTINUATION = 0, 1, 3, 4, 6, 9
INITIAL_WINDOW_SIZE = 4


def frame(kind: int, payload: bytes = b"", *, flags: int = 0, stream: int = 0) -> bytes:
    """RFC 9113, section 4.1."""
    return len(payload).to_bytes(3, "big") + bytes([kind, flags]) + stream.to_bytes(4, "big") + payload


def literal(name: str, value: str) -> bytes:
    """A header as HPACK's literal without indexing: RFC 7541, section 6.2.2. Both are shorter than 127 bytes."""
    return b"\x00" + bytes([len(name)]) + name.encode() + bytes([len(value)]) + value.encode()


def headers(path: str = "/bookstore.v1.BookService/GetBook", method: str = "POST", **others: str) -> bytes:
    every = {":method": method, ":scheme": "http", ":path": path, ":authority": "a", "te": "trailers"}
    every |= {"content-type": "application/grpc"} | {name.replace("_", "-"): value for name, value in others.items()}
    return b"".join(literal(name, value) for name, value in every.items() if value)


def opened(address: str, *, window_bytes: int = 65_535) -> socket.socket:
    """Open a connection on which responses may have so many bytes until the window is updated."""
    host, _, port = address.rpartition(":")
    connection = socket.create_connection((host, int(port)), timeout=10)
    connection.sendall(PREFACE + frame(SETTINGS, struct.pack(">HI", INITIAL_WINDOW_SIZE, window_bytes)))
    return connection


def call_frames(path: str, message: bytes, *, stream: int, is_whole: bool = True) -> bytes:
    """The frames of a call with one message, or the beginning of one that announces more than it has."""
    announced = len(message) if is_whole else 8_000_000
    body = b"\x00" + announced.to_bytes(4, "big") + message
    return frame(HEADERS, headers(path), flags=4, stream=stream) + frame(DATA, body, flags=int(is_whole), stream=stream)


def has_ended(data: bytes, *, stream: int) -> bool:
    """Return whether the data holds the end of a response."""
    while len(data) >= 9:
        length, flags = int.from_bytes(data[:3], "big"), data[4]
        is_end = data[3] in (DATA, HEADERS) and flags & 1 and int.from_bytes(data[5:9], "big") == stream
        data = data[9:]
        if is_end:
            return len(data) >= length
        data = data[length:]
    return False
