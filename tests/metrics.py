"""The metrics that there are."""

import re

from bookstore_grpc.metrics import Metrics
from bookstore_grpc.rpc.calls import Call, Outcome


def metric_names() -> set[str]:
    """The names of all metrics, each after something has happened to it."""
    metrics = Metrics()
    call = Call("/a/B", "r", (), None)
    metrics.call_began(call)
    metrics.call_ended(call, Outcome("OK", 0.1))
    metrics.sample(is_ready=True, connections={"read": 1}, certificate_expires_at=1, refresh_failures={"keys": 1})
    return set(re.findall(r"^# TYPE (\w+)", metrics.text().decode(), re.MULTILINE))
