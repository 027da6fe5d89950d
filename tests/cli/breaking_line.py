"""A TCP proxy that breaks: forwards bytes between a client and a server until the server has received so many."""

import socket
import threading
from collections.abc import Iterator
from contextlib import contextmanager, suppress
from typing import Literal

End = Literal["stall", "hang up"]


class BreakingLine:
    """Listens in front of a server. After `after_bytes` to the server it stalls, or closes everything."""

    def __init__(self, server: str, *, after_bytes: int, then: End) -> None:
        host, _, port = server.rpartition(":")
        self._server = (host, int(port))
        self._remaining = after_bytes
        self._then = then
        self._sockets: list[socket.socket] = []
        self._listening = socket.create_server(("127.0.0.1", 0))
        self.is_broken = threading.Event()
        self.address = f"127.0.0.1:{self._listening.getsockname()[1]}"
        threading.Thread(target=self._accept, daemon=True).start()

    def close(self) -> None:
        # Shut down first: closing alone does not wake a thread that waits in accept() or recv().
        for each in (self._listening, *self._sockets):
            with suppress(OSError):
                each.shutdown(socket.SHUT_RDWR)
            each.close()

    def _accept(self) -> None:
        while True:
            try:
                caller, _ = self._listening.accept()
                called = socket.create_connection(self._server)
            except OSError:
                return
            self._sockets += (caller, called)
            threading.Thread(target=self._pass_to_server, args=(caller, called), daemon=True).start()
            threading.Thread(target=_pass_on, args=(called, caller), daemon=True).start()

    def _pass_to_server(self, caller: socket.socket, called: socket.socket) -> None:
        with suppress(OSError):
            while data := caller.recv(16_384):
                called.sendall(data[: self._remaining])
                self._remaining -= len(data)
                if self._remaining <= 0:
                    if self._then == "hang up":
                        self.close()
                    self.is_broken.set()
                    return
            called.shutdown(socket.SHUT_WR)


def _pass_on(source: socket.socket, sink: socket.socket) -> None:
    with suppress(OSError):
        while data := source.recv(16_384):
            sink.sendall(data)
        sink.shutdown(socket.SHUT_WR)


@contextmanager
def breaking_line(server: str, *, after_bytes: int, then: End) -> Iterator[BreakingLine]:
    line = BreakingLine(server, after_bytes=after_bytes, then=then)
    try:
        yield line
    finally:
        line.close()
