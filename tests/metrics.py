"""The metrics that there are, and those of a server that runs."""

import http.client
import re

from bookstore_grpc.metrics import Metrics
from bookstore_grpc.rpc.calls import Call, Outcome
from tests.executable import Serving


def metric_names() -> set[str]:
    """The names of all metrics, each after something has happened to it."""
    metrics = Metrics()
    call = Call("/a/B", "r", (), None)
    metrics.call_began(call)
    metrics.call_ended(call, Outcome("OK", 0.1))
    metrics.sample(is_ready=True, connections={"read": 1}, certificate_expires_at=1, refresh_failures={"keys": 1})
    return set(re.findall(r"^# TYPE (\w+)", metrics.text().decode(), re.MULTILINE))


def metrics_address(server: Serving) -> str:
    return str(server.wait_for_event("serving")["metrics"])


def ask(server: Serving, path: str, method: str = "GET") -> tuple[int, str]:
    connection = http.client.HTTPConnection(metrics_address(server), timeout=30)
    try:
        connection.request(method, path)
        response = connection.getresponse()
        return response.status, response.read().decode()
    finally:
        connection.close()


def number(server: Serving, name: str, **labels: str) -> float:
    """The sum of a metric's samples that have these labels."""
    status, text = ask(server, "/metrics")
    assert status == 200
    found = re.findall(rf"^{name}(?:{{(.*)}})? (\S+)$", text, re.MULTILINE)
    wanted = [f'{label}="{value}"' for label, value in labels.items()]
    return sum(float(value) for given, value in found if all(each in given for each in wanted))
