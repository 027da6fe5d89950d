"""Whether the suite of faults runs and how long, and where its figures go.

BOOKSTORE_TEST_FAULTS says short or long; without it the suite is left out. `make test-faults` says long.
"""

import json
import os
import time
from collections.abc import Callable
from pathlib import Path

import pytest

from tests.conftest import FAULTS_VARIABLE
from tests.e2e.conftest import any_database_url, sqlite_file, sqlite_url, start

__all__ = ["any_database_url", "sqlite_file", "sqlite_url", "start"]

collect_ignore_glob = [] if os.environ.get(FAULTS_VARIABLE) else ["test_*.py"]

FIGURES = Path(__file__).parents[2] / "build/faults/figures.jsonl"

Figures = Callable[..., None]


@pytest.fixture(scope="session")
def is_long() -> bool:
    return os.environ[FAULTS_VARIABLE] == "long"


@pytest.fixture
def figures(request: pytest.FixtureRequest, is_long: bool) -> Figures:
    """Write down what a scenario has counted, in the long form only."""

    def write(**values: float | str) -> None:
        if not is_long:
            return
        FIGURES.parent.mkdir(parents=True, exist_ok=True)
        with FIGURES.open("a") as file:
            file.write(json.dumps({"scenario": request.node.name, "at": int(time.time()), **values}) + "\n")

    return write
