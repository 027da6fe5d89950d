"""A limit on connections: how many in all, how many of one address, and which is evicted for a new one."""

import ipaddress
import math
import time
from collections import Counter
from collections.abc import Callable

import structlog

_log = structlog.stdlib.get_logger("bookstore_grpc.net.connection_limit")

# The share of all connections that one address may have; the rest is for others.
_SHARE_OF_AN_ADDRESS = 3 / 4
# The network of one IPv6 subscriber, who has too many addresses in it to count each.
_IPV6_SUBSCRIBER_BITS = 64
_LOG_SECONDS = 60


class ClosedConnections:
    """Counts connections that were closed because of the limit, and logs that at most once a minute."""

    def __init__(self, most: int, *, name: str) -> None:
        self.count = 0
        self._most = most
        self._name = name
        self._logged_at = -math.inf

    def add(self, count: int) -> None:
        """Count connections."""
        self.count += count
        now = time.monotonic()
        if now - self._logged_at >= _LOG_SECONDS:
            self._logged_at = now
            _log.warning("connections closed: limit reached", listener=self._name, most=self._most)


class LimitedConnection:
    """A connection that counts towards the limit; `close` ends it at once."""

    def __init__(self, source: str) -> None:
        self.source = source
        self.close: Callable[[], object] = lambda: None
        self.is_released = False


class ConnectionLimit:
    """Bounds connections so that clients with requests are served, whatever others hold open without any.

    A connection is waiting while the next step is its client's: to finish the handshake or the request, to send
    another, to read the response. At the limit, the connection that has been waiting longest is evicted for a new one:
    of the same address if that has its share, else of the address with the most waiting ones. Only if none is waiting
    is the new one rejected.
    """

    def __init__(self, most: int, *, name: str) -> None:
        self.closed = ClosedConnections(most, name=name)
        self._most = most
        self._most_of_one = max(1, int(most * _SHARE_OF_AN_ADDRESS))
        self._counts: Counter[str] = Counter()
        # By address, the longest waiting first.
        self._waiting: dict[str, dict[LimitedConnection, None]] = {}
        self._admitted = 0

    def admit(self, host: str) -> LimitedConnection | None:
        """Return a waiting connection from a host, for which another may have been evicted; None if it is rejected."""
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
        """Note that the next step is the client's. A connection that is waiting keeps its place in the order."""
        if not connection.is_released:
            self._waiting.setdefault(connection.source, {}).setdefault(connection)

    def mark_serving(self, connection: LimitedConnection) -> None:
        """Note that the next step is the server's."""
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
        """Close the longest waiting connection of a source, or of the one with the most. Returns whether any was."""
        waiting = self._waiting.get(source) if source else max(self._waiting.values(), key=len, default=None)
        if not waiting:
            return False
        connection = next(iter(waiting))
        self.release(connection)
        connection.close()
        return True


def source_of(host: str) -> str:
    """Return the source that connections from a host are counted for: its address, or for IPv6 the /64 network."""
    try:
        address = ipaddress.ip_address(host.partition("%")[0])
    except ValueError:
        return host
    if isinstance(address, ipaddress.IPv4Address):
        return host
    if address.ipv4_mapped:
        return str(address.ipv4_mapped)
    return str(ipaddress.ip_network((address, _IPV6_SUBSCRIBER_BITS), strict=False))
