"""The form of the suite of faults (short, long or none), its figures, and the logs of tests that failed.

BOOKSTORE_TEST_FAULTS says short or long; without it the suite is left out. `make test-faults` says long.
"""

import json
import os
import re
import shutil
import tempfile
import time
from collections.abc import Callable, Generator, Iterator
from pathlib import Path

import pytest

from tests.conftest import FAULTS_VARIABLE
from tests.e2e.conftest import any_database_url, node_folder, sqlite_file, sqlite_url, start
from tests.faults.database_servers import DatabaseServer, database_server
from tests.faults.report import FIGURES

__all__ = ["any_database_url", "node_folder", "sqlite_file", "sqlite_url", "start"]

collect_ignore_glob = [] if os.environ.get(FAULTS_VARIABLE) else ["test_*.py"]

FOLDER = FIGURES.parent

Figures = Callable[..., None]


@pytest.fixture(scope="module", params=["postgresql", "mariadb"])
def own_database(request: pytest.FixtureRequest) -> Iterator[DatabaseServer]:
    """A database server of each kind, which a test may stop and kill."""
    folder = Path(tempfile.mkdtemp(prefix="faults-"))
    try:
        with database_server(request.param, folder) as server:
            yield server
    finally:
        shutil.rmtree(folder, ignore_errors=True)


@pytest.hookimpl(wrapper=True)
def pytest_runtest_makereport(
    item: pytest.Item, call: pytest.CallInfo[None]
) -> Generator[None, pytest.TestReport, pytest.TestReport]:
    """Copy the logs of the servers of a failed test, and of its database, to a folder of its name."""
    report = yield
    values = getattr(item, "funcargs", {})
    if report.failed and "tmp_path" in values:
        kept = FOLDER / re.sub(r"[^\w.-]+", "-", item.name)
        kept.mkdir(parents=True, exist_ok=True)
        for log in values["tmp_path"].glob("log*"):
            shutil.copy(log, kept)
        if "own_database" in values:
            shutil.copy(values["own_database"].log, kept / "database.log")
        (kept / "failure.txt").write_text(report.longreprtext)
    return report


@pytest.fixture(scope="session")
def is_long() -> bool:
    return os.environ[FAULTS_VARIABLE] == "long"


@pytest.fixture(scope="session")
def margin_seconds(is_long: bool) -> float:
    """How much longer things may take in the short form, which runs on machines with other work."""
    return 0.0 if is_long else 2.0


@pytest.fixture
def figures(request: pytest.FixtureRequest, is_long: bool) -> Figures:
    """Record the figures of a scenario, in the long form only."""

    def write(**values: float | str) -> None:
        if not is_long:
            return
        FIGURES.parent.mkdir(parents=True, exist_ok=True)
        with FIGURES.open("a") as file:
            file.write(json.dumps({"scenario": request.node.name, "at": int(time.time()), **values}) + "\n")

    return write
