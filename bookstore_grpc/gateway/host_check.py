"""Protection against DNS rebinding: a page of any site can make its own host name resolve to this machine's loopback.

To the browser the server then belongs to that site, whose scripts may call it and read the responses. Only the Host
header shows the difference.
"""

from collections.abc import Collection

from bookstore_grpc.errors import HostUnknown, quoted
from bookstore_grpc.net.address import is_loopback


class HostCheck:
    """Admits requests to these host names and to the loopback's. It is part of a call, so it is counted and logged."""

    def __init__(self, hosts: Collection[str]) -> None:
        self._hosts = {host.lower() for host in hosts}

    def check(self, header: str | None) -> None:
        """Raise `HostUnknown` unless a Host header names this server."""
        host = _host_name(header or "")
        if not (is_loopback(host) or host in self._hosts):
            raise HostUnknown(
                f"This server does not go by the name {quoted(host)}; its operator can let it, with --http-hosts."
            )


def _host_name(header: str) -> str:
    """Return the name in a Host header, without the port and the brackets of an IPv6 address."""
    name, colon, port = header.rpartition(":")
    return (name if colon and port.isdecimal() else header).strip("[]").lower()
