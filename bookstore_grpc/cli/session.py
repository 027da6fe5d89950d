"""Shared by all client verbs: the connection options, and error messages."""

import asyncio
import errno
import math
import os
import re
import sys
from collections.abc import Awaitable, Callable
from typing import TYPE_CHECKING, Any

import click

from bookstore_grpc.cli.options import OptionWithVariable, empty_variable
from bookstore_grpc.errors import BookstoreError, DeadlineExceeded, InvalidRequest, TokenMissing, Unavailable
from bookstore_grpc.metadata import AUTHORIZATION_KEY, DEFAULT_SERVER, DEFAULT_TIMEOUT_SECONDS

if TYPE_CHECKING:
    from bookstore_grpc.client import BookstoreClient


# gRPC's prefixes, as in "connections to all backends failing; last error: UNKNOWN: ipv4:127.0.0.1:50051: Tls handshake
# failed (TSI_PROTOCOL_FAILURE): SSL_ERROR_SSL: error:1000007d:SSL routines:OPENSSL_internal:CERTIFICATE_VERIFY_FAILED:
# …: OK".
_GRPC_LAYERS = re.compile(r".*(?:OPENSSL_internal:|lookup error:|last error: \w+: (?:ipv[46]|unix):\S+: )", re.DOTALL)

# Variables of the tests, and those that Kubernetes sets in every pod for a service named bookstore.
_FOREIGN_VARIABLES = re.compile(r"BOOKSTORE_(TEST_|(\w+_)?(SERVICE_HOST|SERVICE_PORT|PORT)(_\w+)?$)")


class Seconds(click.FloatRange):
    """A finite number of seconds. click's own range would accept nan and inf."""

    def convert(self, value: Any, param: click.Parameter | None, ctx: click.Context | None) -> Any:
        """Return the number. Raises a usage error."""
        seconds = super().convert(value, param, ctx)
        if not math.isfinite(seconds):
            self.fail(f"{value!r} is not a number of seconds.", param, ctx)
        return seconds


def unknown_variables(context: click.Context) -> list[str]:
    """Return the BOOKSTORE_ variables that no option reads, such as typos, which could silently disable security."""
    main = context.find_root().command
    known = {"BOOKSTORE_TOKEN"}  # has no flag, because `ps` shows flags to everyone
    for command in main.commands.values() if isinstance(main, click.Group) else ():
        known.update(parameter.envvar for parameter in command.params if isinstance(parameter.envvar, str))
    return sorted(
        name
        for name in os.environ
        if name.startswith("BOOKSTORE_") and name not in known and not _FOREIGN_VARIABLES.match(name)
    )


def connection_options(command: Callable[..., None]) -> Callable[..., None]:
    """Add the options for server, timeout, TLS and token to a verb."""
    for option in (
        _option("--insecure", is_flag=True, help="Send the token in plaintext to another machine too."),
        _option("--token-file", help="File with the bearer token; alternatively the token is in BOOKSTORE_TOKEN."),
        _option("--key", help="PEM file with the private key of --cert."),
        _option("--cert", help="PEM file with the client certificate. Implies --tls."),
        _option("--ca", help="PEM file with the CA of the server's certificate. Implies --tls."),
        _option("--tls", is_flag=True, help="Use TLS."),
        click.option(
            "--timeout-seconds",
            cls=OptionWithVariable,
            type=Seconds(min=0, min_open=True),
            default=DEFAULT_TIMEOUT_SECONDS,
            envvar="BOOKSTORE_TIMEOUT_SECONDS",
            show_default=True,
            show_envvar=True,
            help="Deadline of each call, in seconds.",
        ),
        click.option(
            "--server",
            cls=OptionWithVariable,
            default=DEFAULT_SERVER,
            envvar="BOOKSTORE_SERVER",
            show_default=True,
            show_envvar=True,
            help="Address of the server: HOST:PORT or unix:PATH.",
        ),
    ):
        command = option(command)
    return command


def _option(flag: str, **options: Any) -> Callable[[Callable[..., None]], Callable[..., None]]:
    """Return an option with its variable, empty by default."""
    # BOOKSTORE_INSECURE is a setting of the server.
    name = "CLIENT_INSECURE" if flag == "--insecure" else flag[2:].upper().replace("-", "_")
    default = False if "is_flag" in options else ""
    return click.option(
        flag, cls=OptionWithVariable, envvar=f"BOOKSTORE_{name}", show_envvar=True, default=default, **options
    )


def run_with_client(
    work: "Callable[[BookstoreClient], Awaitable[None]]",
    *,
    server: str,
    timeout_seconds: float,
    wait_for_ready: bool = False,
    **security: Any,
) -> None:
    """Run `work` with a client. An error becomes a message and exit status 1.

    By default it is reported immediately that no server is running. With `wait_for_ready` the first call waits for one.
    """

    async def run() -> None:
        async with _client(server, timeout_seconds, wait_for_ready=wait_for_ready, **security) as client:
            await work(client)

    for name in unknown_variables(click.get_current_context()):
        click.echo(f"Warning: {name} is not a variable of this command and has no effect.", err=True)
    try:
        asyncio.run(run())
        sys.stdout.flush()
    except UnicodeEncodeError as error:
        raise click.ClickException("An argument is not UTF-8 text.") from error
    except OSError as error:
        if error.errno == errno.EPIPE:
            raise  # the reader closed the pipe: click exits quietly
        discard_output()
        raise click.ClickException(f"Cannot write the output: {error.strerror}.") from error
    except BookstoreError as error:
        raise click.ClickException(message_from_error(error, server=server)) from error


def _client(
    server: str,
    timeout_seconds: float,
    *,
    wait_for_ready: bool,
    tls: bool,
    ca: str,
    cert: str,
    key: str,
    token_file: str,
    insecure: bool,
) -> "BookstoreClient":
    from bookstore_grpc.client import TLS, BookstoreClient, TokenFile, metadata_from_environment

    try:
        return BookstoreClient(
            server,
            timeout_seconds=timeout_seconds,
            wait_for_ready=wait_for_ready,
            tls=TLS(ca=ca, cert=cert, key=key) if tls or ca or cert or key else None,
            # A variable but no flag: `ps` shows arguments to everyone.
            token=TokenFile(token_file) if token_file else _token_from_environment(),
            insecure=insecure,
            trace_context=metadata_from_environment(os.environ),
        )
    except OSError as error:
        # Only the token file raises OSError, and a failed read does not name the file.
        raise click.ClickException(f"Cannot connect to {server}: {token_file}: {error.strerror}.") from error
    except ValueError as error:
        raise click.ClickException(f"Cannot connect to {server}: {error}.") from error


def _token_from_environment() -> str:
    token = os.environ.get("BOOKSTORE_TOKEN")
    if token is not None and not token.strip():
        raise empty_variable("BOOKSTORE_TOKEN")
    return token or ""


def discard_output() -> None:
    """Discard what cannot be written to standard output: flushing it at exit would fail again, with a traceback."""
    os.dup2(os.open(os.devnull, os.O_WRONLY), sys.stdout.fileno())


def report_outage(error: BookstoreError | None) -> None:
    """Report on standard error that a watch reconnects, or with None that it has."""
    click.echo(
        "The service is not responding; reconnecting." if error else "The service is responding again.", err=True
    )


def message_from_error(error: BookstoreError, *, server: str) -> str:
    """Return a message for the user: every violation, the reason, the request id, and what to do."""
    if isinstance(error, InvalidRequest) and error.violations:
        lines = [f"{violation.field}: {violation.description}." for violation in error.violations]
        sentence = "\n       ".join(lines)
    elif error.request_id is None and isinstance(error, Unavailable) and not _is_rejected_by_core(error):
        return (
            f"Could not connect to {server}: {_grpc_cause(error.message)}. Start a server with `bookstore serve`, or "
            "name another with --server. If it uses TLS, give --tls, --ca for the CA of its certificate, and --cert "
            "with --key if it requires a client certificate."
        )
    elif error.request_id is None and isinstance(error, DeadlineExceeded):
        return f"{server} did not respond in time: {_grpc_cause(error.message)}. --timeout-seconds allows more time."
    else:
        sentence = error.message
    # Without the key in the message, the server accepts only certificates.
    if isinstance(error, TokenMissing) and AUTHORIZATION_KEY in error.message:
        sentence += " Give a file that holds one with --token-file."
    reason = f" [{error.reason}]" if error.reason else ""
    request = f" (request id {error.request_id})" if error.request_id else ""
    return f"{sentence}{reason}{request}"


def _is_rejected_by_core(error: Unavailable) -> bool:
    import grpc

    return isinstance(error.__cause__, grpc.aio.AioRpcError) and error.__cause__.code() is grpc.StatusCode.CANCELLED


def _grpc_cause(details: str) -> str:
    """Return the cause at the end of gRPC's message, without the prefixes of its layers and addresses."""
    return _GRPC_LAYERS.sub("", details).removesuffix(": OK").rstrip("].")


def count_with_noun(count: int, noun: str) -> str:
    """Return a count with its noun: "1 book", "9,979 books"."""
    return f"{count:,} {noun}" + ("" if count == 1 else "s")


def total_text(count: int, *, is_exceeded: bool) -> str:
    """Return how many books there are, as the service has counted them: "3,204 books", "more than 10,000 books"."""
    return f"more than {count:,} books" if is_exceeded else count_with_noun(count, "book")
