"""Alerts and dashboard: they are valid, fire when they should, and use existing metrics."""

import json
import re
import shutil
import subprocess
from pathlib import Path

import pytest

from tests.metrics import metric_names

DEPLOY = Path(__file__).parents[2] / "deploy"
DASHBOARD = DEPLOY / "grafana/bookstore.json"
_SUFFIXES = re.compile(r"_(bucket|sum|count)$")


def metrics_in(text: str) -> set[str]:
    return {_SUFFIXES.sub("", name) for name in re.findall(r"\bbookstore_[a-z_]+", text)}


def test_alerts_use_existing_metrics() -> None:
    expressions = "\n".join(
        line for line in (DEPLOY / "prometheus/alerts.yml").read_text().splitlines() if "summary:" not in line
    )
    assert metrics_in(expressions)
    assert metrics_in(expressions) <= metric_names()


def test_the_dashboard_shows_all_metrics() -> None:
    panels = json.loads(DASHBOARD.read_text())["panels"]
    assert metrics_in(" ".join(target["expr"] for panel in panels for target in panel["targets"])) == metric_names()


def test_panels_do_not_overlap() -> None:
    taken: set[tuple[int, int]] = set()
    for panel in json.loads(DASHBOARD.read_text())["panels"]:
        at = panel["gridPos"]
        cells = {(at["x"] + x, at["y"] + y) for x in range(at["w"]) for y in range(at["h"])}
        assert not cells & taken
        assert max(x for x, _ in cells) < 24
        taken |= cells


@pytest.mark.parametrize(
    "arguments",
    [
        ("check", "config", "prometheus.yml"),
        ("check", "rules", "alerts.yml"),
        ("test", "rules", "alerts_test.yml"),
    ],
    ids=" ".join,
)
def test_promtool_accepts_the_files(arguments: tuple[str, ...]) -> None:
    promtool = shutil.which("promtool")
    if promtool is None:
        pytest.skip("promtool is not installed (apt install prometheus)")
    done = subprocess.run(
        [promtool, *arguments], cwd=DEPLOY / "prometheus", capture_output=True, text=True, timeout=60, check=False
    )
    assert done.returncode == 0, done.stdout + done.stderr


def test_every_alert_has_a_test() -> None:
    alerts = re.findall(r"- alert: (\w+)", (DEPLOY / "prometheus/alerts.yml").read_text())
    tests = (DEPLOY / "prometheus/alerts_test.yml").read_text()
    fired = re.findall(r"alertname: (\w+)\n +exp_alerts:\n", tests)
    assert alerts
    assert set(fired) == set(alerts)
