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

_log = structlog.stdlib.get_logger("bookstore_grpc.credentials")

_Seen = tuple[tuple[int, ...] | None, ...]


class _Usable(NamedTuple):
    """A configuration that fits together, and the validity of its certificate in Unix seconds."""

    configuration: grpc.ServerCertificateConfiguration
    begins_at: float
    ends_at: float


class CertificateReloader:
    """Reads the files again when they change, and keeps the newest contents that can be used.

    Each handshake uses the newest; open connections go on. New contents that do not fit together, as when one of two
    files has been replaced and the other not yet, or whose certificate is not valid now, leave the old ones in use.

    At the start an expired certificate is served, with a warning: clients that check its dates reject it, and others,
    such as many proxies, can still connect.

    Raises `StartupError` if at the start nothing can be used. TLS 1.2 is the oldest version that gRPC accepts. `clock`
    returns Unix seconds.
    """

    def __init__(self, *, cert: str, key: str, client_ca: str = "", clock: Callable[[], float] = time.time) -> None:
        self._paths = [path for path in (cert, key, client_ca) if path]
        self._requires_client_certificates = bool(client_ca)
        self._clock = clock
        self._lock = threading.Lock()  # gRPC runs handshakes on threads of its own
        self._version = 0
        self._has_warned = False
        self._failure = ""
        self.refresh_failures = 0
        try:
            self._seen = self._stamps()
            self._in_use = self._read()
        except Exception as error:  # cryptography has more kinds of its own than can be foreseen
            raise StartupError(f"Cannot serve with TLS: {_sentence(error)}.") from error
        self._warn_of_dates()

    @property
    def expires_at(self) -> float:
        """When the certificate in use expires, in Unix seconds."""
        return self._in_use.ends_at

    def server_credentials(self) -> grpc.ServerCredentials:
        """Return credentials for one address; each handshake there uses the newest contents."""
        handed = self._version

        def newer_configuration() -> grpc.ServerCertificateConfiguration | None:
            nonlocal handed
            with self._lock:
                self._read_again()
                if handed == self._version:
                    return None
                handed = self._version
                return self._in_use.configuration

        return grpc.dynamic_ssl_server_credentials(
            self._in_use.configuration,
            newer_configuration,  # type: ignore[arg-type]  # None means "as before" (grpc's documentation)
            self._requires_client_certificates,
        )

    def tls_context(self) -> ssl.SSLContext:
        """Return a context for HTTP; each handshake uses the newest contents. Raises `StartupError`."""
        try:
            made, newest = self._version, self._new_tls_context()
        except (OSError, ssl.SSLError) as error:
            raise StartupError(f"Cannot serve HTTP with TLS: {_sentence(error)}.") from error

        def renewed() -> ssl.SSLContext:
            nonlocal made, newest
            with self._lock:
                self._read_again()
                if made != self._version:
                    # If the files have changed again meanwhile, the next handshake reads them.
                    with suppress(OSError, ssl.SSLError):
                        made, newest = self._version, self._new_tls_context()
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
            raise OSError(errno.EAGAIN, "it has changed meanwhile", cert)  # the new contents are unchecked
        return context

    def refresh(self) -> None:
        """Read the files again if they have changed or could not be used. For periodic checks.

        Every check of files that cannot be used is counted, and the first of several in a row is logged.
        """
        with self._lock:
            self._warn_of_dates()
            # The reason may have been a permission or the time, which the stamps of the files do not show.
            self._read_again(always=bool(self._failure))
            if self._failure:
                self.refresh_failures += 1

    def _read_again(self, *, always: bool = False) -> None:
        seen = self._stamps()
        if seen == self._seen and not always:
            return
        self._seen = seen
        try:
            found = self._read()
            if reason := self._why_not_valid(found):
                raise ValueError(reason)
        except Exception as error:  # whatever it is, the old ones stay
            failure = _sentence(error)
            if failure != self._failure:
                _log.error("certificates not reloaded: the old ones stay", cause=failure)
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
            return f"the certificate in {self._paths[0]} has expired at {_shown_time(found.ends_at)}"
        return ""

    def _warn_of_dates(self) -> None:
        """Log once if the certificate in use is not valid now; it may also expire later."""
        if not self._has_warned and (reason := self._why_not_valid(self._in_use)):
            self._has_warned = True
            _log.warning("callers will refuse the certificate", cause=reason)


class _RenewedContext(ssl.SSLContext):
    """Uses the newest context for each handshake.

    One that only switched certificates (`sni_callback`) would still resume the sessions of clients whose CA is no
    longer trusted.
    """

    def __new__(cls, _newest: Callable[[], ssl.SSLContext]) -> Self:
        return super().__new__(cls, ssl.PROTOCOL_TLS_SERVER)

    def __init__(self, newest: Callable[[], ssl.SSLContext]) -> None:
        self._newest = newest

    def wrap_bio(self, *arguments: Any, **options: Any) -> ssl.SSLObject:
        """Begin a handshake; event loops call this."""
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
    """Return the validity of the certificate. Raises `ValueError` unless the contents fit together.

    It checks the very bytes that gRPC gets. The client has a check of its own (`client/channel.py`), of files and by
    `ssl`, because its base install has no cryptography.
    """
    from cryptography.hazmat.primitives.serialization import Encoding, PublicFormat, load_pem_private_key
    from cryptography.x509 import load_pem_x509_certificates

    certificates = []
    for path, pem in zip((paths[0], *paths[2:]), (contents[0], *contents[2:]), strict=True):
        try:
            certificates.append(load_pem_x509_certificates(pem))
        except ValueError as error:
            raise ValueError(f"{path} holds no certificate in PEM form") from error
    leaf = certificates[0][0]
    try:
        key = load_pem_private_key(contents[1], password=None)
    except (TypeError, ValueError) as error:  # TypeError: it wants a password
        raise ValueError(f"{paths[1]} holds no private key in PEM form, without a password") from error
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
