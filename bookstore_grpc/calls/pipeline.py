"""The pipeline that every call runs in: observers, admission, deadline, checks, and the translation of errors.

An adapter makes a `Call` with `new_call`, has it handled by `CallPipeline.run`, and writes the `BookstoreError` that
this raises in its own form (`calls.status`).
"""

import asyncio
import time
from collections.abc import Awaitable, Callable, Sequence
from typing import Any, TypeVar

import structlog

from bookstore_grpc.calls.admission import Admission
from bookstore_grpc.calls.call import HEALTH_PREFIX, Call, Check, Observer, Outcome
from bookstore_grpc.calls.context import CallEnded
from bookstore_grpc.calls.drain import CallsUnderWay
from bookstore_grpc.calls.status import code_name, domain_error
from bookstore_grpc.errors import BookstoreError, DeadlineExceeded, InternalError, ServerDraining

_log = structlog.stdlib.get_logger("bookstore_grpc.calls")

_OBSERVER_FAILED = "observer failed"

_T = TypeVar("_T")


class CallPipeline:
    """Runs calls: the `observers` are notified of each, and the `checks` admit or reject it in their order.

    All calls but those of the health service need a free place in `admission`. None but a watch on health takes longer
    than `max_call_seconds`.
    """

    def __init__(
        self,
        *,
        checks: Sequence[Check] = (),
        observers: Sequence[Observer] = (),
        admission: Admission | None = None,
        max_call_seconds: float = 30,
    ) -> None:
        self.calls_under_way = CallsUnderWay()
        self._checks = checks
        self._observers = observers
        self._admission = admission or Admission()
        self._max_call_seconds = max_call_seconds

    async def run(
        self,
        call: Call,
        handle: Callable[[], Awaitable[_T]],
        *,
        is_stream: bool = False,
        is_rejected_by_drain: bool = False,
    ) -> _T:
        """Handle a call in the current task once it is admitted, and return its result.

        Raises `BookstoreError` for whatever the caller is to be sent: an `InternalError` for every exception that is
        not a domain error. Raises `CallEnded` if the transport has sent a status already, and `CancelledError` if the
        caller has cancelled the call.
        """
        started = time.perf_counter()
        task = _current_task()
        is_health = call.method.startswith(HEALTH_PREFIX)
        self.calls_under_way.add(task, is_stream=is_stream)
        if not is_health:
            self._admission.enter()
        try:
            self._notify_of_start(call)
            remaining = call.context.time_remaining()
            has_limit = not (is_stream and is_health)  # a watch on health has no end
            is_limit_first = has_limit and (remaining is None or remaining > self._max_call_seconds)
            deadline = asyncio.timeout(self._max_call_seconds if is_limit_first else remaining)
            try:
                if is_rejected_by_drain and self.calls_under_way.is_draining:
                    raise ServerDraining
                if not is_health:
                    self._admission.check_room()
                async with deadline:
                    for check in self._checks:
                        await check(call)
                    result = await handle()
            except (Exception, asyncio.CancelledError) as raised:
                is_late = deadline.expired() and isinstance(raised, TimeoutError)
                known = self._deadline_error(is_limit_first=is_limit_first) if is_late else raised
                error = self._leaving_error(call, known, is_stream=is_stream)
                if error is not raised:
                    error.__cause__ = raised  # the observers log it
                self._notify_of_end(call, _outcome(error, raised, seconds=time.perf_counter() - started))
                if error is raised:
                    raise
                raise error from raised
            self._notify_of_end(call, Outcome("OK", time.perf_counter() - started))
            return result
        finally:
            self.calls_under_way.discard(task, is_stream=is_stream)
            if not is_health:
                self._admission.leave()

    def _leaving_error(self, call: Call, raised: BaseException, *, is_stream: bool) -> BaseException:
        """Return what leaves the pipeline for what was raised in it."""
        if isinstance(raised, CallEnded):
            return raised
        if isinstance(raised, asyncio.CancelledError):
            error = self.calls_under_way.cancelled_by_drain(is_stream=is_stream)
            # The transport cancels the task when the caller cancels the call; a handler that raises this error itself
            # does not. Left as it is, the latter would keep the caller waiting until its deadline (grpc/grpc#29248).
            if error is None and _current_task().cancelling():
                return raised
            raised = error or InternalError()
        # gRPC's own servicers may have sent a status, and the deadline may have expired while they did.
        sent = call.context.sent_status()
        return CallEnded(sent) if sent else domain_error(raised)

    def _deadline_error(self, *, is_limit_first: bool) -> DeadlineExceeded:
        if is_limit_first:
            return DeadlineExceeded(
                f"The call took longer than the {self._max_call_seconds:g} s that the server allows."
            )
        return DeadlineExceeded()

    def _notify_of_start(self, call: Call) -> None:
        for observer in self._observers:
            try:
                observer.call_began(call)
            except Exception:  # a call does not depend on its observers
                _log.exception(_OBSERVER_FAILED)

    def _notify_of_end(self, call: Call, outcome: Outcome) -> None:
        for observer in self._observers:
            try:
                observer.call_ended(call, outcome)
            except Exception:
                _log.exception(_OBSERVER_FAILED)


def _outcome(error: BaseException, raised: BaseException, *, seconds: float) -> Outcome:
    if isinstance(error, CallEnded):
        return Outcome(error.status, seconds)
    if not isinstance(error, BookstoreError):
        return Outcome("CANCELLED", seconds)
    # The log shows a defect itself, without the error that hides it from the caller.
    is_defect = isinstance(error, InternalError) and isinstance(raised, Exception)
    return Outcome(code_name(error), seconds, error.reason, raised if is_defect else error)


def _current_task() -> asyncio.Task[Any]:
    task = asyncio.current_task()
    assert task is not None  # noqa: S101  every transport runs each call in a task of its own
    return task
