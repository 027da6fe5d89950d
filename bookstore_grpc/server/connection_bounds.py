"""How many connections each listener may have, so that file descriptors are left for the database and for files."""

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

# Connections besides those for reading: two that write, one that probes, and SQLite's on the event loop's thread.
_OTHER_DATABASE_CONNECTIONS = 4
_CONNECTIONS_LEAST = 8
_HTTP_SHARE, _PROBES_SHARE = 1 / 4, 1 / 8


class ConnectionBounds(NamedTuple):
    """How many connections may come in: to each of gRPC's listeners, to HTTP, to the probes."""

    grpc: int
    http: int
    probes: int


def connection_bounds(settings: Settings, descriptors: int) -> ConnectionBounds:
    """Divide descriptors so that, however many connections come in, there are some for the database and for files."""
    is_sqlite = settings.database_url.startswith("sqlite")
    database = (settings.pool_size + _OTHER_DATABASE_CONNECTIONS) * (FILES_OF_SQLITE if is_sqlite else 1)
    free = max(0, descriptors - DESCRIPTORS_RESERVED - database)
    http = _within(HTTP_CONNECTIONS_MAX, free * _HTTP_SHARE) if settings.http_listen else 0
    has_probes = settings.metrics_listen and settings.worker_count == 1  # else they are the supervisor's
    probes = _within(PROBE_CONNECTIONS_MAX, free * _PROBES_SHARE) if has_probes else 0
    wanted = settings.max_connections or GRPC_CONNECTIONS_MAX
    grpc = _within(wanted, free - http - probes)
    if grpc < wanted:
        _log.warning(
            "descriptors are few", limit=descriptors, connections=grpc, http_connections=http, probe_connections=probes
        )
    return ConnectionBounds(
        grpc=max(1, grpc // _count_listeners(settings.listen)),
        http=http,
        probes=probes,
    )


def probe_connections(descriptors: int) -> int:
    """Answer how many connections may come to the probes of a supervisor, which has little else open."""
    return _within(PROBE_CONNECTIONS_MAX, descriptors - DESCRIPTORS_RESERVED)


def _within(wanted: int, available: float) -> int:
    return max(_CONNECTIONS_LEAST, min(wanted, int(available)))


def _count_listeners(addresses: Sequence[str]) -> int:
    """Answer how many sockets gRPC will listen on: one for each address that a name stands for."""
    return sum(_count_sockets(Address.parse(address)) for address in addresses)


def _count_sockets(address: Address) -> int:
    if address.is_unix:
        return 1
    try:
        return len({where for *_, where in socket.getaddrinfo(address.host, None, type=socket.SOCK_STREAM)})
    except (OSError, UnicodeError):
        return 1  # whoever listens says what is wrong with it
