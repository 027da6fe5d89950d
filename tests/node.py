"""Callers in Node, with nothing but the .proto and @grpc/grpc-js: the scripts of `tests/e2e/node`."""

import shutil
import subprocess
import sysconfig
from pathlib import Path

from tests.conftest import require
from tests.executable import PATIENCE_SECONDS

SOURCE = Path(__file__).parent / "e2e/node"
_PROTOS = Path(__file__).parents[1] / "protos"
_GOOGLE_PROTOS = sysconfig.get_path("purelib")  # where googleapis-common-protos puts them


def install(folder: Path) -> None:
    """Create a folder with the scripts and the packages that they need."""
    npm = shutil.which("npm")
    require(npm and shutil.which("node"), "node and npm are not installed")
    assert npm is not None
    shutil.copytree(SOURCE, folder, ignore=shutil.ignore_patterns("node_modules"))
    succeed(npm, "ci", "--ignore-scripts", "--no-audit", "--no-fund", cwd=folder)


def command(script: str, target: str, *arguments: object) -> list[str]:
    """Return the command that runs a script of the folder."""
    return ["node", script, target, str(_PROTOS), _GOOGLE_PROTOS, *map(str, arguments)]


def succeed(*command: str, cwd: Path) -> str:
    """Run a command to its end and return its output."""
    done = subprocess.run(command, cwd=cwd, capture_output=True, text=True, timeout=4 * PATIENCE_SECONDS, check=False)
    assert done.returncode == 0, done.stdout + done.stderr
    return done.stdout
