"""The supervisor: starts, replaces and stops the worker processes that share the addresses.

A worker is a new interpreter with one event loop and one gRPC server; the supervisor has neither gRPC nor a database.
They are connected by a socket. The supervisor sends the settings, because arguments would be visible in `ps`. The
worker sends messages (`worker_messages`): where it serves or why it cannot start, and then a heartbeat every second.
"""

import asyncio
import os
import signal
import socket
import subprocess
import sys
from collections.abc import AsyncIterator, Mapping
from contextlib import AsyncExitStack, asynccontextmanager, closing, suppress
from dataclasses import dataclass, replace
from typing import TYPE_CHECKING, Any

import structlog

from bookstore_grpc.errors import StartupError
from bookstore_grpc.net.address import Address
from bookstore_grpc.net.file_descriptors import raise_descriptor_limit
from bookstore_grpc.net.listening import reserved, warn_of_plaintext
from bookstore_grpc.net.periodic import PeriodicTask
from bookstore_grpc.server.components import running
from bookstore_grpc.server.connection_bounds import endpoint_connections
from bookstore_grpc.server.settings import Settings
from bookstore_grpc.server.signals import ignore_sighup
from bookstore_grpc.server.verification import plaintext_addresses
from bookstore_grpc.server.worker_messages import (
    ChangesCommitted,
    Heartbeat,
    Message,
    ModuleMissing,
    Serving,
    StartFailed,
    decode,
    encode_settings,
)

if TYPE_CHECKING:
    from bookstore_grpc.telemetry.metrics import WorkersMetrics

_log = structlog.stdlib.get_logger("bookstore_grpc.server.supervisor")

_STOP_SIGNALS = (signal.SIGTERM, signal.SIGINT)
_BLOCKED_SIGNALS = (*_STOP_SIGNALS, signal.SIGHUP)
_PAUSE_LEAST_SECONDS, _PAUSE_MOST_SECONDS = 1, 30
_CHECK_SECONDS = 1
# Consecutive checks without a heartbeat before a worker counts as unresponsive. Workers send one every second.
_MISSED_HEARTBEATS_MOST = 5


async def serve(settings: Settings, *, kill_margin_seconds: float = 15) -> bool:
    """Serve with several workers until SIGTERM or SIGINT, then let them drain. A second signal kills all immediately.

    After its drain a worker has `kill_margin_seconds` to close its server, its traces and its database; then it is
    killed. Returns whether no worker had to be killed.

    Raises `StartupError` if the service cannot start with these settings, and `ModuleNotFoundError` if a worker lacks a
    package.
    """
    settings.verify()
    warn_of_plaintext(plaintext_addresses(settings))
    async with AsyncExitStack() as stack:
        listen = stack.enter_context(reserved([Address.parse(text) for text in settings.listen]))
        shared = replace(settings, listen=tuple(map(str, listen)))
        if settings.http_listen:
            (http_address,) = stack.enter_context(reserved([Address.parse(settings.http_listen)]))
            shared = replace(shared, http_listen=str(http_address))
        supervisor = _Supervisor(shared)
        if settings.metrics_listen:
            await stack.enter_async_context(supervisor.serving_metrics())
        return await supervisor.run(kill_margin_seconds)


@dataclass
class _Worker:
    """A worker process, and its last heartbeat."""

    process: "subprocess.Popen[bytes]"
    writer: asyncio.StreamWriter
    reported: str = "starting"
    why_no_writes: str = ""
    missed_heartbeats: int = 0

    @property
    def is_unresponsive(self) -> bool:
        return self.missed_heartbeats >= _MISSED_HEARTBEATS_MOST

    @property
    def why_not_ready(self) -> str:
        if self.is_unresponsive:
            return f"unresponsive: no heartbeat for {_MISSED_HEARTBEATS_MOST * _CHECK_SECONDS} s"
        return self.reported

    def send(self, line: bytes) -> None:
        """Send a line, unless the worker has not read the last one, which then tells it the same."""
        if not self.writer.transport.get_write_buffer_size():
            self.writer.write(line)

    def check_heartbeat(self) -> bool:
        """Count one more check without a heartbeat. Returns whether this made the worker unresponsive."""
        # Starts and drains have time limits of their own.
        if self.is_unresponsive or self.reported in ("starting", "draining"):
            return False
        self.missed_heartbeats += 1
        return self.is_unresponsive


class _Supervisor:
    def __init__(self, settings: Settings) -> None:
        self._settings = settings
        self._count = settings.worker_count
        self._stop = asyncio.Event()
        self._others_may_start = asyncio.Event()
        self._workers: dict[int, _Worker] = {}
        self._have_served: set[int] = set()
        self._failure: Exception | None = None
        self._has_killed = False
        self._metrics: WorkersMetrics | None = None
        self._own_log_fields: dict[str, Any] = {}

    @asynccontextmanager
    async def serving_metrics(self) -> AsyncIterator[None]:
        """Serve the endpoints for all workers. Raises `StartupError`."""
        from bookstore_grpc.net.connection_limit import ConnectionLimit
        from bookstore_grpc.telemetry.endpoints import Endpoints, endpoints_server
        from bookstore_grpc.telemetry.metrics import WorkersMetrics

        with closing(WorkersMetrics(count_ready=self._count_ready)) as metrics:
            self._metrics = metrics
            endpoints = Endpoints(metrics=metrics.text, why_not_ready=self._why_not_ready, when_ready=self._readiness)
            limit = ConnectionLimit(endpoint_connections(raise_descriptor_limit()), name="metrics")
            server = endpoints_server(self._settings.metrics_listen, endpoints, limit=limit)
            async with running([server]):
                self._own_log_fields = {"metrics": server.bound_address}
                yield

    async def run(self, kill_margin_seconds: float) -> bool:
        loop = asyncio.get_running_loop()
        ignore_sighup()
        for number in _STOP_SIGNALS:
            loop.add_signal_handler(number, self._on_signal, number)
        checks = PeriodicTask("workers", self._check_heartbeats, every_seconds=_CHECK_SECONDS)
        try:
            async with running([checks]), asyncio.TaskGroup() as slots:
                for index in range(self._count):
                    slots.create_task(self._keep_running(index))
                await self._stop.wait()
                for worker in self._workers.values():
                    worker.process.terminate()
                drain_seconds = self._settings.drain_delay_seconds + self._settings.drain_seconds
                kill = loop.call_later(drain_seconds + kill_margin_seconds, self._kill)
            kill.cancel()
        finally:
            self._kill()
        if self._failure is not None:
            raise self._failure
        _log.info("stopped")
        return not self._has_killed

    def _on_signal(self, number: signal.Signals) -> None:
        if not self._stop.is_set():
            _log.info("draining", grace_seconds=self._settings.drain_seconds)
            self._request_stop()
            return
        self._kill()
        if self._metrics:
            self._metrics.close()
        signal.signal(number, signal.SIG_DFL)
        signal.raise_signal(number)
        os._exit(128 + number)  # for PID 1 of a container, which a signal's default action does not end

    def _request_stop(self) -> None:
        self._stop.set()
        self._others_may_start.set()

    def _kill(self) -> None:
        for index, worker in self._workers.items():
            self._has_killed = True
            _log.warning("worker killed", worker=index, pid=worker.process.pid)
            worker.process.kill()

    def _count_ready(self) -> int:
        return sum(not worker.why_not_ready for worker in self._workers.values())

    def _why_not_ready(self) -> str:
        if self._stop.is_set():
            return "draining"
        return "" if self._count_ready() else self._readiness()

    def _readiness(self) -> str:
        """Return the number of ready workers, why the others are not ready, and which take no writes."""
        reasons = [
            f"worker {index}: {reason}" for index in range(self._count) if (reason := self._what_is_wrong_with(index))
        ]
        if not reasons:
            return "ok"
        return f"{self._count_ready()} of {self._count} workers ready: {', '.join(reasons)}"

    def _what_is_wrong_with(self, index: int) -> str:
        worker = self._workers.get(index)
        return worker.why_not_ready or worker.why_no_writes if worker else "not running"

    def _check_heartbeats(self) -> None:
        # Counts checks, not seconds: a suspended machine must not make all workers unresponsive when it resumes.
        for index, worker in self._workers.items():
            if worker.check_heartbeat():
                _log.error("worker unresponsive", worker=index, pid=worker.process.pid)

    async def _keep_running(self, index: int) -> None:
        """Run a worker, and replace it whenever it ends, until the stop."""
        if index:
            # The first worker starts alone, so that one worker migrates and an error common to all is reported once.
            await self._others_may_start.wait()
        pause_seconds = _PAUSE_LEAST_SECONDS
        while not self._stop.is_set():
            message, status = await self._run_worker(index)
            if self._stop.is_set():
                return
            ended_by = _shown_end(status)
            if isinstance(message, Serving):
                log = _log.info if status == 0 else _log.warning  # 0: ended by an operator's SIGTERM
                log("worker ended", worker=index, ended_by=ended_by)
                pause_seconds = _PAUSE_LEAST_SECONDS
                continue
            failure = _failure(message, f"Worker {index} ended before it served ({ended_by}).")
            if len(self._have_served) < self._count:
                self._failure = failure
                self._request_stop()
                return
            _log.warning("worker start failed", worker=index, cause=str(failure), again_in_seconds=pause_seconds)
            with suppress(TimeoutError):
                async with asyncio.timeout(pause_seconds):
                    await self._stop.wait()
            pause_seconds = min(2 * pause_seconds, _PAUSE_MOST_SECONDS)

    async def _run_worker(self, index: int) -> tuple[Message | None, int]:
        """Run a worker until it ends. Returns its last message other than a heartbeat, and its exit status."""
        ours, theirs = socket.socketpair()
        reader, writer = await asyncio.open_connection(sock=ours)
        last: Message | None = None
        with closing(writer), theirs:
            if self._stop.is_set():
                return None, 0
            try:
                variables = self._metrics.variables() if self._metrics else {}
                worker = self._workers[index] = _Worker(_start(index, theirs, variables), writer)
            except StartupError as error:
                return StartFailed(error.message), 1
            except OSError as error:
                return StartFailed(f"Cannot start a worker: {error.strerror}."), 1
            theirs.close()  # with this copy open, the end of the worker would not end the stream
            writer.write(encode_settings(self._settings))
            with suppress(ConnectionError):
                async for line in reader:
                    message = decode(line)
                    if isinstance(message, ChangesCommitted):
                        self._send_to_others(index, line)
                        continue
                    if isinstance(message, Heartbeat):
                        self._on_heartbeat(index, message)
                        continue
                    last = message
                    if isinstance(message, Serving):
                        self._on_serving(index, message)
            status = worker.process.wait()
            del self._workers[index]
            if self._metrics:
                self._metrics.forget(worker.process.pid)
        return last, status

    def _send_to_others(self, index: int, line: bytes) -> None:
        for other, worker in self._workers.items():
            if other != index and worker.reported != "starting":
                worker.send(line)

    def _on_heartbeat(self, index: int, heartbeat: Heartbeat) -> None:
        worker = self._workers[index]
        if worker.is_unresponsive:
            _log.info("worker responsive again", worker=index, pid=worker.process.pid)
        worker.missed_heartbeats = 0
        worker.reported = heartbeat.why_not_ready
        worker.why_no_writes = heartbeat.why_no_writes

    def _on_serving(self, index: int, serving: Serving) -> None:
        self._on_heartbeat(index, Heartbeat(why_not_ready=""))
        is_first_start = len(self._have_served) < self._count
        log = _log.debug if is_first_start else _log.info
        log("worker serving", worker=index, pid=serving.pid)
        self._have_served.add(index)
        self._others_may_start.set()
        if is_first_start and len(self._have_served) == self._count and not self._stop.is_set():
            own = {**self._own_log_fields, "pid": os.getpid(), "workers": self._count}
            _log.info("serving", **{**serving.log_fields(), **own})


def _start(index: int, channel: socket.socket, variables: Mapping[str, str]) -> "subprocess.Popen[bytes]":
    # A child inherits its parent's signal mask. Signals stay pending until the worker has installed its handlers.
    signal.pthread_sigmask(signal.SIG_BLOCK, _BLOCKED_SIGNALS)
    try:
        return subprocess.Popen(  # noqa: S603  no untrusted input
            [sys.executable, "-P", "-m", "bookstore_grpc.server.worker", str(index)],
            stdin=channel.fileno(),
            # The worker must import the same modules as the supervisor.
            env={**os.environ, **variables, "PYTHONPATH": os.pathsep.join(sys.path)},
        )
    finally:
        signal.pthread_sigmask(signal.SIG_UNBLOCK, _BLOCKED_SIGNALS)


def _failure(message: Message | None, otherwise: str) -> Exception:
    if isinstance(message, ModuleMissing):
        return ModuleNotFoundError(f"No module named {message.module!r}", name=message.module)
    return StartupError(message.error if isinstance(message, StartFailed) else otherwise)


def _shown_end(status: int) -> str:
    if status >= 0:
        return f"exit status {status}"
    try:
        return signal.Signals(-status).name
    except ValueError:  # real-time signals have no names
        return f"signal {-status}"
