"""Protection against DNS rebinding: an untrusted web page can make its own host name resolve to the loopback address.

The browser then treats this server as part of that page's origin, so the page's scripts may call it and read the
responses. Only the Host header reveals the attack.
"""

from collections.abc import Collection

from bookstore_grpc.errors import HostUnknown, quoted
from bookstore_grpc.net.address import is_loopback


class HostCheck:
    """Admits requests to these host names and to the loopback's. Rejected requests are calls, counted and logged."""

    def __init__(self, hosts: Collection[str]) -> None:
        self._hosts = {host.lower() for host in hosts}

    def check(self, header: str | None) -> None:
        """Raise `HostUnknown` unless a Host header names this server."""
        host = _host_name(header or "")
        if not (is_loopback(host) or host in self._hosts):
            raise HostUnknown(
                f"This server does not accept the host name {quoted(host)}; its operator can allow it (--http-hosts)."
            )


def _host_name(header: str) -> str:
    """Return the name in a Host header, without the port and the brackets of an IPv6 address."""
    name, colon, port = header.rpartition(":")
    return (name if colon and port.isdecimal() else header).strip("[]").lower()
