"""The JWKS (RFC 7517) that tokens are verified with: read from a file or a URL, and refreshed when it changes.

Keys that are secret, weak or not for signatures are ignored and logged. docs/decisions/0016 explains why PyJWT's client
is not used.
"""

import asyncio
import json
import threading
import time
import urllib.request
from collections.abc import Callable, Iterator, Sequence
from contextlib import suppress
from typing import Any, NamedTuple
from urllib.error import HTTPError
from urllib.parse import urlsplit

import structlog

from bookstore_grpc.errors import StartupError

_log = structlog.stdlib.get_logger("bookstore_grpc.auth.jwks")

# RFC 7518 and RFC 8037: the signature algorithms of each key type. All are asymmetric.
ALGORITHMS_BY_KEY_TYPE = {
    "RSA": ("RS256", "RS384", "RS512", "PS256", "PS384", "PS512"),
    "EC": ("ES256", "ES384", "ES512"),
    "OKP": ("EdDSA",),
}
_RSA_LEAST_BITS = 2_048
_MOST_BYTES = 1024 * 1024
_FETCH_SECONDS = 5  # without receiving a byte
_READ_SECONDS = 10  # in total
# The minimum interval of refreshes because of unknown keys, and how long a call waits for one.
_UNKNOWN_KEY_SECONDS = 10
_UNKNOWN_KEY_WAIT_SECONDS = 1


class Key(NamedTuple):
    """A public key, its id in tokens (kid), and the algorithms that it may be used with."""

    name: str
    public_key: Any
    algorithms: frozenset[str]


class JWKS:
    """Keys that are refreshed. While a refresh fails, the old keys stay in use without a time limit."""

    def __init__(self, read: Callable[[], bytes], *, source: str) -> None:
        self.keys: Sequence[Key] = ()
        self.refresh_failures = 0
        self._read = read
        self._source = source
        self._text: bytes | None = None
        self._is_failing = False
        self._refreshed_at = -float("inf")
        self._refreshing: asyncio.Task[None] | None = None

    async def load(self) -> None:
        """Read the keys for the first time. Raises `StartupError`."""
        try:
            await self._load()
        except Exception as error:  # reading, the network, HTTP and parsing raise many kinds of exceptions
            raise StartupError(f"Cannot read the keys of tokens from {self._source}: {error}.") from error

    async def look_for_unknown_key(self) -> None:
        """Refresh the keys because a token names an unknown key.

        Bounded, because any client can name unknown keys: at most one refresh in 10 seconds, for which a call waits at
        most 1 second.
        """
        if self._is_refreshing() or time.monotonic() < self._refreshed_at + _UNKNOWN_KEY_SECONDS:
            return
        await asyncio.wait([self._start_refresh()], timeout=_UNKNOWN_KEY_WAIT_SECONDS)

    async def refresh(self) -> None:
        """Refresh the keys. Every failure is counted. Of consecutive failures only the first is logged."""
        if not self._is_refreshing():
            await asyncio.wait([self._start_refresh()])

    def _is_refreshing(self) -> bool:
        return self._refreshing is not None and not self._refreshing.done()

    def _start_refresh(self) -> asyncio.Task[None]:
        # One at a time: an older response must not replace a newer one.
        self._refreshed_at = time.monotonic()
        self._refreshing = asyncio.create_task(self._refresh())
        return self._refreshing

    async def _refresh(self) -> None:
        try:
            await self._load()
        except Exception as error:  # the old keys stay in use whatever the cause
            self.refresh_failures += 1
            if not self._is_failing:
                _log.error("keys not refreshed: old ones stay in use", source=self._source, cause=str(error))
            self._is_failing = True
        else:
            if self._is_failing:
                _log.info("keys refreshed again", source=self._source)
            self._is_failing = False

    async def _load(self) -> None:
        async with asyncio.timeout(_READ_SECONDS):
            text = await _in_thread(self._read)
        if text == self._text:
            return
        keys = keys_from_jwks(text)
        self._text = text
        if keys != self.keys:  # changed keys invalidate the cache of verified tokens
            self.keys = keys
            _log.info("keys loaded", source=self._source, keys=[key.name for key in keys])


def jwks_from_file(path: str) -> JWKS:
    """Return the JWKS of a file."""

    def read() -> bytes:
        with open(path, "rb") as file:
            return _bounded(file.read(_MOST_BYTES + 1))

    return JWKS(read, source=path)


def jwks_from_url(url: str) -> JWKS:
    """Return the JWKS of a URL: https, or http on this machine."""
    parts = urlsplit(url)
    # Redirects are not followed. Plaintext does not go through a proxy, which could be on another machine.
    proxies = [urllib.request.ProxyHandler({})] if parts.scheme == "http" else []
    opener = urllib.request.build_opener(_NoRedirects(), *proxies)

    def read() -> bytes:
        try:
            with opener.open(url, timeout=_FETCH_SECONDS) as response:
                return _bounded(response.read(_MOST_BYTES + 1))
        except HTTPError as error:
            error.close()  # the exception is also the open response
            raise

    return JWKS(read, source=f"{parts.scheme}://{parts.netloc}")


def keys_from_jwks(text: bytes) -> Sequence[Key]:
    """Return the public keys of a JWKS. Raises `ValueError` if none can be used."""
    try:
        listed = json.loads(text)["keys"]
    except (KeyError, TypeError, ValueError, RecursionError) as error:
        raise ValueError("it is not a JSON Web Key Set") from error
    keys = list(_usable_keys(listed if isinstance(listed, list) else []))
    if not keys:
        raise ValueError("it has no usable key: public, for signatures, RSA of 2,048 bits or more, EC or OKP")
    return keys


def _usable_keys(listed: Sequence[Any]) -> Iterator[Key]:
    for jwk in listed:
        try:
            yield _key_from_jwk(jwk)
        except (TypeError, ValueError) as error:
            name = jwk.get("kid") if isinstance(jwk, dict) else None
            cause = str(error) if isinstance(error, ValueError) else "damaged"
            _log.warning("key ignored", key=str(name), cause=cause)


def _key_from_jwk(jwk: Any) -> Key:
    from jwt import PyJWK
    from jwt.exceptions import PyJWTError

    if not isinstance(jwk, dict) or jwk.get("kty") not in ALGORITHMS_BY_KEY_TYPE:
        raise ValueError("not a public key of a known type")
    if "d" in jwk:
        raise ValueError("a private key, which must not be published")
    if jwk.get("use", "sig") != "sig" or "verify" not in jwk.get("key_ops", ["verify"]):
        raise ValueError("not meant for signatures")
    algorithms = frozenset(ALGORITHMS_BY_KEY_TYPE[jwk["kty"]])
    if "alg" in jwk:
        algorithms &= {jwk["alg"]}
    if not algorithms:
        raise ValueError("its algorithm does not match its type")
    try:
        public_key = PyJWK(jwk, algorithm=None if "alg" in jwk else _default_algorithm(jwk)).key
    except (PyJWTError, KeyError, TypeError, ValueError) as error:
        raise ValueError("damaged") from error
    if jwk["kty"] == "RSA" and public_key.key_size < _RSA_LEAST_BITS:
        raise ValueError(f"shorter than {_RSA_LEAST_BITS} bits")
    return Key(str(jwk.get("kid", "")), public_key, algorithms)


def _default_algorithm(jwk: dict[str, Any]) -> str | None:
    return "RS256" if jwk["kty"] == "RSA" else None  # for EC and OKP it follows from the curve


async def _in_thread(read: Callable[[], bytes]) -> bytes:
    """Read in a daemon thread, so that a slow issuer cannot delay the exit of the process."""
    loop = asyncio.get_running_loop()
    done: asyncio.Future[bytes] = loop.create_future()

    def resolve(set_outcome: Callable[[Any], None], outcome: object) -> None:
        if not done.done():
            set_outcome(outcome)

    def run() -> None:
        with suppress(RuntimeError):  # the loop has ended
            try:
                loop.call_soon_threadsafe(resolve, done.set_result, read())
            except Exception as error:
                loop.call_soon_threadsafe(resolve, done.set_exception, error)

    threading.Thread(target=run, daemon=True, name="keys").start()
    return await done


def _bounded(text: bytes) -> bytes:
    if len(text) > _MOST_BYTES:
        raise ValueError("it is too long")
    return text


class _NoRedirects(urllib.request.HTTPRedirectHandler):
    def redirect_request(self, *_arguments: Any, **_options: Any) -> None:
        return None
