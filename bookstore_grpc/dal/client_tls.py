"""TLS of connections to the database, with the modes of libpq."""

import ssl
from collections.abc import Iterator, Sequence
from contextlib import contextmanager, suppress
from typing import NamedTuple

import structlog

from bookstore_grpc.errors import StartupError
from bookstore_grpc.net.file_stamp import file_stamp

_log = structlog.stdlib.get_logger("bookstore_grpc.dal.client_tls")

#: The path that stands for the certificate authorities which the operating system trusts.
SYSTEM_CA = "system"


class TlsFile(NamedTuple):
    """A PEM file, and the option or variable that names it."""

    option: str
    path: str


class ClientTls:
    """Verifies servers by `mode`: `require`, `verify-ca` or `verify-full`. With a CA `require` is `verify-ca`.

    Files that are replaced apply to new connections; if the new ones cannot be used, the old contents stay in use.
    Raises `StartupError` if they cannot be used at the start.
    """

    def __init__(
        self,
        mode: str,
        *,
        ca: TlsFile | None = None,
        cert: TlsFile | None = None,
        key: TlsFile | None = None,
        crl: TlsFile | None = None,
        key_password: str = "",
        minimum_version: ssl.TLSVersion = ssl.TLSVersion.TLSv1_2,
        protocols: Sequence[str] = (),
    ) -> None:
        self._mode = mode
        self._ca, self._cert, self._key, self._crl = ca, cert, key, crl
        self._key_password = key_password
        self._minimum_version = minimum_version
        self._protocols = protocols
        self._seen = self._stamps()
        self._context = self._new_context()

    def context(self) -> ssl.SSLContext:
        """Return a context for one connection."""
        stamps = self._stamps()
        if stamps != self._seen:
            self._seen = stamps
            try:
                self._context = self._new_context()
            except StartupError as error:
                _log.error("certificates not reloaded: old ones stay in use", cause=error.message)
        return self._context

    def _stamps(self) -> list[tuple[int, ...]]:
        stamps: list[tuple[int, ...]] = []
        for file in (self._ca, self._cert, self._key, self._crl):
            with suppress(OSError):
                stamps.append(file_stamp(file.path) if file else ())
        return stamps

    def _new_context(self) -> ssl.SSLContext:
        context = ssl.SSLContext(ssl.PROTOCOL_TLS_CLIENT)
        context.minimum_version = self._minimum_version
        context.check_hostname = self._mode == "verify-full"
        if not self._ca:
            context.verify_mode = ssl.CERT_NONE
        elif self._ca.path == SYSTEM_CA:
            context.load_default_certs()
        else:
            with _errors_of(self._ca):
                context.load_verify_locations(self._ca.path)
        if self._crl:
            with _errors_of(self._crl):
                context.load_verify_locations(self._crl.path)
            context.verify_flags |= ssl.VERIFY_CRL_CHECK_CHAIN
        if self._cert:
            with _errors_of(self._cert, self._key):
                context.load_cert_chain(self._cert.path, self._key.path if self._key else None, self._password)
        if self._protocols:
            context.set_alpn_protocols(self._protocols)
        return context

    def _password(self) -> str:
        return self._key_password  # without a function OpenSSL would ask at the terminal


@contextmanager
def _errors_of(*files: TlsFile | None) -> Iterator[None]:
    try:
        yield
    except OSError as error:
        options = " or ".join(file.option for file in files if file)
        raise StartupError(
            f"The database needs TLS, and the file of {options} cannot be used: {error.strerror}."
        ) from error
