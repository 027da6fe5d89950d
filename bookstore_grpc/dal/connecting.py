"""Connecting as a database URL says: to which of its hosts, with which password, and with TLS."""

import asyncio
import os
import random
import socket
from collections.abc import Awaitable, Callable, Coroutine, Iterable, Mapping
from contextlib import suppress
from functools import partial
from typing import Any

from bookstore_grpc.compat.asyncpg import check, socket_of
from bookstore_grpc.dal.database_url import DatabaseUrl, Host
from bookstore_grpc.dal.driver_errors import clause
from bookstore_grpc.dal.password_file import password_from_file
from bookstore_grpc.dal.url_options import SOCKET_OPTIONS

_Connect = Callable[..., Awaitable[Any]]

_POSTGRESQL_PORT = 5432
# A host that does not respond delays connecting to the next one by so much. Connecting across a continent takes less.
_NEXT_HOST_SECONDS = 0.5


def connect_arguments(url: DatabaseUrl, arguments: dict[str, Any]) -> dict[str, Any]:
    """Return the arguments of SQLAlchemy's connect function: those of the service, and what the URL says.

    Raises `StartupError` if the driver does not support the URL.
    """
    backend = url.url.get_backend_name()
    if backend == "sqlite":
        return arguments
    connect = arguments["async_creator_fn"]
    if backend == "mariadb":
        return {**arguments, **_mariadb_arguments(url), "async_creator_fn": partial(_connect_with_tls, url, connect)}
    check()
    return {**arguments, "async_creator_fn": partial(_connect_to_first, url, connect)}


def _mariadb_arguments(url: DatabaseUrl) -> dict[str, Any]:
    arguments: dict[str, Any] = {
        name: url.options[name] for name in ("read_default_file", "read_default_group") if name in url.options
    }
    if url.hosts[0].is_socket:
        arguments["unix_socket"] = url.hosts[0].name
    if url.url.password:
        # The driver encodes texts in Latin-1, and servers compare passwords in UTF-8.
        arguments["password"] = str(url.url.password).encode()
    return arguments


async def _connect_with_tls(url: DatabaseUrl, connect: _Connect, **arguments: Any) -> Any:
    try:
        return await connect(**arguments, ssl=url.tls.context() if url.tls else None)
    except Exception as error:
        # The driver does not look at what the server offers, and reads its error message as TLS.
        if getattr(error.__cause__, "reason", None) == "WRONG_VERSION_NUMBER":
            raise ConnectionRefusedError(
                "it does not offer TLS, which the URL requires by ssl-mode or ssl_ca"
            ) from error
        raise


async def _connect_to_first(url: DatabaseUrl, connect: _Connect, **arguments: Any) -> Any:
    """Connect to the first host that has the attributes of `target_session_attrs`, as libpq does.

    With several hosts the default is `read-write`: every connection may have to write, and a standby may be behind.
    """
    target = url.options.get("target_session_attrs", "read-write" if len(url.hosts) > 1 else "any")
    arguments |= _postgresql_arguments(url, arguments.get("server_settings", {}))
    if target == "prefer-standby":
        with suppress(*_failures()):
            return await _first_connection(url, partial(_connect_to_host, url, connect, arguments, "standby"))
        target = "any"
    return await _first_connection(url, partial(_connect_to_host, url, connect, arguments, target))


def _postgresql_arguments(url: DatabaseUrl, server_settings: Mapping[str, str]) -> dict[str, Any]:
    """Return arguments of asyncpg. What the URL leaves out is explicit where a variable would change it."""
    own = {name: url.options[name] for name in ("application_name", "options") if name in url.options}
    return {
        **{name: url.options[name] for name in ("krbsrvname", "gsslib") if name in url.options},
        "server_settings": {**own, **server_settings},
        "ssl": url.tls.context() if url.tls else url.options["sslmode"],
        "direct_tls": url.options.get("sslnegotiation") == "direct",
    }


async def _first_connection(url: DatabaseUrl, connect: Callable[[Host], Coroutine[Any, Any, Any]]) -> Any:
    """Return the first connection. A host is tried once those before it have failed, or have not responded for long."""
    hosts = list(url.hosts)
    if url.options.get("load_balance_hosts") == "random":
        random.shuffle(hosts)
    tasks: dict[asyncio.Task[Any], Host] = {}
    pending: set[asyncio.Task[Any]] = set()
    connection = None
    try:
        while hosts or pending:
            if hosts:
                task = asyncio.create_task(connect(hosts[0]))
                tasks[task] = hosts.pop(0)
                pending.add(task)
            delay = _NEXT_HOST_SECONDS if hosts else None
            done, pending = await asyncio.wait(pending, timeout=delay, return_when=asyncio.FIRST_COMPLETED)
            for task in done:
                if not isinstance(task.exception(), _failures()):
                    connection = task.result()
                    return connection
        raise _failure(tasks)
    finally:
        await _close_others(tasks, connection)


def _failures() -> tuple[type[BaseException], ...]:
    """Return the errors of one host, after which the next one is tried."""
    import asyncpg  # type: ignore[import-untyped]  # in an extra, and without types

    return (OSError, asyncpg.PostgresError, asyncpg.InternalClientError)


def _failure(tasks: Mapping[asyncio.Task[Any], Host]) -> BaseException:
    errors = [(host, task.exception() or OSError()) for task, host in tasks.items()]
    if len(errors) == 1:
        return errors[0][1]
    return OSError("; ".join(f"{host}: {clause(error)}" for host, error in errors))


async def _close_others(tasks: Iterable[asyncio.Task[Any]], connection: Any) -> None:
    for task in tasks:
        task.cancel()
    for result in await asyncio.gather(*tasks, return_exceptions=True):
        if result is not connection and not isinstance(result, BaseException):
            result.terminate()


async def _connect_to_host(
    url: DatabaseUrl, connect: _Connect, arguments: dict[str, Any], target: str, host: Host
) -> Any:
    from asyncpg.exceptions import TargetServerAttributeNotMatched  # type: ignore[import-untyped]

    port = host.port or _POSTGRESQL_PORT
    where = {"host": host.name or None, "port": port, "password": _password(url, host.name, port)}
    try:
        connection = await connect(**{**arguments, **where, "target_session_attrs": target})
    except TargetServerAttributeNotMatched:
        raise OSError(f"it is not {target} (target_session_attrs)") from None
    _set_socket_options(url, connection)
    return connection


def _password(url: DatabaseUrl, host: str, port: int) -> str:
    """Return the password for a host. It is never None, with which the driver would look for one by other rules."""
    if password := url.url.password or os.environ.get("PGPASSWORD"):
        return str(password)
    path = url.options.get("passfile") or os.environ.get("PGPASSFILE") or os.path.expanduser("~/.pgpass")
    database, user = url.url.database or "", url.url.username or ""
    return password_from_file(path, host=host, port=port, database=database, user=user) or ""


def _set_socket_options(url: DatabaseUrl, connection: Any) -> None:
    found = socket_of(connection)
    values = {name: int(url.options[name]) for name in SOCKET_OPTIONS if name in url.options}
    if found.family == socket.AF_UNIX or values.get("keepalives") == 0:
        return
    if values:
        values.setdefault("keepalives", 1)  # on by default, as in libpq
    for name, value in values.items():
        protocol, option = SOCKET_OPTIONS[name]
        if value:  # 0 is the default of the system
            found.setsockopt(protocol, getattr(socket, option), value)
