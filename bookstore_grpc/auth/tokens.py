"""Bearer tokens: JWTs (RFC 7519), verified with the keys of a JWKS and cached until they expire."""

import time
from collections.abc import Callable, Sequence
from typing import Any, NamedTuple

import jwt
from jwt import exceptions

from bookstore_grpc.auth.jwks import JWKS, Key
from bookstore_grpc.errors import TokenInvalid
from bookstore_grpc.limits import TOKEN_CACHE_MAX, TOKEN_MAX_CHARACTERS

# Required by RFC 9068, 2.2. Also checked, where present: nbf and iat.
_REQUIRED_CLAIMS = ["exp", "iss", "aud", "sub"]
_SENTENCES: dict[type[Exception], str] = {
    exceptions.ExpiredSignatureError: "The token has expired; get a new one.",
    exceptions.ImmatureSignatureError: "The token is not valid yet; compare the clocks.",
    exceptions.InvalidIssuedAtError: "The token is not valid yet; compare the clocks.",
    exceptions.InvalidAudienceError: "The token is meant for another audience.",
    exceptions.InvalidIssuerError: "The token comes from another issuer.",
    exceptions.MissingRequiredClaimError: f"The token lacks one of the claims {', '.join(_REQUIRED_CLAIMS)}.",
    exceptions.InvalidSignatureError: "The token's signature does not fit its contents and its key.",
    exceptions.InvalidAlgorithmError: "The token is signed with an algorithm that is not allowed.",
}
_NO_TOKEN = "The token is no JWT that can be read."  # noqa: S105  a sentence
_UNKNOWN_KEY = "The token is signed with a key that is not known here."


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
        self._kept: dict[str, Caller] = {}
        self._kept_keys = jwks.keys

    async def caller(self, token: str) -> Caller:
        """Return the caller. Raises `TokenInvalid`, whose message repeats nothing of the token."""
        if self._kept_keys is not self._jwks.keys:
            # A key may have been revoked.
            self._kept.clear()
            self._kept_keys = self._jwks.keys
        caller = self._kept.get(token)
        if caller is not None and self._now() < caller.until:
            return caller
        return self._keep(token, await self._verified(token))

    async def _verified(self, token: str) -> Caller:
        if len(token) > TOKEN_MAX_CHARACTERS:
            raise TokenInvalid(f"The token is longer than {TOKEN_MAX_CHARACTERS:,} characters.")
        try:
            header = jwt.get_unverified_header(token)
        except (exceptions.PyJWTError, ValueError, RecursionError) as error:
            raise TokenInvalid(_NO_TOKEN) from error
        algorithm = header.get("alg")
        if not isinstance(algorithm, str) or algorithm not in self._algorithms:
            raise TokenInvalid(_SENTENCES[exceptions.InvalidAlgorithmError])
        keys = self._keys(header, algorithm)
        if not keys:
            await self._jwks.look_for_unknown_key()
            keys = self._keys(header, algorithm)
        return self._caller_by_any(keys, token, algorithm)

    def _keys(self, header: dict[str, Any], algorithm: str) -> Sequence[Key]:
        fitting = [key for key in self._jwks.keys if algorithm in key.algorithms]
        if "kid" in header:
            return [key for key in fitting if key.name == header["kid"]]
        return fitting if len(fitting) == 1 else []

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
                sentence = next((_SENTENCES[kind] for kind in type(error).__mro__ if kind in _SENTENCES), _NO_TOKEN)
            else:
                return Caller(claims["sub"], _scopes(claims), until)
        raise TokenInvalid(sentence)

    def _keep(self, token: str, caller: Caller) -> Caller:
        self._kept.pop(token, None)
        if len(self._kept) == TOKEN_CACHE_MAX:
            del self._kept[next(iter(self._kept))]
        self._kept[token] = caller
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
