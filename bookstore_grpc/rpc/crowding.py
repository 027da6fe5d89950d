"""Room among gRPC's connections: its core turns new ones away at the bound and closes none of the idle ones for them.

So before the bound is reached, those that have been silent longest are closed here. gRPC has no hook for that, but its
sockets are this process's own: one that is shut down looks to the core like one whose client has gone.
"""

import asyncio
import os
import socket
import struct
from collections import defaultdict
from collections.abc import Iterator, Sequence, Set
from contextlib import contextmanager, suppress
from typing import NamedTuple

from bookstore_grpc.room import Shortage, source_of
from bookstore_grpc.rpc.calls import Call, Outcome

LOOK_SECONDS = 0.5

_DESCRIPTORS = "/proc/self/fd"
# Of the bound, what is left to those that are there; the rest is for those that come until the next look.
_FULL_SHARE = 3 / 4
# In Linux's `struct tcp_info`: for how many milliseconds nothing has come (tcpi_last_data_recv).
_TCP_INFO_BYTES, _SILENT_OFFSET = 60, 52
_SILENT_LEAST_MS = 500


class _Connection(NamedTuple):
    descriptor: int
    local_port: int
    peer: tuple[str, int]
    silent_ms: int


class Crowding:
    """Closes silent connections where a listener nears its bound; an observer of calls, for a call makes no noise.

    `most` is the bound of each listener.
    """

    def __init__(self, most: int) -> None:
        self.shortage = Shortage(most, name="grpc")
        self._most_kept = int(most * _FULL_SHARE)
        self._calls: dict[int, Call] = {}

    def call_began(self, call: Call) -> None:
        """Remember a call under way."""
        self._calls[id(call)] = call

    def call_ended(self, call: Call, _outcome: Outcome) -> None:
        """Forget a call."""
        self._calls.pop(id(call), None)

    async def relieve(self, addresses: Sequence[str]) -> None:
        """Look at the connections to these addresses, if there may be too many, and close some if there are."""
        ports = {int(address.rpartition(":")[2]) for address in addresses if not address.startswith("unix:")}
        if not ports or _count_descriptors() <= self._most_kept:
            return
        busy = {call.context.peer().rpartition(":")[2] for call in self._calls.values()}
        closed = await asyncio.to_thread(self._relieve, ports, busy)
        if closed:
            self.shortage.closed(closed)

    def _relieve(self, ports: Set[int], busy: Set[str]) -> int:
        by_port: dict[int, list[_Connection]] = defaultdict(list)
        for connection in _connections(ports):
            by_port[connection.local_port].append(connection)
        surplus = [
            connection
            for connections in by_port.values()
            for connection in _surplus(connections, len(connections) - self._most_kept, busy)
        ]
        return sum(_shut_down(connection) for connection in surplus)


def _surplus(connections: Sequence[_Connection], count: int, busy: Set[str]) -> Iterator[_Connection]:
    """Choose so many: always of whoever has most, the longest silent first and those with calls under way last."""
    by_source: defaultdict[str, list[_Connection]] = defaultdict(list)
    for connection in connections:
        by_source[source_of(connection.peer[0])].append(connection)
    for of_one in by_source.values():
        of_one.sort(key=lambda connection: (str(connection.peer[1]) not in busy, connection.silent_ms))
    for _ in range(count):
        yield max(by_source.values(), key=len).pop()


def _count_descriptors() -> int:
    try:
        return len(os.listdir(_DESCRIPTORS))
    except OSError:  # a system without it, or not one left to look with
        return 0


def _connections(ports: Set[int]) -> Iterator[_Connection]:
    for name in os.listdir(_DESCRIPTORS):
        with suppress(OSError), _held(int(name)) as held:
            local_port = held.getsockname()[1]
            if local_port in ports:
                yield _Connection(int(name), local_port, held.getpeername()[:2], _silent_ms(held))


def _shut_down(connection: _Connection) -> bool:
    """Shut a connection down, unless it has ended meanwhile or was not silent for long."""
    with suppress(OSError), _held(connection.descriptor) as held:
        if held.getpeername()[:2] == connection.peer and _silent_ms(held) >= _SILENT_LEAST_MS:
            held.shutdown(socket.SHUT_RDWR)
            return True
    return False


@contextmanager
def _held(descriptor: int) -> Iterator[socket.socket]:
    """Hold what a descriptor of somebody else's stands for, which may be closed and given anew at any moment.

    Raises `OSError` where it is no socket, or one without addresses.
    """
    duplicate = os.dup(descriptor)
    try:
        held = socket.socket(fileno=duplicate)
    except OSError:
        os.close(duplicate)
        raise
    with held:
        if held.family not in (socket.AF_INET, socket.AF_INET6):
            raise OSError
        yield held


def _silent_ms(connection: socket.socket) -> int:
    info = connection.getsockopt(socket.IPPROTO_TCP, socket.TCP_INFO, _TCP_INFO_BYTES)
    (silent_ms,) = struct.unpack_from("=I", info, _SILENT_OFFSET)
    return int(silent_ms)
