"""`bookstore relay`: publishes the changes of books to NATS JetStream, until it is stopped."""

import asyncio
import re
import signal
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from importlib.util import find_spec
from typing import TYPE_CHECKING, Any

import click
from click.core import ParameterSource

from bookstore_grpc.cli.options import OptionWithVariable
from bookstore_grpc.cli.session import connection_options, message_from_error, report_outage, run_with_client
from bookstore_grpc.errors import BookstoreError, InvalidResumeToken, ResumeTokenExpired

if TYPE_CHECKING:
    from bookstore_grpc.client import BookstoreClient, BookWatch
    from bookstore_grpc.client.watching import Start
    from bookstore_grpc.relay.events import EventFormat
    from bookstore_grpc.relay.positions import Position
    from bookstore_grpc.relay.relay import Relay

_NAME = re.compile(r"[A-Za-z0-9_-]+")
_PREFIX = re.compile(r"[A-Za-z0-9_-]+(\.[A-Za-z0-9_-]+)*")
_SECRET = re.compile(r"//[^/,]*@")
_HOUR_SECONDS = 3_600
# The options that are not of the connection to the service.
_OWN_OPTIONS = (
    *("nats_url", "nats_creds", "nats_nkey", "nats_token_file", "nats_ca", "nats_cert", "nats_key"),
    *("stream", "subject_prefix", "source", "event_format", "filter", "start", "reset", "max_age_hours", "replicas"),
)


def _nats_options(command: Callable[..., None]) -> Callable[..., None]:
    """Add the options for the connection to NATS. Secrets are read from files, because `ps` shows arguments."""
    for flag, text in (
        ("--nats-key", "PEM file with the private key of --nats-cert."),
        ("--nats-cert", "PEM file with the client certificate for NATS."),
        ("--nats-ca", "PEM file with the CA of NATS's certificate."),
        ("--nats-token-file", "File with the token for NATS."),
        ("--nats-nkey", "File with the seed of an NKey for NATS."),
        ("--nats-creds", "File with the credentials (a JWT and its NKey) for NATS."),
    ):
        variable = f"BOOKSTORE_{flag[2:].upper().replace('-', '_')}"
        option = click.option(flag, cls=OptionWithVariable, envvar=variable, show_envvar=True, default="", help=text)
        command = option(command)
    return command


@click.command()
@click.option(
    "--to",
    "nats_url",
    cls=OptionWithVariable,
    envvar="BOOKSTORE_NATS_URL",
    show_envvar=True,
    required=True,
    help="URL of NATS: nats://HOST:4222, or tls://HOST:4222 for TLS; several with commas in between.",
)
@click.option(
    "--stream",
    default="BOOKSTORE",
    show_default=True,
    help="The stream of JetStream. It is created if it is missing, and otherwise left as it is.",
)
@click.option(
    "--subject-prefix",
    default="bookstore.books",
    show_default=True,
    help="Changes are published to PREFIX.created, .updated, .deleted and .existing.",
)
@click.option(
    "--source",
    default="/bookstore.v1.BookService",
    show_default=True,
    help="The source of the events, a URI reference. Name each database differently.",
)
@click.option(
    "--format",
    "event_format",
    type=click.Choice(["json", "protobuf"]),
    default="json",
    show_default=True,
    help="CloudEvents as JSON (structured mode), or headers with a serialized BookChange as data (binary mode).",
)
@click.option("--filter", default="", help="Publish the changes of books that match (AIP-160).  [default: all]")
@click.option(
    "--start",
    type=click.Choice(["now", "earliest", "existing"]),
    default="now",
    show_default=True,
    help="Where the first run starts: with new changes, the earliest that are kept, or all existing books. Later runs "
    "continue.",
)
@click.option("--reset", is_flag=True, help="Forget the position, and start as a first run does.")
@click.option(
    "--max-age-hours",
    type=click.FloatRange(min=0, min_open=True),
    default=168,
    show_default=True,
    help="How long a stream that is created keeps messages.",
)
@click.option(
    "--replicas",
    type=click.IntRange(1, 5),
    default=1,
    show_default=True,
    help="On how many servers of NATS a stream that is created is stored.",
)
@_nats_options
@connection_options
@click.pass_context
def relay(context: click.Context, /, **options: Any) -> None:
    """Publish the changes of books to NATS JetStream as CloudEvents, until SIGTERM or Ctrl-C.

    Each change is published once, in order, whatever is restarted or killed. The position is kept in JetStream, in the
    bucket BOOKSTORE_RELAY, so any machine can continue. The stream has to be the relay's own. Two relays with the same
    options may run at once: what one publishes the other skips, and of existing books one waits for the other.

    \b
    Examples:
      bookstore relay --to nats://127.0.0.1:4222 --start existing
      BOOKSTORE_NATS_URL=tls://relay:PASSWORD@nats.example.com bookstore relay
      bookstore relay --to tls://nats.example.com --nats-creds relay.creds
    """  # noqa: D301  a mark for click, which keeps the lines that follow
    if not _NAME.fullmatch(options["stream"]):
        raise click.UsageError("--stream takes letters, digits, - and _.")
    if not _PREFIX.fullmatch(options["subject_prefix"]):
        raise click.UsageError("--subject-prefix takes letters, digits, - and _, with dots in between.")
    is_argument = context.get_parameter_source("nats_url") is ParameterSource.COMMANDLINE
    if is_argument and _SECRET.search(options["nats_url"]):
        click.echo(
            "Warning: `ps` shows the credentials in --to to everyone on this machine; set BOOKSTORE_NATS_URL instead.",
            err=True,
        )
    settings = {name: options.pop(name) for name in _OWN_OPTIONS}
    for module in ("nats", "nkeys"):
        if find_spec(module) is None:
            raise click.ClickException(
                f"`bookstore relay` needs the extra [nats] (no module {module!r}): pip install 'bookstore-grpc[nats]'."
            )

    async def work(client: "BookstoreClient") -> None:
        await _relay(client, **settings)

    # A service manager may start it with the server, or before.
    run_with_client(work, wait_for_ready=True, **options)


async def _relay(
    client: "BookstoreClient",
    *,
    nats_url: str,
    stream: str,
    subject_prefix: str,
    source: str,
    event_format: "EventFormat",
    filter: str,
    start: "Start",
    reset: bool,
    max_age_hours: float,
    replicas: int,
    **nats_files: str,
) -> None:
    from bookstore_grpc.relay.events import event_from_change
    from bookstore_grpc.relay.jetstream import StreamOptions, open_jetstream
    from bookstore_grpc.relay.nats_connection import NatsOptions
    from bookstore_grpc.relay.relay import Relay

    nats_options = NatsOptions(nats_url, **{name.removeprefix("nats_"): path for name, path in nats_files.items()})
    stream_options = StreamOptions(stream, subject_prefix, max_age_hours * _HOUR_SECONDS, replicas)
    async with open_jetstream(nats_options, stream_options, report=_report) as jetstream:
        position = await jetstream.begin(is_reset=reset)

        def open_watch(resume_token: str) -> "BookWatch":
            return client.watch_books(filter=filter, resume_token=resume_token, start=start, on_outage=report_outage)

        running = Relay(
            open_watch,
            jetstream,
            position,
            encode=lambda change: event_from_change(change.message, source=source, event_format=event_format),
            report=_report,
        )
        _report(
            f"Publishing the changes of {client.server} to {subject_prefix}.* in the stream {stream} of "
            f"{nats_options.shown_url}, {_beginning(position, start)}."
        )
        with _stopped_by_signals(running):
            try:
                await running.run()
            except (InvalidResumeToken, ResumeTokenExpired) as error:
                raise click.ClickException(_reset_text(error, server=client.server)) from error


@contextmanager
def _stopped_by_signals(running: "Relay") -> Iterator[None]:
    """Let SIGTERM and SIGINT stop the relay. A second signal ends the process immediately."""
    loop = asyncio.get_running_loop()
    numbers = (signal.SIGTERM, signal.SIGINT)

    def stop() -> None:
        for number in numbers:
            loop.remove_signal_handler(number)
            signal.signal(number, signal.SIG_DFL)
        running.stop()

    for number in numbers:
        loop.add_signal_handler(number, stop)
    try:
        yield
    finally:
        for number in numbers:
            loop.remove_signal_handler(number)


def _beginning(position: "Position", start: str) -> str:
    if position.resume_token:
        return f"after the change {position.number}" if position.number else "where the last run stopped"
    return {
        "now": "starting with new ones",
        "earliest": "starting with the earliest that are kept",
        "existing": "starting with all existing books",
    }[start]


def _reset_text(error: BookstoreError, *, server: str) -> str:
    return (
        f"{message_from_error(error, server=server)} The relay cannot continue from its position: consumers miss "
        "changes. Start over with --reset --start existing, which publishes all books, or --reset --start earliest."
    )


def _report(text: str) -> None:
    click.echo(text, err=True)
