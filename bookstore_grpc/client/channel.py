"""How a client reaches the service: connecting again, keepalive, TLS, and the token that says who calls."""

import asyncio
import json
import os
import ssl
from collections.abc import Callable
from dataclasses import dataclass

import grpc
from bookstore.v1 import books_pb2_grpc
from grpc_health.v1 import health_pb2

from bookstore_grpc.errors import ClientUnusable
from bookstore_grpc.limits import MESSAGE_MAX_BYTES
from bookstore_grpc.metadata import AUTHORIZATION_KEY, Metadata
from bookstore_grpc.net.address import is_local
from bookstore_grpc.net.file_stamp import file_stamp

_OPTIONS = (
    # Calls go to all servers of a name in turn. What is sent again is for `retries`: gRPC's own policies know neither
    # whether a call has begun nor a deadline.
    ("grpc.service_config", json.dumps({"loadBalancingConfig": [{"round_robin": {}}]})),
    # A server that is back is found within a second (gRPC's own: up to two minutes), one that does not answer is given
    # up after five (20), and a name that has come to mean another address is looked up again after two (30).
    ("grpc.initial_reconnect_backoff_ms", 100),
    ("grpc.max_reconnect_backoff_ms", 1_000),
    ("grpc.min_reconnect_backoff_ms", 5_000),  # for how long a connection may be under way
    ("grpc.dns_min_time_between_resolutions_ms", 2_000),
    # Notice a server that has gone without saying so; the server permits a ping every 10 s.
    ("grpc.keepalive_time_ms", 30_000),
    ("grpc.keepalive_timeout_ms", 10_000),
    # A thousand books with the longest texts are more than gRPC's own 4 MiB.
    ("grpc.max_receive_message_length", MESSAGE_MAX_BYTES),
    # What a server has surely not seen gRPC sends again by itself, if it has kept it; a batch is more than its 256 KiB.
    ("grpc.per_rpc_retry_buffer_size", MESSAGE_MAX_BYTES),
)


@dataclass(frozen=True, kw_only=True)
class TLS:
    """Files, as PEM: who vouches for the server (else gRPC's own list), and what shows who the client is."""

    ca: str = ""
    cert: str = ""
    key: str = ""


class TokenFile:
    """A token in a file, read again when the file changes, as those do that an orchestrator renews.

    While the file is away, cannot be read or holds no token, the one that was there stays. Raises `OSError`, and
    `ValueError` where the file holds none at first.
    """

    def __init__(self, path: str) -> None:
        self._path = path
        self._seen: tuple[int, ...] = ()
        self._token = ""
        self()

    def __call__(self) -> str:
        """Answer the token."""
        try:
            seen = file_stamp(self._path)
            if seen != self._seen:
                # What is no text is no token either.
                with open(self._path, encoding="utf-8", errors="replace") as file:
                    self._token = _checked(file.read().strip(), self._path)
                self._seen = seen
        except (OSError, ValueError):
            if not self._token:
                raise
        return self._token


class Connection:
    """A channel to the service and the stubs on it, of the event loop and the process that have opened it."""

    def __init__(self, channel: grpc.aio.Channel) -> None:
        self.channel = channel
        self.books = books_pb2_grpc.BookServiceStub(channel)
        self.check_health = channel.unary_unary(
            "/grpc.health.v1.Health/Check",
            request_serializer=health_pb2.HealthCheckRequest.SerializeToString,
            response_deserializer=health_pb2.HealthCheckResponse.FromString,
        )
        self._loop = asyncio.get_running_loop()
        self._pid = os.getpid()
        self._connecting: asyncio.Task[None] | None = None

    def check_place(self) -> None:
        """Raise `ClientUnusable` in another process or event loop: gRPC would hang there, or abort the process."""
        # The process first: a loop that was forked is none to asyncio.
        if os.getpid() != self._pid:
            raise ClientUnusable("This client belongs to the process that this one was forked from; make one in each.")
        if asyncio.get_running_loop() is not self._loop:
            raise ClientUnusable("This client belongs to another event loop; make one in each.")

    @property
    def is_orphaned(self) -> bool:
        """Whether its event loop has been closed, with which all of its calls have ended."""
        return self._loop.is_closed()

    @property
    def state(self) -> grpc.ChannelConnectivity:
        """What gRPC knows of the servers: READY if any is connected, TRANSIENT_FAILURE if none can be."""
        return self.channel.get_state()

    def connecting(self) -> asyncio.Task[None] | None:
        """Return what is done once a server has been connected, also if it is lost again, or None if one is.

        A call that was sent meanwhile has not left this process while it is not done.
        """
        if self.state is grpc.ChannelConnectivity.READY:
            return None
        if self._connecting is None or self._connecting.done():
            self._connecting = asyncio.create_task(self._wait_until_connected())
        return self._connecting

    async def _wait_until_connected(self) -> None:
        ends = (grpc.ChannelConnectivity.READY, grpc.ChannelConnectivity.SHUTDOWN)
        while (state := self.state) not in ends:
            await self.channel.wait_for_state_change(state)


def connector(server: str, tls: TLS | None) -> Callable[[], Connection]:
    """Return what opens a channel in the running event loop, which connects with the first call.

    Files are read now. Raises `ValueError` for those that cannot be used.
    """
    if tls is None:
        # What stays on this machine gRPC would send through a proxy all the same, and a token could be read there.
        options = (*_OPTIONS, ("grpc.enable_http_proxy", 0)) if is_local(server) else _OPTIONS
        return lambda: Connection(grpc.aio.insecure_channel(server, options=options))
    if bool(tls.cert) != bool(tls.key):
        raise ValueError("a certificate needs its key, and a key its certificate")
    ca, cert, key = (_contents(path) for path in (tls.ca, tls.cert, tls.key))
    _check_files(tls, ca, cert)
    return lambda: Connection(
        grpc.aio.secure_channel(server, grpc.ssl_channel_credentials(ca, key, cert), options=_OPTIONS)
    )


def call_metadata(
    server: str, *, token: str | Callable[[], str], is_encrypted: bool, insecure: bool
) -> Callable[[], Metadata]:
    """Make what answers the metadata of a call: the token, if there is one.

    Raises `ValueError` for what is no token, and where it could be read on its way, unless `insecure` wants that; what
    is returned raises it too, where `token` is a function that has come to return none.
    """
    if not token:
        return lambda: ()
    if not (is_encrypted or insecure or is_local(server)):
        raise ValueError(f"a token would travel to {server} in plaintext, for everyone on the way to read; use TLS")
    if isinstance(token, str):
        metadata = _bearer(_checked(token, "what was given"))
        return lambda: metadata
    ask = token
    return lambda: _bearer(_checked(ask(), "what the function for the token returned"))


def _bearer(token: str) -> Metadata:
    return ((AUTHORIZATION_KEY, f"Bearer {token}"),)


def _checked(token: str, source: str) -> str:
    if not token or not token.isascii() or not token.isprintable() or " " in token:
        raise ValueError(f"{source} is no token")
    return token


def _contents(path: str) -> bytes | None:
    if not path:
        return None
    try:
        with open(path, "rb") as file:
            return file.read()
    except OSError as error:
        raise ValueError(f"{path} cannot be read ({error.strerror})") from error


def _check_files(tls: TLS, ca: bytes | None, cert: bytes | None) -> None:
    """Raise `ValueError` for what gRPC would find out with the first call, and then not say of which file."""
    for path, contents in ((tls.ca, ca), (tls.cert, cert)):
        if contents is None:
            continue
        try:
            # What stands beside the certificates, in any language, is nobody's business.
            _ssl_context().load_verify_locations(cadata=contents.decode("ascii", errors="ignore"))
        except (ssl.SSLError, ValueError) as error:  # ValueError: nothing at all
            raise ValueError(f"{path} holds no certificate in PEM form") from error
    # What is no file, such as a shell's <(command), can be read only once.
    if not (os.path.isfile(tls.cert) and os.path.isfile(tls.key)):
        return
    context = _ssl_context()
    context.set_ciphers("DEFAULT:@SECLEVEL=0")  # which keys are too weak is for gRPC and the server to say
    try:
        # Without a password it would ask for one at the terminal.
        context.load_cert_chain(tls.cert, tls.key, password="")
    except ssl.SSLError as error:
        if error.reason in ("KEY_VALUES_MISMATCH", "KEY_TYPE_MISMATCH"):
            raise ValueError(f"the key in {tls.key} does not belong to the certificate in {tls.cert}") from error
        raise ValueError(f"{tls.key} holds no private key in PEM form, without a password") from error


def _ssl_context() -> ssl.SSLContext:
    return ssl.SSLContext(ssl.PROTOCOL_TLS_CLIENT)
