"""Servers of PostgreSQL and MariaDB that belong to a test, which starts, stops and pauses them."""

import atexit
import glob
import os
import pwd
import shutil
import signal
import socket
import subprocess
import tempfile
import time
from collections.abc import Iterator, Sequence
from contextlib import contextmanager, suppress
from functools import cache
from pathlib import Path

from tests.conftest import require

_START_SECONDS = 60


class DatabaseServer:
    """A database server in a folder of its own, on a port of the loopback that stays the same."""

    def __init__(self, kind: str, folder: Path, options: Sequence[str] = ()) -> None:
        self.kind = kind
        self._options = options
        with socket.socket() as free:
            free.bind(("127.0.0.1", 0))
            self.port: int = free.getsockname()[1]
        self._folder = folder
        self._user = account("postgres" if kind == "postgresql" else "mysql")
        shutil.chown(folder, self._user)
        self._process: subprocess.Popen[bytes] | None = None
        self._make()

    @property
    def url(self) -> str:
        if self.kind == "postgresql":
            return f"postgresql+asyncpg://bookstore@127.0.0.1:{self.port}/postgres"
        return f"mariadb+asyncmy://bookstore@127.0.0.1:{self.port}/bookstore"

    @property
    def log(self) -> Path:
        return self._folder / "log"

    def start(self) -> None:
        """Start it, and wait until it accepts connections."""
        log = self.log.open("ab")
        self._process = subprocess.Popen(
            [*run_as(self._user), *self._command()], stdout=log, stderr=log, cwd=self._folder, start_new_session=True
        )
        log.close()
        deadline = time.monotonic() + _START_SECONDS
        while not self._is_ready():
            assert self._process.poll() is None, self.log.read_text()[-2_000:]
            assert time.monotonic() < deadline, self.log.read_text()[-2_000:]
            time.sleep(0.05)

    def stop(self) -> None:
        """Stop it without waiting for its clients."""
        self._end(signal.SIGINT if self.kind == "postgresql" else signal.SIGTERM)

    def kill(self) -> None:
        self._end(signal.SIGKILL)

    def restart(self) -> None:
        """Kill PostgreSQL, or stop MariaDB, whose readers may see what it would lose if it was killed; and start it."""
        if self.kind == "postgresql":
            self.kill()
        else:
            self.stop()
        self.start()

    def pause(self) -> None:
        self._signal(signal.SIGSTOP)

    def resume(self) -> None:
        self._signal(signal.SIGCONT)

    def close(self) -> None:
        if self._process is not None and self._process.poll() is None:
            self.kill()

    def connections(self) -> int:
        """Count the connections of services, idle ones too."""
        if self.kind == "postgresql":
            query = "SELECT count(*) FROM pg_stat_activity WHERE usename = 'bookstore' AND pid <> pg_backend_pid()"
        else:
            query = "SELECT count(*) FROM information_schema.processlist WHERE user = 'bookstore'"
        return int(self._query(query))

    def open_transactions(self) -> int:
        if self.kind == "postgresql":
            return int(self._query("SELECT count(*) FROM pg_stat_activity WHERE state LIKE 'idle in transaction%'"))
        return int(self._query("SELECT count(*) FROM information_schema.innodb_trx"))

    def activity(self) -> str:
        """Return what the connections do."""
        if self.kind == "postgresql":
            columns = "pid, state, state_change, client_port, left(query, 40)"
            return self._query(f"SELECT {columns} FROM pg_stat_activity WHERE usename = 'bookstore'")
        return self._query("SHOW FULL PROCESSLIST")

    def _query(self, sql: str) -> str:
        if self.kind == "postgresql":
            client = [_postgresql("psql"), "-h", "127.0.0.1", "-p", str(self.port), "-U", "postgres", "-Atc", sql]
        else:
            socket_path = str(self._folder / "socket")
            client = ["mariadb", "--no-defaults", "-S", socket_path, "-u", "root", "-N", "-B", "-e", sql]
        done = subprocess.run(client, capture_output=True, timeout=30, check=True, cwd="/")
        return done.stdout.decode().strip()

    def _make(self) -> None:
        data = self._folder / "data"
        subprocess.run(["cp", "--archive", "--sparse=always", _new_data(self.kind), data], check=True, timeout=100)
        self.start()
        if self.kind == "postgresql":
            self._query("CREATE ROLE bookstore SUPERUSER LOGIN")
        else:
            self._query(
                "CREATE DATABASE bookstore; CREATE USER bookstore@'127.0.0.1';GRANT ALL ON *.* TO bookstore@'127.0.0.1'"
            )

    def _command(self) -> list[str]:
        data, port = str(self._folder / "data"), str(self.port)
        if self.kind == "postgresql":
            command = [_postgresql("postgres"), "-D", data, "-p", port, "-h", "127.0.0.1", "-k", str(self._folder)]
            return [*command, *self._options]
        socket_path = f"--socket={self._folder / 'socket'}"
        return [
            *("mariadbd", "--no-defaults", *self._own_folders(), f"--port={port}", "--bind-address=127.0.0.1"),
            *(socket_path, "--skip-name-resolve", f"--pid-file={self._folder / 'pid'}", *self._options),
        ]

    def _own_folders(self) -> list[str]:
        # When it starts, MariaDB deletes the temporary tables of every server that has the same folder for them.
        return [f"--datadir={self._folder / 'data'}", f"--tmpdir={self._folder}"]

    def _is_ready(self) -> bool:
        with suppress(subprocess.CalledProcessError):
            return self._query("SELECT 1") == "1"
        return False

    def _signal(self, number: signal.Signals) -> None:
        # PostgreSQL has a process for each connection, which has to get the signal too.
        assert self._process is not None
        processes = [self._process.pid, *self._backends()]
        for pid in processes:
            with suppress(ProcessLookupError):
                os.kill(pid, number)

    def _end(self, number: signal.Signals) -> None:
        assert self._process is not None
        backends = self._backends()
        if number is signal.SIGKILL:
            self._signal(number)
        else:
            self._process.send_signal(number)
        self._process.wait(30)
        self._process = None
        deadline = time.monotonic() + 30
        while any(map(_is_alive, backends)):
            assert time.monotonic() < deadline, "a process of the database does not end"
            time.sleep(0.01)
        (self._folder / "data/postmaster.pid").unlink(missing_ok=True)

    def _backends(self) -> list[int]:
        assert self._process is not None
        main = self._process.pid
        children = Path(f"/proc/{main}/task/{main}/children")
        return [*map(int, children.read_text().split())] if self.kind == "postgresql" and children.exists() else []


def _is_alive(pid: int) -> bool:
    try:
        state = Path(f"/proc/{pid}/stat").read_text().rpartition(")")[2].split()[0]
    except (FileNotFoundError, ProcessLookupError):
        return False
    return state != "Z"


@contextmanager
def database_server(kind: str, folder: Path, options: Sequence[str] = ()) -> Iterator[DatabaseServer]:
    """Run a database server of this kind, or skip the test where its programs are missing."""
    require_server(kind)
    # Not under pytest's own folder, which only its owner may enter.
    server = DatabaseServer(kind, folder, options)
    try:
        yield server
    finally:
        server.close()


@cache
def _new_data(kind: str) -> Path:
    """Return the data of a new server of this kind, which are made once and then copied."""
    folder = Path(tempfile.mkdtemp(prefix="new-data-"))
    atexit.register(shutil.rmtree, folder)
    user = account("postgres" if kind == "postgresql" else "mysql")
    shutil.chown(folder, user)
    data = str(folder / "data")
    if kind == "postgresql":
        make = [_postgresql("initdb"), "-D", data, "-A", "trust", "-U", "postgres", "--no-sync", "-E", "UTF8"]
    else:
        options = [
            f"--datadir={data}",
            f"--tmpdir={folder}",
            "--auth-root-authentication-method=normal",
            "--skip-test-db",
        ]
        make = ["mariadb-install-db", "--no-defaults", *options]
    subprocess.run([*run_as(user), *make], check=True, capture_output=True, cwd=folder, timeout=100)
    return folder / "data"


def require_server(kind: str) -> None:
    """Skip the test where the programs of this kind are missing."""
    program = _postgresql("postgres") if kind == "postgresql" else shutil.which("mariadbd")
    require(program, f"no server of {kind} is installed")
    require(os.geteuid() == 0 or kind == "postgresql", "MariaDB's server is started by root")


def _postgresql(program: str) -> str:
    found = sorted(glob.glob(f"/usr/lib/postgresql/*/bin/{program}"))
    return found[-1] if found else shutil.which(program) or ""


def account(name: str) -> str:
    """Return the user to run as: PostgreSQL does not run as root, and others than root have no choice."""
    return name if os.geteuid() == 0 else pwd.getpwuid(os.geteuid()).pw_name


def run_as(user: str) -> list[str]:
    # It becomes the program, where runuser stays as its parent. Popen's own `user` forks, which gRPC's threads forbid.
    return ["setpriv", f"--reuid={user}", f"--regid={user}", "--clear-groups"] if os.geteuid() == 0 else []
