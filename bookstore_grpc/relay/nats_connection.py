"""The connection to NATS: its options, credentials from files, and reports of outages without secrets."""

import ssl
from collections.abc import AsyncIterator, Callable
from contextlib import asynccontextmanager, suppress
from typing import Any, NamedTuple

from nats.aio.client import Client
from nats.errors import Error as NatsError

from bookstore_grpc.errors import BookstoreError

Report = Callable[[str], None]

# One attempt to connect.
_CONNECT_SECONDS = 5
_RECONNECT_WAIT_SECONDS = 1
# Detect a server that disappeared without closing the connection after 20 to 30 s.
_PING_SECONDS = 10


class RelayError(BookstoreError):
    """The relay cannot go on; the message says why and what to do."""


class NatsOptions(NamedTuple):
    """Where NATS is, as one or more URLs with commas in between, and paths of files with credentials; "" for none."""

    url: str
    creds: str = ""
    nkey: str = ""
    token_file: str = ""
    ca: str = ""
    cert: str = ""
    key: str = ""

    @property
    def shown_url(self) -> str:
        """The URL without user, password and token."""
        return ",".join(each.rpartition("@")[2].rpartition("//")[2] for each in self._urls)

    @property
    def _urls(self) -> list[str]:
        return [each.strip() for each in self.url.split(",") if each.strip()]

    def arguments(self) -> dict[str, Any]:
        """Return the arguments of `nats.connect`. Raises `RelayError` for files that cannot be used."""
        arguments: dict[str, Any] = {"servers": self._urls}
        if self.creds:
            arguments["user_credentials"] = _readable(self.creds)
        if self.nkey:
            arguments["nkeys_seed"] = _readable(self.nkey)
        if self.token_file:
            with open(_readable(self.token_file), encoding="utf-8") as file:
                arguments["token"] = file.read().strip()
        if self.ca or self.cert:
            arguments["tls"] = self._ssl_context()
        return arguments

    def _ssl_context(self) -> ssl.SSLContext:
        try:
            context = ssl.create_default_context(cafile=self.ca or None)
            if self.cert:
                context.load_cert_chain(self.cert, self.key or None)
        except OSError as error:  # of which ssl.SSLError is one
            raise RelayError(f"The files for TLS to NATS cannot be used: {error}.") from error
        return context


@asynccontextmanager
async def nats_connection(
    options: NatsOptions, *, report: Report, on_lost: Callable[[], None]
) -> AsyncIterator[Client]:
    """Connect to NATS while a block runs. A lost connection is reported, and replaced until the block ends.

    `on_lost` is called when a connection is lost. Raises `RelayError` if none can be made at first.
    """
    arguments = options.arguments()
    failures: list[str] = []
    client = Client()

    async def note_error(error: Exception) -> None:
        text = f"{error}".removeprefix("nats: ") or type(error).__name__
        if not has_connected:
            failures.append(text)
            if len(failures) >= len(arguments["servers"]):
                raise RelayError(f"Could not connect to NATS at {options.shown_url}: {text}.")
        elif text not in failures:  # each attempt has the same
            failures.append(text)
            report(f"NATS: {text}.")

    async def note_lost() -> None:
        failures.clear()
        on_lost()
        if not is_closing:
            report(f"The connection to NATS at {options.shown_url} is lost; reconnecting.")

    async def note_reconnected() -> None:
        report("Connected to NATS again.")

    has_connected = is_closing = False
    try:
        await client.connect(
            **arguments,
            name="bookstore relay",
            connect_timeout=_CONNECT_SECONDS,
            max_reconnect_attempts=-1,
            reconnect_time_wait=_RECONNECT_WAIT_SECONDS,
            ping_interval=_PING_SECONDS,
            error_cb=note_error,
            disconnected_cb=note_lost,
            reconnected_cb=note_reconnected,
        )
    except (NatsError, ValueError, OSError) as error:
        raise RelayError(f"Could not connect to NATS at {options.shown_url}: {error}.") from error
    has_connected = True
    failures.clear()
    try:
        yield client
    finally:
        is_closing = True
        with suppress(OSError, NatsError):  # it writes to a connection that may be lost
            await client.close()


def _readable(path: str) -> str:
    try:
        with open(path, "rb"):
            return path
    except OSError as error:
        raise RelayError(f"{path} cannot be read: {error.strerror}.") from error
