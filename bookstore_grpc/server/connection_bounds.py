"""Connection limits of the listeners, derived so that file descriptors remain for the database and for files."""

import socket
from collections.abc import Sequence
from typing import NamedTuple

import structlog

from bookstore_grpc.limits import (
    DESCRIPTORS_RESERVED,
    GRPC_CONNECTIONS_MAX,
    HTTP_CONNECTIONS_MAX,
    PROBE_CONNECTIONS_MAX,
)
from bookstore_grpc.net.address import Address
from bookstore_grpc.net.file_descriptors import FILES_OF_SQLITE
from bookstore_grpc.server.settings import Settings

_log = structlog.stdlib.get_logger("bookstore_grpc.server.connection_bounds")

# In addition to those for reads: two for writes, one for the health probe, and SQLite's for inline reads.
_OTHER_DATABASE_CONNECTIONS = 4
_CONNECTIONS_LEAST = 8
_HTTP_SHARE, _ENDPOINTS_SHARE = 1 / 4, 1 / 8


class ConnectionBounds(NamedTuple):
    """The connection limits: of each gRPC listener, of HTTP, and of the metrics and probes endpoints."""

    grpc: int
    http: int
    endpoints: int


def connection_bounds(settings: Settings, descriptors: int) -> ConnectionBounds:
    """Return the limits for this number of file descriptors. Logs a warning if gRPC gets fewer than configured."""
    is_sqlite = settings.database_url.startswith("sqlite")
    database = (settings.pool_size + _OTHER_DATABASE_CONNECTIONS) * (FILES_OF_SQLITE if is_sqlite else 1)
    free = max(0, descriptors - DESCRIPTORS_RESERVED - database)
    http = _within(HTTP_CONNECTIONS_MAX, free * _HTTP_SHARE) if settings.http_listen else 0
    has_endpoints = settings.metrics_listen and settings.worker_count == 1  # several workers: the supervisor has them
    endpoints = _within(PROBE_CONNECTIONS_MAX, free * _ENDPOINTS_SHARE) if has_endpoints else 0
    wanted = settings.max_connections or GRPC_CONNECTIONS_MAX
    grpc = _within(wanted, free - http - endpoints)
    if grpc < wanted:
        _log.warning(
            "connection limits lowered",
            limit=descriptors,
            connections=grpc,
            http_connections=http,
            probe_connections=endpoints,
        )
    return ConnectionBounds(
        grpc=max(1, grpc // _count_listeners(settings.listen)),
        http=http,
        endpoints=endpoints,
    )


def endpoint_connections(descriptors: int) -> int:
    """Return the connection limit of a supervisor's endpoints; it has few other descriptors open."""
    return _within(PROBE_CONNECTIONS_MAX, descriptors - DESCRIPTORS_RESERVED)


def _within(wanted: int, available: float) -> int:
    return max(_CONNECTIONS_LEAST, min(wanted, int(available)))


def _count_listeners(addresses: Sequence[str]) -> int:
    """Return the number of sockets that gRPC will listen on: one for each address that a name resolves to."""
    return sum(_count_sockets(Address.parse(address)) for address in addresses)


def _count_sockets(address: Address) -> int:
    if address.is_unix:
        return 1
    try:
        return len({where for *_, where in socket.getaddrinfo(address.host, None, type=socket.SOCK_STREAM)})
    except (OSError, UnicodeError):
        return 1  # binding the address will raise the error
