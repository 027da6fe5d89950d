"""docs/operations.md matches the code: its table of settings and its list of metrics."""

import re
from pathlib import Path

from bookstore_grpc.server.settings import ENVIRONMENT_PREFIX, settings_fields
from tests.metrics import metric_names

OPERATIONS = (Path(__file__).parents[2] / "docs/operations.md").read_text()


def test_the_table_of_settings_matches_the_code() -> None:
    table = OPERATIONS.split("<!-- settings:")[1].split("<!-- end of settings -->")[0].splitlines()[3:]
    expected = []
    for setting in settings_fields():
        default = setting.default
        text = ", ".join(default) if isinstance(default, tuple) else "off" if default is False else str(default)
        shown = f"`{text}`" if text else ""
        flag, variable = f"--{setting.name.replace('_', '-')}", f"{ENVIRONMENT_PREFIX}{setting.name.upper()}"
        expected.append(f"| `{flag}` | `{variable}` | {shown} | {setting.metadata['help']} |")
    assert table == expected


def test_the_listed_metrics_match_the_code() -> None:
    listed = set(re.findall(r"`(bookstore_[a-z_]+)(?:\{[a-z,]+\})?`", OPERATIONS))
    assert listed == metric_names()
