"""Whether an address is of this machine alone: what travels there, nobody else can read."""

import ipaddress


def is_local(address: str) -> bool:
    """Tell whether only this machine can reach an address: a unix socket, or HOST:PORT of the loopback."""
    return address.startswith("unix:") or is_loopback(address.rpartition(":")[0].strip("[]"))


def is_loopback(host: str) -> bool:
    """Tell whether a host, by name or number, is this machine's loopback."""
    if host == "localhost":
        return True
    try:
        return ipaddress.ip_address(host).is_loopback
    except ValueError:
        return False
