"""The table from domain errors to status codes, reasons and details. An error without a row is INTERNAL.

A class without a row has that of its nearest ancestor, so a new kind of `Unavailable` needs no row. A status is sent in
headers, so its size is bounded to what every client and proxy accepts, even if it contains text of callers. The result
is independent of the transport: the gRPC adapter serializes it, and the HTTP adapter writes it as JSON.
"""

import re
from bisect import bisect_left
from collections.abc import Callable, Iterable
from typing import NamedTuple

from google.protobuf.any_pb2 import Any
from google.protobuf.duration_pb2 import Duration
from google.protobuf.message import Message
from google.rpc import code_pb2, error_details_pb2, status_pb2

from bookstore_grpc.errors import (
    BookNotFound,
    BookstoreError,
    DeadlineExceeded,
    EtagMismatch,
    InternalError,
    InvalidRequest,
    MethodUnknown,
    PermissionDenied,
    RequestIdReused,
    RequestTooLarge,
    ResourceExhausted,
    ResumeTokenExpired,
    Unauthenticated,
    Unavailable,
)
from bookstore_grpc.limits import (
    ERROR_DESCRIPTION_MAX_BYTES,
    ERROR_ENTRIES_MAX,
    ERROR_FIELD_MAX_BYTES,
    ERROR_MAX_BYTES,
    ERROR_MESSAGE_MAX_BYTES,
    ERROR_METADATA_MAX_BYTES,
)
from bookstore_grpc.metadata import ERROR_DOMAIN, OMITTED_COUNT_KEY

# https://github.com/grpc/grpc/blob/master/doc/PROTOCOL-HTTP2.md: each of these bytes takes three in `grpc-message`.
_PERCENT_ENCODED = re.compile(rb"[^ -$&-~]")


class Status(NamedTuple):
    """A failure as sent to the caller: the name of its code in google.rpc.Code, its reason, and all its details."""

    code: str
    reason: str
    details: status_pb2.Status


def domain_error(error: BaseException) -> BookstoreError:
    """Return the error itself if it has a row in the table, otherwise an `InternalError` that hides it from callers."""
    return error if isinstance(error, BookstoreError) and _row_or_none(error) else InternalError()


def code_name(error: BookstoreError) -> str:
    """Return the name of an error's status code, such as `NOT_FOUND`. The error must have a row in the table."""
    return _row(error).code


def status_from_error(error: BookstoreError, *, request_id: str) -> Status:
    """Return the status of an error that `domain_error` returned.

    A list of violations or of books is truncated after its first entry or later; the metadata then has the
    number of omitted entries.
    """
    code, make_details = _row(error)
    message = _shortened(error.message, max_bytes=ERROR_MESSAGE_MAX_BYTES, size=_size_in_header)
    entries = _entry_count(error)

    def made(count: int) -> status_pb2.Status:
        metadata = _metadata(error, omitted=entries - count)
        info = error_details_pb2.ErrorInfo(reason=error.reason, domain=ERROR_DOMAIN, metadata=metadata)
        request = error_details_pb2.RequestInfo(request_id=request_id)
        details = [_packed(detail) for detail in (info, request, *make_details(error, count))]
        return status_pb2.Status(code=code_pb2.Code.Value(code), message=message, details=details)

    def is_too_long(status: status_pb2.Status) -> bool:
        # The request id is also sent in a separate header.
        return _size_in_header(message) + _size_in_base64(status) + len(request_id) > ERROR_MAX_BYTES

    shown = min(entries, ERROR_ENTRIES_MAX)
    status = made(shown)
    if shown > 1 and is_too_long(status):
        first_too_many = bisect_left(range(shown), True, lo=2, key=lambda count: is_too_long(made(count)))
        status = made(first_too_many - 1)
    return Status(code, error.reason, status)


def _entry_count(error: BookstoreError) -> int:
    match error:
        case InvalidRequest():
            return len(error.violations)
        case BookNotFound() | EtagMismatch():
            return len(error.ids)
    return 0


def _metadata(error: BookstoreError, *, omitted: int) -> dict[str, str]:
    metadata = {OMITTED_COUNT_KEY: str(omitted)} if omitted else {}
    room = ERROR_METADATA_MAX_BYTES
    for key, value in error.metadata.items():
        room -= _size(key)
        if room > 0:
            metadata[key] = _shortened(value, max_bytes=room)
            room -= _size(metadata[key])
    return metadata


def _bad_request(error: InvalidRequest, count: int) -> Iterable[Message]:
    violations = [
        error_details_pb2.BadRequest.FieldViolation(
            field=_shortened(field, max_bytes=ERROR_FIELD_MAX_BYTES),
            description=_shortened(description, max_bytes=ERROR_DESCRIPTION_MAX_BYTES),
            reason=reason,
        )
        for field, description, reason in error.violations[:count]
    ]
    return [error_details_pb2.BadRequest(field_violations=violations)]


def _resources(error: BookNotFound | EtagMismatch, count: int) -> Iterable[Message]:
    return [
        error_details_pb2.ResourceInfo(resource_type="bookstore.v1.Book", resource_name=f"books/{book_id}")
        for book_id in error.ids[:count]
    ]


def _retry_info(error: Unavailable | ResourceExhausted, _count: int) -> Iterable[Message]:
    delay = Duration()
    delay.FromMilliseconds(round(error.retry_seconds * 1_000))
    return [error_details_pb2.RetryInfo(retry_delay=delay)]


def _nothing(_error: BookstoreError, _count: int) -> Iterable[Message]:
    return ()


class _Row(NamedTuple):
    code: str
    make_details: Callable[..., Iterable[Message]]


_TABLE: dict[type, _Row] = {
    InvalidRequest: _Row("INVALID_ARGUMENT", _bad_request),
    RequestTooLarge: _Row("RESOURCE_EXHAUSTED", _nothing),
    ResumeTokenExpired: _Row("OUT_OF_RANGE", _nothing),
    BookNotFound: _Row("NOT_FOUND", _resources),
    EtagMismatch: _Row("ABORTED", _resources),
    RequestIdReused: _Row("ALREADY_EXISTS", _nothing),
    Unauthenticated: _Row("UNAUTHENTICATED", _nothing),
    PermissionDenied: _Row("PERMISSION_DENIED", _nothing),
    ResourceExhausted: _Row("RESOURCE_EXHAUSTED", _retry_info),
    Unavailable: _Row("UNAVAILABLE", _retry_info),
    DeadlineExceeded: _Row("DEADLINE_EXCEEDED", _nothing),
    MethodUnknown: _Row("UNIMPLEMENTED", _nothing),
    InternalError: _Row("INTERNAL", _nothing),
}


def _row_or_none(error: BookstoreError) -> _Row | None:
    return next((_TABLE[ancestor] for ancestor in type(error).__mro__ if ancestor in _TABLE), None)


def _row(error: BookstoreError) -> _Row:
    row = _row_or_none(error)
    assert row is not None, type(error)  # noqa: S101  the pipeline raises no other errors
    return row


def _packed(detail: Message) -> Any:
    packed = Any()
    packed.Pack(detail)
    return packed


def _size(text: str) -> int:
    return len(text.encode())


def _size_in_header(text: str) -> int:
    data = text.encode()
    return len(data) + 2 * len(_PERCENT_ENCODED.findall(data))


def _size_in_base64(message: Message) -> int:
    return -(-message.ByteSize() // 3) * 4


def _shortened(text: str, *, max_bytes: int, size: Callable[[str], int] = _size) -> str:
    """Shorten a text in the middle, because its end may contain the number of further entries, or the column."""
    text = text.encode(errors="replace").decode()  # protobuf rejects lone surrogates
    if size(text) <= max_bytes:
        return text

    def shortened(count: int) -> str:
        end = count // 4
        return f"{text[: count - end]}…{text[len(text) - end :]}"

    too_many = bisect_left(range(max_bytes), True, lo=1, key=lambda count: size(shortened(count)) > max_bytes)
    return shortened(too_many - 1)
