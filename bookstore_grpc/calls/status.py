"""The table from domain error to status, reason and details. What stands in no row is INTERNAL.

Rows are found along the class's ancestors, so a new kind of `Unavailable` needs none of its own. A status travels in
headers, so it is kept to the size that every client and proxy takes, whatever callers have put into it.
"""

import re
from bisect import bisect_left
from collections.abc import Callable, Iterable, Sequence
from typing import NamedTuple

import grpc
from google.protobuf.any_pb2 import Any
from google.protobuf.duration_pb2 import Duration
from google.protobuf.message import Message
from google.rpc import error_details_pb2, status_pb2

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
    """What the caller gets: `details` is a serialized google.rpc.Status."""

    code: grpc.StatusCode
    reason: str
    message: str
    details: bytes


def status_from_error(error: BaseException, *, request_id: str) -> Status:
    """Turn an error into a status. One that is not meant for callers leaves as a bare INTERNAL.

    Of a list, of violations or of missing books, the first is always there; how many are left out is in the metadata.
    """
    if not isinstance(error, BookstoreError) or not any(kind in _TABLE for kind in type(error).__mro__):
        error = InternalError()
    code, make_details = next(_TABLE[kind] for kind in type(error).__mro__ if kind in _TABLE)
    message = _shortened(error.message, max_bytes=ERROR_MESSAGE_MAX_BYTES, size=_size_in_header)
    entries = _entry_count(error)

    def made(count: int) -> status_pb2.Status:
        metadata = _metadata(error, omitted=entries - count)
        info = error_details_pb2.ErrorInfo(reason=error.reason, domain=ERROR_DOMAIN, metadata=metadata)
        request = error_details_pb2.RequestInfo(request_id=request_id)
        details = [_packed(detail) for detail in (info, request, *make_details(error, count))]
        return status_pb2.Status(code=code.value[0], message=message, details=details)

    def is_too_long(status: status_pb2.Status) -> bool:
        # The id has a header of its own too.
        return _size_in_header(message) + _size_in_base64(status) + len(request_id) > ERROR_MAX_BYTES

    shown = min(entries, ERROR_ENTRIES_MAX)
    status = made(shown)
    if shown > 1 and is_too_long(status):
        first_too_many = bisect_left(range(shown), True, lo=2, key=lambda count: is_too_long(made(count)))
        status = made(first_too_many - 1)
    return Status(code, error.reason, message, status.SerializeToString())


def _entry_count(error: BookstoreError) -> int:
    match error:
        case InvalidRequest():
            return len(error.violations)
        case BookNotFound():
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


def _missing_books(error: BookNotFound, count: int) -> Iterable[Message]:
    return _resources(error.ids[:count])


def _changed_book(error: EtagMismatch, _count: int) -> Iterable[Message]:
    return _resources([error.book_id])


def _resources(ids: Sequence[int]) -> Iterable[Message]:
    return [
        error_details_pb2.ResourceInfo(resource_type="bookstore.v1.Book", resource_name=f"books/{book_id}")
        for book_id in ids
    ]


def _retry_info(error: Unavailable | ResourceExhausted, _count: int) -> Iterable[Message]:
    delay = Duration()
    delay.FromMilliseconds(round(error.retry_seconds * 1_000))
    return [error_details_pb2.RetryInfo(retry_delay=delay)]


def _nothing(_error: BookstoreError, _count: int) -> Iterable[Message]:
    return ()


_Row = tuple[grpc.StatusCode, Callable[..., Iterable[Message]]]

_TABLE: dict[type, _Row] = {
    InvalidRequest: (grpc.StatusCode.INVALID_ARGUMENT, _bad_request),
    RequestTooLarge: (grpc.StatusCode.RESOURCE_EXHAUSTED, _nothing),
    BookNotFound: (grpc.StatusCode.NOT_FOUND, _missing_books),
    EtagMismatch: (grpc.StatusCode.ABORTED, _changed_book),
    RequestIdReused: (grpc.StatusCode.ALREADY_EXISTS, _nothing),
    Unauthenticated: (grpc.StatusCode.UNAUTHENTICATED, _nothing),
    PermissionDenied: (grpc.StatusCode.PERMISSION_DENIED, _nothing),
    ResourceExhausted: (grpc.StatusCode.RESOURCE_EXHAUSTED, _retry_info),
    Unavailable: (grpc.StatusCode.UNAVAILABLE, _retry_info),
    DeadlineExceeded: (grpc.StatusCode.DEADLINE_EXCEEDED, _nothing),
    MethodUnknown: (grpc.StatusCode.UNIMPLEMENTED, _nothing),
    InternalError: (grpc.StatusCode.INTERNAL, _nothing),
}


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
    """Take out of the middle of a text what does not fit; at its end stands how many more there are, or the column."""
    text = text.encode(errors="replace").decode()  # a message takes no half of a surrogate pair
    if size(text) <= max_bytes:
        return text

    def kept(count: int) -> str:
        end = count // 4
        return f"{text[: count - end]}…{text[len(text) - end :]}"

    too_many = bisect_left(range(max_bytes), True, lo=1, key=lambda count: size(kept(count)) > max_bytes)
    return kept(too_many - 1)
