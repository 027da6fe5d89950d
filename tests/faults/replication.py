"""A primary and a replica of PostgreSQL or MariaDB behind HAProxy, and the failover from one to the other."""

import shutil
import subprocess
import tempfile
import time
from abc import abstractmethod
from collections.abc import Callable, Iterator
from contextlib import ExitStack, contextmanager
from pathlib import Path

from sqlalchemy.engine import make_url

from tests.faults.database_servers import DatabaseServer, require_server, run_as
from tests.haproxy import HAProxy, haproxy

_WAIT_SECONDS = 30


class ReplicatedServer(DatabaseServer):
    """A database server that is a primary or a replica."""

    @abstractmethod
    def follow(self, primary: "ReplicatedServer") -> None:
        """Become the replica of a primary, with its data, without which the primary then acknowledges no commit."""

    @abstractmethod
    def stop_writes(self, replica: "ReplicatedServer") -> None:
        """Reject writes from now on, while reads continue, and wait until the replica has everything."""

    @abstractmethod
    def promote(self) -> None:
        """Become the primary, with everything that was acknowledged."""

    @abstractmethod
    def replay(self, is_on: bool) -> None:
        """Apply what the primary sends, or only store it."""

    @abstractmethod
    def make_new_sessions_read_only(self, is_on: bool) -> None:
        """Make the sessions that are opened from now on read-only or writable. Those that are open are not changed."""

    @abstractmethod
    def end_sessions(self) -> None:
        """End the sessions of services."""

    def _run(self, *command: str) -> None:
        subprocess.run([*run_as(self._user), *command], check=True, capture_output=True, cwd=self._folder, timeout=100)


class PostgreSQLServer(ReplicatedServer):
    """A PostgreSQL with synchronous streaming replication."""

    def __init__(self, folder: Path) -> None:
        super().__init__("postgresql", folder)

    def follow(self, primary: ReplicatedServer) -> None:
        self.close()
        data = self._folder / "data"
        shutil.rmtree(data)
        program = Path(self._command()[0]).with_name("pg_basebackup")
        source = f"--host=127.0.0.1 --port={primary.port} --username=postgres"
        options = "--write-recovery-conf --checkpoint=fast --no-sync"
        self._run(str(program), f"--pgdata={data}", *source.split(), *options.split())
        self.start()
        primary._query("ALTER SYSTEM SET synchronous_standby_names = '*'")
        primary._query("SELECT pg_reload_conf()")
        _wait_until(lambda: primary._query("SELECT sync_state FROM pg_stat_replication") == "sync")

    def stop_writes(self, replica: ReplicatedServer) -> None:
        self._query("ALTER SYSTEM SET default_transaction_read_only = on")
        self._query("SELECT pg_reload_conf()")
        _wait_until(self._is_quiet)
        written = self._query("SELECT pg_current_wal_lsn()")
        _wait_until(lambda: replica._query(f"SELECT pg_last_wal_replay_lsn() >= '{written}'") == "t")

    def _is_quiet(self) -> bool:
        # A transaction that had begun before may still write, and one that has written is still to be acknowledged.
        state = "SELECT pg_current_wal_lsn(), count(backend_xid) FROM pg_stat_activity"
        before = self._query(state)
        time.sleep(0.1)
        return self._query(state) == before and before.endswith("|0")

    def promote(self) -> None:
        self._query("SELECT pg_promote()")

    def replay(self, is_on: bool) -> None:
        self._query(f"SELECT pg_wal_replay_{'resume' if is_on else 'pause'}()")

    def make_new_sessions_read_only(self, is_on: bool) -> None:
        value = "= on" if is_on else "TO DEFAULT"
        self._query(f"ALTER ROLE bookstore SET default_transaction_read_only {value}")

    def end_sessions(self) -> None:
        self._query("SELECT pg_terminate_backend(pid) FROM pg_stat_activity WHERE usename = 'bookstore'")


class MariaDBServer(ReplicatedServer):
    """A MariaDB with semi-synchronous replication."""

    def __init__(self, folder: Path) -> None:
        super().__init__("mariadb", folder)

    def follow(self, primary: ReplicatedServer) -> None:
        self.close()
        shutil.rmtree(self._folder / "data")
        self._make()
        dump = self._folder / "dump.sql"
        source = f"--no-defaults --socket={primary._folder / 'socket'} --user=root"
        options = f"--single-transaction --gtid --master-data --result-file={dump}"
        self._run("mariadb-dump", *source.split(), *options.split(), "bookstore")
        self._query(f"SET sql_log_bin = 0; USE bookstore; SOURCE {dump};")
        self._query(
            f"SET GLOBAL read_only = 1; CHANGE MASTER TO master_host = '127.0.0.1', master_port = {primary.port}, "
            "master_user = 'root', master_use_gtid = slave_pos; START SLAVE"
        )
        primary._query("SET GLOBAL rpl_semi_sync_master_timeout = 3600000, GLOBAL rpl_semi_sync_master_enabled = 1")
        _wait_until(lambda: primary._query("SHOW STATUS LIKE 'Rpl_semi_sync_master_clients'").endswith("1"))

    def stop_writes(self, replica: ReplicatedServer) -> None:
        self._query("SET GLOBAL read_only = 1")
        written = self._query("SELECT @@gtid_binlog_pos")
        replica._query(f"SELECT master_gtid_wait('{written}', {_WAIT_SECONDS})")

    def promote(self) -> None:
        self._query("STOP SLAVE IO_THREAD")
        _wait_until(lambda: "Slave has read all relay log" in self._query("SHOW SLAVE STATUS"))
        self._query("STOP SLAVE; RESET SLAVE ALL; SET GLOBAL read_only = 0")

    def replay(self, is_on: bool) -> None:
        self._query(f"{'START' if is_on else 'STOP'} SLAVE SQL_THREAD")

    def make_new_sessions_read_only(self, is_on: bool) -> None:
        self._query(f"SET GLOBAL tx_read_only = {is_on}")

    def end_sessions(self) -> None:
        self._query("KILL USER bookstore@'127.0.0.1'")

    def _make(self) -> None:
        super()._make()
        # With these rights an account is not bound by `read_only`.
        self._query("REVOKE SUPER, READ ONLY ADMIN ON *.* FROM bookstore@'127.0.0.1'")

    def _command(self) -> list[str]:
        options = ["--log-bin", "--log-slave-updates", "--rpl-semi-sync-slave-enabled", f"--server-id={self.port}"]
        return [*super()._command(), *options]


class ReplicatedDatabase:
    """A primary, its replica, and a proxy that sends new connections to the primary."""

    def __init__(self, primary: ReplicatedServer, replica: ReplicatedServer, proxy: HAProxy) -> None:
        self.kind = primary.kind
        self.primary = primary
        self.replica = replica
        self.proxy = proxy
        self._is_replicated = True
        self.url = make_url(primary.url).set(port=proxy.port).render_as_string()

    @property
    def log(self) -> Path:
        return self.primary.log

    def switch_over(self) -> None:
        """Make the replica the primary, and the primary read-only. Connections to it remain, as when a name moves."""
        self.primary.stop_writes(self.replica)
        self._promote_replica()

    def fail_over(self) -> None:
        """Kill the primary, and make the replica the primary."""
        self.primary.kill()
        self._promote_replica()

    def replicate(self) -> None:
        """Make the former primary, whatever its state, the replica of the present one."""
        if not self._is_replicated:
            self.replica.follow(self.primary)
        self._is_replicated = True

    def _promote_replica(self) -> None:
        self.replica.promote()
        self._is_replicated = False
        self.primary, self.replica = self.replica, self.primary
        self.proxy.direct_to(self.primary.port)


@contextmanager
def replicated_database(kind: str) -> Iterator[ReplicatedDatabase]:
    """Run a primary and a replica of this kind behind a proxy, or skip the test where a program is missing."""
    require_server(kind)
    with ExitStack() as stack:
        servers = []
        for _ in range(2):
            # Not under pytest's own folder, which only its owner may enter.
            folder = Path(tempfile.mkdtemp(prefix="replicated-"))
            stack.callback(shutil.rmtree, folder, ignore_errors=True)
            server = PostgreSQLServer(folder) if kind == "postgresql" else MariaDBServer(folder)
            stack.callback(server.close)
            servers.append(server)
        primary, replica = servers
        replica.follow(primary)
        proxy = stack.enter_context(haproxy([server.port for server in servers]))
        yield ReplicatedDatabase(primary, replica, proxy)


def _wait_until(condition: Callable[[], bool]) -> None:
    deadline = time.monotonic() + _WAIT_SECONDS
    while not condition():
        assert time.monotonic() < deadline
        time.sleep(0.02)
