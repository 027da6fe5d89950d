"""The contenders as processes: starting one on a free port, its CPU and memory, and stopping it."""

import os
import socket
import subprocess
import sys
import time
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import Literal

import grpc
import psutil
from grpc_health.v1 import health_pb2

from benchmarks.errors import BenchmarkError
from benchmarks.go_program import GO_PROGRAM
from benchmarks.ports import free_port

BOOKSTORE = str(Path(sys.executable).parent / "bookstore")
_START_SECONDS = 60
_STOP_SECONDS = 30
_POLL_SECONDS = 0.005
_IDLE_CHECKS = 50
_IDLE_CHECK_SECONDS = 0.3
_IDLE_SHARE = 0.15

Tables = Literal["bookstore", "varied", "tutorial", "memory"]


@dataclass(frozen=True)
class Contender:
    """A measured server: its key, its kind, its storage, and the command that starts it on an address."""

    key: str
    description: str
    tables: Tables
    command: Callable[[str], Sequence[str]]

    @property
    def is_http(self) -> bool:
        """Whether its calls are JSON over HTTP instead of gRPC."""
        return self.key in ("json", "tutorial")


def _bookstore(address: str) -> Sequence[str]:
    return [BOOKSTORE, "serve", "--listen", address, "--log-level", "warning"]


def _bookstore_over_http(address: str) -> Sequence[str]:
    return [*_bookstore("127.0.0.1:0"), "--http-listen", address]


def _module(name: str) -> Callable[[str], Sequence[str]]:
    return lambda address: [sys.executable, "-m", f"benchmarks.contenders.{name}", "--listen", address]


def _bookstore_on_two_cores(address: str) -> Sequence[str]:
    return [*_bookstore(address), "--workers", "2"]


def _go(address: str) -> Sequence[str]:
    return [str(GO_PROGRAM), "--listen", address]


OURS = Contender("ours", "`bookstore serve`", "bookstore", _bookstore)
JSON = Contender("json", "`bookstore serve --http-listen`, called over HTTP", "bookstore", _bookstore_over_http)
FLOOR = Contender("floor", "grpc.aio on uvloop, responding from memory", "memory", _module("floor"))
TUTORIAL = Contender(
    "tutorial", "FastAPI, uvicorn, pydantic and SQLAlchemy's async ORM", "tutorial", _module("tutorial")
)
TEXTBOOK = Contender(
    "textbook", "grpc.aio on uvloop, an async ORM session for each call", "bookstore", _module("textbook")
)
THREADS = Contender(
    "threads", "grpcio's synchronous server with 10 threads, synchronous ORM", "bookstore", _module("threads")
)
OURS_2 = Contender("ours-2", "`bookstore serve --workers 2`", "bookstore", _bookstore_on_two_cores)
GO = Contender(
    "go", "grpc-go and database/sql with prepared statements, on all cores; on SQLite only", "bookstore", _go
)
CONTENDERS = (OURS, OURS_2, JSON, FLOOR, TUTORIAL, TEXTBOOK, THREADS, GO)


class Server:
    """A running contender."""

    def __init__(self, contender: Contender, *, database_url: str, log: Path, arguments: Sequence[str] = ()) -> None:
        self.contender = contender
        self.address = f"127.0.0.1:{free_port()}"
        self._log = log
        self.started_at = time.perf_counter()
        with log.open("wb") as file:
            process = subprocess.Popen(
                [*contender.command(self.address), *arguments],
                stdin=subprocess.DEVNULL,
                stdout=file,
                stderr=file,
                env=environment(database_url),
            )
        self._process = process
        self._observed = psutil.Process(process.pid)

    def cpu_seconds(self) -> float:
        """Return the CPU time so far, user and system, of all its processes."""
        times = [process.cpu_times() for process in self._family()]
        return sum(each.user + each.system for each in times)

    def resident_bytes(self) -> int:
        """Return the memory of all its processes (PSS: shared memory counts once)."""
        return sum(process.memory_full_info().pss for process in self._family())

    def wait_until_healthy(self) -> float:
        """Wait until it responds, and return the seconds since its start. Raises `BenchmarkError`."""
        while not self._is_responding():
            if self._process.poll() is not None:
                raise BenchmarkError(f"{self.contender.key} ended at its start:\n{self.log_tail()}")
            if time.perf_counter() - self.started_at > _START_SECONDS:
                raise BenchmarkError(f"{self.contender.key} does not respond:\n{self.log_tail()}")
            time.sleep(_POLL_SECONDS)
        return time.perf_counter() - self.started_at

    def wait_until_idle(self) -> None:
        """Wait until work after the first response, such as starting more workers, is done."""
        for _ in range(_IDLE_CHECKS):
            before = self.cpu_seconds()
            time.sleep(_IDLE_CHECK_SECONDS)
            if self.cpu_seconds() - before < _IDLE_SHARE * _IDLE_CHECK_SECONDS:
                return
        raise BenchmarkError(f"{self.contender.key} is busy before any call")

    def stop(self) -> None:
        """Stop it with SIGTERM, or SIGKILL if that does not work."""
        self._process.terminate()
        try:
            self._process.wait(_STOP_SECONDS)
        except subprocess.TimeoutExpired:
            self._process.kill()
            self._process.wait()

    def log_tail(self) -> str:
        """Return the end of its output."""
        return self._log.read_text(errors="replace")[-3_000:]

    def _family(self) -> list[psutil.Process]:
        return [self._observed, *self._observed.children(recursive=True)]

    def _is_responding(self) -> bool:
        host, _, port = self.address.rpartition(":")
        with socket.socket() as probe:
            if probe.connect_ex((host, int(port))) != 0:
                return False
        return self.contender.is_http or _is_serving(self.address)


@contextmanager
def running(
    contender: Contender, *, database_url: str, folder: Path, arguments: Sequence[str] = ()
) -> Iterator[Server]:
    """Run a contender while a block runs."""
    server = Server(contender, database_url=database_url, log=folder / f"{contender.key}.log", arguments=arguments)
    try:
        server.wait_until_healthy()
        server.wait_until_idle()
        yield server
    except BenchmarkError as error:
        if tail := server.log_tail():
            error.add_note(f"The log of {contender.key}:\n{tail}")
        raise
    finally:
        server.stop()


def environment(database_url: str) -> dict[str, str]:
    """Return this process's variables with a database URL, which may contain a password, as the only setting."""
    kept = {name: value for name, value in os.environ.items() if not name.startswith("BOOKSTORE_")}
    return {**kept, "BOOKSTORE_DATABASE_URL": database_url}


def _is_serving(address: str) -> bool:
    with grpc.insecure_channel(address) as channel:
        check = channel.unary_unary(
            "/grpc.health.v1.Health/Check",
            request_serializer=health_pb2.HealthCheckRequest.SerializeToString,
            response_deserializer=health_pb2.HealthCheckResponse.FromString,
        )
        try:
            response: health_pb2.HealthCheckResponse = check(health_pb2.HealthCheckRequest(), timeout=1)
        except grpc.RpcError:
            return False
    return response.status == health_pb2.HealthCheckResponse.SERVING
