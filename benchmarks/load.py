"""h2load, the load generator. It uses little CPU compared to a Python server, so it does not affect the result."""

import random
import re
import shutil
import subprocess
import time
from collections.abc import Iterator, Mapping, Sequence
from contextlib import ExitStack
from dataclasses import dataclass, field
from pathlib import Path

from benchmarks.bodies import load_generator_cpu, rewritten_file
from benchmarks.errors import BenchmarkError, check

IN_FLIGHT = 64
_TIMEOUT_SECONDS = 180
# Time for each of several processes to start and wait for its URIs.
_START_SECONDS = 0.5
_SUCCEEDED = re.compile(r"requests: \d+ total, \d+ started, \d+ done, (\d+) succeeded")
_DATA_BYTES = re.compile(r"traffic: .* \((\d+)\) data")


@dataclass(frozen=True, kw_only=True)
class Load:
    """What h2load sends with `in_flight` concurrent calls: GET without a body, otherwise POST, or a `:method` header.

    Each connection requests the URIs in order. If concurrent calls must differ, several `processes` of h2load share the
    connections, each with its own order.
    """

    uris: Sequence[str]
    bodies: Iterator[bytes] | bytes | None = None
    headers: Mapping[str, str] = field(default_factory=dict)
    connections: int = 8
    in_flight: int = IN_FLIGHT
    processes: int = 1
    is_http1: bool = False


@dataclass(frozen=True, kw_only=True)
class Outcome:
    """The result of h2load.

    `bodies` is the number of different bodies, `data_bytes` the size of all responses without headers and trailers.
    """

    calls: int
    bodies: int
    seconds: float
    p50_ms: float
    p99_ms: float
    data_bytes: int

    @property
    def rate(self) -> float:
        """Calls per second."""
        return self.calls / self.seconds


def require_h2load() -> str:
    """Return the version of h2load. Raises `BenchmarkError` if it is missing."""
    if shutil.which("h2load") is None:
        raise BenchmarkError("h2load is missing: apt install nghttp2-client")
    return subprocess.run(["h2load", "--version"], capture_output=True, text=True, check=True).stdout.strip()


def run_load(load: Load, *, calls: int, folder: Path) -> Outcome:
    """Send a number of calls, rounded up to an equal share per connection, and wait for all responses.

    Raises `BenchmarkError` if a call failed.
    """
    calls = -(-calls // load.connections) * load.connections
    rewritten = None
    with ExitStack() as stack:
        if isinstance(load.bodies, bytes):
            (folder / "body").write_bytes(load.bodies)
        elif load.bodies is not None:
            rewritten = stack.enter_context(rewritten_file(folder / "body", load.bodies))
        outputs = _run_to_the_end(load, calls=calls, folder=folder)
    bodies = rewritten.count - 1 if rewritten else 1
    lines = [line.split() for number in range(load.processes) for line in _log(folder, number).open()]
    return _outcome(calls, bodies, outputs, [(int(start), int(status), int(took)) for start, status, took in lines])


def _run_to_the_end(load: Load, *, calls: int, folder: Path) -> list[str]:
    with ExitStack() as stack:
        started = [_start(load, number, calls=calls, folder=folder) for number in range(load.processes)]
        for process in started:
            stack.callback(process.kill)
        if load.processes > 1:
            time.sleep(_START_SECONDS)
        for number, process in enumerate(started):
            _send_uris(load, number, process)
        return [process.communicate(timeout=_TIMEOUT_SECONDS)[0] for process in started]


def _start(load: Load, number: int, *, calls: int, folder: Path) -> subprocess.Popen[str]:
    _log(folder, number).unlink(missing_ok=True)  # h2load appends
    streams = load.in_flight // load.connections
    command = [
        *("chrt", "--idle", "0", "taskset", "--cpu-list", str(load_generator_cpu())),
        "h2load",
        f"--requests={calls // load.processes}",
        f"--clients={load.connections // load.processes}",
        f"--max-concurrent-streams={streams}",
        "--input-file=-",
        f"--log-file={_log(folder, number)}",
        *(["--h1"] if load.is_http1 else []),
        *([] if load.bodies is None else [f"--data={folder / 'body'}"]),
        *(f"--header={name}: {value}" for name, value in load.headers.items()),
    ]
    return subprocess.Popen(command, stdin=subprocess.PIPE, stdout=subprocess.PIPE, stderr=subprocess.STDOUT, text=True)


def _send_uris(load: Load, number: int, process: subprocess.Popen[str]) -> None:
    """Start a process's load. Each waits for its URIs, so that all start together."""
    uris = random.Random(number).sample(load.uris, len(load.uris))  # noqa: S311  not used for security
    if process.stdin is not None:
        process.stdin.write("\n".join(uris) + "\n")
        process.stdin.close()
        process.stdin = None  # otherwise communicate() would flush it


def _log(folder: Path, number: int) -> Path:
    return folder / f"calls-{number}"


def _outcome(calls: int, bodies: int, outputs: Sequence[str], logged: Sequence[tuple[int, int, int]]) -> Outcome:
    said = "\n".join(outputs)
    succeeded = sum(map(int, _SUCCEEDED.findall(said)))
    check(succeeded == calls == len(logged), f"{calls} calls were sent and {succeeded} succeeded:\n{said}")
    statuses = {status for _, status, _ in logged}
    check(statuses <= {200, 201}, f"some calls returned the statuses {statuses}")
    took = sorted(took for _, _, took in logged)
    first, last = min(start for start, _, _ in logged), max(start + took for start, _, took in logged)
    return Outcome(
        calls=calls,
        bodies=bodies,
        seconds=(last - first) / 1e6,
        p50_ms=took[len(took) // 2] / 1e3,
        p99_ms=took[len(took) * 99 // 100] / 1e3,
        data_bytes=sum(map(int, _DATA_BYTES.findall(said))),
    )
