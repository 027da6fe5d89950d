"""Listening sockets: binding an address, sharing it among processes, and explaining why it cannot be bound."""

import errno
import os
import socket
from collections.abc import Iterable, Iterator, Sequence
from contextlib import ExitStack, contextmanager
from pathlib import Path

import structlog

from bookstore_grpc.errors import StartupError
from bookstore_grpc.net.address import Address

_log = structlog.stdlib.get_logger("bookstore_grpc.net.listening")

# A name such as localhost may resolve to an address of a family that this machine does not have.
_UNAVAILABLE = (errno.EADDRNOTAVAIL, errno.EAFNOSUPPORT)
_CAUSES = {
    errno.EADDRINUSE: "the address is in use",
    errno.EADDRNOTAVAIL: "the address is not this machine's",
    errno.EACCES: "this user lacks the permission",
}


def warn_of_plaintext(addresses: Iterable[str]) -> None:
    """Log a warning for each address that other machines can reach in plaintext."""
    for address in addresses:
        _log.warning("serving in plaintext to other machines", address=address)


@contextmanager
def reserved(addresses: Sequence[Address]) -> Iterator[tuple[Address, ...]]:
    """Reserve addresses for processes that share them by SO_REUSEPORT. Yields them with the actual ports.

    Raises `StartupError` for an address that cannot be bound.
    """
    with ExitStack() as held:
        yield tuple(_reserve(address, held) for address in addresses)


def bound_socket(address: Address, *, shares_port: bool = False) -> socket.socket:
    """Return a socket bound to a TCP address, for HTTP. Raises `StartupError` if it cannot be bound."""
    try:
        family, *_, where = socket.getaddrinfo(address.host, address.port, type=socket.SOCK_STREAM)[0]
        return socket.create_server(where[:2], family=family, reuse_port=shares_port)
    except (OSError, ValueError) as error:
        raise cannot_listen(address, error) from error


def cannot_listen(address: Address, error: Exception | None = None) -> StartupError:
    """Return the error for an address that cannot be bound. Without `error`, binds once more to find the cause."""
    return StartupError(
        f"Cannot listen on {address}: {_cause(address, error or _bind_error(address))}. "
        "Fix that, or choose another address (--listen, --http-listen, --metrics-listen, --channelz-listen)."
    )


def _cause(address: Address, error: Exception | None) -> str:
    if error is None:
        return "gRPC reports no cause"
    if isinstance(error, socket.gaierror | UnicodeError):  # UnicodeError: the name is too long to be one
        return f"the name does not resolve ({getattr(error, 'strerror', error)})"
    code = getattr(error, "errno", None) or 0
    if code == errno.ENOENT:
        return f"there is no directory {os.path.dirname(address.path)}"
    if code == errno.EADDRINUSE and address.is_unix and not Path(address.path).is_socket():
        return f"{address.path} exists and is not a socket"
    return _CAUSES.get(code) or getattr(error, "strerror", None) or str(error)


def _bind_error(address: Address) -> Exception | None:
    """Bind and return the error, because gRPC's error has no cause. Leaves no socket behind."""
    try:
        if address.is_unix:
            with socket.socket(socket.AF_UNIX) as attempt:
                attempt.bind(address.path)
            os.unlink(address.path)
            return None
        found = socket.getaddrinfo(address.host, address.port, type=socket.SOCK_STREAM)
        for family, _, _, _, where in found:
            with socket.socket(family, socket.SOCK_STREAM) as attempt:
                attempt.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEADDR, 1)
                attempt.bind(where)
    except (OSError, ValueError) as error:
        return error
    return None


def _reserve(address: Address, held: ExitStack) -> Address:
    """Bind all sockets of an address to one port, and return the address with that port."""
    port = address.port
    try:
        found = socket.getaddrinfo(address.host, port, type=socket.SOCK_STREAM)
        is_held = False
        for family, socket_address in dict.fromkeys((family, where) for family, _, _, _, where in found):
            try:
                port = _hold(family, (socket_address[0], port, *socket_address[2:]), held)
            except OSError as error:
                if error.errno not in _UNAVAILABLE:
                    raise
            else:
                is_held = True
    except (OSError, ValueError) as error:
        raise cannot_listen(address, error) from error
    if not is_held:
        raise cannot_listen(address)
    return address.with_port(port)


def _hold(family: int, socket_address: tuple[object, ...], held: ExitStack) -> int:
    """Bind a socket that never listens. Returns its port."""
    if socket_address[1]:
        # With SO_REUSEPORT the bind succeeds even if another program shares the port: bind without it first.
        with socket.socket(family, socket.SOCK_STREAM) as attempt:
            attempt.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEADDR, 1)
            attempt.bind(socket_address)
    reservation = held.enter_context(socket.socket(family, socket.SOCK_STREAM))
    reservation.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEPORT, 1)
    # SO_REUSEADDR, so that connections of a previous server in TIME_WAIT do not prevent the bind. It is removed
    # afterwards, so that no process without SO_REUSEPORT can listen here, even while no worker does.
    reservation.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEADDR, 1)
    reservation.bind(socket_address)
    reservation.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEADDR, 0)
    return int(reservation.getsockname()[1])
