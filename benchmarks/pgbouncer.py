"""PgBouncer in front of a PostgreSQL, started and stopped by the benchmark and by tests."""

import os
import shutil
import socket
import subprocess
import time
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from tempfile import TemporaryDirectory

from sqlalchemy import URL, make_url

from benchmarks.errors import check
from benchmarks.ports import free_port

_POSTGRESQL_PORT = 5432
_START_SECONDS = 10
_POLL_SECONDS = 0.02
# The path of another version, as in BOOKSTORE_TEST_PGBOUNCER=/opt/pgbouncer-1.24/bin/pgbouncer.
_PROGRAM_VARIABLE = "BOOKSTORE_TEST_PGBOUNCER"
# Nothing is allowed that PgBouncer rejects by default. `auth_type = any` connects with the user named here.
_CONFIGURATION = """
[databases]
{database} = host={host} port={server_port} user={user} {password} dbname={database}
[pgbouncer]
listen_addr = 127.0.0.1
listen_port = {port}
unix_socket_dir =
auth_type = any
pool_mode = {pool_mode}
default_pool_size = {server_connections}
"""


def find_pgbouncer() -> str | None:
    """Return the path of the program, or None if it is not installed."""
    return os.environ.get(_PROGRAM_VARIABLE) or shutil.which("pgbouncer", path=f"{os.environ['PATH']}:/usr/sbin")


def pgbouncer_version(program: str) -> str:
    """Return the program's version."""
    said = subprocess.run([program, "--version"], capture_output=True, text=True, check=True).stdout
    return said.splitlines()[0].removeprefix("PgBouncer ")


@contextmanager
def running_pgbouncer(program: str, url: str, *, pool_mode: str, server_connections: int) -> Iterator[str]:
    """Run PgBouncer in front of the database of a URL, and yield the URL that goes through it."""
    server = make_url(url)
    through = server.set(host="127.0.0.1", port=free_port())
    with TemporaryDirectory(prefix="pgbouncer.") as folder:
        file = Path(folder, "pgbouncer.ini")
        file.write_text(_configuration(server, through, pool_mode=pool_mode, server_connections=server_connections))
        # As root it reads the file, and continues as another user.
        user = ["--user", "nobody"] if os.geteuid() == 0 else []
        process = subprocess.Popen([program, "--quiet", *user, str(file)])
        try:
            _await_port(process, through)
            yield through.render_as_string(hide_password=False)
        finally:
            process.kill()
            process.wait()


def _configuration(server: URL, through: URL, *, pool_mode: str, server_connections: int) -> str:
    return _CONFIGURATION.format(
        database=server.database,
        host=server.host,
        server_port=server.port or _POSTGRESQL_PORT,
        user=server.username,
        password=f"password='{server.password}'" if server.password else "",
        port=through.port,
        pool_mode=pool_mode,
        server_connections=server_connections,
    )


def _await_port(process: "subprocess.Popen[bytes]", through: URL) -> None:
    deadline = time.monotonic() + _START_SECONDS
    while True:
        check(process.poll() is None, "PgBouncer ended at its start")
        try:
            socket.create_connection((through.host, through.port)).close()
            return
        except ConnectionRefusedError:
            check(time.monotonic() < deadline, "PgBouncer does not respond")
            time.sleep(_POLL_SECONDS)
