"""Starts the command `bookstore` by forking a process that has imported it once.

Importing the server takes ten times as long as the rest of a start, and the tests start hundreds. A forked supervisor
forks its workers too. Tests of how the interpreter starts (its variables, its limits) spawn one: `tests.executable`
decides.
"""

import asyncio
import atexit
import gc
import importlib
import json
import os
import pkgutil
import selectors
import signal
import socket
import subprocess
import sys
import threading
from collections.abc import Mapping, Sequence
from contextlib import suppress
from pathlib import Path
from types import SimpleNamespace
from typing import Any, Literal, TextIO

# What servers import when they need it.
_IMPORTED_LATE = (
    "aiosqlite",
    "asyncmy",
    "asyncpg",
    "opentelemetry.exporter.otlp.proto.grpc.trace_exporter",
    "opentelemetry.sdk.trace.export",
    "sqlalchemy.dialects.mysql.asyncmy",
    "sqlalchemy.dialects.postgresql.asyncpg",
    "sqlalchemy.dialects.sqlite.aiosqlite",
    "uvicorn.protocols.http.httptools_impl",
    "uvloop",
)
_REQUEST_MAX_BYTES = 512 * 1024


class ForkServer:
    """The client's end: starts the fork server, and asks it for processes."""

    def __init__(self) -> None:
        self._control, theirs = socket.socketpair(socket.AF_UNIX, socket.SOCK_SEQPACKET)
        self._control.setsockopt(socket.SOL_SOCKET, socket.SO_SNDBUF, _REQUEST_MAX_BYTES)
        with theirs:
            self._process = subprocess.Popen(
                [sys.executable, "-P", __file__, str(theirs.fileno())],
                pass_fds=[theirs.fileno()],
                stdin=subprocess.DEVNULL,
            )

    def start(
        self, arguments: Sequence[str], *, stdin: int, stdout: int, stderr: int, cwd: str, variables: Mapping[str, str]
    ) -> "ForkedProcess":
        """Start the command with these arguments (its own path first), streams, folder and variables."""
        request = json.dumps({"arguments": arguments, "cwd": cwd, "variables": dict(variables)})
        ours, theirs = socket.socketpair()
        with theirs:
            socket.send_fds(self._control, [request.encode()], [stdin, stdout, stderr, theirs.fileno()])
        return ForkedProcess(ours, arguments)

    def close(self) -> None:
        """End the fork server. Processes that it started go on."""
        self._control.close()
        self._process.wait()


class ForkedProcess:
    """A process that the fork server started, with what `subprocess.Popen` offers for it."""

    def __init__(self, status: socket.socket, arguments: Sequence[str]) -> None:
        self.args = arguments
        self.returncode: int | None = None
        self._status = status
        self._lock = threading.Lock()
        self.pid = int(self._receive())

    def poll(self) -> int | None:
        """Return the exit status, negative for a signal, or None while the process runs."""
        return self._reap(0.0)

    def wait(self, timeout: float | None = None) -> int:
        """Wait for the exit status. Raises `subprocess.TimeoutExpired`."""
        status = self._reap(timeout)
        if status is None:
            raise subprocess.TimeoutExpired(self.args, timeout or 0.0)
        return status

    def send_signal(self, number: int) -> None:
        """Send a signal, unless the process has ended."""
        if self.poll() is None:
            os.kill(self.pid, number)

    def terminate(self) -> None:
        """Send SIGTERM."""
        self.send_signal(signal.SIGTERM)

    def kill(self) -> None:
        """Send SIGKILL."""
        self.send_signal(signal.SIGKILL)

    def _reap(self, timeout: float | None) -> int | None:
        with self._lock:
            if self.returncode is None:
                self._status.settimeout(timeout)
                try:
                    self.returncode = int(self._receive())
                except (BlockingIOError, TimeoutError):
                    return None
                self._status.close()
            return self.returncode

    def _receive(self) -> bytes:
        received = self._status.recv(16, socket.MSG_WAITALL)
        if len(received) < 16:
            raise RuntimeError("the fork server has ended")
        return received


def _main() -> None:
    control = socket.socket(fileno=int(sys.argv[1]))
    _import_everything()
    assert threading.active_count() == 1, threading.enumerate()
    gc.collect()
    gc.freeze()
    request = _serve(control)
    if request is None:
        return
    # A child, and no longer the fork server: it ends as the command does.
    from bookstore_grpc.cli import main
    from bookstore_grpc.server import supervisor

    os.chdir(request["cwd"])
    os.environ.clear()
    os.environ.update(request["variables"])
    sys.stdin, sys.stdout, sys.stderr = _opened(0, "r"), _opened(1, "w"), _opened(2, "w", buffering=1)
    sys.argv = request["arguments"]
    sys.path.insert(0, str(Path(sys.argv[0]).parent))
    vars(supervisor)["subprocess"] = SimpleNamespace(Popen=_start_worker)  # of this module only
    sys.exit(main())


def _opened(number: int, mode: Literal["r", "w"], *, buffering: int = -1) -> TextIO:
    """Open a standard stream as the interpreter does. What the fork server has was opened for another kind of file."""
    errors = sys.stderr.errors if number == 2 else sys.stdout.errors
    return open(number, mode, buffering, encoding=sys.stdout.encoding, errors=errors, closefd=False)


def _start_worker(command: list[str], *, stdin: int, env: dict[str, str]) -> "_ForkedWorker":
    """Start a worker of the supervisor in this process, as its call of `subprocess.Popen` asks for."""
    from bookstore_grpc.telemetry import logs

    logs.flush_logs()  # which the worker would write too
    pid = os.fork()
    if pid:
        return _ForkedWorker(pid)
    status = 1
    try:
        status = _run_worker(int(command[-1]), stdin, env)
    except BaseException:
        sys.excepthook(*sys.exc_info())
    os._exit(status)


def _run_worker(index: int, stdin: int, env: dict[str, str]) -> int:
    """Run a worker in the child, whose supervisor's event loop it leaves alone. Returns the exit status."""
    import prometheus_client.values

    from bookstore_grpc.server import worker

    signal.set_wakeup_fd(-1)
    asyncio._set_running_loop(None)
    os.dup2(stdin, 0)
    os.closerange(3, os.sysconf("SC_OPEN_MAX"))
    os.environ.update(env)
    # Importing it has chosen this by the variables.
    prometheus_client.values.ValueClass = prometheus_client.values.get_value_class()  # type: ignore[no-untyped-call]
    try:
        status = worker.main(index)
    except SystemExit as error:
        status = int(error.code or 0)  # by a signal
    threading._shutdown()  # type: ignore[attr-defined]  # joins threads, as an interpreter does that ends
    atexit._run_exitfuncs()
    return status


class _ForkedWorker:
    """A worker, with what its supervisor uses of `subprocess.Popen`."""

    def __init__(self, pid: int) -> None:
        self.pid = pid
        self._status: int | None = None

    def wait(self) -> int:
        """Wait for the exit status, negative for a signal."""
        if self._status is None:
            self._status = os.waitstatus_to_exitcode(os.waitpid(self.pid, 0)[1])
        return self._status

    def terminate(self) -> None:
        """Send SIGTERM."""
        self._send_signal(signal.SIGTERM)

    def kill(self) -> None:
        """Send SIGKILL."""
        self._send_signal(signal.SIGKILL)

    def _send_signal(self, number: int) -> None:
        if self._status is None:
            os.kill(self.pid, number)  # until it is waited for, the pid is its own


def _import_everything() -> None:
    os.environ["GRPC_VERBOSITY"] = "NONE"  # read at import, after the command sets it
    package = importlib.import_module("bookstore_grpc")
    for module in pkgutil.walk_packages(package.__path__, "bookstore_grpc."):
        if "versions" not in module.name and not module.name.endswith(("__main__", ".env")):
            importlib.import_module(module.name)
    for name in _IMPORTED_LATE:
        importlib.import_module(name)


def _serve(control: socket.socket) -> dict[str, Any] | None:
    """Fork for each request. Return the request in the child, and None where no more requests can come."""
    with selectors.DefaultSelector() as selector:
        selector.register(control, selectors.EVENT_READ)
        while True:
            for key, _ in selector.select():
                if key.data is not None:
                    selector.unregister(key.fd)
                    _report_end(key.fd, *key.data)
                    continue
                message, fds, _, _ = socket.recv_fds(control, _REQUEST_MAX_BYTES, 4)
                if not message:
                    return None
                pid = os.fork()
                if pid == 0:
                    _use_streams(fds, [each for each in selector.get_map().values() if each.data is not None])
                    control.close()
                    request: dict[str, Any] = json.loads(message)
                    return request
                for fd in fds[:3]:
                    os.close(fd)
                os.write(fds[3], b"%16d" % pid)
                selector.register(os.pidfd_open(pid), selectors.EVENT_READ, (pid, fds[3]))


def _use_streams(fds: list[int], others: list[selectors.SelectorKey]) -> None:
    """Make the first three descriptors the standard streams, and close those that are the fork server's."""
    for number, fd in enumerate(fds[:3]):
        os.dup2(fd, number)
    for fd in fds:
        os.close(fd)
    for key in others:
        os.close(key.fd)
        os.close(key.data[1])


def _report_end(pidfd: int, pid: int, status: int) -> None:
    _, waited = os.waitpid(pid, 0)
    os.close(pidfd)
    with suppress(BrokenPipeError):  # nobody waits for it any more
        os.write(status, b"%16d" % os.waitstatus_to_exitcode(waited))
    os.close(status)


if __name__ == "__main__":
    _main()
