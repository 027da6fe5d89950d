"""Verification of all settings together. It reads no file, opens no socket and imports no optional package."""

import re
from collections.abc import Iterator, Mapping
from typing import TYPE_CHECKING
from urllib.parse import urlsplit

from bookstore_grpc.net.address import Address, is_local, is_loopback

if TYPE_CHECKING:
    from bookstore_grpc.server.settings import Settings

# Origins as browsers send them: in lower case, and with a port only if it is not the scheme's default.
_ORIGIN = re.compile(r"(?=[^A-Z]*$)(http://(?!.*:80$)|https://(?!.*:443$))[^/?#@*\s]+")
_HOST = re.compile(r"[A-Za-z0-9-]+(\.[A-Za-z0-9-]+)*")


def problems_of(settings: "Settings") -> list[str]:
    """Return a sentence for every setting that cannot be used or contradicts another, in the order of `--help`."""
    return [
        *_listen_problems(settings),
        *_http_problems(settings),
        *_tls_problems(settings),
        *_token_problems(settings),
        *_client_scopes_problems(settings),
        *_metrics_problems(settings),
        *_channelz_problems(settings),
        *_trace_problems(settings),
    ]


def plaintext_addresses(settings: "Settings") -> list[str]:
    """Return the addresses that other machines can reach in plaintext. Only --insecure permits them."""
    addresses = filter(None, (*settings.listen, settings.http_listen))
    return [address for address in addresses if not (settings.is_encrypted or is_local(address))]


def parsed_client_scopes(settings: "Settings") -> Mapping[str, frozenset[str]]:
    """Return the scopes of each name in a client certificate. The message of a `ValueError` is a sentence."""
    scopes: dict[str, frozenset[str]] = {}
    for entry in settings.client_scopes:
        name, _, listed = entry.rpartition("=")
        given = frozenset(scope for scope in listed.split(",") if scope)
        if not name or not given:
            raise ValueError(f"--client-scopes {entry!r} is not of the form NAME=books.read,books.write.")
        scopes[name] = scopes.get(name, frozenset()) | given
    return scopes


def _listen_problems(settings: "Settings") -> Iterator[str]:
    for text in settings.listen:
        try:
            address = Address.parse(text)
        except ValueError as error:
            yield str(error)
            continue
        yield from _plaintext_problems(settings, address)
        if settings.worker_count > 1 and address.is_unix:
            yield (
                f"Several workers cannot share {text}. Serve it with --workers 1, or choose HOST:PORT with --listen."
            )


def _http_problems(settings: "Settings") -> Iterator[str]:
    text = settings.http_listen
    if not text:
        return
    try:
        address = Address.parse(text)
    except ValueError as error:
        yield str(error)
        return
    if address.is_unix:
        yield f"HTTP needs an address of the form HOST:PORT, which {text} is not."
        return
    if text in settings.listen and address.port:
        yield f"gRPC and HTTP cannot both listen on {text}: choose another address with --http-listen."
    yield from _plaintext_problems(settings, address)
    for origin in settings.http_origins:
        if not _ORIGIN.fullmatch(origin):
            yield f"--http-origins {origin!r} is not an origin as browsers send it, such as https://shop.example."
    for host in settings.http_hosts:
        if not _HOST.fullmatch(host):
            yield f"--http-hosts {host!r} is not a host name such as books.example, without a port."


def _plaintext_problems(settings: "Settings", address: Address) -> Iterator[str]:
    if not (settings.is_encrypted or settings.insecure or address.is_local):
        yield (
            f"{address} can be reached from other machines, and calls would travel in plaintext. "
            "Give a certificate with --tls-cert and --tls-key, listen on 127.0.0.1, or set --insecure if a proxy "
            "that you trust is in front."
        )


def _tls_problems(settings: "Settings") -> Iterator[str]:
    if bool(settings.tls_cert) != bool(settings.tls_key):
        yield "TLS needs both --tls-cert and --tls-key."
    if settings.tls_client_ca and not settings.tls_cert:
        yield "--tls-client-ca is for TLS: give --tls-cert and --tls-key as well."
    if settings.is_encrypted and settings.insecure:
        yield "--insecure and --tls-cert contradict each other; leave one out."


def _token_problems(settings: "Settings") -> Iterator[str]:
    if not (settings.jwks_file or settings.jwks_url):
        if settings.token_issuer or settings.token_audience:
            yield "Tokens cannot be checked without keys: give --jwks-file or --jwks-url."
        return
    if settings.jwks_file and settings.jwks_url:
        yield "The keys of tokens come from one place: give either --jwks-file or --jwks-url."
    if not (settings.token_issuer and settings.token_audience):
        yield "Tokens are checked for their issuer and their audience: give --token-issuer and --token-audience."
    if settings.jwks_url and not _is_jwks_url(settings.jwks_url):
        # The value is not shown, because it may contain a password.
        yield "The keys of tokens cannot come from --jwks-url: give an https URL without user and password."


def _is_jwks_url(text: str) -> bool:
    try:
        url = urlsplit(text)
        host = url.hostname or ""
    except ValueError:
        return False
    is_private = url.scheme == "https" or (url.scheme == "http" and is_loopback(host))
    return bool(host) and is_private and url.username is None


def _client_scopes_problems(settings: "Settings") -> Iterator[str]:
    if settings.client_scopes and not settings.tls_client_ca:
        yield "--client-scopes is for callers with certificates: give --tls-client-ca as well."
    try:
        parsed_client_scopes(settings)
    except ValueError as error:
        yield str(error)


def _metrics_problems(settings: "Settings") -> Iterator[str]:
    text = settings.metrics_listen
    if not text:
        return
    try:
        if Address.parse(text).is_unix:
            yield f"The address {text!r} is not HOST:PORT."
    except ValueError as error:
        yield str(error)


def _channelz_problems(settings: "Settings") -> Iterator[str]:
    text = settings.channelz_listen
    if not text:
        return
    try:
        address = Address.parse(text)
    except ValueError as error:
        yield str(error)
        return
    if not address.is_local:
        yield (
            f"{text} can be reached from other machines, and channelz shows who is connected. "
            "Give --channelz-listen 127.0.0.1:PORT or unix:PATH."
        )
    if settings.worker_count > 1 and (address.is_unix or address.port):
        yield (
            f"Several workers cannot share {text}, because each knows only its own connections. "
            "With port 0 (--channelz-listen 127.0.0.1:0) each chooses a free port and logs it."
        )


def _trace_problems(settings: "Settings") -> Iterator[str]:
    if settings.trace_endpoint and not _is_collector_url(settings.trace_endpoint):
        # The value is not shown, because it may contain a key.
        yield (
            "--trace-endpoint is not a URL such as http://127.0.0.1:4317, without path and query. "
            "A key belongs in OTEL_EXPORTER_OTLP_HEADERS."
        )


def _is_collector_url(text: str) -> bool:
    try:
        url = urlsplit(text)
        is_bare = url.path in ("", "/") and not url.query and not url.fragment and url.username is None
        return url.scheme in ("http", "https") and bool(url.hostname) and url.port != 0 and is_bare
    except ValueError:
        return False
