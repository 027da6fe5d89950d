"""Receiving calls at less cost, backpressure, and leak-free reads for grpc.aio's server. Tried on grpcio 1.85.1.

All depend on internals of grpc.aio:

- Receiving calls. grpc.aio waits for the next call of all methods in one task, at a cost for every call that grows with
  the number of methods. Here each method has a task that receives its calls one after the other and knows their handler
  (docs/decisions/0021-cost-of-a-call.md).
- Backpressure. grpc.aio requests the next call of a method from its core as soon as it has received one, however many
  are in progress. Here the task of the method waits first.
- Reading the request of a cancelled call. grpc.aio frees the memory of an operation when the coroutine that awaits it
  resumes. If that coroutine is cancelled, it never does, and about 80 bytes leak for each call that is cancelled before
  its request is read (tests/compat/test_grpc_read.py).
"""

import asyncio
from collections.abc import Callable, Coroutine, Mapping, Sequence
from contextlib import suppress
from functools import partial
from typing import Any, Protocol

import grpc
from grpc._cython import cygrpc
from grpc.aio import _server

from bookstore_grpc.errors import StartupError

TRIED_ON = "1.85.1"

_FUNCTIONS = ("_handle_stream_stream_rpc", "_handle_stream_unary_rpc", "_schedule_rpc_coro")

# Returns the handler that serves the calls of a method instead of the given one.
Wrap = Callable[[str, Any], Any]


class Backpressure(Protocol):
    """Decides when a server receives calls."""

    async def until_may_receive(self) -> None:
        """Wait until another call may be received."""


def server(
    *,
    wrap: Wrap,
    interceptors: Sequence[grpc.aio.ServerInterceptor],
    options: Sequence[tuple[str, int]],
    backpressure: Backpressure,
) -> grpc.aio.Server:
    """Return a server that receives the calls of registered methods when `backpressure` permits.

    The handlers of registered methods are replaced by `wrap`, once, and must then take a stream of requests.
    `interceptors` are for the calls of other methods. Starting the server raises `StartupError` if this grpcio works
    otherwise: without backpressure the server would fail, but only under overload.
    """
    return _Server(wrap, interceptors, options, backpressure)  # type: ignore[return-value]  # the stubs have another base


class _Server(_server.Server):
    def __init__(self, wrap: Wrap, interceptors: Any, options: Any, backpressure: Backpressure) -> None:
        self._loop = asyncio.get_running_loop()
        self._wrap = wrap
        self._server = _AioServer(self._loop, interceptors, options, backpressure)

    def add_registered_method_handlers(self, service_name: str, method_handlers: Mapping[str, Any]) -> None:
        wrapped = {name: self._wrap(f"/{service_name}/{name}", handler) for name, handler in method_handlers.items()}
        super().add_registered_method_handlers(service_name, wrapped)

    async def start(self) -> None:
        await super().start()
        if not (self._server.is_receiving and all(hasattr(cygrpc, name) for name in _FUNCTIONS)):
            await self.stop(None)
            raise StartupError(
                f"With grpcio {grpc.__version__} calls cannot be held back under overload; install grpcio {TRIED_ON}."
            )


class _AioServer(cygrpc.AioServer):  # type: ignore[misc]  # without types
    def __init__(self, loop: Any, interceptors: Any, options: Any, backpressure: Backpressure) -> None:
        super().__init__(loop, None, (), interceptors, options, None)
        self.is_receiving = False
        self._backpressure = backpressure
        self._handlers: dict[str, Any] = {}
        self._calls: set[asyncio.Task[None]] = set()

    def add_registered_method_handlers(self, method_handlers: Mapping[str, Any]) -> None:
        super().add_registered_method_handlers(method_handlers)
        self._handlers.update(method_handlers)

    def _make_request_call_future(self, method: bytes | None) -> "asyncio.Future[Any]":
        """Return what grpc.aio awaits: the next call of a registered method, or with None that of any other method.

        For a registered method it is a task without a result, which ends with the core's error when the server stops.
        """
        if method is None:
            next_call: asyncio.Future[Any] = super()._make_request_call_future(None)
            return next_call
        self.is_receiving = True
        return asyncio.get_running_loop().create_task(self._receive(method))

    async def _receive(self, method: bytes) -> None:
        """Receive the calls of a method, and start a task for each."""
        name, loop = method.decode(), asyncio.get_running_loop()
        handler = self._handlers[name]
        handle = cygrpc._handle_stream_stream_rpc if handler.response_streaming else cygrpc._handle_stream_unary_rpc
        while True:
            await self._backpressure.until_may_receive()
            state = await self._request_registered_call(method)
            call = loop.create_task(cygrpc._schedule_rpc_coro(handle(handler, state, loop), state, loop, name))
            self._calls.add(call)
            call.add_done_callback(self._calls.discard)


async def read_message(context: Any) -> Any:
    """Return the result of `context.read()`. If cancelled, it ends immediately, and the read completes separately."""
    loop = asyncio.get_running_loop()
    reading = context.read()
    while True:
        try:
            operation = reading.send(None)
        except StopIteration as end:
            return end.value
        ended = loop.create_future()
        operation.add_done_callback(partial(_wake, ended))
        try:
            await ended
        except asyncio.CancelledError:
            operation.add_done_callback(partial(_finish, reading))
            raise


def _wake(ended: asyncio.Future[None], _operation: asyncio.Future[Any]) -> None:
    if not ended.done():
        ended.set_result(None)


def _finish(reading: Coroutine[Any, Any, Any], _operation: asyncio.Future[Any]) -> None:
    with suppress(Exception, StopIteration):  # the caller was cancelled, so the result is not needed
        reading.send(None)
