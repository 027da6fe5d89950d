"""docs/operations.md says what is so: its table of settings and its list of metrics are those of the code."""

import re
from pathlib import Path

from bookstore_grpc.metrics import Metrics
from bookstore_grpc.rpc.calls import Call, Outcome
from bookstore_grpc.settings import ENVIRONMENT_PREFIX, settings_fields

OPERATIONS = (Path(__file__).parents[1] / "docs/operations.md").read_text()


def test_the_table_of_settings_is_that_of_the_code() -> None:
    table = OPERATIONS.split("<!-- settings:")[1].split("<!-- end of settings -->")[0].splitlines()[3:]
    expected = []
    for setting in settings_fields():
        default = setting.default
        text = ", ".join(default) if isinstance(default, tuple) else "off" if default is False else str(default)
        shown = f"`{text}`" if text else ""
        flag, variable = f"--{setting.name.replace('_', '-')}", f"{ENVIRONMENT_PREFIX}{setting.name.upper()}"
        expected.append(f"| `{flag}` | `{variable}` | {shown} | {setting.metadata['help']} |")
    assert table == expected


def test_the_metrics_that_are_listed_are_those_that_there_are() -> None:
    metrics = Metrics()
    call = Call("/a/B", "r", (), None)
    metrics.call_began(call)
    metrics.call_ended(call, Outcome("OK", 0.1))
    metrics.sample(is_ready=True, connections={"read": 1}, certificate_expires_at=1, refresh_failures={"keys": 1})
    there = set(re.findall(r"^# TYPE (\w+)", metrics.text().decode(), re.MULTILINE))
    listed = set(re.findall(r"`(bookstore_[a-z_]+)(?:\{[a-z,]+\})?`", OPERATIONS))
    assert listed == there
