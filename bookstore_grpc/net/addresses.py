"""Addresses to listen on: what may be one, who can reach it, and how several processes come to share one."""

import errno
import os
import socket
from collections.abc import Iterator, Sequence
from contextlib import ExitStack, contextmanager
from pathlib import Path

import structlog

from bookstore_grpc.errors import StartupError
from bookstore_grpc.net.loopback import is_local

_log = structlog.stdlib.get_logger("bookstore_grpc.net.addresses")

# A name such as localhost may stand for an address of a family that this machine does not have.
_NOT_OURS = (errno.EADDRNOTAVAIL, errno.EAFNOSUPPORT)
_CAUSES = {
    errno.EADDRINUSE: "the address is in use",
    errno.EADDRNOTAVAIL: "the address is not this machine's",
    errno.EACCES: "this user has not the right to",
}


def check_addresses(addresses: Sequence[str], *, http_address: str = "", encrypted: bool, insecure: bool) -> None:
    """Raise `StartupError` for what is no address, or one that other machines can reach in plaintext unasked.

    HTTP has one of its own, and no unix socket.
    """
    if http_address.startswith("unix:"):
        raise StartupError(f"HTTP has an address of the form HOST:PORT, which {http_address} is not.")
    if http_address and http_address in addresses and not http_address.endswith(":0"):
        raise StartupError(f"{http_address} cannot be both gRPC's and HTTP's: choose another with --http-listen.")
    for address in (*addresses, http_address) if http_address else addresses:
        _check_form(address)
        if encrypted or is_local(address):
            continue
        if not insecure:
            raise StartupError(
                f"{address} can be reached from other machines, and calls would travel in plaintext. "
                "Give a certificate with --tls-cert and --tls-key, listen on 127.0.0.1, or say --insecure if a proxy "
                "that you trust stands in front."
            )
        _log.warning("serving in plaintext to other machines", address=address)


def check_channelz_address(address: str, *, worker_count: int) -> None:
    """Raise `StartupError` for what is no address, can be reached by other machines, or would be shared by workers."""
    _check_form(address)
    if not is_local(address):
        raise StartupError(
            f"{address} can be reached from other machines, and channelz tells who is connected. "
            "Give --channelz-listen 127.0.0.1:PORT or unix:PATH."
        )
    if worker_count > 1 and (address.startswith("unix:") or not address.endswith(":0")):
        raise StartupError(
            f"Several workers cannot share {address}, for each knows its own connections only. "
            "With port 0 (--channelz-listen 127.0.0.1:0) each takes a free one and says in the log which."
        )


@contextmanager
def reserved(addresses: Sequence[str]) -> Iterator[tuple[str, ...]]:
    """Hold addresses for processes that share them by SO_REUSEPORT; answer them with a real port in place of port 0.

    Raises `StartupError` where one cannot be had or shared.
    """
    with ExitStack() as held:
        yield tuple(_reserve(address, held) for address in addresses)


def bound_socket(address: str, *, shares_port: bool = False) -> socket.socket:
    """Answer a socket bound to a HOST:PORT, for HTTP. Raises `StartupError` where it cannot be had."""
    _check_form(address)
    if address.startswith("unix:"):
        raise StartupError(f"The address {address!r} is not HOST:PORT.")
    host, _, port = address.rpartition(":")
    try:
        family, *_, where = socket.getaddrinfo(host.strip("[]"), int(port), type=socket.SOCK_STREAM)[0]
        return socket.create_server(where[:2], family=family, reuse_port=shares_port)
    except (OSError, ValueError) as error:
        raise cannot_listen(address, error) from error


def shown_address(address: str, bound: socket.socket) -> str:
    """Answer the HOST:PORT that a socket is bound to, with the real port in place of port 0."""
    return f"{address.rpartition(':')[0]}:{bound.getsockname()[1]}"


def cannot_listen(address: str, error: Exception | None = None) -> StartupError:
    """Make the error of an address that cannot be had; where nobody knows why, it is tried once more to find out."""
    return StartupError(
        f"Cannot listen on {address}: {_cause(address, error or _bind_error(address))}. "
        "Mend that, or choose another address (--listen, --http-listen, --metrics-listen, --channelz-listen)."
    )


def _cause(address: str, error: Exception | None) -> str:
    if error is None:
        return "gRPC does not say why"
    if isinstance(error, socket.gaierror | UnicodeError):  # UnicodeError: the name is too long for one
        return f"the name does not resolve ({getattr(error, 'strerror', error)})"
    code = getattr(error, "errno", None) or 0
    path = address.removeprefix("unix:")
    if code == errno.ENOENT:
        return f"there is no folder {os.path.dirname(path)}"
    if code == errno.EADDRINUSE and path != address and not Path(path).is_socket():
        return f"{path} is something else than a socket"
    return _CAUSES.get(code) or getattr(error, "strerror", None) or str(error)


def _bind_error(address: str) -> Exception | None:
    """Answer what a bind of our own raises, for gRPC's error has no cause. It leaves nothing behind."""
    try:
        if address.startswith("unix:"):
            path = address.removeprefix("unix:")
            with socket.socket(socket.AF_UNIX) as probe:
                probe.bind(path)
            os.unlink(path)
            return None
        host, _, port = address.rpartition(":")
        for family, _, _, _, where in socket.getaddrinfo(host.strip("[]"), int(port), type=socket.SOCK_STREAM):
            with socket.socket(family, socket.SOCK_STREAM) as probe:
                probe.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEADDR, 1)
                probe.bind(where)
    except (OSError, ValueError) as error:
        return error
    return None


def _check_form(address: str) -> None:
    if "," in address and not address.startswith("unix:"):
        raise StartupError(f"{address!r} is no address. Several are separated by blanks, not by commas.")
    host, _, port = address.rpartition(":")
    is_unix = address.startswith("unix:") and len(address) > len("unix:")
    is_tcp = bool(host) and port.isascii() and port.isdigit() and int(port) < 65_536
    if not (is_unix or is_tcp):
        raise StartupError(f"The address {address!r} is neither HOST:PORT nor unix:PATH.")


def _reserve(address: str, held: ExitStack) -> str:
    if address.startswith("unix:"):
        raise StartupError(
            f"Several workers cannot share {address}. Serve it with --workers 1, or choose HOST:PORT with --listen."
        )
    host, _, text = address.rpartition(":")
    port = int(text)
    try:
        found = socket.getaddrinfo(host.strip("[]"), port, type=socket.SOCK_STREAM)
        is_held = False
        for family, socket_address in dict.fromkeys((family, where) for family, _, _, _, where in found):
            try:
                port = _hold(family, (socket_address[0], port, *socket_address[2:]), held)
            except OSError as error:
                if error.errno not in _NOT_OURS:
                    raise
            else:
                is_held = True
    except (OSError, ValueError) as error:
        raise cannot_listen(address, error) from error
    if not is_held:
        raise cannot_listen(address)
    return f"{host}:{port}"


def _hold(family: int, socket_address: tuple[object, ...], held: ExitStack) -> int:
    """Bind a socket that never listens, and answer its port."""
    if socket_address[1]:
        # Sharing asks only other sharers of the same user: that there are none shows when it is not asked for.
        with socket.socket(family, socket.SOCK_STREAM) as probe:
            probe.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEADDR, 1)
            probe.bind(socket_address)
    reservation = held.enter_context(socket.socket(family, socket.SOCK_STREAM))
    reservation.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEPORT, 1)
    # Connections that a former server left behind do not matter to the bind; but after it nobody may listen here
    # who does not share, also while no worker does.
    reservation.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEADDR, 1)
    reservation.bind(socket_address)
    reservation.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEADDR, 0)
    return int(reservation.getsockname()[1])
