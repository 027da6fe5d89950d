"""The numbers that are sampled, because no event counts them."""

import re

from bookstore_grpc.telemetry.metrics import Metrics


def unhandled(metrics: Metrics) -> float:
    (value,) = re.findall(r"^bookstore_calls_unhandled (\S+)", metrics.text().decode(), re.MULTILINE)
    return float(value)


def test_calls_that_no_handler_has_are_a_gauge_of_the_last_sample() -> None:
    metrics = Metrics()
    assert unhandled(metrics) == 0
    for count in (200, 950, 700):
        metrics.sample(is_ready=True, is_writable=True, connections={}, calls_unhandled=count)
        assert unhandled(metrics) == count


def test_counts_of_samples_are_added_up_once() -> None:
    metrics = Metrics()
    for count in (0, 2, 2, 5):
        metrics.sample(is_ready=True, is_writable=True, connections={}, connections_closed={"http": count})
    assert 'bookstore_connections_closed_total{listener="http"} 5.0' in metrics.text().decode()
