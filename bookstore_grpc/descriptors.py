"""Descriptors: how many files and connections the process may have open, and what each part of it may use of them."""

import errno
import os
import resource
import socket
from collections.abc import Sequence
from typing import NamedTuple

import structlog

from bookstore_grpc.limits import (
    DESCRIPTORS_MAX,
    DESCRIPTORS_RESERVED,
    GRPC_CONNECTIONS_MAX,
    HTTP_CONNECTIONS_MAX,
    PROBE_CONNECTIONS_MAX,
)
from bookstore_grpc.settings import Settings

_log = structlog.stdlib.get_logger("bookstore_grpc.descriptors")

_NONE_LEFT = (errno.EMFILE, errno.ENFILE)
# SQLite has the file, its log and the log's index open for each connection.
_FILES_OF_SQLITE = 3
# Connections besides those for reading: two that write, one that probes, and SQLite's on the event loop's thread.
_OTHER_DATABASE_CONNECTIONS = 4
_CONNECTIONS_LEAST = 8
_HTTP_SHARE, _PROBES_SHARE = 1 / 4, 1 / 8


class DescriptorsExhausted(OSError):
    """The process, or the system, has as many files open as it may."""


class ConnectionBounds(NamedTuple):
    """How many connections may come in: to each of gRPC's listeners, to HTTP, to the probes."""

    grpc: int
    http: int
    probes: int


def raise_descriptor_limit() -> int:
    """Let the process open as many files as the system lets it, within reason, and answer how many these are.

    Many systems begin a process with 1,024, for the sake of programs that use `select`, and allow it more.
    """
    soft, hard = resource.getrlimit(resource.RLIMIT_NOFILE)
    wanted = DESCRIPTORS_MAX if hard == resource.RLIM_INFINITY else min(hard, DESCRIPTORS_MAX)
    if soft == resource.RLIM_INFINITY or soft >= wanted:
        return DESCRIPTORS_MAX if soft == resource.RLIM_INFINITY else soft
    try:
        resource.setrlimit(resource.RLIMIT_NOFILE, (wanted, hard))
    except (OSError, ValueError):  # a sandbox forbids it, or the system has a lower limit of its own
        return soft
    return wanted


def connection_bounds(settings: Settings, descriptors: int) -> ConnectionBounds:
    """Divide descriptors so that, however many connections come in, there are some for the database and for files."""
    is_sqlite = settings.database_url.startswith("sqlite")
    database = (settings.pool_size + _OTHER_DATABASE_CONNECTIONS) * (_FILES_OF_SQLITE if is_sqlite else 1)
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


def named_exhaustion(error: Exception) -> Exception:
    """Answer an error that was met in opening a file or a connection, by its name if descriptors had run out.

    Some say so themselves, or have a cause that does. SQLite says that it cannot open the file, whatever the reason, so
    it is tried whether others can be opened.
    """
    if not (_says_so(error) or _are_few_left()):
        return error
    named = DescriptorsExhausted(f"no file descriptors are left, of {resource.getrlimit(resource.RLIMIT_NOFILE)[0]}")
    named.__cause__ = error
    return named


def _says_so(error: BaseException | None) -> bool:
    while error is not None:
        if isinstance(error, OSError) and error.errno in _NONE_LEFT:
            return True
        error = error.__cause__
    return False


def _are_few_left() -> bool:
    """Tell whether there are fewer than SQLite needs for a connection."""
    opened = []
    try:
        for _ in range(_FILES_OF_SQLITE):
            opened.append(os.open(os.sep, os.O_RDONLY))
    except OSError as error:
        return error.errno in _NONE_LEFT
    finally:
        for descriptor in opened:
            os.close(descriptor)
    return False


def _within(wanted: int, available: float) -> int:
    return max(_CONNECTIONS_LEAST, min(wanted, int(available)))


def _count_listeners(addresses: Sequence[str]) -> int:
    """Answer how many sockets gRPC will listen on: one for each address that a name stands for."""
    return sum(1 if address.startswith("unix:") else _count_addresses(address) for address in addresses)


def _count_addresses(address: str) -> int:
    host = address.rpartition(":")[0].strip("[]")
    try:
        return len({where for *_, where in socket.getaddrinfo(host, None, type=socket.SOCK_STREAM)})
    except (OSError, UnicodeError):
        return 1  # whoever listens says what is wrong with it
