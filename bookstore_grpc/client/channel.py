"""The client's channel: reconnecting, keepalive, TLS and the bearer token."""

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
    # Balance calls over all addresses of a name. Retries are done in `retries`: gRPC's own policies know neither
    # whether a call has started nor its deadline.
    ("grpc.service_config", json.dumps({"loadBalancingConfig": [{"round_robin": {}}]})),
    # Reconnect to a returning server within 1 s (gRPC's default: up to two minutes), give up on an unresponsive address
    # after 5 s (20 s), and resolve a name again after 2 s (30 s).
    ("grpc.initial_reconnect_backoff_ms", 100),
    ("grpc.max_reconnect_backoff_ms", 1_000),
    ("grpc.min_reconnect_backoff_ms", 5_000),  # despite its name, the time limit of one connection attempt
    ("grpc.dns_min_time_between_resolutions_ms", 2_000),
    # Detect a server that disappeared without closing the connection. The server permits a ping every 10 s.
    ("grpc.keepalive_time_ms", 30_000),
    ("grpc.keepalive_timeout_ms", 10_000),
    # A thousand books with the longest texts exceed gRPC's default of 4 MiB.
    ("grpc.max_receive_message_length", MESSAGE_MAX_BYTES),
    # gRPC's transparent retries resend a call that no server has seen, if it is buffered; a batch exceeds the default
    # buffer of 256 KiB.
    ("grpc.per_rpc_retry_buffer_size", MESSAGE_MAX_BYTES),
)


@dataclass(frozen=True, kw_only=True)
class TLS:
    """PEM files: the CA of the server (default: gRPC's own list), and the client's certificate and its private key."""

    ca: str = ""
    cert: str = ""
    key: str = ""


class TokenFile:
    """A token in a file, reloaded when the file changes, as when an orchestrator renews it.

    While the file is missing, unreadable or without a token, the last token stays in use. Raises `OSError` or
    `ValueError` if the first read fails.
    """

    def __init__(self, path: str) -> None:
        self._path = path
        self._seen: tuple[int, ...] = ()
        self._token = ""
        self()

    def __call__(self) -> str:
        """Return the current token."""
        try:
            seen = file_stamp(self._path)
            if seen != self._seen:
                # Bytes that are not UTF-8 then fail the check of the token.
                with open(self._path, encoding="utf-8", errors="replace") as file:
                    self._token = _checked(file.read().strip(), self._path)
                self._seen = seen
        except (OSError, ValueError):
            if not self._token:
                raise
        return self._token


class Connection:
    """A channel to the service and its stubs. It belongs to the event loop and process that opened it."""

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

    def check_owner(self) -> None:
        """Raise `ClientUnusable` in another process or event loop, where gRPC would hang or abort the process."""
        # Check the process first: after a fork asyncio does not see the parent's running loop.
        if os.getpid() != self._pid:
            raise ClientUnusable("This client belongs to the parent process. Create one client for each process.")
        if asyncio.get_running_loop() is not self._loop:
            raise ClientUnusable("This client belongs to another event loop. Create one client for each event loop.")

    @property
    def is_orphaned(self) -> bool:
        """Whether its event loop is closed, which also ended all of its calls."""
        return self._loop.is_closed()

    @property
    def state(self) -> grpc.ChannelConnectivity:
        """The channel's state: READY if any server is connected, TRANSIENT_FAILURE if connecting to all failed."""
        return self.channel.get_state()

    def connecting(self) -> asyncio.Task[None] | None:
        """Return a task that is done once a server was connected, even if it was lost again. None if one is connected.

        A call that started while the task is pending has not left this process.
        """
        if self.state is grpc.ChannelConnectivity.READY:
            return None
        if self._connecting is None or self._connecting.done():
            self._connecting = asyncio.create_task(self._wait_until_connected())
        return self._connecting

    async def _wait_until_connected(self) -> None:
        final = (grpc.ChannelConnectivity.READY, grpc.ChannelConnectivity.SHUTDOWN)
        while (state := self.state) not in final:
            await self.channel.wait_for_state_change(state)


def connector(server: str, tls: TLS | None) -> Callable[[], Connection]:
    """Return a function that opens a channel in the running event loop. The channel connects with its first call.

    The files are read immediately. Raises `ValueError` for unusable files.
    """
    if tls is None:
        # gRPC would use an HTTP proxy even for a local address, and the proxy could read the token.
        options = (*_OPTIONS, ("grpc.enable_http_proxy", 0)) if is_local(server) else _OPTIONS
        return lambda: Connection(grpc.aio.insecure_channel(server, options=options))
    if bool(tls.cert) != bool(tls.key):
        raise ValueError("a certificate needs its key, and a key needs its certificate")
    ca, cert, key = (_contents(path) for path in (tls.ca, tls.cert, tls.key))
    _check_files(tls, ca, cert)
    return lambda: Connection(
        grpc.aio.secure_channel(server, grpc.ssl_channel_credentials(ca, key, cert), options=_OPTIONS)
    )


def call_metadata(
    server: str, *, token: str | Callable[[], str], is_encrypted: bool, insecure: bool
) -> Callable[[], Metadata]:
    """Return a function that returns the metadata of a call: the token, if there is one.

    Raises `ValueError` for an invalid token, and for one that would be sent in plaintext unless `insecure`. The
    returned function raises it too if `token` is a function that returns an invalid one.
    """
    if not token:
        return lambda: ()
    if not (is_encrypted or insecure or is_local(server)):
        raise ValueError(f"the token would be sent to {server} in plaintext, readable on the network; use TLS")
    if isinstance(token, str):
        metadata = _bearer(_checked(token, "the given value"))
        return lambda: metadata
    current_token = token
    return lambda: _bearer(_checked(current_token(), "the value returned by the token function"))


def _bearer(token: str) -> Metadata:
    return ((AUTHORIZATION_KEY, f"Bearer {token}"),)


def _checked(token: str, source: str) -> str:
    if not token or not token.isascii() or not token.isprintable() or " " in token:
        raise ValueError(f"{source} is not a token")
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
    """Raise `ValueError` for files that would fail the first call, where gRPC does not name the file."""
    for path, contents in ((tls.ca, ca), (tls.cert, cert)):
        if contents is None:
            continue
        try:
            # Comments between the certificates may be in any language.
            _ssl_context().load_verify_locations(cadata=contents.decode("ascii", errors="ignore"))
        except (ssl.SSLError, ValueError) as error:  # ValueError: empty
            raise ValueError(f"{path} holds no certificate in PEM format") from error
    # A pipe, such as a shell's <(command), can be read only once.
    if not (os.path.isfile(tls.cert) and os.path.isfile(tls.key)):
        return
    context = _ssl_context()
    context.set_ciphers("DEFAULT:@SECLEVEL=0")  # gRPC and the server decide which keys are too weak
    try:
        # Without a password OpenSSL would prompt for one at the terminal.
        context.load_cert_chain(tls.cert, tls.key, password="")
    except ssl.SSLError as error:
        if error.reason in ("KEY_VALUES_MISMATCH", "KEY_TYPE_MISMATCH"):
            raise ValueError(f"the key in {tls.key} does not belong to the certificate in {tls.cert}") from error
        raise ValueError(f"{tls.key} holds no unencrypted private key in PEM format") from error


def _ssl_context() -> ssl.SSLContext:
    return ssl.SSLContext(ssl.PROTOCOL_TLS_CLIENT)
