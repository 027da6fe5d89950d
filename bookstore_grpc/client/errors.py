"""How a failed call becomes an error again: the table from what a status says to the class that the server raised."""

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
    MethodUnknown,
    PermissionDenied,
    RequestIdReused,
    RequestTooLarge,
    ResourceExhausted,
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
        DatabaseUnavailable,
        ServerDraining,
        CallInterrupted,
        DeadlineExceeded,
        MethodUnknown,
    )
}


class _Details(NamedTuple):
    """What a status of the service says of an error, beside its reason."""

    message: str
    metadata: Mapping[str, str]
    violations: Sequence[Violation]
    ids: Sequence[int]


# These raise `LookupError` and `ValueError` where a detail is missing or is not as it is to be.
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
    BookNotFound.reason: lambda details: BookNotFound(details.ids, message=details.message),
    RequestTooLarge.reason: lambda details: RequestTooLarge(message=details.message),
    EtagMismatch.reason: lambda details: EtagMismatch(details.ids[0], message=details.message),
    RequestIdReused.reason: lambda details: RequestIdReused(
        details.metadata["create_request_id"], message=details.message
    ),
}
_ERRORS_BY_CODE: dict[grpc.StatusCode, type[BookstoreError]] = {
    grpc.StatusCode.UNAUTHENTICATED: Unauthenticated,
    grpc.StatusCode.PERMISSION_DENIED: PermissionDenied,
    grpc.StatusCode.RESOURCE_EXHAUSTED: ResourceExhausted,
    grpc.StatusCode.UNAVAILABLE: Unavailable,
    # What gRPC says for a server that has too many calls waiting, or is ending: those have no request id. A call that
    # its own caller cancels does not come here.
    grpc.StatusCode.CANCELLED: Unavailable,
    grpc.StatusCode.DEADLINE_EXCEEDED: DeadlineExceeded,
    grpc.StatusCode.UNIMPLEMENTED: MethodUnknown,
    grpc.StatusCode.INTERNAL: InternalError,
}


def error_from_rpc_error(error: grpc.aio.AioRpcError) -> BookstoreError:
    """Turn a failed call, also one made with the generated stub, into the error that the server meant."""
    trailers = dict(error.trailing_metadata() or ())
    try:
        raised = _error(error, status_pb2.Status.FromString(_bytes(trailers.get(STATUS_DETAILS_KEY, b""))))
    except (DecodeError, LookupError, ValueError):
        # Details that this service did not make, a proxy's perhaps, do not hide the status.
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
    message = error.details() or f"The server answered {error.code().name}."
    if error.code() is grpc.StatusCode.CANCELLED:
        message = (
            "The server cancelled the call, which may have been done."
            if REQUEST_ID_KEY in dict(error.trailing_metadata() or ())
            else "The server turned the call away before it began; try again."
        )
    violations = [Violation(each.field, each.description, each.reason) for each in bad_request.field_violations]
    if make := _ERRORS_FROM_DETAILS.get(info.reason):
        raised = make(_Details(message, info.metadata, violations, ids))
    elif error.code() is grpc.StatusCode.INVALID_ARGUMENT:
        raised = InvalidRequest(violations, message=message)
    else:
        raised = _ERRORS_BY_REASON.get(info.reason, _ERRORS_BY_CODE.get(error.code(), BookstoreError))(message)
    raised.reason = info.reason  # what the service said, if it was the service
    raised.metadata = dict(info.metadata)
    if isinstance(raised, InvalidRequest | BookNotFound):
        raised.omitted_count = int(info.metadata.get(OMITTED_COUNT_KEY, 0))
    if isinstance(raised, ResourceExhausted | Unavailable) and retry.HasField("retry_delay"):
        raised.retry_seconds = retry.retry_delay.ToMilliseconds() / 1_000
    return raised


def _bytes(value: str | bytes) -> bytes:
    return value if isinstance(value, bytes) else value.encode()
