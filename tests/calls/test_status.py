import grpc
import pytest
from bookstore.v1 import books_pb2

from bookstore_grpc import errors
from bookstore_grpc.service.servicer import BookServicer
from tests.rpc.calls import get, rejection
from tests.rpc.servers import stub_of


class TokenMissing(errors.Unauthenticated):
    reason = "TOKEN_MISSING"


class ScopeMissing(errors.PermissionDenied):
    reason = "SCOPE_MISSING"


class RefusingServicer(BookServicer):
    def __init__(self, error: errors.BookstoreError) -> None:
        self._error = error

    async def GetBook(self, request: books_pb2.GetBookRequest, context: object) -> books_pb2.Book:  # noqa: N802  the contract's name
        raise self._error


@pytest.mark.parametrize(
    ("error", "code", "reason", "is_retryable"),
    [
        (TokenMissing("Say who you are."), grpc.StatusCode.UNAUTHENTICATED, "TOKEN_MISSING", False),
        (ScopeMissing("Not for you."), grpc.StatusCode.PERMISSION_DENIED, "SCOPE_MISSING", False),
        (
            errors.ResourceExhausted("Too many."),
            grpc.StatusCode.RESOURCE_EXHAUSTED,
            "TOO_MANY_REQUESTS",
            True,
        ),
        (errors.DatabaseUnavailable(), grpc.StatusCode.UNAVAILABLE, "DATABASE_UNAVAILABLE", True),
        (errors.ServerDraining(), grpc.StatusCode.UNAVAILABLE, "SERVER_DRAINING", True),
        (errors.CallInterrupted(), grpc.StatusCode.UNAVAILABLE, "CALL_INTERRUPTED", True),
        (errors.DeadlineExceeded(), grpc.StatusCode.DEADLINE_EXCEEDED, "DEADLINE_EXCEEDED", False),
        (errors.InternalError(), grpc.StatusCode.INTERNAL, "INTERNAL", False),
    ],
    ids=lambda value: type(value).__name__ if isinstance(value, Exception) else "",
)
async def test_each_error_has_its_status_reason_and_details(
    error: errors.BookstoreError, code: grpc.StatusCode, reason: str, is_retryable: bool
) -> None:
    async with stub_of(RefusingServicer(error)) as stub:
        rejected = await rejection(get(stub, 1))
    assert (rejected.code, rejected.reason, rejected.message) == (code, reason, error.message)
    assert (rejected.retry_seconds is not None) == is_retryable


async def test_an_error_that_is_never_for_callers_leaves_as_a_bare_internal() -> None:
    async with stub_of(RefusingServicer(errors.StartupError("the password is hunter2"))) as stub:
        rejected = await rejection(get(stub, 1))
    assert (rejected.code, rejected.reason) == (grpc.StatusCode.INTERNAL, "INTERNAL")
    assert "hunter2" not in repr(rejected)


async def test_details_of_a_great_many_long_violations_still_reach_the_caller() -> None:
    violations = [errors.Violation(f"field{number}", "é" * 300, errors.Rule.TOO_LONG) for number in range(100)]
    async with stub_of(RefusingServicer(errors.InvalidRequest(violations))) as stub:
        rejected = await rejection(get(stub, 1))
    assert rejected.code is grpc.StatusCode.INVALID_ARGUMENT
    assert rejected.violations
    assert list(rejected.violations) == [f"field{number}" for number in range(len(rejected.violations))]
