"""TLS: a certificate reloader for the server's certificate and the CA of client certificates."""

import errno
import ssl
import threading
import time
from collections.abc import Callable, Sequence
from contextlib import suppress
from datetime import UTC, datetime
from typing import Any, NamedTuple, Self

import grpc
import structlog

from bookstore_grpc.errors import StartupError
from bookstore_grpc.net.file_stamp import file_stamp

_log = structlog.stdlib.get_logger("bookstore_grpc.net.tls")

_Seen = tuple[tuple[int, ...] | None, ...]


class _Usable(NamedTuple):
    """A consistent configuration, and the validity of its certificate in Unix seconds."""

    configuration: grpc.ServerCertificateConfiguration
    begins_at: float
    ends_at: float


class CertificateReloader:
    """Reloads the files when they change, and keeps the newest usable contents.

    New contents apply to new handshakes; open connections continue. New contents are not used if they are inconsistent
    (for example, only one of the two files has been replaced so far) or if their certificate is not valid now. The old
    contents then stay in use.

    At the start an expired certificate is used, with a warning: clients that check its dates reject it, but others,
    such as many proxies, can still connect.

    Raises `StartupError` if the files cannot be used at the start. The minimum version is TLS 1.2, as in gRPC. `clock`
    returns Unix seconds.
    """

    def __init__(self, *, cert: str, key: str, client_ca: str = "", clock: Callable[[], float] = time.time) -> None:
        self._paths = [path for path in (cert, key, client_ca) if path]
        self._requires_client_certificates = bool(client_ca)
        self._clock = clock
        self._lock = threading.Lock()  # gRPC runs handshakes on its own threads
        self._version = 0
        self._has_warned = False
        self._failure = ""
        self.refresh_failures = 0
        try:
            self._seen = self._stamps()
            self._in_use = self._read()
        except Exception as error:  # cryptography raises many kinds of exceptions
            raise StartupError(f"Cannot serve with TLS: {_sentence(error)}.") from error
        self._warn_of_dates()

    @property
    def expires_at(self) -> float:
        """When the certificate in use expires, in Unix seconds."""
        return self._in_use.ends_at

    def server_credentials(self) -> grpc.ServerCredentials:
        """Return credentials for one address. Each handshake uses the newest contents."""
        returned_version = self._version

        def newer_configuration() -> grpc.ServerCertificateConfiguration | None:
            nonlocal returned_version
            with self._lock:
                self._reload()
                if returned_version == self._version:
                    return None
                returned_version = self._version
                return self._in_use.configuration

        return grpc.dynamic_ssl_server_credentials(
            self._in_use.configuration,
            newer_configuration,  # type: ignore[arg-type]  # None means "unchanged" (grpc's documentation)
            self._requires_client_certificates,
        )

    def tls_context(self) -> ssl.SSLContext:
        """Return a context for HTTP. Each handshake uses the newest contents. Raises `StartupError`."""
        try:
            version, newest = self._version, self._new_tls_context()
        except (OSError, ssl.SSLError) as error:
            raise StartupError(f"Cannot serve HTTP with TLS: {_sentence(error)}.") from error

        def renewed() -> ssl.SSLContext:
            nonlocal version, newest
            with self._lock:
                self._reload()
                if version != self._version:
                    # If the files have changed again since, the next handshake reads them.
                    with suppress(OSError, ssl.SSLError):
                        version, newest = self._version, self._new_tls_context()
            return newest

        return _RenewedContext(renewed)

    def _new_tls_context(self) -> ssl.SSLContext:
        context = ssl.SSLContext(ssl.PROTOCOL_TLS_SERVER)
        context.minimum_version = ssl.TLSVersion.TLSv1_2
        context.set_alpn_protocols(["http/1.1"])
        cert, key, *client_ca = self._paths
        context.load_cert_chain(cert, key)
        if client_ca:
            context.verify_mode = ssl.CERT_REQUIRED
            context.load_verify_locations(client_ca[0])
        if self._stamps() != self._seen:
            raise OSError(errno.EAGAIN, "it has changed meanwhile", cert)  # the new contents are not verified
        return context

    def refresh(self) -> None:
        """Reload the files if they have changed or could not be used. For periodic checks.

        Every failure is counted. Of consecutive failures with the same cause only the first is logged.
        """
        with self._lock:
            self._warn_of_dates()
            # A failure caused by permissions or by the time may end without a change of the files' stamps.
            self._reload(always=bool(self._failure))
            if self._failure:
                self.refresh_failures += 1

    def _reload(self, *, always: bool = False) -> None:
        seen = self._stamps()
        if seen == self._seen and not always:
            return
        self._seen = seen
        try:
            found = self._read()
            if reason := self._why_not_valid(found):
                raise ValueError(reason)
        except Exception as error:  # the old contents stay in use whatever the cause
            failure = _sentence(error)
            if failure != self._failure:
                _log.error("certificates not reloaded: old ones stay in use", cause=failure)
            self._failure = failure
            return
        _log.info("certificates reloaded again" if self._failure else "certificates reloaded", files=self._paths)
        self._failure = ""
        self._in_use = found
        self._has_warned = False
        self._version += 1

    def _stamps(self) -> _Seen:
        return tuple(_stamp(path) for path in self._paths)

    def _read(self) -> _Usable:
        contents = [_contents(path) for path in self._paths]
        begins_at, ends_at = _check(self._paths, contents)
        chain, key, *client_ca = contents
        configuration = grpc.ssl_server_certificate_configuration(
            [(key, chain)], root_certificates=client_ca[0] if client_ca else None
        )
        return _Usable(configuration, begins_at, ends_at)

    def _why_not_valid(self, found: _Usable) -> str:
        now = self._clock()
        if now < found.begins_at:
            return f"the certificate in {self._paths[0]} is not valid before {_shown_time(found.begins_at)}"
        if now >= found.ends_at:
            return f"the certificate in {self._paths[0]} expired at {_shown_time(found.ends_at)}"
        return ""

    def _warn_of_dates(self) -> None:
        """Log once that the certificate in use is not valid now; it may expire while in use."""
        if not self._has_warned and (reason := self._why_not_valid(self._in_use)):
            self._has_warned = True
            _log.warning("certificate not valid: clients will reject it", cause=reason)


class _RenewedContext(ssl.SSLContext):
    """Uses the newest context for each handshake.

    Switching only the certificate (`sni_callback`) would still resume TLS sessions of clients whose CA is no longer
    trusted.
    """

    def __new__(cls, _newest: Callable[[], ssl.SSLContext]) -> Self:
        return super().__new__(cls, ssl.PROTOCOL_TLS_SERVER)

    def __init__(self, newest: Callable[[], ssl.SSLContext]) -> None:
        self._newest = newest

    def wrap_bio(self, *arguments: Any, **options: Any) -> ssl.SSLObject:
        """Start a handshake. Called by event loops."""
        return self._newest().wrap_bio(*arguments, **options)


def _stamp(path: str) -> tuple[int, ...] | None:
    try:
        return file_stamp(path)
    except OSError:
        return None


def _contents(path: str) -> bytes:
    with open(path, "rb") as file:
        return file.read()


def _check(paths: Sequence[str], contents: Sequence[bytes]) -> tuple[float, float]:
    """Return the validity of the certificate in Unix seconds. Raises `ValueError` if the contents are inconsistent.

    It checks the same bytes that gRPC gets. The client has its own check of the files (`client/channel.py`), with
    `ssl`, because its base install does not include cryptography.
    """
    from cryptography.hazmat.primitives.serialization import Encoding, PublicFormat, load_pem_private_key
    from cryptography.x509 import load_pem_x509_certificates

    certificates = []
    for path, pem in zip((paths[0], *paths[2:]), (contents[0], *contents[2:]), strict=True):
        try:
            certificates.append(load_pem_x509_certificates(pem))
        except ValueError as error:
            raise ValueError(f"{path} holds no certificate in PEM format") from error
    leaf = certificates[0][0]
    try:
        key = load_pem_private_key(contents[1], password=None)
    except (TypeError, ValueError) as error:  # TypeError: the key is encrypted
        raise ValueError(f"{paths[1]} holds no unencrypted private key in PEM format") from error
    form = (Encoding.DER, PublicFormat.SubjectPublicKeyInfo)
    if key.public_key().public_bytes(*form) != leaf.public_key().public_bytes(*form):
        raise ValueError(f"the key in {paths[1]} does not belong to the certificate in {paths[0]}")
    return leaf.not_valid_before_utc.timestamp(), leaf.not_valid_after_utc.timestamp()


def _shown_time(seconds: float) -> str:
    return datetime.fromtimestamp(seconds, UTC).isoformat()


def _sentence(error: Exception) -> str:
    if isinstance(error, OSError):
        return f"{error.filename} cannot be read ({error.strerror})"
    return str(error)
