"""Settings of the server: one table of names, defaults and help, from which flags and variables are made.

`database_url` is the flag `--database-url` and the variable `BOOKSTORE_DATABASE_URL`. A flag goes before a
variable, a variable before the default.
"""

import os
from dataclasses import MISSING, Field, dataclass, field, fields
from typing import Any, Literal

from bookstore_grpc.wire import DEFAULT_SERVER

ENVIRONMENT_PREFIX = "BOOKSTORE_"

_WORKERS_MAX = 64


def _setting(default: Any, help: str, *, least: float | None = None, most: float | None = None) -> Any:
    return field(default=default, metadata={"help": help, "least": least, "most": most})


@dataclass(frozen=True, kw_only=True)
class Settings:
    """What an operator can choose. Times are in seconds."""

    listen: tuple[str, ...] = _setting(
        (DEFAULT_SERVER,),
        "Where to serve: HOST:PORT or unix:PATH. Repeatable; the variable separates by spaces.",
    )
    database_url: str = _setting(
        "sqlite+aiosqlite:///bookstore.db",
        "The database: sqlite+aiosqlite:///FILE, postgresql+asyncpg://USER@HOST/NAME or "
        "mariadb+asyncmy://USER@HOST/NAME. A password belongs in the variable, which `ps` does not show.",
    )
    migrate: bool = _setting(
        False,
        "Bring the tables of PostgreSQL or MariaDB to the newest migration before serving. SQLite always is.",
    )
    insecure: bool = _setting(
        False,
        "Serve in plaintext on addresses that other machines can reach. Only behind a proxy that you trust.",
    )
    workers: int | Literal["auto"] = _setting(
        1,
        "How many processes share the addresses, or auto: one for each core. Each has its own connections to the "
        "database; a process that ends is replaced.",
        least=1,
        most=_WORKERS_MAX,
    )
    drain_seconds: float = _setting(
        20.0,
        "How long calls under way may take to finish after SIGTERM or SIGINT. A second signal ends at once.",
        least=0,
    )
    drain_delay_seconds: float = _setting(
        0.0,
        "How long to go on serving after SIGTERM while health says NOT_SERVING, so that balancers see it.",
        least=0,
    )
    health_interval_seconds: float = _setting(
        1.0, "How often the database is asked whether it is there, for the health service.", least=0.1
    )
    pool_size: int = _setting(
        10,
        "The most connections for reading. Writes are done in groups, on one connection on SQLite and two elsewhere.",
        least=1,
        most=1_000,
    )
    database_timeout_seconds: float = _setting(
        5.0,
        "How long a call may wait for a connection or for SQLite's lock before it is UNAVAILABLE.",
        least=0.1,
    )
    log_level: Literal["debug", "info", "warning", "error"] = _setting(
        "info", "The least level to log. At debug every call has a line, else only those that fail."
    )
    log_format: Literal["auto", "json", "console"] = _setting(
        "auto", "json, console (readable), or auto: console on a terminal, json elsewhere."
    )

    @property
    def worker_count(self) -> int:
        """How many processes serve: with auto one for each core that this process may run on."""
        if self.workers != "auto":
            return self.workers
        cores = len(os.sched_getaffinity(0)) if hasattr(os, "sched_getaffinity") else os.cpu_count() or 1
        return min(cores, _WORKERS_MAX)


def settings_fields() -> tuple[Field[Any], ...]:
    """Answer the settings as dataclass fields, each with a default and its help."""
    assert all(setting.default is not MISSING for setting in fields(Settings))  # noqa: S101  a fact of this file
    return fields(Settings)
