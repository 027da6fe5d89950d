"""Binding a gRPC server to its addresses."""

import os
import socket

import grpc

from bookstore_grpc.errors import StartupError
from bookstore_grpc.net.address import Address
from bookstore_grpc.net.listening import cannot_listen


def bind(server: grpc.aio.Server, address: str, credentials: grpc.ServerCredentials | None = None) -> str:
    """Bind a server to an address, and return the address with its actual port. Raises `StartupError`."""
    parsed = Address.parse(address)
    _check_socket_is_free(parsed)
    try:
        if credentials is None or parsed.is_unix:
            port = server.add_insecure_port(address)
        else:
            port = server.add_secure_port(address, credentials)
    except RuntimeError as error:
        raise cannot_listen(parsed) from error
    return address if parsed.is_unix else str(parsed.with_port(port))


def _check_socket_is_free(address: Address) -> None:
    """Raise `StartupError` if another server listens on this unix socket; gRPC would silently replace it."""
    if not address.is_unix or not os.path.exists(address.path):
        return
    with socket.socket(socket.AF_UNIX) as probe:
        if probe.connect_ex(address.path) == 0:
            raise StartupError(
                f"Cannot listen on {address}: another server is listening. Choose another address with --listen."
            )
