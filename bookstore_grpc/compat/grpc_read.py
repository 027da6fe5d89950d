"""Reading a request to the end of gRPC's own work for it, also for a caller who cancels meanwhile.

`grpc.aio` frees what it has allocated for an operation when the coroutine that waits for it goes on. Cancelled in the
midst it never does: some 80 bytes for each call that is cancelled before its request is read
(tests/compat/test_grpc_read.py).
"""

import asyncio
from collections.abc import Coroutine
from contextlib import suppress
from functools import partial
from typing import Any


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
            operation.add_done_callback(partial(_run_on, reading))
            raise


def _wake(ended: asyncio.Future[None], _operation: asyncio.Future[Any]) -> None:
    if not ended.done():
        ended.set_result(None)


def _run_on(reading: Coroutine[Any, Any, Any], _operation: asyncio.Future[Any]) -> None:
    with suppress(Exception, StopIteration):  # nobody waits for the message, or for what kept it from coming
        reading.send(None)
