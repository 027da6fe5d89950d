"""Authentication and authorization, before the request is read."""

from collections.abc import Mapping

from bookstore.v1 import books_pb2

from bookstore_grpc.auth.tokens import Caller, TokenVerifier
from bookstore_grpc.calls.call import HEALTH_PREFIX, Call
from bookstore_grpc.errors import ScopeMissing, TokenInvalid, TokenMissing
from bookstore_grpc.metadata import AUTHORIZATION_KEY

READ, WRITE = "books.read", "books.write"

# The methods that read: the standard ones (AIP-131, 132, 231), and watches. Every other needs the scope to write.
_READING = ("Get", "List", "BatchGet", "Watch")
_SCHEME = "bearer"  # RFC 6750; case-insensitive by RFC 9110, 11.1
_SHOWN_NAME_MAX_CHARACTERS = 200

SCOPES_BY_METHOD = {
    f"/{service.full_name}/{method.name}": READ if method.name.startswith(_READING) else WRITE
    for service in books_pb2.DESCRIPTOR.services_by_name.values()
    for method in service.methods
}


class Authentication:
    """A check that requires the scope of a method, or for other services, such as reflection, any authenticated caller.

    Callers authenticate by a token, or by a name in their certificate, to which `client_scopes` assigns scopes. Callers
    with both have the scopes of both. Raises `TokenMissing`, `TokenInvalid` and `ScopeMissing`.
    """

    def __init__(
        self,
        *,
        tokens: TokenVerifier | None,
        client_scopes: Mapping[str, frozenset[str]],
        is_health_open: bool,
    ) -> None:
        self._tokens = tokens
        self._client_scopes = client_scopes
        self._is_health_open = is_health_open

    async def __call__(self, call: Call) -> None:
        """Authenticate and authorize a call, and set its caller."""
        if self._is_health_open and call.method.startswith(HEALTH_PREFIX):
            return
        caller = await self._caller(call)
        call.caller = caller.name
        call.valid_until = caller.until
        needed = SCOPES_BY_METHOD.get(call.method)
        if needed is not None and needed not in caller.scopes:
            raise ScopeMissing(
                f"This call needs the scope {needed}, which the caller does not have.", metadata={"scope": needed}
            )

    async def _caller(self, call: Call) -> Caller:
        by_token = await self._caller_by_token(call) if self._tokens else None
        by_certificate = self._caller_by_certificate(call) if self._client_scopes else None
        if by_token and by_certificate:
            return by_token._replace(scopes=by_token.scopes | by_certificate.scopes)
        caller = by_token or by_certificate
        if caller is None:
            if self._client_scopes:
                # So that operators see in the log which name needs scopes. Shortened, because the client chose it.
                call.caller = next(iter(call.context.certificate_names()), "")[:_SHOWN_NAME_MAX_CHARACTERS]
            raise TokenMissing(
                f"Authentication required: send a token as the metadata {AUTHORIZATION_KEY}: Bearer TOKEN."
                if self._tokens
                else "The name in the caller's certificate is unknown."
            )
        return caller

    async def _caller_by_token(self, call: Call) -> Caller | None:
        values = [value for key, value in call.metadata if key == AUTHORIZATION_KEY]
        if not values:
            return None
        scheme, _, token = str(values[0]).partition(" ")
        if len(values) > 1 or scheme.lower() != _SCHEME:
            raise TokenInvalid(f"The metadata {AUTHORIZATION_KEY} must be a single value: Bearer TOKEN.")
        assert self._tokens is not None  # noqa: S101  checked by the caller of this method
        return await self._tokens.caller(token.strip())

    def _caller_by_certificate(self, call: Call) -> Caller | None:
        known = [name for name in call.context.certificate_names() if name in self._client_scopes]
        if not known:
            return None
        return Caller(known[0], frozenset().union(*(self._client_scopes[name] for name in known)))
