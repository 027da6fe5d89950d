"""What surrounds every call: its request id, its deadline, its log line, its errors.

`CallInterceptor` is the outermost one and the only place that sets a failing status, for unary and streaming
methods alike.
"""

import asyncio
import inspect
import os
import re
import time
from collections.abc import AsyncIterable, AsyncIterator, Awaitable, Callable, Collection
from contextlib import AbstractAsyncContextManager, asynccontextmanager
from typing import Any

import grpc
import structlog

from bookstore_grpc.errors import (
    DeadlineExceeded,
    InternalError,
    MalformedMessage,
    MethodUnknown,
    ServerDraining,
)
from bookstore_grpc.limits import REQUEST_ID_MAX_CHARACTERS
from bookstore_grpc.rpc.status import status_from_error
from bookstore_grpc.wire import REQUEST_ID_KEY, STATUS_DETAILS_KEY

_SANE_REQUEST_ID = re.compile(rf"[A-Za-z0-9._-]{{1,{REQUEST_ID_MAX_CHARACTERS}}}")
_MALFORMED = object()
_CUT_OFF_SECONDS = 1

_log = structlog.stdlib.get_logger("bookstore_grpc.calls")

_Guard = Callable[[Any], AbstractAsyncContextManager[None]]


class CallInterceptor(grpc.aio.ServerInterceptor):
    """Guards every call and knows those under way, so that a draining server can wait for them."""

    def __init__(self) -> None:
        self._handlers: dict[str, grpc.RpcMethodHandler[Any, Any]] = {}
        self._unary_calls: set[asyncio.Task[Any]] = set()
        self._streams: set[asyncio.Task[Any]] = set()
        self._is_draining = False
        self._is_cutting_off = False

    async def intercept_service(
        self,
        continuation: Callable[[grpc.HandlerCallDetails], Awaitable["grpc.RpcMethodHandler[Any, Any] | None"]],
        handler_call_details: grpc.HandlerCallDetails,
    ) -> "grpc.RpcMethodHandler[Any, Any]":
        """Put the guard around the handler of a call, once for each method."""
        method = handler_call_details.method
        guarded = self._handlers.get(method)
        if guarded is None:
            handler = await continuation(handler_call_details)
            if handler is None:
                # Not kept: a caller could fill the memory with names.
                return self._unknown_method(method)
            guarded = self._handlers[method] = self._guarded(method, handler)
        return guarded

    async def drain(self, *, grace_seconds: float) -> bool:
        """End the streams, which have no end of their own, and wait for the unary calls; then cut off what is left.

        Answer whether the unary calls ended by themselves.
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

        def guard(context: Any) -> AbstractAsyncContextManager[None]:
            return self._call(method, context, self._streams if is_stream else self._unary_calls)

        directions = (handler.request_streaming, handler.response_streaming)
        kind = "_".join("stream" if is_streaming else "unary" for is_streaming in directions)
        behaviour = getattr(handler, kind)
        replaced: dict[str, Any] = {"request_deserializer": _lenient(handler.request_deserializer or _as_it_is)}
        if handler.response_streaming and not inspect.isasyncgenfunction(behaviour):
            # It writes its answers itself, through the context, which serializes them.
            replaced[kind] = _guarded_coroutine(method, behaviour, guard, _as_it_is)
        else:
            wrap = _guarded_generator if handler.response_streaming else _guarded_coroutine
            replaced[kind] = wrap(method, behaviour, guard, handler.response_serializer or _as_it_is)
            replaced["response_serializer"] = None
        return handler._replace(**replaced)  # type: ignore[no-any-return]  # a namedtuple to the last release

    def _unknown_method(self, method: str) -> "grpc.RpcMethodHandler[Any, Any]":
        async def refuse(_requests: Any, context: Any) -> None:
            async with self._call("unknown", context, self._unary_calls):
                raise MethodUnknown(f"There is no method {method[:200]!r}; server reflection lists what there is.")

        return grpc.stream_stream_rpc_method_handler(refuse)

    @asynccontextmanager
    async def _call(self, method: str, context: Any, calls: set[asyncio.Task[Any]]) -> AsyncIterator[None]:
        request_id = _request_id(context.invocation_metadata() or ())
        context.set_trailing_metadata(((REQUEST_ID_KEY, request_id),))
        structlog.contextvars.bind_contextvars(request_id=request_id, method=method)
        started = time.perf_counter()
        task = asyncio.current_task()
        assert task is not None  # noqa: S101  gRPC runs each call in a task of its own
        calls.add(task)
        try:
            deadline = asyncio.timeout(context.time_remaining())
            try:
                if self._is_draining and calls is self._streams:
                    raise ServerDraining
                async with deadline:
                    yield
                error: BaseException | None = None
            except grpc.aio.AbortError:
                # A servicer of gRPC's own, such as health, has already set the status.
                _log.info("call refused", status=context.code().name, duration_ms=_milliseconds_since(started))
                raise
            except asyncio.CancelledError as cancelled:
                is_cut_by_drain = self._is_cutting_off or (self._is_draining and calls is self._streams)
                # gRPC cancels the task of a call that its caller has left; what a handler raises itself does not.
                if task.cancelling() and not is_cut_by_drain:
                    _log.info("call cancelled", duration_ms=_milliseconds_since(started))
                    raise
                # Left alone, a cancellation that is not the caller's would leave it waiting (grpc/grpc#29248).
                error = ServerDraining() if is_cut_by_drain else InternalError()
                error.__cause__ = cancelled
            except Exception as raised:
                error = DeadlineExceeded() if deadline.expired() and isinstance(raised, TimeoutError) else raised
            if error is None:
                _log.debug("call answered", duration_ms=_milliseconds_since(started))
            else:
                await _fail(context, error, request_id=request_id, duration_ms=_milliseconds_since(started))
        finally:
            calls.discard(task)


async def _fail(context: Any, error: BaseException, *, request_id: str, duration_ms: float) -> None:
    status = status_from_error(error, request_id=request_id)
    fields = {"status": status.code.name, "reason": status.reason, "duration_ms": duration_ms}
    if isinstance(error, ServerDraining):
        _log.info("call cut off by the drain", **fields)
    elif status.code is grpc.StatusCode.INTERNAL:
        _log.error("call failed", **fields, exc_info=error)
    elif status.code is grpc.StatusCode.UNAVAILABLE:
        _log.warning("call failed", **fields, cause=repr(error.__cause__ or error))
    else:
        _log.info("call refused", **fields)
    await context.abort(
        status.code,
        status.message,
        trailing_metadata=((REQUEST_ID_KEY, request_id), (STATUS_DETAILS_KEY, status.details)),
    )


def _as_it_is(message: Any) -> Any:
    return message


def _guarded_coroutine(method: str, behaviour: Any, guard: _Guard, serialize: Callable[[Any], Any]) -> Any:
    # Serializing inside the guard, because gRPC tells the caller whatever text an exception there has.
    async def call(request: Any, context: Any) -> Any:
        async with guard(context):
            response = await behaviour(_judged(method, request), context)
            return response if isinstance(response, bytes) else serialize(response)

    return call


def _guarded_generator(method: str, behaviour: Any, guard: _Guard, serialize: Callable[[Any], Any]) -> Any:
    async def call(request: Any, context: Any) -> AsyncIterator[Any]:
        async with guard(context):
            async for response in behaviour(_judged(method, request), context):
                yield serialize(response)

    return call


def _lenient(deserialize: Callable[[bytes], Any]) -> Callable[[bytes], Any]:
    """Let bytes that are no message reach the guard, where they become a status with details."""

    def deserialize_or_mark(data: bytes) -> Any:
        try:
            return deserialize(data)
        except Exception:  # whatever the parser finds, it is the caller's bytes
            return _MALFORMED

    return deserialize_or_mark


def _judged(method: str, request: Any) -> Any:
    """Raise `MalformedMessage` for a request that was marked, or put the same watch on a stream of them."""
    if isinstance(request, AsyncIterable):
        return _judged_each(method, request)
    if request is _MALFORMED:
        raise MalformedMessage(method)
    return request


async def _judged_each(method: str, requests: AsyncIterable[Any]) -> AsyncIterator[Any]:
    async for request in requests:
        yield _judged(method, request)


def _request_id(metadata: Collection[tuple[str, str | bytes]]) -> str:
    for key, value in metadata:
        if key == REQUEST_ID_KEY and isinstance(value, str) and _SANE_REQUEST_ID.fullmatch(value):
            return value
    return os.urandom(16).hex()


def _milliseconds_since(started: float) -> float:
    return round((time.perf_counter() - started) * 1_000, 3)
