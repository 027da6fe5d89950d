"""HAProxy in front of servers on the loopback, started and stopped by a test."""

import os
import shutil
import socket
import subprocess
import time
from collections.abc import Iterator, Sequence
from contextlib import contextmanager, suppress
from pathlib import Path
from tempfile import TemporaryDirectory

from tests.conftest import require

_START_SECONDS = 10
# retries: a server that is away is reported immediately.
_CONFIGURATION = """
global
  stats socket {folder}/control level admin
defaults
  mode tcp
  retries 0
  timeout connect 1s
  timeout client {idle_milliseconds}ms
  timeout server {idle_milliseconds}ms
listen all
  bind 127.0.0.1:{port}
"""


class HAProxy:
    """A TCP proxy that sends new connections to one of several servers. Existing ones stay where they are.

    It closes connections that are idle for `idle_seconds`.
    """

    def __init__(self, folder: Path, ports: Sequence[int], *, idle_seconds: float = 3_600) -> None:
        with socket.socket() as free:
            free.bind(("127.0.0.1", 0))
            self.port: int = free.getsockname()[1]
        self._ports = ports
        self._control = folder / "control"
        file = folder / "haproxy.cfg"
        servers = "".join(f"  server {port} 127.0.0.1:{port}\n" for port in ports)
        values = {"folder": folder, "port": self.port, "idle_milliseconds": round(1_000 * idle_seconds)}
        file.write_text(_CONFIGURATION.format(**values) + servers)
        self._process = subprocess.Popen([_program(), "-f", str(file), "-q"], stderr=subprocess.DEVNULL)

    def await_start(self) -> None:
        """Wait until it accepts connections, and send them to the first server."""
        deadline = time.monotonic() + _START_SECONDS
        while True:
            assert self._process.poll() is None, "HAProxy has ended"
            with suppress(FileNotFoundError, ConnectionRefusedError):
                self.direct_to(self._ports[0])
                return
            assert time.monotonic() < deadline, "HAProxy does not start"
            time.sleep(0.01)

    def direct_to(self, port: int) -> None:
        """Send new connections to the server on this port."""
        for each in self._ports:
            self._command(f"set server all/{each} state {'ready' if each == port else 'maint'}")

    def close_connections(self) -> None:
        """Close every connection, in the middle of whatever it transfers."""
        for each in self._ports:
            self._command(f"shutdown sessions server all/{each}")

    def close(self) -> None:
        self._process.kill()
        self._process.wait()

    def _command(self, command: str) -> None:
        with socket.socket(socket.AF_UNIX) as control:
            control.connect(str(self._control))
            control.sendall(f"{command}\n".encode())
            response = control.recv(65_536).decode().strip()
            assert not response, response


@contextmanager
def haproxy(ports: Sequence[int], *, idle_seconds: float = 3_600) -> Iterator[HAProxy]:
    """Run HAProxy in front of servers on these ports, or skip the test where it is missing."""
    require(_program(), "HAProxy is not installed")
    with TemporaryDirectory(prefix="haproxy-") as folder:
        proxy = HAProxy(Path(folder), ports, idle_seconds=idle_seconds)
        try:
            proxy.await_start()
            yield proxy
        finally:
            proxy.close()


def _program() -> str:
    return shutil.which("haproxy", path=f"{os.environ['PATH']}:/usr/sbin") or ""
