"""An issuer of tokens, as it might stand beside the service, and what others might forge."""

import json
import time
from pathlib import Path
from typing import Any

import jwt
from cryptography.hazmat.primitives.asymmetric import ec, rsa
from cryptography.hazmat.primitives.serialization import Encoding, PublicFormat

ISSUER, AUDIENCE = "https://issuer.example", "bookstore"
BOTH = "books.read books.write"

PrivateKey = ec.EllipticCurvePrivateKey | rsa.RSAPrivateKey


def elliptic_key() -> ec.EllipticCurvePrivateKey:
    return ec.generate_private_key(ec.SECP256R1())


def rsa_key(bits: int = 2_048) -> rsa.RSAPrivateKey:
    return rsa.generate_private_key(public_exponent=65_537, key_size=bits)


def public_jwk(key: PrivateKey, name: str | None, **fields: Any) -> dict[str, Any]:
    if isinstance(key, rsa.RSAPrivateKey):
        jwk = dict(jwt.algorithms.RSAAlgorithm.to_jwk(key.public_key(), as_dict=True))
    else:
        jwk = dict(jwt.algorithms.ECAlgorithm.to_jwk(key.public_key(), as_dict=True))
    return jwk | ({} if name is None else {"kid": name}) | fields


def public_pem(key: PrivateKey) -> bytes:
    return key.public_key().public_bytes(Encoding.PEM, PublicFormat.SubjectPublicKeyInfo)


class Issuer:
    """Signs tokens with one key. Without other claims a token is good for an hour, and for everything."""

    def __init__(self, key: PrivateKey | None = None, *, name: str = "first") -> None:
        self.key = key or elliptic_key()
        self.name = name
        self.algorithm = "RS256" if isinstance(self.key, rsa.RSAPrivateKey) else "ES256"

    def jwks(self, *others: dict[str, Any]) -> str:
        return json.dumps({"keys": [public_jwk(self.key, self.name), *others]})

    def write_jwks(self, path: Path) -> Path:
        path.write_text(self.jwks())
        return path

    def token(
        self,
        *,
        key: Any = None,
        algorithm: str | None = None,
        headers: dict[str, Any] | None = None,
        without: str = "",
        **claims: Any,
    ) -> str:
        now = int(time.time())
        every = {
            "iss": ISSUER,
            "aud": AUDIENCE,
            "sub": "a-service",
            "scope": BOTH,
            "iat": now,
            "exp": now + 3_600,
            **claims,
        }
        every.pop(without, None)
        return jwt.encode(
            every,
            key if key is not None else self.key,
            algorithm=algorithm or self.algorithm,
            headers={"kid": self.name} if headers is None else headers,
        )


def bearer(token: str) -> tuple[tuple[str, str]]:
    return (("authorization", f"Bearer {token}"),)


def token_settings(jwks: Path, **settings: Any) -> dict[str, Any]:
    """Settings of a server that asks for this issuer's tokens."""
    return {
        "jwks_file": str(jwks),
        "token_issuer": ISSUER,
        "token_audience": AUDIENCE,
        "token_leeway_seconds": 0.0,
        **settings,
    }
