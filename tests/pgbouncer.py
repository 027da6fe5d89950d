"""PgBouncer in front of a PostgreSQL, started and stopped by a test."""

from collections.abc import Iterator
from contextlib import contextmanager

from benchmarks.pgbouncer import find_pgbouncer, running_pgbouncer
from tests.conftest import require

# Fewer than clients, so that in transaction mode the transactions of a client use different ones. In session mode each
# client keeps its own.
_SERVER_CONNECTIONS = {"transaction": 3, "session": 20}


@contextmanager
def pgbouncer(url: str, *, pool_mode: str) -> Iterator[str]:
    """Run PgBouncer in front of the database of a URL, and yield the URL that goes through it."""
    program = find_pgbouncer()
    require(program, "PgBouncer is not installed")
    connections = _SERVER_CONNECTIONS[pool_mode]
    with running_pgbouncer(str(program), url, pool_mode=pool_mode, server_connections=connections) as through:
        yield through
