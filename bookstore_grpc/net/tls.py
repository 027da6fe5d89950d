"""TLS: the server's certificate, and the authority that callers' must come from, read again when the files change."""

import errno
import os
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

_log = structlog.stdlib.get_logger("bookstore_grpc.credentials")

_Seen = tuple[tuple[int, ...] | None, ...]


class _Usable(NamedTuple):
    """What fits together, and from when until when its certificate is valid, in Unix seconds."""

    configuration: grpc.ServerCertificateConfiguration
    begins_at: float
    ends_at: float


class Certificates:
    """The files, and the newest of their contents that can be used.

    A handshake gets what the files then hold; connections that are there live on. New contents that do not fit
    together, as when one of two files has been replaced and the other not yet, or whose certificate is not valid at
    this time, leave the old ones in use.

    At the start there is nothing better than a certificate that has expired, so that is served, with a warning: who
    looks at dates refuses it by itself, by its own clock, and others, as many a proxy, need not go without.

    Raises `StartupError` if at first there is nothing that can be used. TLS 1.2 is the least that gRPC speaks. `clock`
    answers Unix seconds.
    """

    def __init__(self, *, cert: str, key: str, client_ca: str = "", clock: Callable[[], float] = time.time) -> None:
        self._paths = [path for path in (cert, key, client_ca) if path]
        self._requires_client_certificates = bool(client_ca)
        self._clock = clock
        self._lock = threading.Lock()  # handshakes come on threads of gRPC's own
        self._version = 0
        self._has_warned = False
        self._failure = ""
        self.refresh_failures = 0
        try:
            self._seen = self._look()
            self._in_use = self._read()
        except Exception as error:  # cryptography has more kinds of its own than can be foreseen
            raise StartupError(f"Cannot serve with TLS: {_sentence(error)}.") from error
        self._warn_of_dates()

    @property
    def expires_at(self) -> float:
        """When the certificate in use ends, in Unix seconds."""
        return self._in_use.ends_at

    def server_credentials(self) -> grpc.ServerCredentials:
        """Answer credentials for one address, which ask for the newest contents at each handshake there."""
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
        """Answer a context for HTTP, whose handshakes get the newest contents likewise. Raises `StartupError`."""
        try:
            made, newest = self._version, self._new_tls_context()
        except (OSError, ssl.SSLError) as error:
            raise StartupError(f"Cannot serve HTTP with TLS: {_sentence(error)}.") from error

        def renewed() -> ssl.SSLContext:
            nonlocal made, newest
            with self._lock:
                self._read_again()
                if made != self._version:
                    # Should the files have changed again, the next handshake finds out.
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
        if self._look() != self._seen:
            raise OSError(errno.EAGAIN, "it has changed meanwhile", cert)  # to others than have been checked
        return context

    def refresh(self) -> None:
        """Read the files again if they have changed or could not be used.

        For one who looks every so often: each look at what cannot be used is counted, and the first is logged.
        """
        with self._lock:
            self._warn_of_dates()
            # What was wrong may have been a right or the time, which the files do not show.
            self._read_again(always=bool(self._failure))
            if self._failure:
                self.refresh_failures += 1

    def _read_again(self, *, always: bool = False) -> None:
        seen = self._look()
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

    def _look(self) -> _Seen:
        return tuple(_signature(path) for path in self._paths)

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
        """Log once of what is in use that it is not valid at this time, also when that comes later."""
        if not self._has_warned and (reason := self._why_not_valid(self._in_use)):
            self._has_warned = True
            _log.warning("callers will refuse the certificate", cause=reason)


class _RenewedContext(ssl.SSLContext):
    """Begins each handshake in the context that there is then.

    A context that only borrowed another's certificate (`sni_callback`) would go on to resume the sessions of clients
    whose authority is no longer trusted.
    """

    def __new__(cls, _newest: Callable[[], ssl.SSLContext]) -> Self:
        return super().__new__(cls, ssl.PROTOCOL_TLS_SERVER)

    def __init__(self, newest: Callable[[], ssl.SSLContext]) -> None:
        self._newest = newest

    def wrap_bio(self, *arguments: Any, **options: Any) -> ssl.SSLObject:
        """Begin a handshake, as event loops do."""
        return self._newest().wrap_bio(*arguments, **options)


def _signature(path: str) -> tuple[int, ...] | None:
    try:
        stat = os.stat(path)  # of what a link leads to: Kubernetes swaps links
    except OSError:
        return None
    return (stat.st_mtime_ns, stat.st_size, stat.st_ino)


def _contents(path: str) -> bytes:
    with open(path, "rb") as file:
        return file.read()


def _check(paths: Sequence[str], contents: Sequence[bytes]) -> tuple[float, float]:
    """Answer from when until when the certificate is valid. Raises `ValueError` unless the contents fit together."""
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
