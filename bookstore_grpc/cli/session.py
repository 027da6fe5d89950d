"""What every client verb shares: the connection, and errors told as sentences."""

import asyncio
import errno
import math
import os
import sys
from collections.abc import Awaitable, Callable
from typing import TYPE_CHECKING, Any

import click

from bookstore_grpc.errors import BookstoreError, DeadlineExceeded, InvalidRequest, Unavailable
from bookstore_grpc.wire import DEFAULT_SERVER, DEFAULT_TIMEOUT_SECONDS

if TYPE_CHECKING:
    from bookstore_grpc.client import BookstoreClient


class Seconds(click.FloatRange):
    """A time that a flag gives: a number, and no nan or inf, which no range keeps out."""

    def convert(self, value: Any, param: click.Parameter | None, ctx: click.Context | None) -> Any:
        """Read the number, or end with a usage error."""
        seconds = super().convert(value, param, ctx)
        if not math.isfinite(seconds):
            self.fail(f"{value!r} is no time.", param, ctx)
        return seconds


def connection_options(command: Callable[..., None]) -> Callable[..., None]:
    """Give a verb the flags that say which server it talks to, and how long it waits."""
    for option in (
        click.option(
            "--timeout-seconds",
            type=Seconds(min=0, min_open=True),
            default=DEFAULT_TIMEOUT_SECONDS,
            envvar="BOOKSTORE_TIMEOUT_SECONDS",
            show_default=True,
            show_envvar=True,
            help="How long each call may take.",
        ),
        click.option(
            "--server",
            default=DEFAULT_SERVER,
            envvar="BOOKSTORE_SERVER",
            show_default=True,
            show_envvar=True,
            help="The server: HOST:PORT or unix:PATH.",
        ),
    ):
        command = option(command)
    return command


def run_with_client(
    work: "Callable[[BookstoreClient], Awaitable[None]]", *, server: str, timeout_seconds: float
) -> None:
    """Run `work` with a client, and turn what goes wrong into a sentence and exit status 1."""
    from bookstore_grpc.client import BookstoreClient

    async def run() -> None:
        async with BookstoreClient(server, timeout_seconds=timeout_seconds) as client:
            await work(client)

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


def sentence_from_error(error: BookstoreError, *, server: str) -> str:
    """Say what went wrong, with field and reason where there are any."""
    if isinstance(error, InvalidRequest) and error.violations:
        lines = [f"{violation.field}: {violation.description}." for violation in error.violations]
        sentence = "\n       ".join(lines)
    elif error.request_id is None and isinstance(error, Unavailable):
        # gRPC's own words are about sockets; the caller knows the server by the name it gave.
        return f"No server answers at {server}. Start one with `bookstore serve`, or name another with --server."
    elif error.request_id is None and isinstance(error, DeadlineExceeded):
        return f"{server} did not answer in time; --timeout-seconds gives it longer."
    else:
        sentence = error.message
    reason = f" [{error.reason}]" if error.reason else ""
    request = f" (request id {error.request_id})" if error.request_id else ""
    return f"{sentence}{reason}{request}"


def shown_count(count: int, noun: str) -> str:
    """Write a count with its noun: "1 book", "9,979 books"."""
    return f"{count:,} {noun}" + ("" if count == 1 else "s")
