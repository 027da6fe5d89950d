"""Access to the socket of an asyncpg connection, which asyncpg does not expose. Tried on asyncpg 0.31.0 and 0.32.0."""

import socket
from typing import Any

from bookstore_grpc.errors import StartupError


def check() -> None:
    """Raise `StartupError` if a connection has no `_transport`."""
    import asyncpg  # type: ignore[import-untyped]  # in an extra, and without types

    if not hasattr(asyncpg.Connection, "_transport"):
        raise StartupError(f"asyncpg {asyncpg.__version__} is not supported: its connections have no `_transport`.")


def socket_of(connection: Any) -> socket.socket:
    """Return the socket of a connection."""
    found: socket.socket = connection._transport.get_extra_info("socket")
    return found
