"""TLS certificates and the authentication of callers, built from the settings."""

from collections.abc import Sequence
from typing import TYPE_CHECKING, NamedTuple

from bookstore_grpc.calls.call import Check
from bookstore_grpc.net.periodic import PeriodicTask
from bookstore_grpc.server.components import Component, Step
from bookstore_grpc.server.settings import Settings
from bookstore_grpc.server.verification import parsed_client_scopes

# Imported only if enabled: a server without certificates and tokens does not load their packages.
if TYPE_CHECKING:
    from bookstore_grpc.auth.jwks import JWKS
    from bookstore_grpc.net.tls import CertificateReloader

# Handshakes check the files too. The periodic check is for the log and the metrics when no client connects.
_CERTIFICATES_SECONDS = 10


class Security(NamedTuple):
    """The certificates, the JWKS, and the authentication check."""

    certificates: "CertificateReloader | None"
    jwks: "JWKS | None"
    checks: Sequence[Check]

    def refresh_failures(self) -> dict[str, int]:
        """Return the number of failed reloads of certificates and keys."""
        found = {"certificates": self.certificates, "keys": self.jwks}
        return {what: source.refresh_failures for what, source in found.items() if source}

    def components(self, settings: Settings) -> list[Component]:
        """Return the components that keep certificates and keys up to date."""
        components: list[Component] = []
        if self.certificates:
            refresh = self.certificates.refresh
            components.append(PeriodicTask("certificates", refresh, every_seconds=_CERTIFICATES_SECONDS))
        if self.jwks:
            components.append(Step(start=self.jwks.load))
            components.append(
                PeriodicTask("keys of tokens", self.jwks.refresh, every_seconds=settings.jwks_refresh_seconds)
            )
        return components


def build_security(settings: Settings) -> Security:
    """Return the configured security. Reads the certificates. Raises `StartupError` for files that cannot be used."""
    certificates = _certificates(settings)
    jwks = _jwks(settings)
    return Security(certificates, jwks, _checks(settings, jwks))


def _certificates(settings: Settings) -> "CertificateReloader | None":
    if not settings.is_encrypted:
        return None
    from bookstore_grpc.net.tls import CertificateReloader

    return CertificateReloader(cert=settings.tls_cert, key=settings.tls_key, client_ca=settings.tls_client_ca)


def _jwks(settings: Settings) -> "JWKS | None":
    if not (settings.jwks_file or settings.jwks_url):
        return None
    from bookstore_grpc.auth.jwks import jwks_from_file, jwks_from_url

    return jwks_from_file(settings.jwks_file) if settings.jwks_file else jwks_from_url(settings.jwks_url)


def _checks(settings: Settings, jwks: "JWKS | None") -> Sequence[Check]:
    client_scopes = parsed_client_scopes(settings)
    if jwks is None and not client_scopes:
        return ()
    from bookstore_grpc.auth.authentication import Authentication
    from bookstore_grpc.auth.tokens import TokenVerifier

    tokens = None
    if jwks is not None:
        tokens = TokenVerifier(
            jwks,
            issuer=settings.token_issuer,
            audience=settings.token_audience,
            algorithms=settings.token_algorithms,
            leeway_seconds=settings.token_leeway_seconds,
        )
    is_health_open = settings.health_access == "open"
    return (Authentication(tokens=tokens, client_scopes=client_scopes, is_health_open=is_health_open),)
