"""Metrics for Prometheus: calls, the database, connections, certificates and keys.

Imported only if metrics are enabled. With several workers each writes its values to files in a directory, named by an
environment variable that must be set before the import, and the supervisor serves the sums (docs/operations.md).
"""

import os
import platform
import tempfile
from collections.abc import Callable, Iterable, Mapping
from importlib.metadata import version

import structlog
from prometheus_client import (
    CollectorRegistry,
    Counter,
    Gauge,
    Histogram,
    disable_created_metrics,
    generate_latest,
    multiprocess,
)
from prometheus_client.core import GaugeMetricFamily, Metric
from prometheus_client.registry import Collector

from bookstore_grpc.calls.call import Call, Outcome
from bookstore_grpc.dal.driver_errors import driver_error
from bookstore_grpc.errors import DatabaseUnavailable, ResourceExhausted, StartupError

_log = structlog.stdlib.get_logger("bookstore_grpc.telemetry.metrics")

# The variable from which prometheus_client reads the directory at its import.
FOLDER_VARIABLE = "PROMETHEUS_MULTIPROC_DIR"

# Without the creation time of each counter, which would add a line for each.
disable_created_metrics()  # type: ignore[no-untyped-call]

_SECONDS = (0.0005, 0.001, 0.0025, 0.005, 0.01, 0.025, 0.05, 0.1, 0.25, 0.5, 1, 2.5, 5, 10, 30)
_READY = (
    "bookstore_ready",
    "Ready processes: serving, with a reachable database, not draining, and sending heartbeats.",
)
_COMMIT_SIZES = (1, 2, 4, 8, 16, 32, 64, 128, 256, 512, 1_000)


class Metrics:
    """The metrics of this process; an observer of its calls. `sample` sets those that are not counted by events."""

    def __init__(self) -> None:
        self._registry = CollectorRegistry()
        self._add_call_metrics(self._registry)
        self._add_database_metrics(self._registry)
        self._add_process_metrics(self._registry)
        self._seen_failures: dict[str, int] = {}
        self._seen_closed: dict[str, int] = {}
        # Cached, because looking up a metric by its labels takes longer than counting.
        self._by_outcome: dict[tuple[str, str, str], Counter] = {}
        self._by_method: dict[str, tuple[Histogram, Counter, Counter]] = {}

    def call_began(self, call: Call) -> None:
        """Count a call in progress."""
        self._in_flight.inc()
        if call.is_watch:
            self._watchers.labels(call.method).inc()

    def call_ended(self, call: Call, outcome: Outcome) -> None:
        """Count a call by method, status and reason. All unknown methods have the same name."""
        self._in_flight.dec()
        key = (call.method, outcome.status, outcome.reason)
        calls = self._by_outcome.get(key)
        if calls is None:
            calls = self._by_outcome[key] = self._calls.labels(*key)
        calls.inc()
        of_method = self._by_method.get(call.method)
        if of_method is None:
            of_method = self._by_method[call.method] = (
                self._seconds.labels(call.method),
                self._request_bytes.labels(call.method),
                self._response_bytes.labels(call.method),
            )
        seconds, request_bytes, response_bytes = of_method
        if call.is_watch:  # its duration says nothing about latency
            self._watchers.labels(call.method).dec()
        else:
            seconds.observe(outcome.seconds)
        request_bytes.inc(call.request_bytes)
        response_bytes.inc(call.response_bytes)
        if isinstance(outcome.error, DatabaseUnavailable):
            self._database_errors.labels(type(driver_error(outcome.error)).__name__).inc()
        elif isinstance(outcome.error, ResourceExhausted):
            self._rejected.labels(outcome.error.metadata.get("limit", "")).inc()

    def batch_committed(self, size: int) -> None:
        """Record the number of calls that a transaction served."""
        self._commit_sizes.observe(size)

    def sample(
        self,
        *,
        is_ready: bool,
        is_writable: bool,
        connections: Mapping[str, int],
        calls_unhandled: int = 0,
        wal_bytes: int | None = None,
        watch_lag_changes: int = 0,
        oldest_change_at: float | None = None,
        certificate_expires_at: float | None = None,
        refresh_failures: Mapping[str, int] | None = None,
        connections_closed: Mapping[str, int] | None = None,
    ) -> None:
        """Set the current values. `refresh_failures` and `connections_closed` are counts since the start."""
        self._ready.set(is_ready)
        self._writable.set(is_writable)
        self._unhandled.set(calls_unhandled)
        for pool, in_use in connections.items():
            self._connections.labels(pool).set(in_use)
        if wal_bytes is not None:
            self._wal_bytes.set(wal_bytes)
        self._watch_lag.set(watch_lag_changes)
        if oldest_change_at is not None:
            self._oldest_change.set(oldest_change_at)
        if certificate_expires_at is not None:
            self._certificate.set(certificate_expires_at)
        _count_up(self._refresh_failures, self._seen_failures, refresh_failures or {})
        _count_up(self._connections_closed, self._seen_closed, connections_closed or {})

    def text(self) -> bytes:
        """Return all metrics of this process in Prometheus's text format."""
        return generate_latest(self._registry)

    def _add_call_metrics(self, registry: CollectorRegistry) -> None:
        self._calls = Counter(
            "bookstore_calls", "Calls that have ended.", ["method", "status", "reason"], registry=registry
        )
        self._seconds = Histogram(
            "bookstore_call_duration_seconds",
            "Time from the start of a call's handler to its response.",
            ["method"],
            buckets=_SECONDS,
            registry=registry,
        )
        self._in_flight = Gauge(
            "bookstore_calls_in_flight", "Calls in progress.", multiprocess_mode="livesum", registry=registry
        )
        self._watchers = Gauge(
            "bookstore_watchers",
            "Watches in progress: endless streams, such as WatchBooks and watches of health.",
            ["method"],
            multiprocess_mode="livesum",
            registry=registry,
        )
        self._rejected = Counter(
            "bookstore_calls_rejected",
            "Calls rejected by a limit (load shedding). Those rejected by gRPC are in bookstore_calls_unhandled.",
            ["limit"],
            registry=registry,
        )
        self._unhandled = Gauge(
            "bookstore_calls_unhandled",
            "Calls that gRPC has received and no handler has: waiting ones, and all rejected by gRPC since the start.",
            multiprocess_mode="livesum",
            registry=registry,
        )
        self._request_bytes = Counter("bookstore_request_bytes", "Bytes of requests.", ["method"], registry=registry)
        self._response_bytes = Counter("bookstore_response_bytes", "Bytes of responses.", ["method"], registry=registry)

    def _add_database_metrics(self, registry: CollectorRegistry) -> None:
        self._commit_sizes = Histogram(
            "bookstore_group_commit_writes",
            "Calls whose writes were committed in one transaction (group commit).",
            buckets=_COMMIT_SIZES,
            registry=registry,
        )
        self._database_errors = Counter(
            "bookstore_database_errors",
            "Calls that failed in the database, by the driver's exception.",
            ["kind"],
            registry=registry,
        )
        self._connections = Gauge(
            "bookstore_database_connections_in_use",
            "Connections in use, by pool.",
            ["pool"],
            multiprocess_mode="livesum",
            registry=registry,
        )
        self._writable = Gauge(
            "bookstore_database_writable",
            "Processes whose database took writes at the last probe.",
            multiprocess_mode="livesum",
            registry=registry,
        )
        self._wal_bytes = Gauge(
            "bookstore_sqlite_wal_bytes",
            "Size of SQLite's write-ahead log (WAL); 0 on other databases.",
            multiprocess_mode="livemax",  # the workers share the file
            registry=registry,
        )

        self._watch_lag = Gauge(
            "bookstore_watch_lag_changes",
            "Changes that the slowest watch of a process has still to send, of those that the process has read.",
            multiprocess_mode="livemax",
            registry=registry,
        )
        self._oldest_change = Gauge(
            "bookstore_oldest_change_timestamp_seconds",
            "When the oldest change that is kept was made, in Unix seconds; 0 without one.",
            multiprocess_mode="livemax",  # the workers share the database
            registry=registry,
        )

    def _add_process_metrics(self, registry: CollectorRegistry) -> None:
        self._ready = Gauge(*_READY, multiprocess_mode="livesum", registry=registry)
        self._certificate = Gauge(
            "bookstore_certificate_expiry_timestamp_seconds",
            "When the certificate in use expires, in Unix seconds.",
            multiprocess_mode="livemin",
            registry=registry,
        )
        self._refresh_failures = Counter(
            "bookstore_refresh_failures",
            "Failed reloads of certificates or keys.",
            ["what"],
            registry=registry,
        )
        self._connections_closed = Counter(
            "bookstore_connections_closed",
            "Connections closed at the limit: evicted for new ones, or rejected because none was waiting.",
            ["listener"],
            registry=registry,
        )
        build = Gauge(
            "bookstore_build_info",
            "Versions; always 1.",
            ["version", "python", "grpc"],
            multiprocess_mode="livemax",
            registry=registry,
        )
        build.labels(version("bookstore-grpc"), platform.python_version(), version("grpcio")).set(1)


def _count_up(counter: Counter, seen: dict[str, int], counts: Mapping[str, int]) -> None:
    """Add to a counter how much each count has grown since it was last seen."""
    for label, count in counts.items():
        counter.labels(label).inc(count - seen.get(label, 0))
        seen[label] = count


class WorkersMetrics(Collector):
    """The metrics of all workers, read from the directory that they write to. Counters include those of ended workers.

    `count_ready` returns the number of ready workers: an unresponsive one would still be ready by its last sample.
    """

    def __init__(self, *, count_ready: Callable[[], int]) -> None:
        """Create the directory. Raises `StartupError`."""
        self._folder = _new_folder()
        self._has_logged_loss = False
        self._count_ready = count_ready
        self._registry = CollectorRegistry()
        self._registry.register(self)

    def variables(self) -> Mapping[str, str]:
        """Return the environment variable that names the directory to a worker. Raises `StartupError`."""
        if not self._has_folder():
            self.close()
            self._folder = _new_folder()  # with a new name, because another program may use the old one by now
            self._has_logged_loss = False
        return {FOLDER_VARIABLE: self._folder.name}

    def collect(self) -> Iterable[Metric]:
        """Yield the metrics of all workers, for the registry."""
        if self._has_folder():
            written = multiprocess.MultiProcessCollector(None, path=self._folder.name)  # type: ignore[no-untyped-call]
            yield from (family for family in written.collect() if family.name != _READY[0])  # type: ignore[no-untyped-call]
        yield GaugeMetricFamily(*_READY, value=self._count_ready())

    def forget(self, pid: int) -> None:
        """Drop the gauges of a worker that has ended."""
        multiprocess.mark_process_dead(pid, path=self._folder.name)  # type: ignore[no-untyped-call]

    def text(self) -> bytes:
        """Return the metrics of all workers in Prometheus's text format."""
        return generate_latest(self._registry)

    def close(self) -> None:
        """Remove the directory."""
        self._folder.cleanup()

    def _has_folder(self) -> bool:
        is_there = os.path.isdir(self._folder.name)
        if not is_there and not self._has_logged_loss:
            self._has_logged_loss = True
            _log.error("metrics lost: directory removed; restart to count again", folder=self._folder.name)
        return is_there


def _new_folder() -> "tempfile.TemporaryDirectory[str]":
    try:
        return tempfile.TemporaryDirectory(prefix="bookstore-metrics-", ignore_cleanup_errors=True)
    except OSError as error:
        raise StartupError(
            f"Several workers need a temporary directory for their metrics, which cannot be created "
            f"({error.strerror}). Set TMPDIR to a writable directory, or serve without --metrics-listen."
        ) from error
