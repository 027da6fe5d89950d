"""Room for connections: how many there may be, how many of one address, and which gives way to a new one."""

import ipaddress
import math
import time
from collections import Counter
from collections.abc import Callable

import structlog

_log = structlog.stdlib.get_logger("bookstore_grpc.net.connection_limit")

# Of all connections, what those of one address may be; the rest is for the others.
_SHARE_OF_AN_ADDRESS = 3 / 4
# What a subscriber of IPv6 has, and in it more addresses than can be counted.
_IPV6_SUBSCRIBER_BITS = 64
_LOG_SECONDS = 60


class Shortage:
    """Counts connections that were closed for want of room, and tells the log, at most once a minute."""

    def __init__(self, most: int, *, name: str) -> None:
        self.closed_count = 0
        self._most = most
        self._name = name
        self._told_at = -math.inf

    def closed(self, count: int) -> None:
        """Count connections."""
        self.closed_count += count
        now = time.monotonic()
        if now - self._told_at >= _LOG_SECONDS:
            self._told_at = now
            _log.warning("connections closed for want of room", listener=self._name, most=self._most)


class Place:
    """What a connection takes up; `close` ends it at once."""

    def __init__(self, source: str) -> None:
        self.source = source
        self.close: Callable[[], object] = lambda: None
        self.is_left = False


class Room:
    """Bounds connections, so that whoever asks is let in, whatever others hold open without asking.

    A connection waits while the next step is its client's: to finish the handshake or the request, to ask again, to
    read the answer. When there are too many, the one that has waited longest gives way to the new one: of the same
    address if that has its share, else of the address with the most that wait. Only where none waits is the new one
    turned away.
    """

    def __init__(self, most: int, *, name: str) -> None:
        self.shortage = Shortage(most, name=name)
        self._most = most
        self._most_of_one = max(1, int(most * _SHARE_OF_AN_ADDRESS))
        self._counts: Counter[str] = Counter()
        # By address, the longest first.
        self._waiting: dict[str, dict[Place, None]] = {}
        self._taken = 0

    def take(self, host: str) -> Place | None:
        """Answer a place for a connection from a host, which waits; None if there is none."""
        source = source_of(host)
        is_one_too_many = self._counts[source] >= self._most_of_one
        if is_one_too_many or self._taken >= self._most:
            self.shortage.closed(1)
            if not self._make_room(source if is_one_too_many else None):
                return None
        place = Place(source)
        self._counts[source] += 1
        self._taken += 1
        self.wait(place)
        return place

    def wait(self, place: Place) -> None:
        """Take note that the next step is the client's. One that waits already has waited since then."""
        if not place.is_left:
            self._waiting.setdefault(place.source, {}).setdefault(place)

    def serve(self, place: Place) -> None:
        """Take note that the next step is ours."""
        waiting = self._waiting.get(place.source, {})
        if place in waiting:
            del waiting[place]
            if not waiting:
                del self._waiting[place.source]

    def leave(self, place: Place) -> None:
        """Give back a place."""
        if place.is_left:
            return
        place.is_left = True
        self.serve(place)
        self._taken -= 1
        self._counts[place.source] -= 1
        if not self._counts[place.source]:
            del self._counts[place.source]

    def _make_room(self, source: str | None) -> bool:
        """Close the connection that has waited longest, of a source or of that with the most; tell if there was one."""
        waiting = self._waiting.get(source) if source else max(self._waiting.values(), key=len, default=None)
        if not waiting:
            return False
        place = next(iter(waiting))
        self.leave(place)
        place.close()
        return True


def source_of(host: str) -> str:
    """Answer whom connections from this host are counted for: an address, and of IPv6 the network of a subscriber."""
    try:
        address = ipaddress.ip_address(host.partition("%")[0])
    except ValueError:
        return host
    if isinstance(address, ipaddress.IPv4Address):
        return host
    if address.ipv4_mapped:
        return str(address.ipv4_mapped)
    return str(ipaddress.ip_network((address, _IPV6_SUBSCRIBER_BITS), strict=False))
