"""The table from domain error to status, reason and details. What stands in no row is INTERNAL.

Rows are found along the class's ancestors, so a new kind of `Unavailable` needs none of its own.
"""

from collections.abc import Callable, Iterable
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
from bookstore_grpc.limits import ERROR_DETAILS_MAX_BYTES
from bookstore_grpc.wire import ERROR_DOMAIN


class Status(NamedTuple):
    """What the caller gets: `details` is a serialized google.rpc.Status."""

    code: grpc.StatusCode
    reason: str
    message: str
    details: bytes


def status_from_error(error: BaseException, *, request_id: str) -> Status:
    """Turn an error into a status. One that is not meant for callers leaves as a bare INTERNAL."""
    if not isinstance(error, BookstoreError) or not any(kind in _TABLE for kind in type(error).__mro__):
        error = InternalError()
    code, make_details = next(_TABLE[kind] for kind in type(error).__mro__ if kind in _TABLE)
    metadata = {"request_id": request_id, **error.metadata}
    info = error_details_pb2.ErrorInfo(reason=error.reason, domain=ERROR_DOMAIN, metadata=metadata)
    status = status_pb2.Status(code=code.value[0], message=error.message)
    _add(status, info)
    for detail in make_details(error):
        _add(status, detail)
    return Status(code, error.reason, error.message, status.SerializeToString())


def _bad_request(error: InvalidRequest) -> Iterable[Message]:
    bad_request = error_details_pb2.BadRequest()
    remaining = ERROR_DETAILS_MAX_BYTES
    for field, description in error.violations:
        violation = error_details_pb2.BadRequest.FieldViolation(field=field, description=description)
        remaining -= violation.ByteSize()
        if remaining < 0:
            break
        bad_request.field_violations.append(violation)
    return [bad_request]


def _missing_books(error: BookNotFound) -> Iterable[Message]:
    remaining = ERROR_DETAILS_MAX_BYTES
    for book_id in error.ids:
        info = error_details_pb2.ResourceInfo(
            resource_type="bookstore.v1.Book",
            resource_name=f"books/{book_id}",
            description=f"There is no book {book_id}.",
        )
        remaining -= info.ByteSize() + 50  # the type's URL travels with each
        if remaining < 0:
            return
        yield info


def _retry_info(error: Unavailable | ResourceExhausted) -> Iterable[Message]:
    delay = Duration()
    delay.FromMilliseconds(round(error.retry_seconds * 1_000))
    return [error_details_pb2.RetryInfo(retry_delay=delay)]


def _nothing(_error: BookstoreError) -> Iterable[Message]:
    return ()


_Row = tuple[grpc.StatusCode, Callable[..., Iterable[Message]]]

_TABLE: dict[type, _Row] = {
    InvalidRequest: (grpc.StatusCode.INVALID_ARGUMENT, _bad_request),
    RequestTooLarge: (grpc.StatusCode.RESOURCE_EXHAUSTED, _nothing),
    BookNotFound: (grpc.StatusCode.NOT_FOUND, _missing_books),
    EtagMismatch: (grpc.StatusCode.ABORTED, _nothing),
    RequestIdReused: (grpc.StatusCode.ALREADY_EXISTS, _nothing),
    Unauthenticated: (grpc.StatusCode.UNAUTHENTICATED, _nothing),
    PermissionDenied: (grpc.StatusCode.PERMISSION_DENIED, _nothing),
    ResourceExhausted: (grpc.StatusCode.RESOURCE_EXHAUSTED, _retry_info),
    Unavailable: (grpc.StatusCode.UNAVAILABLE, _retry_info),
    DeadlineExceeded: (grpc.StatusCode.DEADLINE_EXCEEDED, _nothing),
    MethodUnknown: (grpc.StatusCode.UNIMPLEMENTED, _nothing),
    InternalError: (grpc.StatusCode.INTERNAL, _nothing),
}


def _add(status: status_pb2.Status, detail: Message) -> None:
    packed = Any()
    packed.Pack(detail)
    status.details.append(packed)
