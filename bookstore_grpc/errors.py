"""The errors of the service and its client.

The DAL and the servicer raise them. `calls.status` translates each into a status, and `client.errors` translates that
status back into the same class or a parent of it.

    BookstoreError
    ├── InvalidRequest                  INVALID_FIELD
    │   ├── InvalidFilter               INVALID_FILTER
    │   ├── InvalidOrderBy              INVALID_ORDER_BY
    │   ├── InvalidPageToken            INVALID_PAGE_TOKEN
    │   ├── InvalidResumeToken          INVALID_RESUME_TOKEN
    │   ├── MalformedMessage            MALFORMED_MESSAGE
    │   ├── RequestTooLarge             REQUEST_TOO_LARGE
    │   └── MediaTypeUnsupported        MEDIA_TYPE_UNSUPPORTED
    ├── ResumeTokenExpired              RESUME_TOKEN_EXPIRED
    ├── BookNotFound                    BOOK_NOT_FOUND
    ├── EtagMismatch                    ETAG_MISMATCH
    ├── RequestIdReused                 REQUEST_ID_REUSED
    ├── Unauthenticated
    │   ├── TokenMissing                TOKEN_MISSING
    │   └── TokenInvalid                TOKEN_INVALID
    ├── PermissionDenied
    │   ├── ScopeMissing                SCOPE_MISSING
    │   └── HostUnknown                 HOST_UNKNOWN
    ├── ResourceExhausted               TOO_MANY_REQUESTS
    ├── Unavailable                     UNAVAILABLE
    │   ├── DatabaseUnavailable         DATABASE_UNAVAILABLE
    │   ├── ServerDraining              SERVER_DRAINING
    │   └── CallInterrupted             CALL_INTERRUPTED
    ├── DeadlineExceeded                DEADLINE_EXCEEDED
    ├── MethodUnknown                   METHOD_UNKNOWN
    │   └── VerbNotAllowed              VERB_NOT_ALLOWED
    ├── InternalError                   INTERNAL
    ├── ClientUnusable                  never on the wire: the client cannot make the call
    └── StartupError                    never on the wire: the service cannot start with its settings
"""

from collections.abc import Iterable, Mapping, Sequence
from enum import StrEnum
from typing import Any, NamedTuple


class Rule(StrEnum):
    """The rule that a field breaks: a constant that programs can act on, the `reason` of a violation."""

    REQUIRED = "REQUIRED"
    TOO_LONG = "TOO_LONG"
    TOO_MANY = "TOO_MANY"
    OUT_OF_RANGE = "OUT_OF_RANGE"
    CONTROL_CHARACTER = "CONTROL_CHARACTER"
    INVALID_TYPE = "INVALID_TYPE"
    INVALID_UUID = "INVALID_UUID"
    INVALID_SYNTAX = "INVALID_SYNTAX"
    INVALID_OPERATOR = "INVALID_OPERATOR"
    INVALID_TOKEN = "INVALID_TOKEN"  # noqa: S105  not a password
    UNKNOWN_FIELD = "UNKNOWN_FIELD"
    DUPLICATE = "DUPLICATE"
    CONFLICT = "CONFLICT"


class Violation(NamedTuple):
    """One broken rule: the path of the field (`requests[3].book.author`), a description, and the rule.

    `reason` is a `Rule`. In the client it is a string, empty or unknown if the server has another version.
    """

    field: str
    description: str
    reason: str


class BookstoreError(Exception):
    """An error reported to the caller: a message, a constant reason, and `metadata` for the reason.

    In the client `request_id` identifies the call in the server's log, and `reason` is empty if the service sent none.
    In the server `request_id` is None. Errors can be copied and pickled with all their attributes.
    """

    reason: str = ""
    request_id: str | None = None

    def __init__(self, message: str, *, metadata: Mapping[str, str] | None = None) -> None:
        super().__init__(message)
        self.message = message
        self.metadata = dict(metadata or {})

    def __reduce__(self) -> tuple[Any, ...]:
        # Exception.__reduce__ would call the class with `args`: the message, not the arguments of `__init__`.
        state: Any = object.__getstate__(self)
        if isinstance(state, tuple):  # the class has __slots__
            state = {**(state[0] or {}), **state[1]}
        return _restored, (type(self), *self.args), state


class InvalidRequest(BookstoreError):
    """The request breaks the rules listed in `violations`.

    In the client `omitted_count` is the number of violations that did not fit into the response.
    """

    reason = "INVALID_FIELD"
    omitted_count = 0

    def __init__(
        self,
        violations: Sequence[Violation],
        *,
        message: str | None = None,
        metadata: Mapping[str, str] | None = None,
    ) -> None:
        self.violations = tuple(violations)
        super().__init__(message or _sentence_from_violations(self.violations), metadata=metadata)


class InvalidFilter(InvalidRequest):
    """The filter is invalid at `column`, counted in code points from 1. The description contains it too."""

    reason = "INVALID_FILTER"

    def __init__(self, description: str, *, column: int, rule: str = Rule.INVALID_SYNTAX) -> None:
        self.column = column
        super().__init__([Violation("filter", description, rule)], metadata={"column": str(column)})


class InvalidOrderBy(InvalidRequest):
    """The order is invalid."""

    reason = "INVALID_ORDER_BY"

    def __init__(self, description: str, *, rule: str = Rule.INVALID_SYNTAX) -> None:
        super().__init__([Violation("order_by", description, rule)])


class InvalidPageToken(InvalidRequest):
    """The page token is damaged, or was issued for another filter or order."""

    reason = "INVALID_PAGE_TOKEN"

    def __init__(self, description: str, *, rule: str = Rule.INVALID_TOKEN) -> None:
        super().__init__([Violation("page_token", description, rule)])


class InvalidResumeToken(InvalidRequest):
    """The resume token is damaged, or not of a change that this database has. `field` is the one that had it."""

    reason = "INVALID_RESUME_TOKEN"

    def __init__(self, description: str, *, field: str = "resume_token", rule: str = Rule.INVALID_TOKEN) -> None:
        super().__init__([Violation(field, description, rule)])


class MalformedMessage(InvalidRequest):
    """The request cannot be parsed as a message of the expected type."""

    reason = "MALFORMED_MESSAGE"

    def __init__(self, method: str, cause: str = "") -> None:
        super().__init__((), message=f"The request bytes are not a valid message for {method}{cause and f': {cause}'}.")


class RequestTooLarge(InvalidRequest):
    """The request exceeds the server's limit. Beyond another 8 MiB gRPC itself rejects it, without a reason."""

    reason = "REQUEST_TOO_LARGE"

    def __init__(self, max_bytes: int = 0, *, message: str = "") -> None:
        super().__init__((), message=message or f"The request is longer than the server's limit of {max_bytes} bytes.")


class MediaTypeUnsupported(InvalidRequest):
    """The Content-Type of an HTTP request with a body is not JSON."""

    reason = "MEDIA_TYPE_UNSUPPORTED"

    def __init__(self, message: str = "Send the body as JSON with the header Content-Type: application/json.") -> None:
        super().__init__((), message=message)


class ResumeTokenExpired(BookstoreError):
    """Changes that follow a resume token are no longer kept."""

    reason = "RESUME_TOKEN_EXPIRED"

    def __init__(
        self,
        message: str = "The changes after this resume token are no longer kept; start again with the existing books.",
    ) -> None:
        super().__init__(message)


class BookNotFound(BookstoreError):
    """There are no books with these ids.

    In the client `omitted_count` is the number of missing books that did not fit into the response.
    """

    reason = "BOOK_NOT_FOUND"
    omitted_count = 0

    def __init__(self, ids: Iterable[int], *, message: str | None = None) -> None:
        self.ids = tuple(ids)
        super().__init__(message or _sentence_from_missing(self.ids))


class EtagMismatch(BookstoreError):
    """An etag is not the book's current one: it changed since the caller read it (optimistic concurrency, AIP-154).

    `ids` are all such books of the call, by default only `book_id`, which is the first of them. In the client
    `omitted_count` is the number of books that did not fit into the response.
    """

    reason = "ETAG_MISMATCH"
    omitted_count = 0

    def __init__(self, book_id: int, *, ids: Iterable[int] = (), message: str | None = None) -> None:
        self.book_id = book_id
        self.ids = tuple(ids) or (book_id,)
        super().__init__(message or _sentence_from_changed(self.ids))


class RequestIdReused(BookstoreError):
    """The idempotency key of a create (`CreateBookRequest.request_id`, AIP-155) was used before for a different book.

    It is in `create_request_id`. `request_id` is the id of the call, as in every error.
    """

    reason = "REQUEST_ID_REUSED"

    def __init__(self, create_request_id: str, *, message: str | None = None) -> None:
        self.create_request_id = create_request_id
        used = f"The CreateBookRequest.request_id {create_request_id} was used for another book; generate a new one."
        super().__init__(message or used, metadata={"create_request_id": create_request_id})


class Unauthenticated(BookstoreError):
    """The caller did not authenticate, or its credentials are invalid."""


class TokenMissing(Unauthenticated):
    """The caller sent no credentials."""

    reason = "TOKEN_MISSING"


class TokenInvalid(Unauthenticated):
    """The caller's token is invalid: malformed, expired, for another audience, or not signed by a trusted key."""

    reason = "TOKEN_INVALID"


class PermissionDenied(BookstoreError):
    """The caller is not allowed to make this call."""


class ScopeMissing(PermissionDenied):
    """The caller is authenticated but lacks the scope that the call needs."""

    reason = "SCOPE_MISSING"


class HostUnknown(PermissionDenied):
    """The Host of an HTTP request is not one of ours, as in a DNS rebinding attack by an untrusted web page."""

    reason = "HOST_UNKNOWN"


class ResourceExhausted(BookstoreError):
    """A limit on calls or on the size of a message was exceeded. Retry after `retry_seconds`."""

    reason = "TOO_MANY_REQUESTS"

    def __init__(self, message: str, *, limit: str = "", retry_seconds: float = 1) -> None:
        self.retry_seconds = retry_seconds
        super().__init__(message, metadata={"limit": limit} if limit else None)


class Unavailable(BookstoreError):
    """The service cannot process the call now. Retry later."""

    reason = "UNAVAILABLE"
    retry_seconds = 1.0


class DatabaseUnavailable(Unavailable):
    """The database is unreachable or cannot write.

    A write has not happened, or can be retried with its idempotency key.
    """

    reason = "DATABASE_UNAVAILABLE"

    def __init__(self, message: str = "The database is unavailable; try again.") -> None:
        super().__init__(message)


class ServerDraining(Unavailable):
    """The server is shutting down and has not started the call. Any call can be retried on another server."""

    reason = "SERVER_DRAINING"

    def __init__(self, message: str = "The server is shutting down; try again.") -> None:
        super().__init__(message)


class CallInterrupted(Unavailable):
    """The server shut down during the call. A write may have happened."""

    reason = "CALL_INTERRUPTED"

    def __init__(self, message: str = "The server shut down during the call; the call may have taken effect.") -> None:
        super().__init__(message)


class DeadlineExceeded(BookstoreError):
    """The call exceeded its deadline."""

    reason = "DEADLINE_EXCEEDED"

    def __init__(self, message: str = "The call exceeded its deadline.") -> None:
        super().__init__(message)


class MethodUnknown(BookstoreError):
    """The server has no such method."""

    reason = "METHOD_UNKNOWN"


class VerbNotAllowed(MethodUnknown):
    """The path exists, but not with this HTTP method."""

    reason = "VERB_NOT_ALLOWED"


class InternalError(BookstoreError):
    """A defect of the service. Its log has the cause under the request id."""

    reason = "INTERNAL"

    def __init__(self, message: str = "An internal error occurred.") -> None:
        super().__init__(message)


class ClientUnusable(BookstoreError):
    """The client is closed, or belongs to another event loop or process; the message says which."""

    def __init__(self, message: str) -> None:
        super().__init__(message)


class StartupError(BookstoreError):
    """The service cannot start with these settings; the message says what to change."""


def quoted(text: str) -> str:
    """Return a caller's text quoted for a message, truncated after 40 characters."""
    return repr(str(text) if len(text) <= 40 else f"{text[:40]}…")


def _restored(kind: type[BookstoreError], *args: Any) -> BookstoreError:
    """Return an error created without its `__init__`, whose arguments may differ. Its attributes are set afterwards."""
    error = kind.__new__(kind, *args)
    error.args = args
    return error


def _sentence_from_violations(violations: Sequence[Violation]) -> str:
    if not violations:
        return "The request is invalid."
    first = violations[0]
    more = f" (and {len(violations) - 1} more)" if len(violations) > 1 else ""
    return f"{first.field}: {first.description}{more}."


def _sentence_from_missing(ids: Sequence[int]) -> str:
    if len(ids) == 1:
        return f"There is no book {ids[0]}."
    return f"There are no books {_listed(ids)}."


def _sentence_from_changed(ids: Sequence[int]) -> str:
    if len(ids) == 1:
        return f"Book {ids[0]} has changed since it was read; read it again and repeat the change."
    return f"Books {_listed(ids)} have changed since they were read; read them again and repeat the change."


def _listed(ids: Sequence[int]) -> str:
    more = f" and {len(ids) - 10} more" if len(ids) > 10 else ""
    return ", ".join(map(str, ids[:10])) + more
