"""One measurement: warm up, send the load, read the server's CPU time, and verify every response."""

import statistics
from collections.abc import Iterator, Sequence
from contextlib import ExitStack, closing, contextmanager
from dataclasses import dataclass
from itertools import count
from pathlib import Path

from benchmarks.calls import Calls, Prepared
from benchmarks.errors import BenchmarkError, check
from benchmarks.grpc_calls import GrpcCalls
from benchmarks.http_calls import HttpCalls
from benchmarks.json_calls import JsonCalls
from benchmarks.load import Load, Outcome, run_load
from benchmarks.operations import GET, Operation
from benchmarks.servers import JSON, Contender, Server, running
from benchmarks.storage import Databases, ServerMemory, Storage

# Before the first measurement of a server, for which it opens its connections to the database.
_FIRST_CALLS = 256
_WARM_UP_SHARE = 0.2
# On a quiet machine it is 0.98.
_VARIED_SHARE = 0.5
# A few ids may not have been sent. The bytes show that no call failed; this shows that the writes were stored.
_RENAMED_SHARE = 0.95
# By how much an id, and messages with it, may grow while books are added.
_GROWTH_BYTES = 6


@dataclass(frozen=True, kw_only=True)
class Measurement:
    """The figures of one load."""

    calls: int
    rate: float  # calls per second
    cpu_us: float  # the server's CPU time for a call
    p50_ms: float
    p99_ms: float


def median(rounds: Sequence[Measurement]) -> Measurement:
    """Return the median of each figure."""
    return Measurement(
        calls=sum(measured.calls for measured in rounds),
        rate=statistics.median(measured.rate for measured in rounds),
        cpu_us=statistics.median(measured.cpu_us for measured in rounds),
        p50_ms=statistics.median(measured.p50_ms for measured in rounds),
        p99_ms=statistics.median(measured.p99_ms for measured in rounds),
    )


@dataclass(frozen=True)
class Running:
    """A running server, its calls and its storage."""

    server: Server
    calls: Calls
    storage: Storage
    size: int


class Bench:
    """Measures in a directory. `seconds` is the duration of a load."""

    def __init__(self, folder: Path, *, seconds: float) -> None:
        self.folder = folder
        self.seconds = seconds
        self._runs = count(1)

    @contextmanager
    def contender(
        self,
        contender: Contender,
        databases: Databases,
        size: int,
        *,
        arguments: Sequence[str] = (),
        token: str = "",
    ) -> Iterator[Running]:
        """Run a contender with its own catalogue."""
        with ExitStack() as stack:
            is_stored = contender.tables != "memory"
            if not is_stored:
                arguments = [*arguments, "--size", str(size)]
            storage = stack.enter_context(databases.copy(contender.tables, size)) if is_stored else None
            yield stack.enter_context(self.serving(contender, storage, size, arguments=arguments, token=token))

    @contextmanager
    def serving(
        self,
        contender: Contender,
        storage: Storage | None,
        size: int,
        *,
        arguments: Sequence[str] = (),
        connections: int = 8,
        token: str = "",
    ) -> Iterator[Running]:
        """Run a contender on existing storage, or in memory, and warm it up."""
        url = storage.url if storage else ""
        with running(contender, database_url=url, folder=self.folder, arguments=arguments) as server:
            if storage and contender.is_http:
                kind = JsonCalls if contender is JSON else HttpCalls
                yield self._warmed_up(Running(server, kind(server.address, size=size), storage, size))
                return
            with closing(GrpcCalls(server.address, size=size, connections=connections, token=token)) as calls:
                yield self._warmed_up(Running(server, calls, storage or ServerMemory(calls), size))

    def measure(self, target: Running, operation: Operation) -> Measurement | None:
        """Return the figures of an operation, or None if the contender lacks it. Raises `BenchmarkError`."""
        warm_up = target.calls.prepare(operation, run=next(self._runs))
        prepared = target.calls.prepare(operation, run=next(self._runs))
        if warm_up is None or prepared is None:
            return None
        rate = self._warm_up(warm_up.load)
        longest = prepared.call()
        books_before = target.storage.count_books()
        cpu_before = target.server.cpu_seconds()
        outcome = run_load(
            prepared.load, calls=max(prepared.load.in_flight, int(rate * self.seconds)), folder=self.folder
        )
        cpu_seconds = target.server.cpu_seconds() - cpu_before
        try:
            _check_bodies(prepared.load, outcome)
            _check_bytes(prepared, outcome, longest)
            _check_stored(prepared, outcome, target, created=target.storage.count_books() - books_before)
            check(prepared.books_per_call or prepared.call() == longest, "the length of responses has changed")
        except BenchmarkError as error:
            raise BenchmarkError(f"{target.server.contender.key}, {operation.title}: {error}") from error
        return Measurement(
            calls=outcome.calls,
            rate=outcome.rate,
            cpu_us=cpu_seconds / outcome.calls * 1e6,
            p50_ms=outcome.p50_ms,
            p99_ms=outcome.p99_ms,
        )

    def _warmed_up(self, target: Running) -> Running:
        if prepared := target.calls.prepare(GET, run=0):
            run_load(prepared.load, calls=_FIRST_CALLS, folder=self.folder)
        return target

    def _warm_up(self, load: Load) -> float:
        """Send calls for a part of `seconds`, and return the calls per second."""
        outcome = run_load(load, calls=load.connections, folder=self.folder)
        while outcome.seconds < _WARM_UP_SHARE * self.seconds:
            calls = outcome.rate * _WARM_UP_SHARE * self.seconds * 1.5
            outcome = run_load(load, calls=int(calls), folder=self.folder)
        return outcome.rate


def _check_bodies(load: Load, outcome: Outcome) -> None:
    # The first calls are sent together, with one body.
    least = _VARIED_SHARE * (outcome.calls - load.in_flight)
    check(
        not isinstance(load.bodies, Iterator) or outcome.bodies >= least,
        f"{outcome.calls:,} calls had only {outcome.bodies:,} different bodies: this machine is too busy",
    )


def _check_bytes(prepared: Prepared, outcome: Outcome, longest: int) -> None:
    """Check for errors by size: an error has no data, only trailers, and h2load ignores those."""
    most = outcome.calls * longest
    least = outcome.calls * (longest - prepared.allowance_bytes)
    grown = outcome.calls * prepared.books_per_call * _GROWTH_BYTES  # ids become longer as books are added
    check(
        least <= outcome.data_bytes <= most + grown,
        f"{outcome.calls:,} responses had {outcome.data_bytes:,} bytes instead of {least:,} to {most + grown:,}",
    )


def _check_stored(prepared: Prepared, outcome: Outcome, target: Running, *, created: int) -> None:
    expected = outcome.calls * prepared.books_per_call
    check(created == expected, f"{created:,} books were created instead of {expected:,}")
    if prepared.renames_to:
        renamed = target.storage.count_named(prepared.renames_to)
        books = prepared.renamed(outcome)
        check(
            renamed >= books * _RENAMED_SHARE,
            f"{renamed:,} books have new names instead of about {books:,.0f}",
        )
