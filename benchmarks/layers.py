"""The layers around a call: the flags that enable each, alone and together, and a token for authentication."""

import json
import time
from collections.abc import Sequence
from pathlib import Path
from typing import NamedTuple

_ISSUER, _AUDIENCE = "https://issuer.example", "bookstore"
_TOKEN_SECONDS = 24 * 3_600


class Layers(NamedTuple):
    """A set of layers: the flags that enable them, and the token that callers then need."""

    name: str
    arguments: Sequence[str]
    token: str = ""


def layers(folder: Path, *, trace_endpoint: str) -> Sequence[Layers]:
    """Return no layers, each one alone, and all together, with and without traces.

    `folder` keeps the key that tokens are checked by; spans are sent to `trace_endpoint`.
    """
    logs = ["--log-level", "info"]
    metrics = ["--metrics-listen", "127.0.0.1:0"]
    traces = ["--trace-endpoint", trace_endpoint]
    tenth = [*traces, "--trace-ratio", "0.1"]
    tokens, token = _tokens(folder / "jwks.json")
    return (
        Layers("none", []),
        Layers("logs", logs),
        Layers("metrics", metrics),
        Layers("tokens", tokens, token),
        Layers("all", [*logs, *metrics, *tokens], token),
        Layers("traces, 1 call in 10", tenth),
        Layers("traces, every call", traces),
        Layers("all and 1 call in 10", [*logs, *metrics, *tokens, *tenth], token),
    )


def _tokens(jwks: Path) -> tuple[Sequence[str], str]:
    import jwt
    from cryptography.hazmat.primitives.asymmetric import rsa

    key = rsa.generate_private_key(public_exponent=65_537, key_size=2_048)
    public = jwt.algorithms.RSAAlgorithm.to_jwk(key.public_key(), as_dict=True)
    jwks.write_text(json.dumps({"keys": [{**public, "kid": "benchmark", "alg": "RS256", "use": "sig"}]}))
    now = int(time.time())
    claims = {
        "iss": _ISSUER,
        "aud": _AUDIENCE,
        "sub": "benchmark",
        "scope": "books.read books.write",
        "iat": now,
        "exp": now + _TOKEN_SECONDS,
    }
    token = jwt.encode(claims, key, algorithm="RS256", headers={"kid": "benchmark"})
    arguments = ["--jwks-file", str(jwks), "--token-issuer", _ISSUER, "--token-audience", _AUDIENCE]
    return arguments, token
