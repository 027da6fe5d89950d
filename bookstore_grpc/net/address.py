"""The address of a server: `HOST:PORT`, `[IPV6]:PORT` or `unix:PATH`.

Shared by server and client, so it imports only the standard library.
"""

import ipaddress
from dataclasses import dataclass, replace
from typing import Self

_UNIX_PREFIX = "unix:"


@dataclass(frozen=True)
class Address:
    """A TCP address, or the path of a unix socket. `str()` returns the form that was parsed."""

    host: str = ""  # without the brackets of IPv6
    port: int = 0
    path: str = ""
    is_bracketed: bool = False

    @classmethod
    def parse(cls, text: str) -> Self:
        """Parse `HOST:PORT`, `[IPV6]:PORT` or `unix:PATH`. The message of a `ValueError` is a sentence."""
        if text.startswith(_UNIX_PREFIX) and text != _UNIX_PREFIX:
            return cls(path=text.removeprefix(_UNIX_PREFIX))
        if "," in text:
            raise ValueError(f"{text!r} is not an address. Separate addresses by spaces, not by commas.")
        host, _, port = text.rpartition(":")
        if not (host and port.isascii() and port.isdigit() and int(port) < 65_536):
            raise ValueError(f"The address {text!r} is neither HOST:PORT nor unix:PATH.")
        is_bracketed = host.startswith("[") and host.endswith("]")
        return cls(host=host[1:-1] if is_bracketed else host, port=int(port), is_bracketed=is_bracketed)

    @property
    def is_unix(self) -> bool:
        """Whether this is a unix socket."""
        return bool(self.path)

    @property
    def is_local(self) -> bool:
        """Whether only this machine can reach the address: a unix socket or a loopback address."""
        return self.is_unix or is_loopback(self.host)

    def with_port(self, port: int) -> Self:
        """Return the address with another port, such as the one that the kernel chose for port 0."""
        return replace(self, port=port)

    def __str__(self) -> str:
        if self.is_unix:
            return f"{_UNIX_PREFIX}{self.path}"
        return f"[{self.host}]:{self.port}" if self.is_bracketed else f"{self.host}:{self.port}"


def is_local(text: str) -> bool:
    """Return whether only this machine can reach an address; False if the text is not an address."""
    try:
        return Address.parse(text).is_local
    except ValueError:
        return False


def is_loopback(host: str) -> bool:
    """Return whether a host name or IP address is this machine's loopback."""
    if host == "localhost":
        return True
    try:
        return ipaddress.ip_address(host).is_loopback
    except ValueError:
        return False
