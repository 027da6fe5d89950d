"""The README's examples, run as printed against a server whose catalogue is empty."""

import os
import re
import shutil
import subprocess
import sys
from collections.abc import Iterator
from pathlib import Path

import pytest

from tests.conftest import require
from tests.executable import BOOKSTORE, GRPCURL, PATIENCE_SECONDS, Serving, environment, serving

pytestmark = pytest.mark.e2e

ROOT = Path(__file__).parents[2]
README = (ROOT / "README.md").read_text()
ADDRESS = "127.0.0.1:50051"
HTTP_ADDRESS = "127.0.0.1:8080"

# What differs from run to run.
_VARYING = re.compile(
    r'\d{4}-\d\d-\d\dT[\d:.]+Z|(?<="etag": ")[^"]+|(?<="etag":")[^"]+|(?<="request_id":")[^"]+|(?<="requestId":")[^"]+'
)


@pytest.fixture
def server(tmp_path: Path) -> Iterator[Serving]:
    url = f"sqlite:///{tmp_path}/bookstore.db"
    with serving(url, tmp_path / "server.log", "--http-listen", "127.0.0.1:0") as server:
        yield server


def blocks(heading: str, language: str) -> list[str]:
    section = re.split(r"^## ", README.split(f"\n## {heading}\n")[1], maxsplit=1, flags=re.MULTILINE)[0]
    return re.findall(rf"```{language}\n(.*?)```", section, flags=re.DOTALL)


def session(block: str) -> list[tuple[str, str]]:
    """Split a console block into its commands and what each printed."""
    parts = re.split(r"^\$ ", block, flags=re.MULTILINE)[1:]
    return [
        (found[1], found[2]) for part in parts if (found := re.match(r"((?:[^\n]*\\\n)*[^\n]*\n)(.*)", part, re.DOTALL))
    ]


@pytest.mark.parametrize(("heading", "index"), [("Quick start", 1), ("JSON over HTTP", 0), ("grpcurl", 0)])
def test_a_session_prints_what_the_readme_shows(server: Serving, heading: str, index: int) -> None:
    commands = session(blocks(heading, "console")[index])
    require(not any(command.startswith("curl ") for command, _ in commands) or shutil.which("curl"), "needs curl")
    http_address = server.wait_for_event("serving")["http"]
    variables = environment(BOOKSTORE_SERVER=server.address)
    variables["PATH"] = f"{GRPCURL.parent}{os.pathsep}{variables['PATH']}"
    for command, shown in commands:
        printed = subprocess.run(
            command.replace(ADDRESS, server.address)
            .replace(HTTP_ADDRESS, http_address)
            .replace(".venv/bin/bookstore", str(BOOKSTORE)),
            shell=True,
            cwd=ROOT,
            env=variables,
            text=True,
            stdout=subprocess.PIPE,
            stderr=subprocess.STDOUT,
            timeout=PATIENCE_SECONDS,
            check=False,
        ).stdout
        assert _VARYING.sub("…", printed) == _VARYING.sub("…", shown), command


def test_the_python_examples_run(server: Serving) -> None:
    printed = [
        subprocess.run(
            [sys.executable, "-c", block.replace(ADDRESS, server.address)],
            capture_output=True,
            text=True,
            timeout=PATIENCE_SECONDS,
            check=True,
        ).stdout
        for block in blocks("Python", "python")
    ]
    assert printed == ["1 Dune Messiah 1969\n", "0 Dune Messiah\n", "['Dune Messiah']\n"]
