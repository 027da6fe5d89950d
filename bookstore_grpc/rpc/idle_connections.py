"""Idle connection eviction: at its limit gRPC's core rejects new connections instead of closing idle ones.

So this module closes the connections that have been idle longest before the limit is reached. gRPC has no hook for
that, but its sockets belong to this process: to the core, a socket that is shut down looks like a disconnected client.
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

CHECK_SECONDS = 0.5

_DESCRIPTORS = "/proc/self/fd"
# The share of the limit above which connections are closed; the rest is for new ones until the next check.
_KEPT_SHARE = 3 / 4
# The offset in Linux's `struct tcp_info` of the milliseconds since data was received (tcpi_last_data_recv).
_TCP_INFO_BYTES, _IDLE_OFFSET = 60, 52
_IDLE_LEAST_MS = 500
_IDLE_LEAST_WITH_BACKLOG_MS = 30_000
# Connections are listed again only after the number of descriptors has grown by this share of the limit.
_GROWTH_SHARE = 1 / 32


class _Connection(NamedTuple):
    descriptor: int
    local_port: int
    peer: tuple[str, int]
    idle_ms: int


class IdleConnectionEviction:
    """Closes idle connections when a listener approaches its limit of `most` connections.

    It observes calls, because a connection with a long call in progress may look idle.
    """

    def __init__(self, most: int) -> None:
        self.closed = ClosedConnections(most, name="grpc")
        self._most_kept = int(most * _KEPT_SHARE)
        self._growth_least = int(most * _GROWTH_SHARE)
        self._normal_count = 0  # of descriptors, while no listener has too many connections
        self._calls: dict[int, Call] = {}

    def call_began(self, call: Call) -> None:
        """Register a call in progress."""
        self._calls[id(call)] = call

    def call_ended(self, call: Call, _outcome: Outcome) -> None:
        """Unregister a call."""
        self._calls.pop(id(call), None)

    async def evict(self, addresses: Sequence[str], *, has_backlog: bool = False) -> None:
        """Close idle connections to these addresses if there are too many.

        With a backlog of calls in gRPC, only connections that have been idle for 30 s are closed: the others may wait
        for the response to a call in the backlog.
        """
        ports = {address.port for address in map(Address.parse, addresses) if not address.is_unix}
        if not ports or not await asyncio.to_thread(self._may_be_near_bound):
            return
        busy = {call.context.peer().rpartition(":")[2] for call in self._calls.values()}
        idle_least_ms = _IDLE_LEAST_WITH_BACKLOG_MS if has_backlog else _IDLE_LEAST_MS
        closed = await asyncio.to_thread(self._evict, ports, busy, idle_least_ms)
        if closed:
            self.closed.add(closed)

    def _may_be_near_bound(self) -> bool:
        count = _count_descriptors()
        if count > max(self._most_kept, self._normal_count + self._growth_least):
            return True
        self._normal_count = min(count, self._normal_count)
        return False

    def _evict(self, ports: Set[int], busy: Set[str], idle_least_ms: int) -> int:
        by_port: dict[int, list[_Connection]] = defaultdict(list)
        for connection in _connections(ports):
            by_port[connection.local_port].append(connection)
        surplus = [
            connection
            for connections in by_port.values()
            for connection in _surplus(connections, len(connections) - self._most_kept, busy)
        ]
        if not surplus:
            self._normal_count = _count_descriptors()
        return sum(_shut_down(connection, idle_least_ms=idle_least_ms) for connection in surplus)


def _surplus(connections: Sequence[_Connection], count: int, busy: Set[str]) -> Iterator[_Connection]:
    """Choose connections to close: always from the source with the most, longest idle first, busy ones last."""
    by_source: defaultdict[str, list[_Connection]] = defaultdict(list)
    for connection in connections:
        by_source[source_of(connection.peer[0])].append(connection)
    for of_one in by_source.values():
        of_one.sort(key=lambda connection: (str(connection.peer[1]) not in busy, connection.idle_ms))
    for _ in range(count):
        yield max(by_source.values(), key=len).pop()


def _count_descriptors() -> int:
    try:
        # Since Linux 6.2 the size of the directory is their number; before it is 0.
        return os.stat(_DESCRIPTORS).st_size or len(os.listdir(_DESCRIPTORS))
    except OSError:  # another system, or no descriptor left to list them with
        return 0


def _connections(ports: Set[int]) -> Iterator[_Connection]:
    for name in os.listdir(_DESCRIPTORS):
        with suppress(OSError), _held(int(name)) as held:
            local_port = held.getsockname()[1]
            if local_port in ports:
                yield _Connection(int(name), local_port, held.getpeername()[:2], _idle_ms(held))


def _shut_down(connection: _Connection, *, idle_least_ms: int) -> bool:
    """Shut a connection down, unless it has ended or received data in the meantime. Returns whether it did."""
    with suppress(OSError), _held(connection.descriptor) as held:
        if held.getpeername()[:2] == connection.peer and _idle_ms(held) >= idle_least_ms:
            held.shutdown(socket.SHUT_RDWR)
            return True
    return False


@contextmanager
def _held(descriptor: int) -> Iterator[socket.socket]:
    """Yield a socket object for a descriptor that gRPC owns, and leave the descriptor open.

    It is not duplicated: if it were a file by now, closing the duplicate would release the locks of this process on
    that file, such as SQLite's. Raises `OSError` if it is not a TCP socket.
    """
    held = socket.socket(fileno=descriptor)
    try:
        if held.family not in (socket.AF_INET, socket.AF_INET6):
            raise OSError
        yield held
    finally:
        held.detach()


def _idle_ms(connection: socket.socket) -> int:
    info = connection.getsockopt(socket.IPPROTO_TCP, socket.TCP_INFO, _TCP_INFO_BYTES)
    (idle_ms,) = struct.unpack_from("=I", info, _IDLE_OFFSET)
    return int(idle_ms)
