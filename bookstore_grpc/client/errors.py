"""Translates the status and details of a failed call into the class of error that the server raised."""

from collections.abc import Callable, Mapping, Sequence
from typing import NamedTuple

import grpc
from google.protobuf.message import DecodeError
from google.rpc import status_pb2
from google.rpc.error_details_pb2 import BadRequest, ErrorInfo, ResourceInfo, RetryInfo

from bookstore_grpc.errors import (
    BookNotFound,
    BookstoreError,
    CallInterrupted,
    DatabaseUnavailable,
    DeadlineExceeded,
    EtagMismatch,
    InternalError,
    InvalidFilter,
    InvalidOrderBy,
    InvalidPageToken,
    InvalidRequest,
    InvalidResumeToken,
    MethodUnknown,
    PermissionDenied,
    RequestIdReused,
    RequestTooLarge,
    ResourceExhausted,
    ResumeTokenExpired,
    ScopeMissing,
    ServerDraining,
    TokenInvalid,
    TokenMissing,
    Unauthenticated,
    Unavailable,
    Violation,
)
from bookstore_grpc.metadata import ERROR_DOMAIN, OMITTED_COUNT_KEY, REQUEST_ID_KEY, STATUS_DETAILS_KEY

_ERRORS_BY_REASON: dict[str, type[BookstoreError]] = {
    error.reason: error
    for error in (
        TokenMissing,
        TokenInvalid,
        ScopeMissing,
        ResumeTokenExpired,
        DatabaseUnavailable,
        ServerDraining,
        CallInterrupted,
        DeadlineExceeded,
        MethodUnknown,
    )
}


class _Details(NamedTuple):
    """The details of a status that the constructors below need."""

    message: str
    metadata: Mapping[str, str]
    violations: Sequence[Violation]
    ids: Sequence[int]


# These raise `LookupError` or `ValueError` when a detail is missing or malformed.
_ERRORS_FROM_DETAILS: dict[str, Callable[[_Details], BookstoreError]] = {
    InvalidFilter.reason: lambda details: InvalidFilter(
        details.violations[0].description,
        column=int(details.metadata["column"]),
        rule=details.violations[0].reason,
    ),
    InvalidOrderBy.reason: lambda details: InvalidOrderBy(
        details.violations[0].description, rule=details.violations[0].reason
    ),
    InvalidPageToken.reason: lambda details: InvalidPageToken(
        details.violations[0].description, rule=details.violations[0].reason
    ),
    InvalidResumeToken.reason: lambda details: InvalidResumeToken(
        details.violations[0].description, field=details.violations[0].field, rule=details.violations[0].reason
    ),
    BookNotFound.reason: lambda details: BookNotFound(details.ids, message=details.message),
    RequestTooLarge.reason: lambda details: RequestTooLarge(message=details.message),
    EtagMismatch.reason: lambda details: EtagMismatch(details.ids[0], ids=details.ids, message=details.message),
    RequestIdReused.reason: lambda details: RequestIdReused(
        details.metadata["create_request_id"], message=details.message
    ),
}
_ERRORS_BY_CODE: dict[grpc.StatusCode, type[BookstoreError]] = {
    grpc.StatusCode.UNAUTHENTICATED: Unauthenticated,
    grpc.StatusCode.PERMISSION_DENIED: PermissionDenied,
    grpc.StatusCode.RESOURCE_EXHAUSTED: ResourceExhausted,
    grpc.StatusCode.UNAVAILABLE: Unavailable,
    # gRPC's own status when the server has too many waiting calls or is shutting down; it has no request id. A call
    # cancelled by the program itself raises CancelledError instead.
    grpc.StatusCode.CANCELLED: Unavailable,
    grpc.StatusCode.DEADLINE_EXCEEDED: DeadlineExceeded,
    grpc.StatusCode.UNIMPLEMENTED: MethodUnknown,
    grpc.StatusCode.INTERNAL: InternalError,
}


def error_from_rpc_error(error: grpc.aio.AioRpcError) -> BookstoreError:
    """Return the error that the server raised, from a failed call of this client or of a generated stub."""
    trailers = dict(error.trailing_metadata() or ())
    try:
        raised = _error(error, status_pb2.Status.FromString(_bytes(trailers.get(STATUS_DETAILS_KEY, b""))))
    except (DecodeError, LookupError, ValueError):
        # Malformed details, perhaps from a proxy, must not hide the status.
        raised = _error(error, status_pb2.Status())
    raised.request_id = str(trailers[REQUEST_ID_KEY]) if REQUEST_ID_KEY in trailers else None
    return raised


def _error(error: grpc.aio.AioRpcError, status: status_pb2.Status) -> BookstoreError:
    info, bad_request, resource, retry = ErrorInfo(), BadRequest(), ResourceInfo(), RetryInfo()
    ids = []
    for detail in status.details:
        if detail.Unpack(resource):
            ids.append(int(resource.resource_name.removeprefix("books/")))
        else:
            detail.Unpack(info)
            detail.Unpack(bad_request)
            detail.Unpack(retry)
    if info.domain != ERROR_DOMAIN:
        info = ErrorInfo()
    message = error.details() or f"The server returned {error.code().name}."
    if error.code() is grpc.StatusCode.CANCELLED:
        message = (
            "The server cancelled the call; the call may have taken effect."
            if REQUEST_ID_KEY in dict(error.trailing_metadata() or ())
            else "The server rejected the call before it started; try again."
        )
    violations = [Violation(each.field, each.description, each.reason) for each in bad_request.field_violations]
    if constructor := _ERRORS_FROM_DETAILS.get(info.reason):
        raised = constructor(_Details(message, info.metadata, violations, ids))
    elif error.code() is grpc.StatusCode.INVALID_ARGUMENT:
        raised = InvalidRequest(violations, message=message)
    else:
        raised = _ERRORS_BY_REASON.get(info.reason, _ERRORS_BY_CODE.get(error.code(), BookstoreError))(message)
    raised.reason = info.reason  # empty if the status is not from the service
    raised.metadata = dict(info.metadata)
    if isinstance(raised, InvalidRequest | BookNotFound | EtagMismatch):
        raised.omitted_count = int(info.metadata.get(OMITTED_COUNT_KEY, 0))
    if isinstance(raised, ResourceExhausted | Unavailable) and retry.HasField("retry_delay"):
        raised.retry_seconds = retry.retry_delay.ToMilliseconds() / 1_000
    return raised


def _bytes(value: str | bytes) -> bytes:
    return value if isinstance(value, bytes) else value.encode()
