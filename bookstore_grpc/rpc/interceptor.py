"""What surrounds every call: its request id, its deadline, its gates and observers, its errors.

`CallInterceptor` is the outermost one and the only place that sets a failing status, for unary and streaming
methods alike.
"""

import asyncio
import inspect
import os
import time
from collections.abc import AsyncIterator, Awaitable, Callable, Collection, Sequence
from contextlib import AbstractAsyncContextManager, asynccontextmanager
from typing import Any

import grpc
import structlog

from bookstore_grpc.calls.admission import Admission
from bookstore_grpc.calls.call import HEALTH_PREFIX, UNKNOWN_METHOD, Call, Gate, Observer, Outcome
from bookstore_grpc.calls.status import status_from_error
from bookstore_grpc.compat.grpc_read import read_message
from bookstore_grpc.errors import (
    BookstoreError,
    CallInterrupted,
    DeadlineExceeded,
    InternalError,
    MalformedMessage,
    MethodUnknown,
    RequestTooLarge,
    ResourceExhausted,
    ServerDraining,
)
from bookstore_grpc.limits import HELD_RESPONSES_MAX_BYTES, MESSAGE_MAX_BYTES
from bookstore_grpc.metadata import (
    REQUEST_ID_KEY,
    REQUEST_ID_PATTERN,
    STATUS_DETAILS_KEY,
    TRACEPARENT_KEY,
    trace_id_from_traceparent,
)

_log = structlog.stdlib.get_logger("bookstore_grpc.calls")

_OBSERVER_FAILED = "observer failed"
_CUT_OFF_SECONDS = 1
# How long no call may come before responses held back are taken to have quietened the callers, and how often to look.
# A caller may take as long to send its next call: its network is slow, or its machine busy.
_QUIET_SECONDS = 0.1
_QUIET_LOOKS_MAX = 15
# How soon after the end of its stream the core cancels a call.
_CANCEL_SECONDS = 0.1
# Responses are not held for callers that may give up meanwhile.
_HOLD_LEAST_REMAINING_SECONDS = 2
# What a held call takes besides its response, about.
_HELD_CALL_BYTES = 16 * 1024

_Guard = Callable[[Any], AbstractAsyncContextManager[Call]]
_Receive = Callable[[Call, Any, Any], Awaitable[Any]]


class CallInterceptor(grpc.aio.ServerInterceptor):
    """Guards every call and knows those under way, so that a draining server can wait for them.

    A call passes the gates in their order; the observers are told of it whatever becomes of it. All calls but those of
    health need room by `admission`, and none but a watch on health takes longer than `max_call_seconds`, or has a
    request of more than `max_request_bytes`. `taken_calls` counts what gRPC has handed over.
    """

    def __init__(
        self,
        *,
        gates: Sequence[Gate] = (),
        observers: Sequence[Observer] = (),
        admission: Admission | None = None,
        max_call_seconds: float = 30,
        max_request_bytes: int = MESSAGE_MAX_BYTES,
    ) -> None:
        self._gates = gates
        self._observers = observers
        self._admission = admission or Admission()
        self._max_call_seconds = max_call_seconds
        self._max_request_bytes = max_request_bytes
        self.taken_calls = 0
        self._handlers: dict[str, grpc.RpcMethodHandler[Any, Any]] = {}
        self._unary_calls: set[asyncio.Task[Any]] = set()
        self._streams: set[asyncio.Task[Any]] = set()
        self._is_draining = False
        self._is_cutting_off = False
        self._release: asyncio.Event | None = None
        self._held_bytes = 0

    async def intercept_service(
        self,
        continuation: Callable[[grpc.HandlerCallDetails], Awaitable["grpc.RpcMethodHandler[Any, Any] | None"]],
        handler_call_details: grpc.HandlerCallDetails,
    ) -> "grpc.RpcMethodHandler[Any, Any]":
        """Put the guard around the handler of a call, once for each method."""
        self.taken_calls += 1
        method = handler_call_details.method
        guarded = self._handlers.get(method)
        if guarded is None:
            handler = await continuation(handler_call_details)
            if handler is None:
                # Not kept: a caller could fill the memory with names.
                return self._unknown_method(method)
            guarded = self._handlers[method] = self._guarded(method, handler)
        return guarded

    def guard(self, method: str, context: Any) -> AbstractAsyncContextManager[Call]:
        """Surround a unary call that has come another way than through gRPC.

        `context` stands in for gRPC's. A call that fails leaves the block with the `AbortError` of its `abort`.
        """
        return self._call(method, context, self._unary_calls, is_refused_by_drain=True)

    @asynccontextmanager
    async def responses_held(self) -> AsyncIterator[None]:
        """Hold back the responses of unary gRPC calls; enter the block when few calls come, or after a moment.

        A caller that waits for a response sends nothing, and the client of one that does not wait holds its calls back
        when its connection has as many under way as it may. So in the block hardly any request is on its way, and a
        connection can be given up without one being lost. Calls go on, and are accepted, all the while.
        """
        self._release = asyncio.Event()
        try:
            await self._quiet()
            yield
        finally:
            self._release.set()
            self._release = None

    async def _quiet(self) -> None:
        for _ in range(_QUIET_LOOKS_MAX):
            arrived = self.taken_calls
            await asyncio.sleep(_QUIET_SECONDS)
            if self.taken_calls == arrived:
                return

    async def _hold_response(self, call: Call) -> None:
        """Wait while responses are held, unless the caller may give up meanwhile or too much is held already."""
        if self._release is None or self._held_bytes > HELD_RESPONSES_MAX_BYTES:
            return
        remaining = call.context.time_remaining()
        if remaining is not None and remaining <= _HOLD_LEAST_REMAINING_SECONDS:
            return
        held_bytes = call.response_bytes + _HELD_CALL_BYTES
        self._held_bytes += held_bytes
        try:
            await self._release.wait()
        finally:
            self._held_bytes -= held_bytes

    async def drain(self, *, grace_seconds: float) -> bool:
        """End the streams, which have no end of their own, and wait for the unary calls; then cut off what is left.

        From now on calls over HTTP and streams are refused. Answer whether the unary calls ended by themselves.
        """
        self._is_draining = True
        for task in self._streams:
            task.cancel()
        if await self._have_ended(grace_seconds):
            return True
        self._is_cutting_off = True
        for task in self._unary_calls | self._streams:
            task.cancel()
        await self._have_ended(_CUT_OFF_SECONDS)
        return False

    async def _have_ended(self, seconds: float) -> bool:
        try:
            async with asyncio.timeout(seconds):
                while calls := self._unary_calls | self._streams:
                    await asyncio.wait(calls)
        except TimeoutError:
            return False
        return True

    def _guarded(self, method: str, handler: Any) -> "grpc.RpcMethodHandler[Any, Any]":
        is_stream = handler.request_streaming or handler.response_streaming

        def guard(context: Any) -> AbstractAsyncContextManager[Call]:
            calls = self._streams if is_stream else self._unary_calls
            return self._call(method, context, calls, is_refused_by_drain=is_stream)

        behaviour = getattr(handler, _kind(handler))
        receive = _receiver(method, handler, max_bytes=self._max_request_bytes)
        serialize = handler.response_serializer or _as_it_is
        # What gRPC is told to read or write it does outside of the guard: it would take in whole requests before any
        # gate, and tell the caller whatever text an exception of a reader or writer has. So all requests are streams to
        # gRPC, and all messages bytes.
        replaced: dict[str, Any] = {
            "request_streaming": True,
            "request_deserializer": None,
            "response_serializer": None,
        }
        if not handler.response_streaming:
            guarded = _guarded_coroutine(behaviour, guard, receive, serialize, self._hold_response)
        elif inspect.isasyncgenfunction(behaviour):
            guarded = _guarded_generator(behaviour, guard, receive, serialize)
        else:
            # It writes its answers itself, through the context, which serializes them.
            guarded = _guarded_coroutine(behaviour, guard, receive, _as_it_is, self._hold_response)
            replaced["response_serializer"] = handler.response_serializer
        replaced["stream_stream" if handler.response_streaming else "stream_unary"] = guarded
        return handler._replace(**replaced)  # type: ignore[no-any-return]  # a namedtuple to the last release

    def _unknown_method(self, method: str) -> "grpc.RpcMethodHandler[Any, Any]":
        async def refuse(_requests: Any, context: Any) -> None:
            async with self._call(UNKNOWN_METHOD, context, self._unary_calls, is_refused_by_drain=False):
                raise MethodUnknown(f"There is no method {method[:200]!r}; server reflection lists what there is.")

        return grpc.stream_stream_rpc_method_handler(refuse)

    @asynccontextmanager
    async def _call(
        self, method: str, context: Any, calls: set[asyncio.Task[Any]], *, is_refused_by_drain: bool
    ) -> AsyncIterator[Call]:
        started = time.perf_counter()
        metadata = context.invocation_metadata() or ()
        request_id, trace_id = _ids(metadata)
        call = Call(method, request_id, metadata, context, trace_id=trace_id)
        context.set_trailing_metadata(((REQUEST_ID_KEY, call.request_id),))
        task = asyncio.current_task()
        assert task is not None  # noqa: S101  gRPC runs each call in a task of its own
        calls.add(task)
        is_unary = calls is self._unary_calls
        is_health = method.startswith(HEALTH_PREFIX)
        if not is_health:
            self._admission.enter()
        try:
            self._tell_of_beginning(call)
            remaining = context.time_remaining()
            # A watch on health is there to last.
            is_bounded = is_unary or not is_health
            is_ours = is_bounded and (remaining is None or remaining > self._max_call_seconds)
            deadline = asyncio.timeout(self._max_call_seconds if is_ours else remaining)
            try:
                if self._is_draining and is_refused_by_drain:
                    raise ServerDraining
                if not is_health:
                    self._admission.check_room()
                async with deadline:
                    for gate in self._gates:
                        await gate(call)
                    yield call
                self._tell(call, started, "OK")
            except grpc.aio.AbortError:
                # A servicer has set the status itself, as that of health does.
                self._tell(call, started, context.code().name)
                raise
            except asyncio.CancelledError as cancelled:
                is_cut_by_drain = self._is_cutting_off or (self._is_draining and calls is self._streams)
                # gRPC cancels the task of a call that its caller has left; what a handler raises itself does not.
                if task.cancelling() and not is_cut_by_drain:
                    self._tell(call, started, "CANCELLED")
                    raise
                # Left alone, a cancellation that is not the caller's would leave it waiting (grpc/grpc#29248).
                error = self._cut_off_error(is_unary=is_unary) if is_cut_by_drain else InternalError()
                error.__cause__ = cancelled
                await self._fail(call, started, error, is_held=False)
            except Exception as raised:
                is_late = deadline.expired() and isinstance(raised, TimeoutError)
                told = self._deadline_error(is_ours=is_ours) if is_late else raised
                await self._fail(call, started, told, is_held=not (is_refused_by_drain or is_health))
        finally:
            calls.discard(task)
            if not is_health:
                self._admission.leave()

    def _cut_off_error(self, *, is_unary: bool) -> BookstoreError:
        return CallInterrupted() if is_unary else ServerDraining()  # streams only tell; nothing was done by halves

    def _deadline_error(self, *, is_ours: bool) -> DeadlineExceeded:
        if is_ours:
            return DeadlineExceeded(
                f"The call took longer than the {self._max_call_seconds:g} s that the server allows."
            )
        return DeadlineExceeded()

    async def _fail(self, call: Call, started: float, error: BaseException, *, is_held: bool) -> None:
        if call.context.done():
            # The deadline came while a servicer of gRPC's own was telling its refusal.
            self._tell(call, started, call.context.code().name)
            raise asyncio.CancelledError from error
        status = status_from_error(error, request_id=call.request_id)
        self._tell(call, started, status.code.name, reason=status.reason, error=error)
        if is_held and not isinstance(error, ResourceExhausted):
            self._admission.leave()  # it has ended, and takes nobody's room
            try:
                await self._hold_response(call)
            finally:
                self._admission.enter()
        try:
            await call.context.abort(
                status.code,
                status.message,
                trailing_metadata=((REQUEST_ID_KEY, call.request_id), (STATUS_DETAILS_KEY, status.details)),
            )
        except grpc.aio.InternalError as failed:
            # The caller has gone, which gRPC takes for a defect if it learns it this way first.
            raise asyncio.CancelledError from failed

    def _tell_of_beginning(self, call: Call) -> None:
        for observer in self._observers:
            try:
                observer.call_began(call)
            except Exception:  # the call does not depend on who watches it
                _log.exception(_OBSERVER_FAILED)

    def _tell(
        self, call: Call, started: float, status: str, *, reason: str = "", error: BaseException | None = None
    ) -> None:
        outcome = Outcome(status, time.perf_counter() - started, reason, error)
        for observer in self._observers:
            try:
                observer.call_ended(call, outcome)
            except Exception:
                _log.exception(_OBSERVER_FAILED)


def _as_it_is(message: Any) -> Any:
    return message


def _kind(handler: Any) -> str:
    directions = (handler.request_streaming, handler.response_streaming)
    return "_".join("stream" if is_streaming else "unary" for is_streaming in directions)


def _guarded_coroutine(
    behaviour: Any,
    guard: _Guard,
    receive: _Receive,
    serialize: Callable[[Any], Any],
    hold: Callable[[Call], Awaitable[None]],
) -> Any:
    async def call(requests: Any, context: Any) -> Any:
        async with guard(context) as call:
            response = await behaviour(await receive(call, requests, context), context)
            data = response if isinstance(response, bytes) else serialize(response)
            call.response_bytes = len(data or b"")
        await hold(call)  # behind the guard: a call that is held has ended, and takes nobody's room or time
        return data

    return call


def _guarded_generator(behaviour: Any, guard: _Guard, receive: _Receive, serialize: Callable[[Any], Any]) -> Any:
    async def call(requests: Any, context: Any) -> AsyncIterator[Any]:
        async with guard(context) as call:
            async for response in behaviour(await receive(call, requests, context), context):
                data = serialize(response)
                call.response_bytes += len(data)
                yield data

    return call


def _receiver(method: str, handler: Any, *, max_bytes: int) -> _Receive:
    """Make what receives the request, or answers a stream of them.

    Either raises `MalformedMessage` and `RequestTooLarge`.
    """
    deserialize = handler.request_deserializer or _as_it_is

    def read(call: Call, data: bytes) -> Any:
        call.request_bytes += len(data)
        if len(data) > max_bytes:
            raise RequestTooLarge(max_bytes)
        try:
            return deserialize(data)
        except Exception as error:  # whatever the parser finds, it is the caller's bytes
            raise MalformedMessage(method) from error

    async def receive_one(call: Call, _requests: Any, context: Any) -> Any:
        call.peer = context.peer()  # of a cancelled call the core does not tell it
        data = await read_message(context)
        if data is not grpc.aio.EOF:
            return read(call, data)
        # Of a call that its caller has left, or whose message the core has found far too long, the end of the stream
        # may come before the cancellation.
        await asyncio.sleep(_CANCEL_SECONDS)
        raise MalformedMessage(method)

    async def read_each(call: Call, requests: Any) -> AsyncIterator[Any]:
        async for data in requests:
            yield read(call, data)

    async def receive_each(call: Call, requests: Any, _context: Any) -> Any:
        return read_each(call, requests)

    return receive_each if handler.request_streaming else receive_one


def _ids(metadata: Collection[tuple[str, str | bytes]]) -> tuple[str, str]:
    """Answer the request id, a new one where the caller has chosen none, and the trace's id, or "" for no trace."""
    request_id = trace_id = ""
    for key, value in metadata:
        if key == REQUEST_ID_KEY and isinstance(value, str) and REQUEST_ID_PATTERN.fullmatch(value):
            request_id = request_id or value
        elif key == TRACEPARENT_KEY and isinstance(value, str):
            trace_id = trace_id_from_traceparent(value)
    return request_id or os.urandom(16).hex(), trace_id
