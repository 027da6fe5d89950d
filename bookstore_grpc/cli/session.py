"""What every client verb shares: the connection, and errors told as sentences."""

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


# As in "connections to all backends failing; last error: UNKNOWN: ipv4:127.0.0.1:50051: Tls handshake failed
# (TSI_PROTOCOL_FAILURE): SSL_ERROR_SSL: error:1000007d:SSL routines:OPENSSL_internal:CERTIFICATE_VERIFY_FAILED: …: OK".
_GRPC_LAYERS = re.compile(r".*(?:OPENSSL_internal:|lookup error:|last error: \w+: (?:ipv[46]|unix):\S+: )", re.DOTALL)


# Those of the tests, and what Kubernetes tells every pod of a service that is named bookstore.
_OTHERS = re.compile(r"BOOKSTORE_(TEST_|(\w+_)?(SERVICE_HOST|SERVICE_PORT|PORT)(_\w+)?$)")


class Seconds(click.FloatRange):
    """A time that a flag gives: a number, and no nan or inf, which no range keeps out."""

    def convert(self, value: Any, param: click.Parameter | None, ctx: click.Context | None) -> Any:
        """Read the number, or end with a usage error."""
        seconds = super().convert(value, param, ctx)
        if not math.isfinite(seconds):
            self.fail(f"{value!r} is no time.", param, ctx)
        return seconds


def unknown_variables(context: click.Context) -> list[str]:
    """Name the variables that look like ours and are none, as with a typo, which would leave a door open unnoticed."""
    main = context.find_root().command
    known = {"BOOKSTORE_TOKEN"}  # of no flag, for `ps` shows flags to everyone
    for command in main.commands.values() if isinstance(main, click.Group) else ():
        known.update(parameter.envvar for parameter in command.params if isinstance(parameter.envvar, str))
    return sorted(
        name for name in os.environ if name.startswith("BOOKSTORE_") and name not in known and not _OTHERS.match(name)
    )


def connection_options(command: Callable[..., None]) -> Callable[..., None]:
    """Give a verb the flags that say which server it talks to, how, as whom, and how long it waits."""
    for option in (
        _option("--insecure", is_flag=True, help="Send the token although others could read it on its way."),
        _option("--token-file", help="A file with a token that says who calls; or put it in BOOKSTORE_TOKEN."),
        _option("--key", help="A file with the private key of --cert, as PEM."),
        _option("--cert", help="A file with a certificate that says who calls, as PEM. Implies --tls."),
        _option("--ca", help="A file with who vouches for the server, as PEM. Implies --tls."),
        _option("--tls", is_flag=True, help="Speak TLS."),
        click.option(
            "--timeout-seconds",
            cls=OptionWithVariable,
            type=Seconds(min=0, min_open=True),
            default=DEFAULT_TIMEOUT_SECONDS,
            envvar="BOOKSTORE_TIMEOUT_SECONDS",
            show_default=True,
            show_envvar=True,
            help="How long each call may take.",
        ),
        click.option(
            "--server",
            cls=OptionWithVariable,
            default=DEFAULT_SERVER,
            envvar="BOOKSTORE_SERVER",
            show_default=True,
            show_envvar=True,
            help="The server: HOST:PORT or unix:PATH.",
        ),
    ):
        command = option(command)
    return command


def _option(flag: str, **options: Any) -> Callable[[Callable[..., None]], Callable[..., None]]:
    """Make a flag with its variable; by default nothing is given."""
    # Of the flag's name there is a setting of the server already.
    name = "CLIENT_INSECURE" if flag == "--insecure" else flag[2:].upper().replace("-", "_")
    default = False if "is_flag" in options else ""
    return click.option(
        flag, cls=OptionWithVariable, envvar=f"BOOKSTORE_{name}", show_envvar=True, default=default, **options
    )


def run_with_client(
    work: "Callable[[BookstoreClient], Awaitable[None]]", *, server: str, timeout_seconds: float, **doors: Any
) -> None:
    """Run `work` with a client, and turn what goes wrong into a sentence and exit status 1."""

    async def run() -> None:
        async with _client(server, timeout_seconds, **doors) as client:
            await work(client)

    for name in unknown_variables(click.get_current_context()):
        click.echo(f"Warning: {name} is no variable of this command and does nothing.", err=True)
    try:
        asyncio.run(run())
        sys.stdout.flush()
    except UnicodeEncodeError as error:
        raise click.ClickException("What was given is not UTF-8 text.") from error
    except OSError as error:
        if error.errno == errno.EPIPE:
            raise  # click ends quietly: whoever read the output has had enough
        # What is still to be written would fail again at the end, where nobody can say it in a sentence.
        os.dup2(os.open(os.devnull, os.O_WRONLY), sys.stdout.fileno())
        raise click.ClickException(f"Cannot write the output: {error.strerror}.") from error
    except BookstoreError as error:
        raise click.ClickException(sentence_from_error(error, server=server)) from error


def _client(
    server: str,
    timeout_seconds: float,
    *,
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
            wait_for_ready=False,  # whoever has started no server is to hear it now
            tls=TLS(ca=ca, cert=cert, key=key) if tls or ca or cert or key else None,
            # Only a variable: `ps` shows arguments to everyone.
            token=TokenFile(token_file) if token_file else _token_from_environment(),
            insecure=insecure,
            trace_context=metadata_from_environment(os.environ),
        )
    except OSError as error:
        # Of other files it is a ValueError, and an error of reading has no file's name.
        raise click.ClickException(f"Cannot connect to {server}: {token_file}: {error.strerror}.") from error
    except ValueError as error:
        raise click.ClickException(f"Cannot connect to {server}: {error}.") from error


def _token_from_environment() -> str:
    token = os.environ.get("BOOKSTORE_TOKEN")
    if token is not None and not token.strip():
        raise empty_variable("BOOKSTORE_TOKEN")
    return token or ""


def sentence_from_error(error: BookstoreError, *, server: str) -> str:
    """Say what went wrong, with field and reason where there are any."""
    if isinstance(error, InvalidRequest) and error.violations:
        lines = [f"{violation.field}: {violation.description}." for violation in error.violations]
        sentence = "\n       ".join(lines)
    elif error.request_id is None and isinstance(error, Unavailable) and not _is_turned_away(error):
        return (
            f"Cannot reach {server}: {_grpc_cause(error.message)}. Start one with `bookstore serve`, or name another "
            "with --server. If it speaks TLS: --tls, --ca for who vouches for it, and --cert with --key if it asks "
            "callers for one."
        )
    elif error.request_id is None and isinstance(error, DeadlineExceeded):
        return f"{server} did not answer in time: {_grpc_cause(error.message)}. --timeout-seconds gives it longer."
    else:
        sentence = error.message
    if isinstance(error, TokenMissing) and AUTHORIZATION_KEY in error.message:  # else only certificates count there
        sentence += " --token-file names a file with one."
    reason = f" [{error.reason}]" if error.reason else ""
    request = f" (request id {error.request_id})" if error.request_id else ""
    return f"{sentence}{reason}{request}"


def _is_turned_away(error: Unavailable) -> bool:
    import grpc

    return isinstance(error.__cause__, grpc.aio.AioRpcError) and error.__cause__.code() is grpc.StatusCode.CANCELLED


def _grpc_cause(details: str) -> str:
    """Answer the end of what gRPC says, which has the cause; before it stand its own layers and our addresses."""
    return _GRPC_LAYERS.sub("", details).removesuffix(": OK").rstrip("].")


def shown_count(count: int, noun: str) -> str:
    """Write a count with its noun: "1 book", "9,979 books"."""
    return f"{count:,} {noun}" + ("" if count == 1 else "s")
