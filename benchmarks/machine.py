"""The machine and the versions of a run."""

import os
import platform
import sqlite3
import subprocess
from datetime import UTC, datetime
from importlib.metadata import version
from pathlib import Path

_DISTRIBUTIONS = (
    "grpcio",
    "protobuf",
    "SQLAlchemy",
    "aiosqlite",
    "uvloop",
    "fastapi",
    "pydantic",
    "uvicorn",
    "httptools",
    "asyncpg",
    "psycopg",
    "asyncmy",
    "PyMySQL",
)


def describe_machine(*, load_generator: str) -> dict[str, str]:
    """Return the facts that a reader needs to judge the figures, by name."""
    facts = {
        "date": datetime.now(UTC).strftime("%Y-%m-%d %H:%M UTC"),
        "revision": _revision(),
        "CPU": f"{_cpu_model()}, {len(os.sched_getaffinity(0))} cores",
        "memory": f"{os.sysconf('SC_PAGE_SIZE') * os.sysconf('SC_PHYS_PAGES') / 2**30:.0f} GiB",
        "kernel": f"{platform.system()} {platform.release()}",
        "Python": platform.python_version(),
        "load before": f"{os.getloadavg()[0]:.2f}",
        "SQLite": sqlite3.sqlite_version,
    }
    return facts | {name: version(name) for name in _DISTRIBUTIONS} | {"load generator": load_generator}


def _cpu_model() -> str:
    for line in Path("/proc/cpuinfo").read_text().splitlines():
        name, _, value = line.partition(":")
        if name.strip() == "model name":
            return value.strip()
    return platform.machine()


def _revision() -> str:
    command = ["git", "describe", "--always", "--dirty", "--exclude=*"]
    said = subprocess.run(command, capture_output=True, text=True, check=False, cwd=Path(__file__).parent)
    return said.stdout.strip() or "unknown"
