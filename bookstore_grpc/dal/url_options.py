"""Tables of the options of database URLs: which values are supported, and what to write instead of the others.

Names are in lower case with `_` for `-`, because JDBC and MySQL write them in several ways.
"""

import socket
from typing import NamedTuple


class Option(NamedTuple):
    """A regular expression of the supported values, and what to write instead of others; by default, one of them."""

    values: str
    instead: str = ""


_ANY = Option("(?s:.*)")
_NUMBER = Option(r"\d{1,9}", "write a whole number")
_SECONDS = Option(r"-?\d{1,9}", "write whole seconds")
_BOOLEAN = Option("true|false|0|1")
# The service finds out by itself whether a pooler is in the way, so these are accepted and have no effect.
_POOLER = {
    "pgbouncer": _BOOLEAN,
    "preparethreshold": Option(r"-?\d{1,9}", "write a whole number"),
    "prepared_statement_cache_size": _NUMBER,
    "statement_cache_size": _NUMBER,
}

#: The supported options of each database.
OPTIONS: dict[str, dict[str, Option]] = {
    "postgresql": {
        "application_name": _ANY,
        "channel_binding": Option(
            "disable|prefer",
            "asyncpg has no channel binding, so write channel_binding=prefer; sslmode=verify-full also excludes a "
            "server in the middle",
        ),
        "client_encoding": Option("(?i:auto|utf-?8|unicode)", "write client_encoding=utf8, which is always used"),
        "connect_timeout": _SECONDS,
        "dbname": _ANY,
        "gssencmode": Option("disable|prefer", "asyncpg cannot encrypt by GSSAPI, so write sslmode=require"),
        "gsslib": Option("gssapi|sspi"),
        "host": _ANY,
        "keepalives": Option("0|1"),
        "keepalives_count": _NUMBER,
        "keepalives_idle": _NUMBER,
        "keepalives_interval": _NUMBER,
        "krbsrvname": _ANY,
        "load_balance_hosts": Option("disable|random"),
        "options": _ANY,
        "passfile": _ANY,
        "password": _ANY,
        "port": Option(r"[\d,]+", "write numbers, separated by commas"),
        "ssl_min_protocol_version": Option(r"TLSv1\.2|TLSv1\.3", "write TLSv1.2 or TLSv1.3"),
        "sslcert": _ANY,
        "sslcompression": Option("0|1"),
        "sslcrl": _ANY,
        "sslkey": _ANY,
        "sslnegotiation": Option("postgres|direct"),
        "sslpassword": _ANY,
        "sslrootcert": _ANY,
        "sslsni": Option("1", "asyncpg always sends the name of the server, so write sslsni=1"),
        "target_session_attrs": Option("any|read-write|read-only|primary|standby|prefer-standby"),
        "tcp_user_timeout": _NUMBER,
        "user": _ANY,
        **_POOLER,
    },
    "mariadb": {
        "charset": Option("(?i:utf-?8|utf8mb[34])", "write charset=utf8mb4, which is always used"),
        "collation": Option(
            "(?i:utf8(mb[34])?_.*)", "leave it out; the order of texts is that of the tables, which are in utf8mb4"
        ),
        "connect_timeout": _SECONDS,
        "password": _ANY,
        "read_default_file": _ANY,
        "read_default_group": _ANY,
        "ssl_ca": _ANY,
        "ssl_cert": _ANY,
        "ssl_check_hostname": _BOOLEAN,
        "ssl_key": _ANY,
        "unix_socket": _ANY,
        "use_unicode": Option("true|1", "leave it out; texts are always Unicode"),
        "user": _ANY,
    },
}

_LIBPQ_MODES = {mode: mode for mode in ("disable", "allow", "prefer", "require", "verify-ca", "verify-full")}
#: The options that choose a mode of TLS, with libpq's mode for each value.
MODES: dict[str, dict[str, dict[str, str]]] = {
    "postgresql": {
        # libpq reads JDBC's `ssl=true` in this way; asyncpg has its modes under this name too.
        "ssl": {"true": "require", **_LIBPQ_MODES},
        "sslmode": _LIBPQ_MODES,
    },
    "mariadb": {
        "ssl": {"true": "require", "1": "require", "false": "disable", "0": "disable"},
        # The words of MySQL, then those of MariaDB's JDBC driver and of libpq that differ.
        "sslmode": {
            "disabled": "disable",
            "required": "require",
            "verify-ca": "verify-ca",
            "verify-identity": "verify-full",
            "disable": "disable",
            "trust": "require",
            "require": "require",
            "verify-full": "verify-full",
        },
    },
}
MODES_INSTEAD = {
    "postgresql": "write sslmode=disable, allow, prefer, require, verify-ca or verify-full",
    "mariadb": "write ssl-mode=DISABLED, REQUIRED, VERIFY_CA or VERIFY_IDENTITY, the last two with ssl_ca",
}

#: Other names of supported options.
ALIASES = {
    "postgresql": {"applicationname": "application_name", "ssl_mode": "sslmode"},
    "mariadb": {
        "characterencoding": "charset",
        "connectioncollation": "collation",
        "localsocket": "unix_socket",
        "socket": "unix_socket",
        "ssl_mode": "sslmode",
        "useunicode": "use_unicode",
        "usessl": "ssl",
    },
}

#: What to write instead of options that others know.
UNSUPPORTED = {
    "postgresql": {
        "command_timeout": "--max-call-seconds bounds a statement",
        "connection_limit": "--pool-size is the number of connections",
        "currentschema": "write options=-csearch_path%3DNAME",
        "direct_tls": "write sslnegotiation=direct",
        "fallback_application_name": "write application_name",
        "hostaddr": "write the address as the host",
        "pool_timeout": "--database-timeout-seconds bounds the wait for a connection",
        "require_auth": "leave it out; sslmode=verify-full makes sure that only the server gets the password",
        "requiressl": "write sslmode=require",
        "schema": "write options=-csearch_path%3DNAME",
        "search_path": "write options=-csearch_path%3DNAME",
        "service": "write what the service file contains",
        "ssl_max_protocol_version": "leave it out",
        "sslcrldir": "write sslcrl with one file",
        "timeout": "write connect_timeout",
        "unix_sock": "write host with the directory of the socket",
    },
    "mariadb": {
        "allowpublickeyretrieval": "leave it out",
        "autocommit": "leave it out; the service chooses it",
        "connecttimeout": "write connect_timeout, in seconds",
        "init_command": "leave it out; the service sets what its session needs",
        "read_timeout": "--max-call-seconds bounds a statement",
        "requiressl": "write ssl-mode=REQUIRED",
        "serversslcert": "write ssl_ca",
        "sql_mode": "leave it out; the service sets what its session needs",
        "ssl_capath": "write ssl_ca with one file",
        "ssl_disabled": "write ssl-mode=DISABLED",
        "ssl_verify_cert": "write ssl-mode=VERIFY_CA and ssl_ca",
        "ssl_verify_identity": "write ssl-mode=VERIFY_IDENTITY and ssl_ca",
        "sslaccept": "write ssl-mode=VERIFY_IDENTITY and ssl_ca=system",
        "trustservercertificate": "write ssl-mode=REQUIRED",
        "verifyservercertificate": "write ssl-mode=VERIFY_IDENTITY and ssl_ca",
    },
}
UNKNOWN_INSTEAD = {
    "postgresql": "leave it out, or write a parameter of the server as options=-cNAME%3DVALUE",
    "mariadb": "leave it out",
}

#: The options of libpq that are options of the socket: protocol, and the name of the option in `socket`.
SOCKET_OPTIONS = {
    "keepalives": (socket.SOL_SOCKET, "SO_KEEPALIVE"),
    "keepalives_idle": (socket.IPPROTO_TCP, "TCP_KEEPIDLE"),
    "keepalives_interval": (socket.IPPROTO_TCP, "TCP_KEEPINTVL"),
    "keepalives_count": (socket.IPPROTO_TCP, "TCP_KEEPCNT"),
    "tcp_user_timeout": (socket.IPPROTO_TCP, "TCP_USER_TIMEOUT"),
}
