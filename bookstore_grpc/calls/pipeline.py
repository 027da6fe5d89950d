"""The pipeline that every call runs in: observers, admission, deadline, checks, and the translation of errors.

An adapter creates a `Call` with `new_call`, runs it in `CallPipeline.run`, and sends the `BookstoreError` that this
raises in its own format (`calls.status`).
"""

import asyncio
import math
import time
from collections.abc import Awaitable, Callable, Sequence
from typing import Any, TypeVar

import structlog

from bookstore_grpc.calls.admission import Admission
from bookstore_grpc.calls.call import HEALTH_PREFIX, Call, Check, Observer, Outcome
from bookstore_grpc.calls.context import CallEnded
from bookstore_grpc.calls.in_progress import CallsInProgress
from bookstore_grpc.calls.status import code_name, domain_error
from bookstore_grpc.calls.watch_limit import WatchLimit
from bookstore_grpc.errors import BookstoreError, DeadlineExceeded, InternalError, ServerDraining, TokenInvalid

_log = structlog.stdlib.get_logger("bookstore_grpc.calls.pipeline")

_OBSERVER_FAILED = "observer failed"

_T = TypeVar("_T")


class CallPipeline:
    """Runs calls: the `observers` are notified of each, and the `checks`, in order, admit or reject it.

    `admission` and `max_call_seconds` apply to all calls except watches, for which there is `watch_limit`. None of the
    limits applies to the health service, except `max_call_seconds` to its unary calls.
    """

    def __init__(
        self,
        *,
        checks: Sequence[Check] = (),
        observers: Sequence[Observer] = (),
        admission: Admission | None = None,
        watch_limit: WatchLimit | None = None,
        max_call_seconds: float = 30,
    ) -> None:
        self.calls_in_progress = CallsInProgress()
        self._checks = checks
        self._observers = observers
        self._admission = admission or Admission()
        self._watch_limit = watch_limit or WatchLimit()
        self._max_call_seconds = max_call_seconds

    async def run(
        self,
        call: Call,
        handle: Callable[[], Awaitable[_T]],
        *,
        is_stream: bool = False,
        is_watch: bool = False,
        is_rejected_by_drain: bool = False,
    ) -> _T:
        """Run a call in the current task: if it is admitted, await `handle` and return its result.

        A drain ends a call that `is_stream` at once. One that `is_watch` is an endless stream of responses: it ends
        when its caller ends it, when the caller's token expires, or at a drain.

        Raises the `BookstoreError` to send to the caller, an `InternalError` for every exception that is not a domain
        error. Raises `CallEnded` if the transport has already sent a status, and `CancelledError` if the caller has
        cancelled the call.
        """
        started = time.perf_counter()
        task = _current_task()
        is_health = call.method.startswith(HEALTH_PREFIX)
        is_admitted_by_count = not (is_health or is_watch)
        call.is_watch = is_watch
        remaining = call.context.time_remaining()
        limit = math.inf if is_watch else self._max_call_seconds
        is_limit_first = remaining is None or remaining > limit
        ends_at = started + (limit if remaining is None else min(limit, remaining))
        self.calls_in_progress.add(task, ends_at=ends_at, is_stream=is_stream)
        if is_admitted_by_count:
            self._admission.enter()
        try:
            self._notify_of_start(call)
            try:
                if is_rejected_by_drain and self.calls_in_progress.is_draining:
                    raise ServerDraining
                if is_admitted_by_count:
                    self._admission.check_capacity()
                for check in self._checks:
                    await check(call)
                if is_watch and not is_health:
                    result = await self._watch(call, handle, ends_at=ends_at)
                else:
                    result = await handle()
            except (Exception, asyncio.CancelledError) as raised:
                is_late = isinstance(raised, asyncio.CancelledError) and self.calls_in_progress.is_late(task)
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
            self.calls_in_progress.discard(task)
            if is_admitted_by_count:
                self._admission.leave()

    async def _watch(self, call: Call, handle: Callable[[], Awaitable[_T]], *, ends_at: float) -> _T:
        """Await `handle` while the caller's token is valid, without which it could not call again."""
        expires_at = time.perf_counter() + call.valid_until - time.time()
        if expires_at < ends_at:
            self.calls_in_progress.add(_current_task(), ends_at=expires_at, is_stream=True)
        with self._watch_limit.slot(call):
            try:
                return await handle()
            except asyncio.CancelledError as cancelled:
                if expires_at < ends_at and self.calls_in_progress.is_late(_current_task()):
                    raise TokenInvalid("The token has expired; watch again with a new one.") from cancelled
                raise

    def _leaving_error(self, call: Call, raised: BaseException, *, is_stream: bool) -> BaseException:
        """Return the exception that the pipeline raises for one that was raised in it."""
        if isinstance(raised, CallEnded):
            return raised
        if isinstance(raised, asyncio.CancelledError):
            error = self.calls_in_progress.cancelled_by_drain(is_stream=is_stream)
            # When the caller cancels the call, the transport cancels the task. If instead a handler itself raised
            # CancelledError, raising it again would keep the caller waiting until its deadline (grpc/grpc#29248).
            if error is None and _current_task().cancelling():
                return raised
            raised = error or InternalError()
        # gRPC's own servicers send statuses themselves, and the deadline may expire while they do.
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
            except Exception:  # a defect of an observer must not fail the call
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
    # Log a defect itself, not the InternalError that hides it from the caller.
    is_defect = isinstance(error, InternalError) and isinstance(raised, Exception)
    return Outcome(code_name(error), seconds, error.reason, raised if is_defect else error)


def _current_task() -> asyncio.Task[Any]:
    task = asyncio.current_task()
    assert task is not None  # noqa: S101  every transport runs each call in a separate task
    return task
