"""What can go wrong, named once for both sides of the wire.

The DAL and the servicer raise these; `calls.status` turns each into a status, and `client` turns that status
back into the same class, or one above it.

    BookstoreError
    ├── InvalidRequest                  INVALID_FIELD
    │   ├── InvalidFilter               INVALID_FILTER
    │   ├── InvalidOrderBy              INVALID_ORDER_BY
    │   ├── InvalidPageToken            INVALID_PAGE_TOKEN
    │   ├── MalformedMessage            MALFORMED_MESSAGE
    │   ├── RequestTooLarge             REQUEST_TOO_LARGE
    │   └── MediaTypeUnsupported        MEDIA_TYPE_UNSUPPORTED
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
    ├── ClientUnusable                  never crosses the wire: the client cannot make the call
    └── StartupError                    never crosses the wire: the service cannot start as it is set up
"""

from collections.abc import Iterable, Mapping, Sequence
from enum import StrEnum
from typing import Any, NamedTuple


class Rule(StrEnum):
    """What rule a field breaks, as a constant that a program can act on: the `reason` of a violation."""

    REQUIRED = "REQUIRED"
    TOO_LONG = "TOO_LONG"
    TOO_MANY = "TOO_MANY"
    OUT_OF_RANGE = "OUT_OF_RANGE"
    CONTROL_CHARACTER = "CONTROL_CHARACTER"
    INVALID_TYPE = "INVALID_TYPE"
    INVALID_UUID = "INVALID_UUID"
    INVALID_SYNTAX = "INVALID_SYNTAX"
    INVALID_OPERATOR = "INVALID_OPERATOR"
    INVALID_TOKEN = "INVALID_TOKEN"  # noqa: S105  no password
    UNKNOWN_FIELD = "UNKNOWN_FIELD"
    DUPLICATE = "DUPLICATE"
    CONFLICT = "CONFLICT"


class Violation(NamedTuple):
    """One broken rule: the path of the field (`requests[3].book.author`), a sentence about it, and which rule.

    `reason` is a `Rule`; on the client's side a text, which is empty or unknown if the server is of another version.
    """

    field: str
    description: str
    reason: str


class BookstoreError(Exception):
    """Something the caller is told about: a sentence to act on, and the reason as a constant.

    `metadata` goes with the reason. On the client's side `request_id` finds the call in the server's log, and
    `reason` is empty where the service gave none; on the server's side `request_id` is None. Errors can be copied and
    pickled, with all their attributes.
    """

    reason: str = ""
    request_id: str | None = None

    def __init__(self, message: str, *, metadata: Mapping[str, str] | None = None) -> None:
        super().__init__(message)
        self.message = message
        self.metadata = dict(metadata or {})

    def __reduce__(self) -> tuple[Any, ...]:
        # Exception's own calls the class with `args`, which holds the message and not what `__init__` was given.
        state: Any = object.__getstate__(self)
        if isinstance(state, tuple):  # of a class with __slots__
            state = {**(state[0] or {}), **state[1]}
        return _restored, (type(self), *self.args), state


class InvalidRequest(BookstoreError):
    """The request breaks rules, which are listed in `violations`.

    On the client's side `omitted_count` is how many more there are than fit into the answer.
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
    """The filter cannot be understood. `column` says where, in code points from 1; the description says it too."""

    reason = "INVALID_FILTER"

    def __init__(self, description: str, *, column: int, rule: str = Rule.INVALID_SYNTAX) -> None:
        self.column = column
        super().__init__([Violation("filter", description, rule)], metadata={"column": str(column)})


class InvalidOrderBy(InvalidRequest):
    """The order cannot be understood."""

    reason = "INVALID_ORDER_BY"

    def __init__(self, description: str, *, rule: str = Rule.INVALID_SYNTAX) -> None:
        super().__init__([Violation("order_by", description, rule)])


class InvalidPageToken(InvalidRequest):
    """The page token is damaged, or belongs to another filter or order."""

    reason = "INVALID_PAGE_TOKEN"

    def __init__(self, description: str, *, rule: str = Rule.INVALID_TOKEN) -> None:
        super().__init__([Violation("page_token", description, rule)])


class MalformedMessage(InvalidRequest):
    """The bytes of the request are no message of the expected type."""

    reason = "MALFORMED_MESSAGE"

    def __init__(self, method: str, cause: str = "") -> None:
        super().__init__((), message=f"The bytes sent are no request of {method}{cause and f': {cause}'}.")


class RequestTooLarge(InvalidRequest):
    """The request is longer than the server takes. What is longer by 8 MiB gRPC itself refuses, without a reason."""

    reason = "REQUEST_TOO_LARGE"

    def __init__(self, max_bytes: int = 0, *, message: str = "") -> None:
        super().__init__(
            (), message=message or f"The request is longer than the {max_bytes} bytes that the server takes."
        )


class MediaTypeUnsupported(InvalidRequest):
    """The body of an HTTP request is, or may be, something else than JSON."""

    reason = "MEDIA_TYPE_UNSUPPORTED"

    def __init__(self, message: str = "Send the body as JSON, and say so: Content-Type: application/json.") -> None:
        super().__init__((), message=message)


class BookNotFound(BookstoreError):
    """There are no books with these ids.

    On the client's side `omitted_count` is how many more are missing than fit into the answer.
    """

    reason = "BOOK_NOT_FOUND"
    omitted_count = 0

    def __init__(self, ids: Iterable[int], *, message: str | None = None) -> None:
        self.ids = tuple(ids)
        super().__init__(message or _sentence_from_missing(self.ids))


class EtagMismatch(BookstoreError):
    """The book has changed since the caller read it."""

    reason = "ETAG_MISMATCH"

    def __init__(self, book_id: int, *, message: str | None = None) -> None:
        self.book_id = book_id
        changed = f"Book {book_id} has changed since it was read; read it again and repeat the change."
        super().__init__(message or changed)


class RequestIdReused(BookstoreError):
    """The `request_id` of a CreateBookRequest, which has made one book, came back with another.

    It is in `create_request_id`; `request_id` is that of the call, as with every error.
    """

    reason = "REQUEST_ID_REUSED"

    def __init__(self, create_request_id: str, *, message: str | None = None) -> None:
        self.create_request_id = create_request_id
        used = f"The CreateBookRequest.request_id {create_request_id} has made another book already; make a new one."
        super().__init__(message or used, metadata={"create_request_id": create_request_id})


class Unauthenticated(BookstoreError):
    """The caller did not say who it is, or not credibly."""


class TokenMissing(Unauthenticated):
    """The caller sent nothing that says who it is."""

    reason = "TOKEN_MISSING"


class TokenInvalid(Unauthenticated):
    """The caller's token proves nothing: expired, meant for somebody else, or not signed by whom we trust."""

    reason = "TOKEN_INVALID"


class PermissionDenied(BookstoreError):
    """The caller may not do this."""


class ScopeMissing(PermissionDenied):
    """The caller is known and lacks the scope that the call needs."""

    reason = "SCOPE_MISSING"


class HostUnknown(PermissionDenied):
    """An HTTP request was meant for another host, as a page of a stranger's can make a browser do it."""

    reason = "HOST_UNKNOWN"


class ResourceExhausted(BookstoreError):
    """A limit was reached, of calls or of a message's size; `retry_seconds` is when to try again."""

    reason = "TOO_MANY_REQUESTS"

    def __init__(self, message: str, *, limit: str = "", retry_seconds: float = 1) -> None:
        self.retry_seconds = retry_seconds
        super().__init__(message, metadata={"limit": limit} if limit else None)


class Unavailable(BookstoreError):
    """Not now; trying again later is right."""

    reason = "UNAVAILABLE"
    retry_seconds = 1.0


class DatabaseUnavailable(Unavailable):
    """The database cannot be reached or cannot take the write.

    A write has not happened, or may be repeated with its request id.
    """

    reason = "DATABASE_UNAVAILABLE"

    def __init__(self, message: str = "The database is unavailable; try again.") -> None:
        super().__init__(message)


class ServerDraining(Unavailable):
    """This server is shutting down and has not begun the call; another may answer, whatever the call is."""

    reason = "SERVER_DRAINING"

    def __init__(self, message: str = "The server is shutting down; try again.") -> None:
        super().__init__(message)


class CallInterrupted(Unavailable):
    """The server shut down before the call had ended; a write may have happened."""

    reason = "CALL_INTERRUPTED"

    def __init__(self, message: str = "The server has shut down amidst the call, which may have been done.") -> None:
        super().__init__(message)


class DeadlineExceeded(BookstoreError):
    """The call took longer than its deadline allowed."""

    reason = "DEADLINE_EXCEEDED"

    def __init__(self, message: str = "The call took longer than its deadline.") -> None:
        super().__init__(message)


class MethodUnknown(BookstoreError):
    """The server has no such method."""

    reason = "METHOD_UNKNOWN"


class VerbNotAllowed(MethodUnknown):
    """No call is made with this HTTP method at this path."""

    reason = "VERB_NOT_ALLOWED"


class InternalError(BookstoreError):
    """A defect of the service; its log has the cause under the request id."""

    reason = "INTERNAL"

    def __init__(self, message: str = "An internal error occurred.") -> None:
        super().__init__(message)


class ClientUnusable(BookstoreError):
    """A client that is closed cannot call, nor one of another event loop or process; the message says which it is."""

    def __init__(self, message: str) -> None:
        super().__init__(message)


class StartupError(BookstoreError):
    """The service cannot start with these settings; the message says what to change."""


def quoted(text: str) -> str:
    """Show in a message what a caller wrote, cut where it is long."""
    return repr(str(text) if len(text) <= 40 else f"{text[:40]}…")


def _restored(kind: type[BookstoreError], *args: Any) -> BookstoreError:
    """Make an error without its `__init__`, which may want other arguments; its attributes are set afterwards."""
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
    shown = ", ".join(map(str, ids[:10]))
    more = f" and {len(ids) - 10} more" if len(ids) > 10 else ""
    return f"There are no books {shown}{more}."
