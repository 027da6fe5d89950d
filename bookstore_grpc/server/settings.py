"""Settings of the server: one table of names, defaults and help, from which flags and variables are derived.

`database_url` is the flag `--database-url` and the variable `BOOKSTORE_DATABASE_URL`. A flag takes precedence over a
variable, and a variable over the default.
"""

import os
from dataclasses import MISSING, Field, dataclass, field, fields
from typing import Any, Literal

from bookstore_grpc.errors import StartupError
from bookstore_grpc.limits import MESSAGE_MAX_BYTES
from bookstore_grpc.metadata import DEFAULT_SERVER
from bookstore_grpc.server.verification import problems_of

ENVIRONMENT_PREFIX = "BOOKSTORE_"

TokenAlgorithm = Literal[
    "RS256", "RS384", "RS512", "PS256", "PS384", "PS512", "ES256", "ES384", "ES512", "EdDSA"
]  # fmt: skip

_WORKERS_MAX = 64
_INT32_MAX = 2**31 - 1  # the maximum of gRPC's channel arguments


def _setting(default: Any, help: str, *, least: float | None = None, most: float | None = None) -> Any:
    return field(default=default, metadata={"help": help, "least": least, "most": most})


@dataclass(frozen=True, kw_only=True)
class Settings:
    """The settings of a server. Times are in seconds."""

    listen: tuple[str, ...] = _setting(
        (DEFAULT_SERVER,),
        "Where to listen: HOST:PORT or unix:PATH. Repeatable; in the variable separated by spaces.",
    )
    http_listen: str = _setting(
        "",
        "HOST:PORT that serves the same calls as JSON over HTTP, with web pages at / and /docs; with TLS if "
        "--tls-cert is given. Needs the extra [http].",
    )
    http_origins: tuple[str, ...] = _setting(
        (), "An origin such as https://shop.example whose pages may call over HTTP from browsers (CORS). Repeatable."
    )
    http_hosts: tuple[str, ...] = _setting(
        (),
        "A host name that HTTP requests may use in addition to the loopback's; all others are then rejected, against "
        "DNS rebinding. Without it a loopback address accepts only the loopback's names, and other addresses accept "
        "every name. Repeatable.",
    )
    database_url: str = _setting(
        "sqlite+aiosqlite:///bookstore.db",
        "The database: sqlite+aiosqlite:///FILE, postgresql+asyncpg://USER@HOST/NAME or "
        "mariadb+asyncmy://USER@HOST/NAME. A password belongs in the variable, which `ps` does not show.",
    )
    migrate: bool = _setting(
        False,
        "Migrate the tables of PostgreSQL or MariaDB to the newest revision before serving. SQLite's always are.",
    )
    insecure: bool = _setting(
        False,
        "Serve in plaintext on addresses that other machines can reach. Only behind a proxy that you trust.",
    )
    tls_cert: str = _setting("", "A PEM file with the server's certificate and its chain. Serves with TLS.")
    tls_key: str = _setting("", "A PEM file with the certificate's private key.")
    tls_client_ca: str = _setting(
        "", "A PEM file with CA certificates. Clients then need a certificate that one of these signed (mutual TLS)."
    )
    jwks_file: str = _setting(
        "", "A JSON Web Key Set (JWKS). Every call of the service then needs a token (JWT) signed with one of its keys."
    )
    jwks_url: str = _setting(
        "", "The URL of a JWKS, https or on this machine. Old keys stay in use while it is unavailable."
    )
    jwks_refresh_seconds: float = _setting(
        60.0,
        "How often the keys are refreshed. A token with an unknown key refreshes them immediately, at most every "
        "10 seconds.",
        least=1,
    )
    token_issuer: str = _setting("", "The issuer (iss) that tokens must name.")
    token_audience: str = _setting("", "The audience (aud) that tokens must name.")
    token_algorithms: tuple[TokenAlgorithm, ...] = _setting(
        ("RS256", "ES256", "EdDSA"), "Algorithms that tokens may be signed with. Repeatable."
    )
    token_leeway_seconds: float = _setting(
        30.0, "How far the clocks of issuer and server may differ.", least=0, most=300
    )
    client_scopes: tuple[str, ...] = _setting(
        (),
        "The scopes of a caller whose certificate has this name: NAME=books.read,books.write. Repeatable; "
        "needs --tls-client-ca.",
    )
    health_access: Literal["open", "guarded"] = _setting(
        "open",
        "Whether everyone may check health (open), or only callers with a valid token or known certificate (guarded).",
    )
    reflection: Literal["on", "off"] = _setting(
        "on", "Whether gRPC server reflection is on. If calls need a token, so does reflection."
    )
    workers: int | Literal["auto"] = _setting(
        1,
        "How many processes share the addresses, or auto: one for each core. Each has its own connections to the "
        "database; a process that ends is replaced.",
        least=1,
        most=_WORKERS_MAX,
    )
    max_concurrent_calls: int = _setting(
        500,
        "How many calls may be in progress in a process; further calls are rejected or wait, except health checks.",
        least=1,
        most=_INT32_MAX,
    )
    max_waiting_calls: int = _setting(
        500,
        "How many calls of one method may wait for a handler in a process; further calls are rejected.",
        least=1,
        most=_INT32_MAX,
    )
    max_calls_per_connection: int = _setting(
        100,
        "How many calls a connection may have in progress; its client then holds back further calls (backpressure).",
        least=1,
        most=_INT32_MAX,
    )
    max_call_seconds: float = _setting(
        30.0, "How long a call and its database statement may take, even if the call's deadline is later.", least=0.1
    )
    rate_limit_per_second: float = _setting(
        0.0,
        "How many calls per second one caller may make: a token's subject, a certificate's name, or otherwise an "
        "address. 0: no limit. Each process counts separately.",
        least=0,
    )
    rate_limit_burst: int = _setting(
        100, "How many calls a caller may make in a burst after a pause.", least=1, most=_INT32_MAX
    )
    max_watchers: int = _setting(
        1_000,
        "How many watches of changes (WatchBooks) a process may serve; further ones are rejected.",
        least=1,
        most=_INT32_MAX,
    )
    max_watchers_per_caller: int = _setting(
        100,
        "How many of these one caller may have: a token's subject, a certificate's name, or otherwise an address.",
        least=1,
        most=_INT32_MAX,
    )
    changes_kept_hours: float = _setting(
        72.0,
        "How long the changes of books are kept for watchers that were away.",
        least=1,
        most=24 * 366,
    )
    max_message_bytes: int = _setting(
        MESSAGE_MAX_BYTES,
        "The maximum size of a request. A batch of 1,000 books with the longest texts has 6.1 MB.",
        least=1_024,
        most=_INT32_MAX,
    )
    max_metadata_bytes: int = _setting(
        16_384, "The maximum size of a call's metadata, including the token.", least=1_024, most=1_048_576
    )
    max_connections: int = _setting(
        0,
        "How many gRPC connections a process may have. 0: as many as the limit of open files permits, up to 10,000.",
        least=0,
        most=_INT32_MAX,
    )
    max_connection_idle_seconds: float = _setting(
        0.0,
        "After how long without a call a connection is closed; its client reconnects with its next call. 0: never.",
        least=0,
    )
    max_connection_age_seconds: float = _setting(
        0.0,
        "After how long a connection is closed, so that clients rebalance over the servers. 0: never.",
        least=0,
    )
    max_connection_age_grace_seconds: float = _setting(
        30.0, "How long calls in progress may then take to finish.", least=0
    )
    keepalive_seconds: float = _setting(
        60.0, "After how long without activity a connection is sent a keepalive ping.", least=1
    )
    keepalive_timeout_seconds: float = _setting(
        20.0, "How long the acknowledgement of a keepalive ping may take; then the connection is closed.", least=1
    )
    keepalive_least_seconds: float = _setting(
        10.0,
        "The minimum interval of a client's keepalive pings; more frequent ones close its connection (too_many_pings).",
        least=0,
    )
    drain_seconds: float = _setting(
        20.0,
        "How long calls in progress may take to finish after SIGTERM or SIGINT. A second signal ends the process "
        "immediately.",
        least=0,
    )
    drain_delay_seconds: float = _setting(
        0.0,
        "How long to keep serving after SIGTERM while health is NOT_SERVING, so that load balancers notice.",
        least=0,
    )
    metrics_listen: str = _setting(
        "",
        "HOST:PORT that serves /metrics (Prometheus), /livez and /readyz over HTTP, to everyone who can reach it.",
    )
    channelz_listen: str = _setting(
        "",
        "A loopback HOST:PORT, or unix:PATH, that serves gRPC's channelz: connections, calls and sockets. "
        "With several workers use port 0: each chooses a free port and logs it.",
    )
    trace_endpoint: str = _setting(
        "",
        "Where traces are sent: the http or https URL of an OpenTelemetry collector (OTLP over gRPC), as in "
        "http://127.0.0.1:4317. Needs the extra [otel].",
    )
    trace_ratio: float = _setting(
        1.0,
        "The share of calls that start a trace here. A call that belongs to a trace follows that trace's sampling "
        "decision.",
        least=0,
        most=1,
    )
    health_interval_seconds: float = _setting(
        1.0, "How often the database is checked for the health service.", least=0.1
    )
    health_requires_writes: bool = _setting(
        False,
        "Report NOT_SERVING and not ready while the database can be read but takes no writes, as during a failover. "
        "Without it only a metric and the log show that.",
    )
    pool_size: int = _setting(
        10,
        "The maximum number of connections for reads. Writes use group commit, on one connection on SQLite and two "
        "elsewhere.",
        least=1,
        most=1_000,
    )
    max_concurrent_searches: int = _setting(
        5,
        "How many searches may read concurrently: ListBooks with a filter, or in an order without an index. Further "
        "searches wait. If --pool-size is at least two, one connection stays free of searches, and on SQLite one core.",
        least=1,
        most=1_000,
    )
    database_timeout_seconds: float = _setting(
        5.0,
        "How long a call may wait for a connection or for SQLite's lock before it is UNAVAILABLE.",
        least=0.1,
    )
    log_level: Literal["debug", "info", "warning", "error"] = _setting(
        "info",
        "The lowest level to log. At info every call has a line, at warning only those that failed or were slow.",
    )
    slow_call_seconds: float = _setting(
        1.0, "From which duration a call is marked as slow in the log; its line is then a warning.", least=0
    )
    log_format: Literal["auto", "json", "console"] = _setting(
        "auto", "json, console (readable), or auto: console on a terminal, json elsewhere."
    )

    def verify(self) -> None:
        """Raise `StartupError` with every setting that cannot be used or contradicts another.

        Called before anything is built, bound or forked.
        """
        problems = problems_of(self)
        if len(problems) == 1:
            raise StartupError(problems[0])
        if problems:
            raise StartupError("\n- ".join([f"{len(problems)} settings cannot be used:", *problems]))

    @property
    def is_encrypted(self) -> bool:
        """Whether TLS is on. Calls through a unix socket are plaintext in any case."""
        return bool(self.tls_cert)

    @property
    def worker_count(self) -> int:
        """The number of serving processes: with auto one for each core that this process may run on."""
        if self.workers != "auto":
            return self.workers
        cores = len(os.sched_getaffinity(0)) if hasattr(os, "sched_getaffinity") else os.cpu_count() or 1
        return min(cores, _WORKERS_MAX)


def settings_fields() -> tuple[Field[Any], ...]:
    """Return the settings as dataclass fields, each with a default and its help."""
    assert all(setting.default is not MISSING for setting in fields(Settings))  # noqa: S101  for the type checker
    return fields(Settings)
