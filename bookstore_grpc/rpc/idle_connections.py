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

from bookstore_grpc.calls.call import Call, Outcome
from bookstore_grpc.net.address import Address
from bookstore_grpc.net.connection_limit import ClosedConnections, source_of

LOOK_SECONDS = 0.5

_DESCRIPTORS = "/proc/self/fd"
# Of the bound, what is left to those that are there; the rest is for those that come until the next look.
_FULL_SHARE = 3 / 4
# In Linux's `struct tcp_info`: for how many milliseconds nothing has come (tcpi_last_data_recv).
_TCP_INFO_BYTES, _SILENT_OFFSET = 60, 52
_SILENT_LEAST_MS = 500
_SILENT_LEAST_IN_BACKLOG_MS = 30_000
# Of the bound, by how many descriptors there have to be more than at the last look for another.
_GROWTH_SHARE = 1 / 32


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
        self.shortage = ClosedConnections(most, name="grpc")
        self._most_kept = int(most * _FULL_SHARE)
        self._growth_least = int(most * _GROWTH_SHARE)
        self._settled_count = 0  # of descriptors, when no listener had too many connections
        self._calls: dict[int, Call] = {}

    def call_began(self, call: Call) -> None:
        """Remember a call under way."""
        self._calls[id(call)] = call

    def call_ended(self, call: Call, _outcome: Outcome) -> None:
        """Forget a call."""
        self._calls.pop(id(call), None)

    async def relieve(self, addresses: Sequence[str], *, has_backlog: bool = False) -> None:
        """Look at the connections to these addresses, if there may be too many, and close some if there are.

        With a backlog of calls that nobody has taken up yet, only those that have been silent for long: the others may
        wait for such a call.
        """
        ports = {address.port for address in map(Address.parse, addresses) if not address.is_unix}
        if not ports or not await asyncio.to_thread(self._may_be_crowded):
            return
        busy = {call.context.peer().rpartition(":")[2] for call in self._calls.values()}
        silent_least_ms = _SILENT_LEAST_IN_BACKLOG_MS if has_backlog else _SILENT_LEAST_MS
        closed = await asyncio.to_thread(self._relieve, ports, busy, silent_least_ms)
        if closed:
            self.shortage.add(closed)

    def _may_be_crowded(self) -> bool:
        count = _count_descriptors()
        if count > max(self._most_kept, self._settled_count + self._growth_least):
            return True
        self._settled_count = min(count, self._settled_count)
        return False

    def _relieve(self, ports: Set[int], busy: Set[str], silent_least_ms: int) -> int:
        by_port: dict[int, list[_Connection]] = defaultdict(list)
        for connection in _connections(ports):
            by_port[connection.local_port].append(connection)
        surplus = [
            connection
            for connections in by_port.values()
            for connection in _surplus(connections, len(connections) - self._most_kept, busy)
        ]
        if not surplus:
            self._settled_count = _count_descriptors()
        return sum(_shut_down(connection, silent_least_ms=silent_least_ms) for connection in surplus)


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
        # Linux since 6.2 has it as the size, and before that 0.
        return os.stat(_DESCRIPTORS).st_size or len(os.listdir(_DESCRIPTORS))
    except OSError:  # a system without it, or not one left to look with
        return 0


def _connections(ports: Set[int]) -> Iterator[_Connection]:
    for name in os.listdir(_DESCRIPTORS):
        with suppress(OSError), _held(int(name)) as held:
            local_port = held.getsockname()[1]
            if local_port in ports:
                yield _Connection(int(name), local_port, held.getpeername()[:2], _silent_ms(held))


def _shut_down(connection: _Connection, *, silent_least_ms: int) -> bool:
    """Shut a connection down, unless it has ended meanwhile or was not silent for long."""
    with suppress(OSError), _held(connection.descriptor) as held:
        if held.getpeername()[:2] == connection.peer and _silent_ms(held) >= silent_least_ms:
            held.shutdown(socket.SHUT_RDWR)
            return True
    return False


@contextmanager
def _held(descriptor: int) -> Iterator[socket.socket]:
    """Look at a descriptor of somebody else's as a socket, and leave it open.

    It is not duplicated: to close a duplicate of a file drops every lock that the process has on it, and SQLite relies
    on its own. Raises `OSError` where it is no socket, or one without addresses.
    """
    held = socket.socket(fileno=descriptor)
    try:
        if held.family not in (socket.AF_INET, socket.AF_INET6):
            raise OSError
        yield held
    finally:
        held.detach()


def _silent_ms(connection: socket.socket) -> int:
    info = connection.getsockopt(socket.IPPROTO_TCP, socket.TCP_INFO, _TCP_INFO_BYTES)
    (silent_ms,) = struct.unpack_from("=I", info, _SILENT_OFFSET)
    return int(silent_ms)
