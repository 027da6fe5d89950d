"""Work that is done again and again beside a block, and ends with it."""

import asyncio
from collections.abc import AsyncIterator, Awaitable, Callable
from contextlib import asynccontextmanager, suppress

import structlog

_log = structlog.stdlib.get_logger("bookstore_grpc.net.periodic")


@asynccontextmanager
async def repeated(
    work: Callable[[], Awaitable[None] | None], *, every_seconds: float, what: str
) -> AsyncIterator[None]:
    """Do `work` every so often while the block runs. What it raises is logged, and the next time may be better."""
    task = asyncio.create_task(_repeat(work, every_seconds, what))
    try:
        yield
    finally:
        task.cancel()
        with suppress(asyncio.CancelledError):
            await task


async def _repeat(work: Callable[[], Awaitable[None] | None], every_seconds: float, what: str) -> None:
    while True:
        await asyncio.sleep(every_seconds)
        try:
            waiting = work()
            if waiting is not None:
                await waiting
        except Exception:  # nobody who calls is to pay for it
            _log.warning("background work failed", work=what, exc_info=True)
