"""What the server needs of grpc.aio and gets by its private parts. Tried on grpcio 1.85.1.

Two things depend on how grpc.aio is made:

- Backpressure. grpc.aio asks its core for the next call of a method as soon as it has one, however many are under way.
  What asks is a coroutine of a known name, in a task of its own, which a task factory can delay.
- Reading a request of a call that is cancelled. `grpc.aio` frees what it has allocated for an operation when the
  coroutine that waits for it goes on. Cancelled meanwhile it never does: some 80 bytes are lost for each call that is
  cancelled before its request is read (tests/compat/test_grpc_read.py).
"""

import asyncio
from collections.abc import Coroutine
from contextlib import suppress
from contextvars import ContextVar, copy_context
from functools import partial
from typing import Any, Protocol

import grpc

from bookstore_grpc.errors import StartupError

TRIED_ON = "1.85.1"

# What grpc.aio calls the coroutine that asks its core for the next call of a registered method.
_REQUEST_CALL = "AioServer._request_registered_call"


class Backpressure(Protocol):
    """Decides when a server receives calls."""

    def may_receive(self) -> bool:
        """Return whether another call may be received."""

    async def until_may_receive(self) -> None:
        """Wait until another call may be received."""


class _Controlled:
    """A server whose tasks are delayed. `has_requested` says whether its requests for calls were recognized."""

    def __init__(self, backpressure: Backpressure) -> None:
        self.backpressure = backpressure
        self.has_requested = False


_controlled: ContextVar[_Controlled | None] = ContextVar("controlled", default=None)


async def start_with_backpressure(server: grpc.aio.Server, backpressure: Backpressure) -> None:
    """Start a server that has registered methods, and let `backpressure` decide when it receives their calls.

    The loop gets a task factory, in place of one that it may have had. Raises `StartupError` with a grpcio that does
    not ask for calls in the way that is known here: without backpressure the server would fail under overload only.
    """
    controlled = _Controlled(backpressure)
    context = copy_context()
    context.run(_controlled.set, controlled)
    loop = asyncio.get_running_loop()
    loop.set_task_factory(_task)
    await loop.create_task(server.start(), context=context)
    if not controlled.has_requested:
        await server.stop(None)
        raise StartupError(
            f"With grpcio {grpc.__version__} calls cannot be held back under overload; install grpcio {TRIED_ON}."
        )


async def read_message(context: Any) -> Any:
    """Return what `context.read()` does. Cancelled, it ends at once, and the read ends by itself."""
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


def _task(loop: asyncio.AbstractEventLoop, coroutine: Any, **options: Any) -> "asyncio.Task[Any]":
    # The tasks of a server inherit the context in which it was started.
    controlled = _controlled.get()
    if controlled is not None and getattr(coroutine, "__qualname__", "") == _REQUEST_CALL:
        controlled.has_requested = True
        if not controlled.backpressure.may_receive():
            coroutine = _delayed(coroutine, controlled.backpressure)
    return asyncio.Task(coroutine, loop=loop, **options)


async def _delayed(request: Coroutine[Any, Any, Any], backpressure: Backpressure) -> Any:
    try:
        await backpressure.until_may_receive()
    except asyncio.CancelledError:  # the server ends
        request.close()
        raise
    return await request


def _wake(ended: asyncio.Future[None], _operation: asyncio.Future[Any]) -> None:
    if not ended.done():
        ended.set_result(None)


def _finish(reading: Coroutine[Any, Any, Any], _operation: asyncio.Future[Any]) -> None:
    with suppress(Exception, StopIteration):  # nobody waits for the message, or for the error in its place
        reading.send(None)
