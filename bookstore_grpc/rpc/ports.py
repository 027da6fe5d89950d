"""The addresses that a gRPC server listens on."""

import os
import socket

import grpc

from bookstore_grpc.errors import StartupError
from bookstore_grpc.net.addresses import cannot_listen


def bind(server: grpc.aio.Server, address: str, credentials: grpc.ServerCredentials | None = None) -> str:
    """Let a server listen on an address, and return the address with its real port. Raises `StartupError`."""
    _check_socket_is_free(address)
    try:
        if credentials is None or address.startswith("unix:"):
            port = server.add_insecure_port(address)
        else:
            port = server.add_secure_port(address, credentials)
    except RuntimeError as error:
        raise cannot_listen(address) from error
    host, colon, wanted = address.rpartition(":")
    return f"{host}{colon}{port}" if wanted == "0" else address


def _check_socket_is_free(address: str) -> None:
    """Raise `StartupError` if a server listens on this unix socket; gRPC would take it over silently."""
    path = address.removeprefix("unix:")
    if path == address or not os.path.exists(path):
        return
    with socket.socket(socket.AF_UNIX) as probe:
        if probe.connect_ex(path) == 0:
            raise StartupError(f"Cannot listen on {address}: another server does. Choose another with --listen.")
