"""The gRPC adapter of the call pipeline: reads the request, runs the pipeline, serializes the response or the error.

`CallInterceptor` is the only interceptor and the only place that sets an error status, of unary and streaming methods.
"""

import asyncio
import inspect
from collections.abc import AsyncIterator, Awaitable, Callable
from contextlib import aclosing
from typing import Any, TypeAlias

import grpc

from bookstore_grpc.calls.call import HEALTH_PREFIX, UNKNOWN_METHOD, Call, new_call
from bookstore_grpc.calls.context import CallEnded
from bookstore_grpc.calls.pipeline import CallPipeline
from bookstore_grpc.calls.status import status_from_error
from bookstore_grpc.compat.grpc_server import read_message
from bookstore_grpc.errors import (
    BookstoreError,
    MalformedMessage,
    MethodUnknown,
    RequestTooLarge,
    ResourceExhausted,
)
from bookstore_grpc.limits import MESSAGE_MAX_BYTES
from bookstore_grpc.metadata import REQUEST_ID_KEY, STATUS_DETAILS_KEY
from bookstore_grpc.rpc.context import RpcContext
from bookstore_grpc.rpc.held_responses import HeldResponses

# The maximum time between the end of a call's stream and its cancellation by the core.
_CANCEL_SECONDS = 0.1

_Handler: TypeAlias = "grpc.RpcMethodHandler[Any, Any]"
_Receive = Callable[[Call, Any, Any], Awaitable[Any]]
_Serialize = Callable[[Any], Any]
_Respond = Callable[[Call, Any, Any], Awaitable[Any]]


class CallInterceptor(grpc.aio.ServerInterceptor):
    """Runs every call of a gRPC server in the pipeline. Requests longer than `max_request_bytes` are rejected.

    `received_calls` counts the calls that gRPC has passed to this process. `held_responses` is for the drain.
    """

    def __init__(self, pipeline: CallPipeline, *, max_request_bytes: int = MESSAGE_MAX_BYTES) -> None:
        self.received_calls = 0
        self.held_responses = HeldResponses(count_received=lambda: self.received_calls)
        self._pipeline = pipeline
        self._max_request_bytes = max_request_bytes
        self._handlers: dict[str, _Handler] = {}

    async def intercept_service(
        self,
        continuation: Callable[[grpc.HandlerCallDetails], Awaitable["_Handler | None"]],
        handler_call_details: grpc.HandlerCallDetails,
    ) -> _Handler:
        """Return the wrapped handler of a method. Each method's handler is wrapped once."""
        method = handler_call_details.method
        wrapped = self._handlers.get(method)
        if wrapped is None:
            handler = await continuation(handler_call_details)
            if handler is None:
                # Not cached, because callers could fill the memory with names.
                return self._unknown_method(method)
            wrapped = self._handlers[method] = self.wrapped(method, handler)
        return wrapped

    def wrapped(self, method: str, handler: Any) -> _Handler:
        """Return a handler that runs the calls of another one in the pipeline."""
        behaviour = getattr(handler, _kind(handler))
        receive = _receiver(method, handler, max_bytes=self._max_request_bytes)
        serialize = handler.response_serializer or _unchanged
        # gRPC would deserialize requests and serialize responses outside of the pipeline: it would receive whole
        # requests before the checks, and send the text of a serializer's exception to the caller. So to gRPC all
        # requests are streams, and all messages are bytes.
        replaced: dict[str, Any] = {
            "request_streaming": True,
            "request_deserializer": None,
            "response_serializer": None,
        }
        is_stream = handler.request_streaming or handler.response_streaming
        if not handler.response_streaming:
            respond = _respond(behaviour, receive, serialize)
        elif inspect.isasyncgenfunction(behaviour):
            respond = _write_each(behaviour, receive, serialize)
        else:
            # The handler writes its responses itself, through the context, which serializes them.
            respond = _respond(behaviour, receive, _unchanged)
            replaced["response_serializer"] = handler.response_serializer
        is_watch = handler.response_streaming and not handler.request_streaming
        wrapped = self._in_pipeline(method, respond, is_stream=is_stream, is_watch=is_watch)
        replaced["stream_stream" if handler.response_streaming else "stream_unary"] = wrapped
        return handler._replace(**replaced)  # type: ignore[no-any-return]  # a namedtuple in every release

    def _unknown_method(self, method: str) -> _Handler:
        async def reject(_call: Call, _requests: Any, _context: Any) -> None:
            raise MethodUnknown(f"There is no method {method[:200]!r}; server reflection lists all methods.")

        return grpc.stream_stream_rpc_method_handler(self._in_pipeline(UNKNOWN_METHOD, reject, is_stream=False))

    def _in_pipeline(self, method: str, respond: _Respond, *, is_stream: bool, is_watch: bool = False) -> Any:
        run, hold = self._pipeline.run, self.held_responses.wait

        async def handle(requests: Any, context: Any) -> Any:
            self.received_calls += 1
            call = new_call(method, RpcContext(context))
            context.set_trailing_metadata(((REQUEST_ID_KEY, call.request_id),))
            try:
                response = await run(
                    call,
                    lambda: respond(call, requests, context),
                    is_stream=is_stream,
                    is_watch=is_watch,
                    is_rejected_by_drain=is_stream,
                )
            except (BookstoreError, CallEnded) as error:
                await self._abort(call, context, error, is_stream=is_stream)
            if not is_stream:
                await hold(
                    call
                )  # outside of the pipeline, so that a held call counts neither as in progress nor as slow
            return response

        return handle

    async def _abort(self, call: Call, context: Any, error: BookstoreError | CallEnded, *, is_stream: bool) -> None:
        """End a call with the status of an error."""
        if isinstance(error, CallEnded):
            raise asyncio.CancelledError from error  # which gRPC ignores
        status = status_from_error(error, request_id=call.request_id)
        is_held = not (is_stream or isinstance(error, ResourceExhausted) or call.method.startswith(HEALTH_PREFIX))
        if is_held:
            await self.held_responses.wait(call)
        trailing_metadata = (
            (REQUEST_ID_KEY, call.request_id),
            (STATUS_DETAILS_KEY, status.details.SerializeToString()),
        )
        try:
            await context.abort(
                grpc.StatusCode[status.code], status.details.message, trailing_metadata=trailing_metadata
            )
        except grpc.aio.InternalError as failed:
            # The caller has disconnected; gRPC would log this as a defect.
            raise asyncio.CancelledError from failed


def _respond(behaviour: Any, receive: _Receive, serialize: _Serialize) -> _Respond:
    async def respond(call: Call, requests: Any, context: Any) -> Any:
        response = await behaviour(await receive(call, requests, context), context)
        data = response if isinstance(response, bytes) else serialize(response)
        call.response_bytes = len(data or b"")
        return data

    return respond


def _write_each(behaviour: Any, receive: _Receive, serialize: _Serialize) -> _Respond:
    async def respond(call: Call, requests: Any, context: Any) -> None:
        async with aclosing(behaviour(await receive(call, requests, context), context)) as responses:
            async for response in responses:
                data = response if isinstance(response, bytes) else serialize(response)
                call.response_bytes += len(data)
                try:
                    await context.write(data)
                except grpc.aio.InternalError as failed:
                    raise CallEnded("CANCELLED") from failed  # the client has disconnected

    return respond


def _unchanged(message: Any) -> Any:
    return message


def _kind(handler: Any) -> str:
    directions = (handler.request_streaming, handler.response_streaming)
    return "_".join("stream" if is_streaming else "unary" for is_streaming in directions)


def _receiver(method: str, handler: Any, *, max_bytes: int) -> _Receive:
    """Return the function that receives a handler's request, or for client streaming returns its stream of requests.

    Receiving raises `MalformedMessage` and `RequestTooLarge`.
    """
    deserialize = handler.request_deserializer or _unchanged

    def read(call: Call, data: bytes) -> Any:
        call.request_bytes += len(data)
        if len(data) > max_bytes:
            raise RequestTooLarge(max_bytes)
        try:
            return deserialize(data)
        except Exception as error:  # whatever the parser raises, the cause is the caller's bytes
            raise MalformedMessage(method) from error

    async def receive_one(call: Call, _requests: Any, context: Any) -> Any:
        call.peer = context.peer()  # now, because gRPC does not know the peer of a cancelled call
        data = await read_message(context)
        if data is not grpc.aio.EOF:
            return read(call, data)
        # If the caller has cancelled the call, or its message is far too long for the core, the stream may end before
        # the cancellation arrives.
        await asyncio.sleep(_CANCEL_SECONDS)
        raise MalformedMessage(method)

    async def read_each(call: Call, requests: Any) -> AsyncIterator[Any]:
        async for data in requests:
            yield read(call, data)

    async def receive_each(call: Call, requests: Any, _context: Any) -> Any:
        return read_each(call, requests)

    return receive_each if handler.request_streaming else receive_one
