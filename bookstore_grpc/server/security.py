"""What guards the way in, built from the Settings: certificates, and the gate that asks who calls."""

from collections.abc import AsyncIterator, Sequence
from contextlib import AsyncExitStack, asynccontextmanager
from typing import TYPE_CHECKING, NamedTuple

from bookstore_grpc.calls.call import Gate
from bookstore_grpc.net.periodic import repeated
from bookstore_grpc.server.settings import Settings
from bookstore_grpc.server.verification import parsed_client_scopes

# Imported where they are needed: a server without certificates and tokens starts without their packages.
if TYPE_CHECKING:
    from bookstore_grpc.auth.jwks import KeySet
    from bookstore_grpc.net.tls import Certificates

# Handshakes look too; this is for those who watch the log and the metrics while nobody comes.
_CERTIFICATES_SECONDS = 10


class Doors(NamedTuple):
    """What stands in the way in: certificates, the gate that asks who calls, and the keys that it asks by."""

    certificates: "Certificates | None" = None
    gates: Sequence[Gate] = ()
    key_set: "KeySet | None" = None

    def refresh_failures(self) -> dict[str, int]:
        """Answer how often what is in use could not be read anew, by what it is."""
        found = {"certificates": self.certificates, "keys": self.key_set}
        return {what: source.refresh_failures for what, source in found.items() if source}


@asynccontextmanager
async def doors(settings: Settings) -> AsyncIterator[Doors]:
    """Answer the doors that are wanted, and keep what they are made of fresh. Raises `StartupError`."""
    async with AsyncExitStack() as stack:
        certificates = _certificates(settings)
        if certificates:
            await stack.enter_async_context(
                repeated(certificates.refresh, every_seconds=_CERTIFICATES_SECONDS, what="certificates")
            )
        key_set = _key_set(settings)
        if key_set:
            await key_set.load()
            await stack.enter_async_context(
                repeated(key_set.refresh, every_seconds=settings.jwks_refresh_seconds, what="keys of tokens")
            )
        yield Doors(certificates, _gates(settings, key_set), key_set)


def _certificates(settings: Settings) -> "Certificates | None":
    if not settings.is_encrypted:
        return None
    from bookstore_grpc.net.tls import Certificates

    return Certificates(cert=settings.tls_cert, key=settings.tls_key, client_ca=settings.tls_client_ca)


def _gates(settings: Settings, key_set: "KeySet | None") -> Sequence[Gate]:
    client_scopes = parsed_client_scopes(settings)
    if key_set is None and not client_scopes:
        return ()
    from bookstore_grpc.auth.authentication import Authentication
    from bookstore_grpc.auth.tokens import TokenVerifier

    tokens = None
    if key_set is not None:
        tokens = TokenVerifier(
            key_set,
            issuer=settings.token_issuer,
            audience=settings.token_audience,
            algorithms=settings.token_algorithms,
            leeway_seconds=settings.token_leeway_seconds,
        )
    is_health_open = settings.health_access == "open"
    return (Authentication(tokens=tokens, client_scopes=client_scopes, is_health_open=is_health_open),)


def _key_set(settings: Settings) -> "KeySet | None":
    if not (settings.jwks_file or settings.jwks_url):
        return None
    from bookstore_grpc.auth.jwks import key_set_from_file, key_set_from_url

    if settings.jwks_file:
        return key_set_from_file(settings.jwks_file)
    return key_set_from_url(settings.jwks_url)
