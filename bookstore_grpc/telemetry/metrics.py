"""Metrics for Prometheus: calls, the database, connections, certificates and keys.

Imported only if metrics are enabled. With several workers each writes its numbers to files in a folder that the
environment names before the import, and the supervisor serves the sums (docs/operations.md).
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

# Where prometheus_client looks for the folder, at its import.
FOLDER_VARIABLE = "PROMETHEUS_MULTIPROC_DIR"

# The time of each counter's creation would be one more line for each.
disable_created_metrics()  # type: ignore[no-untyped-call]

_SECONDS = (0.0005, 0.001, 0.0025, 0.005, 0.01, 0.025, 0.05, 0.1, 0.25, 0.5, 1, 2.5, 5, 10, 30)
_READY = ("bookstore_ready", "Processes that serve, have their database, are not draining and send heartbeats.")
_GROUP_SIZES = (1, 2, 4, 8, 16, 32, 64, 128, 256, 512, 1_000)


class Metrics:
    """The numbers of this process; an observer of its calls. `sample` takes those that are not counted by events."""

    def __init__(self) -> None:
        self._registry = CollectorRegistry()
        self._add_call_metrics(self._registry)
        self._add_database_metrics(self._registry)
        self._add_process_metrics(self._registry)
        self._seen_failures: dict[str, int] = {}
        self._seen_closed: dict[str, int] = {}
        # Finding a metric by its labels takes longer than counting.
        self._by_outcome: dict[tuple[str, str, str], Counter] = {}
        self._by_method: dict[str, tuple[Histogram, Counter, Counter]] = {}

    def call_began(self, _call: Call) -> None:
        """Count a call under way."""
        self._in_flight.inc()

    def call_ended(self, call: Call, outcome: Outcome) -> None:
        """Count a call by method, status and reason. Unknown methods share one name."""
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
        seconds.observe(outcome.seconds)
        request_bytes.inc(call.request_bytes)
        response_bytes.inc(call.response_bytes)
        if isinstance(outcome.error, DatabaseUnavailable):
            self._database_errors.labels(type(driver_error(outcome.error)).__name__).inc()
        elif isinstance(outcome.error, ResourceExhausted):
            self._refused.labels(outcome.error.metadata.get("limit", "")).inc()

    def batch_committed(self, size: int) -> None:
        """Count a group of writes by how many calls it served."""
        self._group_sizes.observe(size)

    def sample(
        self,
        *,
        is_ready: bool,
        connections: Mapping[str, int],
        calls_unhandled: int = 0,
        certificate_expires_at: float | None = None,
        refresh_failures: Mapping[str, int] | None = None,
        connections_closed: Mapping[str, int] | None = None,
    ) -> None:
        """Set what is so now. Except for `connections` and the certificate, all are counts since the start."""
        self._ready.set(is_ready)
        self._unhandled.set(calls_unhandled)
        for pool, in_use in connections.items():
            self._connections.labels(pool).set(in_use)
        if certificate_expires_at is not None:
            self._certificate.set(certificate_expires_at)
        _count_up(self._refresh_failures, self._seen_failures, refresh_failures or {})
        _count_up(self._connections_closed, self._seen_closed, connections_closed or {})

    def text(self) -> bytes:
        """Return all numbers of this process in Prometheus's text format."""
        return generate_latest(self._registry)

    def _add_call_metrics(self, registry: CollectorRegistry) -> None:
        self._calls = Counter(
            "bookstore_calls", "Calls that have ended.", ["method", "status", "reason"], registry=registry
        )
        self._seconds = Histogram(
            "bookstore_call_duration_seconds",
            "From the call's arrival at its handler to its response.",
            ["method"],
            buckets=_SECONDS,
            registry=registry,
        )
        self._in_flight = Gauge(
            "bookstore_calls_in_flight", "Calls under way.", multiprocess_mode="livesum", registry=registry
        )
        self._refused = Counter(
            "bookstore_calls_refused",
            "Calls rejected because of a limit. Those that gRPC rejects are in bookstore_calls_unhandled.",
            ["limit"],
            registry=registry,
        )
        self._unhandled = Gauge(
            "bookstore_calls_unhandled",
            "Calls that gRPC has received and no handler has: those that wait for one, and all that gRPC has rejected.",
            multiprocess_mode="livesum",
            registry=registry,
        )
        self._request_bytes = Counter("bookstore_request_bytes", "Bytes of requests.", ["method"], registry=registry)
        self._response_bytes = Counter("bookstore_response_bytes", "Bytes of responses.", ["method"], registry=registry)

    def _add_database_metrics(self, registry: CollectorRegistry) -> None:
        self._group_sizes = Histogram(
            "bookstore_write_group_size",
            "Calls whose writes were committed together.",
            buckets=_GROUP_SIZES,
            registry=registry,
        )
        self._database_errors = Counter(
            "bookstore_database_errors",
            "Calls that the database failed, by what the driver raised.",
            ["kind"],
            registry=registry,
        )
        self._connections = Gauge(
            "bookstore_database_connections_in_use",
            "Connections of the pools that are in use.",
            ["pool"],
            multiprocess_mode="livesum",
            registry=registry,
        )

    def _add_process_metrics(self, registry: CollectorRegistry) -> None:
        self._ready = Gauge(*_READY, multiprocess_mode="livesum", registry=registry)
        self._certificate = Gauge(
            "bookstore_certificate_expiry_timestamp_seconds",
            "When the certificate in use ends, in Unix seconds.",
            multiprocess_mode="livemin",
            registry=registry,
        )
        self._refresh_failures = Counter(
            "bookstore_refresh_failures",
            "Times that certificates or keys could not be read again.",
            ["what"],
            registry=registry,
        )
        self._connections_closed = Counter(
            "bookstore_connections_closed",
            "Connections closed at the limit: evicted for others, or rejected if none was waiting.",
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
    """Add the growth of counts since they were last seen."""
    for label, count in counts.items():
        counter.labels(label).inc(count - seen.get(label, 0))
        seen[label] = count


class WorkersMetrics(Collector):
    """The numbers of all workers, read from the folder that they write to. Counters of dead workers stay included.

    `count_ready` returns how many are ready: an unresponsive worker would stay ready by what it last wrote.
    """

    def __init__(self, *, count_ready: Callable[[], int]) -> None:
        """Make the folder. Raises `StartupError`."""
        self._folder = _new_folder()
        self._has_logged_loss = False
        self._count_ready = count_ready
        self._registry = CollectorRegistry()
        self._registry.register(self)

    def variables(self) -> Mapping[str, str]:
        """Return the environment variable that names the folder to a worker. Raises `StartupError`."""
        if not self._has_folder():
            self.close()
            self._folder = _new_folder()  # with another name: the old one may be in use by now
            self._has_logged_loss = False
        return {FOLDER_VARIABLE: self._folder.name}

    def collect(self) -> Iterable[Metric]:
        """Yield the numbers of all, for the registry."""
        if self._has_folder():
            written = multiprocess.MultiProcessCollector(None, path=self._folder.name)  # type: ignore[no-untyped-call]
            yield from (family for family in written.collect() if family.name != _READY[0])  # type: ignore[no-untyped-call]
        yield GaugeMetricFamily(*_READY, value=self._count_ready())

    def forget(self, pid: int) -> None:
        """Drop the gauges of a worker that has ended."""
        multiprocess.mark_process_dead(pid, path=self._folder.name)  # type: ignore[no-untyped-call]

    def text(self) -> bytes:
        """Return the numbers of all in Prometheus's text format."""
        return generate_latest(self._registry)

    def close(self) -> None:
        """Remove the folder."""
        self._folder.cleanup()

    def _has_folder(self) -> bool:
        is_there = os.path.isdir(self._folder.name)
        if not is_there and not self._has_logged_loss:
            self._has_logged_loss = True
            _log.error("metrics lost: their folder was removed; restart to count again", folder=self._folder.name)
        return is_there


def _new_folder() -> "tempfile.TemporaryDirectory[str]":
    try:
        return tempfile.TemporaryDirectory(prefix="bookstore-metrics-", ignore_cleanup_errors=True)
    except OSError as error:
        raise StartupError(
            f"Several workers keep their metrics in a temporary folder, and none can be made ({error.strerror}). "
            "Set TMPDIR to a folder that can be written to, or serve without --metrics-listen."
        ) from error
