"""The systemd unit: accepted by systemd, with a bounded exposure."""

import shutil
import subprocess
from pathlib import Path

import pytest

from tests.deploy.files import UNIT, unit_option
from tests.executable import BOOKSTORE

# In tenths; a newer systemd may look at more and find more.
_EXPOSURE_MOST = 12


@pytest.fixture
def unit(tmp_path: Path) -> Path:
    """The unit with the path of the installed command."""
    (command,) = unit_option("ExecStart")
    path = tmp_path / UNIT.name
    path.write_text(UNIT.read_text().replace(command.split()[0], str(BOOKSTORE)))
    return path


def analyze(*arguments: str | Path) -> subprocess.CompletedProcess[str]:
    program = shutil.which("systemd-analyze")
    if program is None:
        pytest.skip("systemd-analyze is not installed (apt install systemd)")
    return subprocess.run([program, *arguments], capture_output=True, text=True, timeout=60, check=False)


def test_systemd_accepts_the_unit(unit: Path) -> None:
    done = analyze("verify", unit)
    # An unknown option is a warning, and the status is 0.
    assert (done.returncode, done.stdout + done.stderr) == (0, "")


def test_the_exposure_of_the_unit_is_within_its_bound(unit: Path) -> None:
    done = analyze("security", "--offline=true", f"--threshold={_EXPOSURE_MOST}", unit)
    assert done.returncode == 0, done.stdout + done.stderr
