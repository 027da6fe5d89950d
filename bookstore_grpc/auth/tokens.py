"""Bearer tokens: JWTs (RFC 7519), verified with the keys of a JWKS and cached until they expire."""

import time
from collections.abc import Callable, Sequence
from typing import Any, NamedTuple

import jwt
from jwt import exceptions

from bookstore_grpc.auth.jwks import JWKS, Key
from bookstore_grpc.errors import TokenInvalid
from bookstore_grpc.limits import TOKEN_CACHE_MAX, TOKEN_MAX_CHARACTERS

# Required by RFC 9068, 2.2. If present, nbf and iat are verified too.
_REQUIRED_CLAIMS = ["exp", "iss", "aud", "sub"]
_SENTENCES: dict[type[Exception], str] = {
    exceptions.ExpiredSignatureError: "The token has expired; get a new one.",
    exceptions.ImmatureSignatureError: "The token is not valid yet; compare the clocks.",
    exceptions.InvalidIssuedAtError: "The token is not valid yet; compare the clocks.",
    exceptions.InvalidAudienceError: "The token is for another audience.",
    exceptions.InvalidIssuerError: "The token is from another issuer.",
    exceptions.MissingRequiredClaimError: f"The token lacks one of the claims {', '.join(_REQUIRED_CLAIMS)}.",
    exceptions.InvalidSignatureError: "The token's signature is invalid.",
    exceptions.InvalidAlgorithmError: "The token is signed with an algorithm that is not allowed.",
}
_MALFORMED = "The token is not a valid JWT."
_UNKNOWN_KEY = "The token is signed with an unknown key."


class Caller(NamedTuple):
    """The name and scopes of a caller, and until when (in Unix seconds) they are valid."""

    name: str
    scopes: frozenset[str]
    until: float = float("inf")


class TokenVerifier:
    """Verifies tokens and returns their callers. `now` returns Unix seconds."""

    def __init__(
        self,
        jwks: JWKS,
        *,
        issuer: str,
        audience: str,
        algorithms: Sequence[str],
        leeway_seconds: float,
        now: Callable[[], float] = time.time,
    ) -> None:
        self._jwks = jwks
        self._issuer = issuer
        self._audience = audience
        self._algorithms = frozenset(algorithms)
        self._leeway_seconds = leeway_seconds
        self._now = now
        self._cache: dict[str, Caller] = {}
        self._cached_for_keys = jwks.keys

    async def caller(self, token: str) -> Caller:
        """Return the caller of a token. Raises `TokenInvalid`, whose message contains nothing of the token."""
        if self._cached_for_keys is not self._jwks.keys:
            # A key may have been revoked.
            self._cache.clear()
            self._cached_for_keys = self._jwks.keys
        caller = self._cache.get(token)
        if caller is not None and self._now() < caller.until:
            return caller
        return self._cached(token, await self._verified(token))

    async def _verified(self, token: str) -> Caller:
        if len(token) > TOKEN_MAX_CHARACTERS:
            raise TokenInvalid(f"The token is longer than {TOKEN_MAX_CHARACTERS:,} characters.")
        try:
            header = jwt.get_unverified_header(token)
        except (exceptions.PyJWTError, ValueError, RecursionError) as error:
            raise TokenInvalid(_MALFORMED) from error
        algorithm = header.get("alg")
        if not isinstance(algorithm, str) or algorithm not in self._algorithms:
            raise TokenInvalid(_SENTENCES[exceptions.InvalidAlgorithmError])
        keys = self._keys(header, algorithm)
        if not keys:
            await self._jwks.look_for_unknown_key()
            keys = self._keys(header, algorithm)
        return self._caller_by_any(keys, token, algorithm)

    def _keys(self, header: dict[str, Any], algorithm: str) -> Sequence[Key]:
        """Return the keys to try: those with the token's key id; without an id the only key of the algorithm."""
        matching = [key for key in self._jwks.keys if algorithm in key.algorithms]
        if "kid" in header:
            return [key for key in matching if key.name == header["kid"]]
        return matching if len(matching) == 1 else []

    def _caller_by_any(self, keys: Sequence[Key], token: str, algorithm: str) -> Caller:
        sentence = _UNKNOWN_KEY
        for key in keys:
            try:
                claims = jwt.decode(
                    token,
                    key.public_key,
                    algorithms=[algorithm],
                    audience=self._audience,
                    issuer=self._issuer,
                    leeway=self._leeway_seconds,
                    options={"require": _REQUIRED_CLAIMS},
                )
                until = float(claims["exp"]) + self._leeway_seconds
            except (exceptions.PyJWTError, ValueError, TypeError, OverflowError, RecursionError) as error:
                sentence = next((_SENTENCES[kind] for kind in type(error).__mro__ if kind in _SENTENCES), _MALFORMED)
            else:
                return Caller(claims["sub"], _scopes(claims), until)
        raise TokenInvalid(sentence)

    def _cached(self, token: str, caller: Caller) -> Caller:
        self._cache.pop(token, None)
        if len(self._cache) == TOKEN_CACHE_MAX:
            del self._cache[next(iter(self._cache))]
        self._cache[token] = caller
        return caller


def _scopes(claims: dict[str, Any]) -> frozenset[str]:
    """Return the scopes of `scope` (RFC 8693, 4.2) and of `scp`, which some issuers send instead."""
    found: set[str] = set()
    for value in (claims.get("scope"), claims.get("scp")):
        if isinstance(value, str):
            found.update(value.split())
        elif isinstance(value, list):
            found.update(each for each in value if isinstance(each, str))
    return frozenset(found)
