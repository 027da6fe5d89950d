"""Database URLs: what libpq, hosting providers and drivers print, for SQLAlchemy, asyncpg and asyncmy.

The errors name the option and what to write instead, but never a value, which could be part of a password.
"""

import getpass
import math
import os
import re
import socket
import ssl
from collections.abc import Mapping
from dataclasses import dataclass, field
from typing import NamedTuple
from urllib.parse import unquote_to_bytes

from sqlalchemy import exc
from sqlalchemy.engine import URL, make_url

from bookstore_grpc.dal.client_tls import SYSTEM_CA, ClientTls, TlsFile
from bookstore_grpc.dal.url_options import (
    ALIASES,
    MODES,
    MODES_INSTEAD,
    OPTIONS,
    SOCKET_OPTIONS,
    UNKNOWN_INSTEAD,
    UNSUPPORTED,
)
from bookstore_grpc.errors import StartupError

#: The one supported driver of each database, and the extra that installs it.
DRIVERS = {
    "sqlite": ("sqlite+aiosqlite", "server"),
    "postgresql": ("postgresql+asyncpg", "postgresql"),
    "mariadb": ("mariadb+asyncmy", "mariadb"),
}
_SUPPORTED = ", ".join(driver for driver, _ in DRIVERS.values())
_SCHEMES = {"postgres": "postgresql", "mysql": "mariadb"}
_SCHEME = re.compile(r"[\w+.-]+")
_HOST = re.compile(r"(?:\[(?P<address>[^\[\]]+)\]|(?P<name>[^:\[\]]*))(?::(?P<port>\d*))?")
# The files that libpq reads by default, in ~/.postgresql.
_TLS_DEFAULTS = {
    "sslrootcert": "root.crt",
    "sslcert": "postgresql.crt",
    "sslkey": "postgresql.key",
    "sslcrl": "root.crl",
}
_TLS_VERSIONS = {"TLSv1.2": ssl.TLSVersion.TLSv1_2, "TLSv1.3": ssl.TLSVersion.TLSv1_3}
_NO_FILE = re.compile(r"(file:)?(:memory:)?")


class Host(NamedTuple):
    """A host name, an address, or the path of a socket; empty for the driver's default on this machine."""

    name: str
    port: int | None = None

    @property
    def is_socket(self) -> bool:
        """Whether it is the path of a socket."""
        return self.name.startswith("/")

    def __str__(self) -> str:
        name = f"[{self.name}]" if ":" in self.name and not self.is_socket else self.name or "localhost"
        return f"{name}:{self.port}" if self.port else name


@dataclass(frozen=True)
class DatabaseUrl:
    """A database URL whose options are all supported.

    `url` has the driver, user, password, first host and database, and of SQLite the options. `options` has the options
    of the others under their usual names; `sslmode` always has one of libpq's modes. `tls` is None unless TLS is
    required.
    """

    url: URL
    hosts: tuple[Host, ...] = ()
    options: Mapping[str, str] = field(default_factory=dict, repr=False)
    tls: ClientTls | None = None

    @property
    def description(self) -> str:
        """The database's name for logs and messages: its hosts, without user, password and options."""
        backend = self.url.get_backend_name()
        if backend == "sqlite":
            return f"sqlite {self.url.database}"
        return f"{backend} {','.join(map(str, self.hosts))}/{self.url.database}"

    @property
    def connect_seconds(self) -> float:
        """How long connecting to a host may take; infinite without `connect_timeout`, and with 0 as in libpq."""
        seconds = int(self.options.get("connect_timeout", 0))
        return seconds if seconds > 0 else math.inf


def parse_database_url(text: str) -> DatabaseUrl:
    """Parse a database URL and choose its driver. Raises `StartupError`, whose message never contains a password."""
    text = text.strip()  # a file of a secret often ends with a newline
    scheme, separator, rest = text.partition("://")
    if not separator or not _SCHEME.fullmatch(scheme) or not _is_unicode(text):
        raise _unreadable()
    backend = _backend(scheme)
    return _sqlite_url(text) if backend == "sqlite" else _server_url(backend, rest)


def _is_unicode(text: str) -> bool:
    return not any("\ud800" <= character <= "\udfff" for character in text)


def _unreadable() -> StartupError:
    return StartupError(
        f"The database URL cannot be read; its form is {_SUPPORTED} followed by ://user:password@host/database, "
        "without quotes."
    )


def _backend(scheme: str) -> str:
    name, _, driver = scheme.partition("+")
    backend = _SCHEMES.get(name, name)
    if backend not in DRIVERS:
        raise StartupError(f"The database URL starts with {scheme!r}; supported are {_SUPPORTED}.")
    drivername, _ = DRIVERS[backend]
    if driver and driver != drivername.partition("+")[2]:
        raise StartupError(f"The driver {scheme!r} is not supported; use {drivername}.")
    return backend


def _sqlite_url(text: str) -> DatabaseUrl:
    try:
        url = make_url(text)
    except (exc.ArgumentError, ValueError):
        raise _unreadable() from None
    if _NO_FILE.fullmatch(url.database or "") or "mode=memory" in text:
        raise StartupError(
            "A SQLite database needs a file, as in sqlite+aiosqlite:///bookstore.db; one in memory would be lost."
        )
    return DatabaseUrl(url.set(drivername=DRIVERS["sqlite"][0]))


def _server_url(backend: str, rest: str) -> DatabaseUrl:
    authority, raw_database, query = _parts(rest)
    userinfo, _, host_list = authority.rpartition("@")
    user, _, password = map(_decoded, userinfo.partition(":"))
    options = _options(backend, query)
    hosts = _hosts(backend, host_list, options)
    database = options.get("dbname") or _decoded(raw_database)
    if not database:
        drivername, _ = DRIVERS[backend]
        raise StartupError(f"The database URL names no database; it ends with /NAME, as in {drivername}://HOST/NAME.")
    url = URL.create(
        DRIVERS[backend][0],
        username=options.get("user") or user or _default_user(backend),
        password=options.get("password") or password or None,
        host=None if hosts[0].is_socket else hosts[0].name or None,
        port=hosts[0].port,
        database=database,
    )
    tls = _postgresql_tls(options) if backend == "postgresql" else _mariadb_tls(options)
    return DatabaseUrl(url, hosts, options, tls)


def _parts(rest: str) -> tuple[str, str, str]:
    """Return authority, database and query. A raw delimiter in a password would make a part of it one of the others."""
    authority = re.split("[/?#]", rest, maxsplit=1)[0]
    others = rest[len(authority) :]
    if "@" in others or "#" in others:
        raise StartupError(
            "The database URL has a raw '/', '?', '#' or '@' in its user, password or options; percent-encode it "
            "there, as %2F, %3F, %23 or %40."
        )
    path, _, query = others.partition("?")
    return authority, path.removeprefix("/"), query


def _decoded(text: str) -> str:
    try:
        decoded = unquote_to_bytes(text).decode()
    except UnicodeDecodeError:
        raise StartupError("The database URL has percent-encoded bytes that are not UTF-8.") from None
    if "\0" in decoded:
        raise StartupError("The database URL has %00, which no database accepts.")
    return decoded


def _default_user(backend: str) -> str | None:
    """Return PostgreSQL's default, the variable or the account of the process. MariaDB's driver has its own."""
    if backend != "postgresql":
        return None
    try:
        return os.environ.get("PGUSER") or getpass.getuser()
    except (KeyError, OSError):
        raise StartupError("The database URL names no user; write USER@ before the host.") from None


def _options(backend: str, query: str) -> dict[str, str]:
    """Return the options by their usual names, and as `sslmode` one of libpq's modes, if any is given."""
    options: dict[str, str] = {}
    for pair in filter(None, query.split("&")):
        written, separator, value = map(_decoded, pair.partition("="))
        if not separator:
            raise StartupError("The database URL has an option without '='; a raw '&' in a value is written as %26.")
        name = _option_name(backend, written, may_show="password=" not in query)
        if value:
            value = _supported_value(backend, name, value, written=written)
            is_list = name in ("host", "port") and name in options
            options[name] = f"{options[name]},{value}" if is_list else value
    if "ssl" in options:
        options.setdefault("sslmode", options["ssl"])
    return options


def _option_name(backend: str, written: str, *, may_show: bool) -> str:
    """Return the usual name of an option. An unknown one next to a password may be a part of it, and is not shown."""
    name = written.lower().replace("-", "_")
    name = ALIASES[backend].get(name, name)
    if name not in OPTIONS[backend] and name not in MODES[backend]:
        instead = UNSUPPORTED[backend].get(name, UNKNOWN_INSTEAD[backend])
        raise _unsupported(written if may_show else "next to the password", instead)
    return name


def _supported_value(backend: str, name: str, value: str, *, written: str) -> str:
    if name in MODES[backend]:
        mode = MODES[backend][name].get(value.lower().replace("_", "-"))
        if not mode:
            raise _unsupported(written, MODES_INSTEAD[backend])
        return mode
    option = OPTIONS[backend][name]
    if not re.fullmatch(option.values, value):
        raise _unsupported(written, option.instead or f"write {option.values.replace('|', ' or ')}")
    if name in SOCKET_OPTIONS and not hasattr(socket, SOCKET_OPTIONS[name][1]):
        raise _unsupported(written, "the sockets of this system do not have it; leave it out")
    return value


def _unsupported(name: str, instead: str) -> StartupError:
    return StartupError(f"The option {name} of the database URL cannot be used as it is: {instead}.")


def _hosts(backend: str, host_list: str, options: dict[str, str]) -> tuple[Host, ...]:
    """Return the hosts. Those of `host` replace those of the authority, as in libpq, and the variables are for none."""
    listed = options.get("host") or options.get("unix_socket")
    if not listed and not host_list and backend == "postgresql":
        listed = os.environ.get("PGHOST")
        options.setdefault("port", os.environ.get("PGPORT", ""))
    if listed:
        hosts = [_listed_host(item) for item in listed.split(",")]
    else:
        encoded = [_host(item) for item in host_list.split(",")]
        hosts = [host._replace(name=_decoded(host.name)) for host in encoded]
    if len(hosts) > 1 and backend != "postgresql":
        raise StartupError("The database URL has several hosts, which only PostgreSQL can have; write one of them.")
    if len(hosts) > 1 and not all(host.name for host in hosts):
        raise StartupError("The database URL has several hosts, and one of them is empty; leave it out.")
    return _with_ports(hosts, options.get("port", ""))


def _listed_host(text: str) -> Host:
    is_plain = text.startswith("/") or (text.count(":") > 1 and "[" not in text)
    return Host(text) if is_plain else _host(text)


def _host(text: str) -> Host:
    parts = _HOST.fullmatch(text)
    if not parts:
        raise StartupError("The database URL has a host or a port that cannot be read; the form is HOST:PORT.")
    return Host(parts["address"] or parts["name"], _port(parts["port"]))


def _port(text: str | None) -> int | None:
    if text and not (re.fullmatch(r"\d{1,5}", text) and 0 < int(text) < 65_536):
        raise StartupError("The database URL has a port that is not from 1 to 65535.")
    return int(text) if text else None


def _with_ports(hosts: list[Host], text: str) -> tuple[Host, ...]:
    ports = text.split(",")
    if len(ports) not in (1, len(hosts)):
        raise _unsupported("port", "write one, or one for each host")
    ports *= len(hosts) // len(ports)
    return tuple(Host(host.name, _port(port) or host.port) for host, port in zip(hosts, ports, strict=True))


def _postgresql_tls(options: dict[str, str]) -> ClientTls | None:
    """Return how to verify the server by libpq's rules, and set `sslmode`, whose weak modes the driver knows."""
    files = {name: _tls_file(options, name, default) for name, default in _TLS_DEFAULTS.items()}
    ca = files["sslrootcert"]
    is_system = ca is not None and ca.path == SYSTEM_CA
    mode = options.get("sslmode") or os.environ.get("PGSSLMODE") or ("verify-full" if is_system else "prefer")
    options["sslmode"] = mode
    if mode not in MODES["postgresql"]["sslmode"]:
        raise StartupError(f"The value of PGSSLMODE cannot be used: {MODES_INSTEAD['postgresql']}.")
    if is_system and mode != "verify-full":
        raise _unsupported("sslrootcert", "sslrootcert=system needs sslmode=verify-full")
    if mode.startswith("verify") and not ca:
        raise _unsupported(
            "sslmode", f"{mode} needs sslrootcert=FILE; sslmode=verify-full takes sslrootcert=system too"
        )
    if mode in ("disable", "allow", "prefer"):
        for name in ("sslcert", "sslnegotiation"):
            if options.get(name, "postgres") != "postgres":
                raise _unsupported(name, "it needs sslmode=require, verify-ca or verify-full")
        return None
    return ClientTls(
        mode,
        ca=ca,
        cert=files["sslcert"],
        key=files["sslkey"],
        crl=files["sslcrl"],
        key_password=options.get("sslpassword", ""),
        minimum_version=_TLS_VERSIONS[options.get("ssl_min_protocol_version", "TLSv1.2")],
        protocols=["postgresql"],  # sslnegotiation=direct requires it
    )


def _tls_file(options: Mapping[str, str], name: str, default: str) -> TlsFile | None:
    variable = f"PG{name.upper()}"
    default_path = os.path.expanduser(f"~/.postgresql/{default}")
    if path := options.get(name):
        return TlsFile(name, path)
    if path := os.environ.get(variable):
        return TlsFile(variable, path)
    return TlsFile(default_path, default_path) if os.path.exists(default_path) else None


def _mariadb_tls(options: dict[str, str]) -> ClientTls | None:
    """Return how to verify the server by libpq's modes, in which a CA is verified without being asked for."""
    ca, cert, key = (
        TlsFile(name, options[name]) if name in options else None for name in ("ssl_ca", "ssl_cert", "ssl_key")
    )
    if "sslmode" in options and "ssl_check_hostname" in options:
        raise _unsupported("ssl_check_hostname", "write ssl-mode=VERIFY_CA or VERIFY_IDENTITY alone")
    checks_host = options.get("ssl_check_hostname") not in ("false", "0")
    default = ("verify-full" if checks_host else "verify-ca") if ca else "require" if cert else "disable"
    mode = options.setdefault("sslmode", default)
    if mode.startswith("verify") and not ca:
        raise _unsupported("ssl-mode", "VERIFY_CA and VERIFY_IDENTITY need ssl_ca=FILE or ssl_ca=system")
    return None if mode == "disable" else ClientTls(mode, ca=ca, cert=cert, key=key)
