"""What is counted of that which has no event of its own."""

import re

from bookstore_grpc.telemetry.metrics import Metrics


def turned_away(metrics: Metrics) -> float:
    (value,) = re.findall(r'limit="waiting_calls"} (\S+)', metrics.text().decode())
    return float(value)


def test_what_was_not_taken_for_a_minute_was_turned_away() -> None:
    metrics = Metrics()
    for not_taken in [0] * 60 + [200] * 59:
        metrics.sample(is_ready=True, connections={}, calls_not_taken=not_taken)
    assert turned_away(metrics) == 0
    metrics.sample(is_ready=True, connections={}, calls_not_taken=200)
    assert turned_away(metrics) == 200
    for not_taken in [950] * 10 + [700] * 60:
        metrics.sample(is_ready=True, connections={}, calls_not_taken=not_taken)
    assert turned_away(metrics) == 700


def test_calls_that_only_wait_are_not_taken_for_turned_away() -> None:
    metrics = Metrics()
    for not_taken in ([300] * 29 + [0]) * 20:  # now many, now none
        metrics.sample(is_ready=True, connections={}, calls_not_taken=not_taken)
    assert turned_away(metrics) == 0
