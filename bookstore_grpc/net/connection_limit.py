"""A connection limit: the total, the share of one address, and which connection is evicted for a new one."""

import ipaddress
import math
import time
from collections import Counter
from collections.abc import Callable

import structlog

_log = structlog.stdlib.get_logger("bookstore_grpc.net.connection_limit")

# The maximum share of all connections that one address may have.
_SHARE_OF_AN_ADDRESS = 3 / 4
# The prefix length that usually belongs to one IPv6 subscriber. Its addresses count as one.
_IPV6_SUBSCRIBER_BITS = 64
_LOG_SECONDS = 60


class ClosedConnections:
    """Counts connections closed because of the limit, and logs this at most once a minute."""

    def __init__(self, most: int, *, name: str) -> None:
        self.count = 0
        self._most = most
        self._name = name
        self._logged_at = -math.inf

    def add(self, count: int) -> None:
        """Count closed connections."""
        self.count += count
        now = time.monotonic()
        if now - self._logged_at >= _LOG_SECONDS:
            self._logged_at = now
            _log.warning("connections closed: limit reached", listener=self._name, max_connections=self._most)


class LimitedConnection:
    """A connection that counts towards the limit. `close` closes it immediately."""

    def __init__(self, source: str) -> None:
        self.source = source
        self.close: Callable[[], object] = lambda: None
        self.is_released = False


class ConnectionLimit:
    """Bounds the number of connections, so that idle ones cannot lock out clients that send requests.

    A connection is waiting while the next step is its client's: to finish the handshake or the request, to send
    another request, or to read the response. One whose response is a stream, which its client can resume, counts as
    waiting too. At the limit the longest waiting connection is evicted for a new one. It is chosen from the new one's
    address if that address has used up its share, otherwise from the address with the most waiting connections. If no
    connection is waiting, the new one is rejected.
    """

    def __init__(self, most: int, *, name: str) -> None:
        self.closed = ClosedConnections(most, name=name)
        self._most = most
        self._most_of_one = max(1, int(most * _SHARE_OF_AN_ADDRESS))
        self._counts: Counter[str] = Counter()
        # Waiting connections by address, the longest waiting first.
        self._waiting: dict[str, dict[LimitedConnection, None]] = {}
        self._admitted = 0

    def admit(self, host: str) -> LimitedConnection | None:
        """Return a new waiting connection from a host, evicting another if necessary; None if it is rejected."""
        source = source_of(host)
        is_one_too_many = self._counts[source] >= self._most_of_one
        if is_one_too_many or self._admitted >= self._most:
            self.closed.add(1)
            if not self._evict(source if is_one_too_many else None):
                return None
        connection = LimitedConnection(source)
        self._counts[source] += 1
        self._admitted += 1
        self.mark_waiting(connection)
        return connection

    def mark_waiting(self, connection: LimitedConnection) -> None:
        """Mark the next step as the client's. An already waiting connection keeps its place in the order."""
        if not connection.is_released:
            self._waiting.setdefault(connection.source, {}).setdefault(connection)

    def mark_serving(self, connection: LimitedConnection) -> None:
        """Mark the next step as the server's."""
        waiting = self._waiting.get(connection.source, {})
        if connection in waiting:
            del waiting[connection]
            if not waiting:
                del self._waiting[connection.source]

    def release(self, connection: LimitedConnection) -> None:
        """Stop counting a connection. Idempotent."""
        if connection.is_released:
            return
        connection.is_released = True
        self.mark_serving(connection)
        self._admitted -= 1
        self._counts[connection.source] -= 1
        if not self._counts[connection.source]:
            del self._counts[connection.source]

    def _evict(self, source: str | None) -> bool:
        """Close the longest waiting connection of a source, or of the source with the most. Returns whether one was."""
        waiting = self._waiting.get(source) if source else max(self._waiting.values(), key=len, default=None)
        if not waiting:
            return False
        connection = next(iter(waiting))
        self.release(connection)
        connection.close()
        return True


def source_of(host: str) -> str:
    """Return the source under which connections from a host count: its address, or for IPv6 its /64 network."""
    try:
        address = ipaddress.ip_address(host.partition("%")[0])
    except ValueError:
        return host
    if isinstance(address, ipaddress.IPv4Address):
        return host
    if address.ipv4_mapped:
        return str(address.ipv4_mapped)
    return str(ipaddress.ip_network((address, _IPV6_SUBSCRIBER_BITS), strict=False))
