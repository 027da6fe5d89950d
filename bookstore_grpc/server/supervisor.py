"""Workers: processes that share the addresses, and the supervisor that starts, replaces and stops them.

A worker is a fresh interpreter with one event loop and one gRPC server; the supervisor has neither gRPC nor a database.
A socket joins the two: the settings go down (an argument would show a password) and reports come up, each a line of
JSON: where the worker serves or what keeps it from starting, and then every second whether it is ready. Its end tells
each of the two that the other has gone.
"""

import asyncio
import json
import os
import signal
import socket
import subprocess
import sys
from collections.abc import AsyncIterator, Mapping
from contextlib import AsyncExitStack, asynccontextmanager, closing, suppress
from dataclasses import asdict, dataclass, replace
from typing import TYPE_CHECKING, Any

import structlog

from bookstore_grpc.errors import StartupError
from bookstore_grpc.net.address import Address
from bookstore_grpc.net.file_descriptors import raise_descriptor_limit
from bookstore_grpc.net.listening import reserved, warn_of_plaintext
from bookstore_grpc.net.periodic import repeated
from bookstore_grpc.server.connection_bounds import probe_connections
from bookstore_grpc.server.settings import Settings
from bookstore_grpc.server.signals import ignore_hangup
from bookstore_grpc.server.verification import plaintext_addresses
from bookstore_grpc.telemetry.logs import configure_logging

if TYPE_CHECKING:
    from bookstore_grpc.telemetry.metrics import WorkersMetrics

_log = structlog.stdlib.get_logger("bookstore_grpc.server.supervisor")

_SIGNALS = (signal.SIGTERM, signal.SIGINT)
_HELD_BACK = (*_SIGNALS, signal.SIGHUP)
_PAUSE_LEAST_SECONDS, _PAUSE_MOST_SECONDS = 1, 30
_LOOK_SECONDS = 1
# Looks without a report from a worker, which sends one a second, until it is taken for one that hangs.
_MOST_SILENT_LOOKS = 5


async def serve(settings: Settings, *, kill_margin_seconds: float = 15) -> bool:
    """Serve with several workers until SIGTERM or SIGINT, then let them drain. A second signal ends all at once.

    After the time of its drain a worker has the margin to close its server, its traces and its database, each of which
    is bounded, and then it is killed. Answer whether none had to be.

    Raises `StartupError` where the service cannot start as it is set up, and `ModuleNotFoundError` where a worker lacks
    a package.
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
    """A process, and what it last reported."""

    process: "subprocess.Popen[bytes]"
    reported: str = "starting"
    silent_looks: int = 0

    @property
    def hangs(self) -> bool:
        return self.silent_looks >= _MOST_SILENT_LOOKS

    @property
    def why_not_ready(self) -> str:
        return "does not turn" if self.hangs else self.reported


class _Supervisor:
    def __init__(self, settings: Settings) -> None:
        self._settings = settings
        self._count = settings.worker_count
        self._stop = asyncio.Event()
        self._may_follow = asyncio.Event()
        self._workers: dict[int, _Worker] = {}
        self._have_served: set[int] = set()
        self._failure: Exception | None = None
        self._has_killed = False
        self._metrics: WorkersMetrics | None = None
        self._told: dict[str, Any] = {}

    @asynccontextmanager
    async def serving_metrics(self) -> AsyncIterator[None]:
        """Answer for all workers. Raises `StartupError`."""
        from bookstore_grpc.net.connection_limit import Room
        from bookstore_grpc.telemetry.endpoints import Probes, serving_probes
        from bookstore_grpc.telemetry.metrics import WorkersMetrics

        with closing(WorkersMetrics(count_ready=self._count_ready)) as metrics:
            self._metrics = metrics
            probes = Probes(metrics=metrics.text, why_not_ready=self._why_not_ready, when_ready=self._readiness)
            room = Room(probe_connections(raise_descriptor_limit()), name="metrics")
            async with serving_probes(self._settings.metrics_listen, probes, room=room) as address:
                self._told = {"metrics": address}
                yield

    async def run(self, kill_margin_seconds: float) -> bool:
        loop = asyncio.get_running_loop()
        ignore_hangup()
        for number in _SIGNALS:
            loop.add_signal_handler(number, self._on_signal, number)
        try:
            async with (
                repeated(self._look, every_seconds=_LOOK_SECONDS, what="workers"),
                asyncio.TaskGroup() as slots,
            ):
                for index in range(self._count):
                    slots.create_task(self._fill(index))
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
            self._begin_to_stop()
            return
        self._kill()
        if self._metrics:
            self._metrics.close()
        signal.signal(number, signal.SIG_DFL)
        signal.raise_signal(number)
        os._exit(128 + number)  # the first process of a container outlives a signal's default action

    def _begin_to_stop(self) -> None:
        self._stop.set()
        self._may_follow.set()

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
        """Say how many are ready, and of the others why they are not."""
        reasons = [
            f"worker {index}: {reason}"
            for index in range(self._count)
            if (reason := self._workers[index].why_not_ready if index in self._workers else "not there")
        ]
        if not reasons:
            return "ok"
        return f"{self._count_ready()} of {self._count} workers ready: {', '.join(reasons)}"

    def _look(self) -> None:
        # What counts is looks and not seconds: after a sleep of the whole machine nobody has been silent for long.
        for index, worker in self._workers.items():
            if worker.hangs or worker.reported in ("starting", "draining"):
                continue  # of these two the supervisor knows otherwise when they take too long
            worker.silent_looks += 1
            if worker.hangs:
                _log.error("worker does not turn", worker=index, pid=worker.process.pid)

    async def _fill(self, index: int) -> None:
        """Run one worker after another until the stop."""
        if index:
            # The first worker migrates alone; and what keeps it from serving is told once.
            await self._may_follow.wait()
        pause_seconds = _PAUSE_LEAST_SECONDS
        while not self._stop.is_set():
            report, status = await self._run_worker(index)
            if self._stop.is_set():
                return
            ended_by = _shown_end(status)
            if "addresses" in report:
                log = _log.info if status == 0 else _log.warning  # 0 is one that an operator has ended
                log("worker ended", worker=index, ended_by=ended_by)
                pause_seconds = _PAUSE_LEAST_SECONDS
                continue
            failure = _failure(report, f"Worker {index} ended before it served ({ended_by}).")
            if len(self._have_served) < self._count:
                self._failure = failure
                self._begin_to_stop()
                return
            _log.warning("worker did not start", worker=index, cause=str(failure), again_in_seconds=pause_seconds)
            with suppress(TimeoutError):
                async with asyncio.timeout(pause_seconds):
                    await self._stop.wait()
            pause_seconds = min(2 * pause_seconds, _PAUSE_MOST_SECONDS)

    async def _run_worker(self, index: int) -> tuple[dict[str, Any], int]:
        """Run a worker to its end and answer its report and its exit status."""
        ours, theirs = socket.socketpair()
        reader, writer = await asyncio.open_connection(sock=ours)
        report: dict[str, Any] = {}
        with closing(writer), theirs:
            if self._stop.is_set():
                return report, 0
            try:
                variables = self._metrics.variables() if self._metrics else {}
                worker = self._workers[index] = _Worker(_started(index, theirs, variables))
            except StartupError as error:
                return {"error": error.message}, 1
            except OSError as error:
                return {"error": f"Cannot start a worker: {error.strerror}."}, 1
            theirs.close()  # else its end would not show here
            writer.write(json.dumps(asdict(self._settings)).encode() + b"\n")
            with suppress(ConnectionError):
                async for line in reader:
                    told = json.loads(line)
                    if "why_not_ready" in told:
                        self._on_report(index, told["why_not_ready"])
                        continue
                    report = told
                    if "addresses" in report:
                        self._on_report(index, "")
                        self._on_serving(index, report)
            status = worker.process.wait()
            del self._workers[index]
            if self._metrics:
                self._metrics.forget(worker.process.pid)
        return report, status

    def _on_report(self, index: int, why_not_ready: str) -> None:
        worker = self._workers[index]
        if worker.hangs:
            _log.info("worker turns again", worker=index, pid=worker.process.pid)
        worker.silent_looks = 0
        worker.reported = why_not_ready

    def _on_serving(self, index: int, report: dict[str, Any]) -> None:
        is_first_start = len(self._have_served) < self._count
        log = _log.debug if is_first_start else _log.info
        log("worker serving", worker=index, pid=report["pid"])
        self._have_served.add(index)
        self._may_follow.set()
        if is_first_start and len(self._have_served) == self._count and not self._stop.is_set():
            _log.info("serving", **report | self._told | {"pid": os.getpid(), "workers": self._count})


def _started(index: int, channel: socket.socket, variables: Mapping[str, str]) -> "subprocess.Popen[bytes]":
    # What arrives before the worker has handlers has to wait for them; what a process blocks its child blocks too.
    signal.pthread_sigmask(signal.SIG_BLOCK, _HELD_BACK)
    try:
        return subprocess.Popen(  # noqa: S603  nothing here comes from outside
            [sys.executable, "-P", "-m", __name__, str(index)],
            stdin=channel.fileno(),
            # The worker imports the very modules that the supervisor has.
            env={**os.environ, **variables, "PYTHONPATH": os.pathsep.join(sys.path)},
        )
    finally:
        signal.pthread_sigmask(signal.SIG_UNBLOCK, _HELD_BACK)


def _failure(report: dict[str, Any], otherwise: str) -> Exception:
    if "missing_module" in report:
        name = report["missing_module"]
        return ModuleNotFoundError(f"No module named {name!r}", name=name)
    return StartupError(report.get("error", otherwise))


def _shown_end(status: int) -> str:
    if status >= 0:
        return f"exit status {status}"
    try:
        return signal.Signals(-status).name
    except ValueError:  # the real-time signals have no names
        return f"signal {-status}"


def _work(index: int) -> int:
    """Be a worker, and answer the exit status."""
    # A terminal's Ctrl-C reaches all processes; the supervisor speaks for them.
    signal.signal(signal.SIGINT, signal.SIG_IGN)
    # Until its event loop takes it: to import all that a worker needs can take seconds.
    signal.signal(signal.SIGTERM, lambda *_: sys.exit(0))
    signal.pthread_sigmask(signal.SIG_UNBLOCK, _SIGNALS)
    line = sys.stdin.readline()
    if not line:
        return 0  # the supervisor has already gone
    # Nobody may read at the other end for a long time; a report is then left out.
    os.set_blocking(sys.stdin.fileno(), False)
    values: dict[str, Any] = json.loads(line)
    lists = {name: tuple(value) for name, value in values.items() if isinstance(value, list)}
    settings = Settings(**values | lists)
    configure_logging(level=settings.log_level, log_format=settings.log_format, worker=index)
    try:
        import uvloop

        uvloop.run(_serve_until_told(settings))
    except StartupError as error:
        _tell({"error": error.message})
    except ModuleNotFoundError as error:
        _tell({"missing_module": error.name})
    except Exception:
        _log.exception("worker failed")
    else:
        return 0
    return 1


async def _serve_until_told(settings: Settings) -> None:
    from bookstore_grpc.server import app

    stop = asyncio.Event()
    loop = asyncio.get_running_loop()
    channel = sys.stdin.fileno()

    def on_end_of_supervisor() -> None:
        _log.warning("the supervisor is gone")
        loop.remove_reader(channel)
        stop.set()

    loop.add_reader(channel, on_end_of_supervisor)
    loop.add_signal_handler(signal.SIGTERM, stop.set)
    ignore_hangup()
    signal.pthread_sigmask(signal.SIG_UNBLOCK, _HELD_BACK)
    try:
        await app.serve_as_worker(settings, stop, tell_supervisor=_tell)
    finally:
        loop.remove_reader(channel)
        loop.remove_signal_handler(signal.SIGTERM)
        signal.signal(signal.SIGTERM, signal.SIG_IGN)  # nothing is left to be ended but the process itself


def _tell(report: dict[str, Any]) -> None:
    with suppress(OSError):
        os.write(sys.stdin.fileno(), json.dumps(report).encode() + b"\n")


if __name__ == "__main__":
    sys.exit(_work(int(sys.argv[1])))
