"""Ordered start-up and shutdown: components start one after the other and stop in the reverse order."""

from collections.abc import AsyncIterator, Awaitable, Callable, Iterable
from contextlib import AbstractAsyncContextManager, AsyncExitStack, asynccontextmanager
from dataclasses import dataclass
from typing import Protocol


class Component(Protocol):
    """A part of the process that runs from its start to its stop."""

    def start(self) -> Awaitable[None]:
        """Start; if it raises, `stop` is not called, and the components before this one are stopped."""

    def stop(self) -> Awaitable[None]:
        """Stop. Called once, also if a later component did not start or the start was cancelled."""


async def _nothing() -> None:
    pass


@dataclass(frozen=True)
class Step:
    """A component made of functions."""

    start: Callable[[], Awaitable[None]] = _nothing
    stop: Callable[[], Awaitable[None]] = _nothing


class Entered:
    """A component made of a context manager. `value` is what it yields, once it has been started."""

    def __init__(self, manager: AbstractAsyncContextManager[str]) -> None:
        self.value = ""
        self._manager = manager

    async def start(self) -> None:
        """Enter the context manager."""
        self.value = await self._manager.__aenter__()

    async def stop(self) -> None:
        """Leave it."""
        await self._manager.__aexit__(None, None, None)


@asynccontextmanager
async def running(components: Iterable[Component]) -> AsyncIterator[None]:
    """Run the components in this order while the block runs."""
    async with AsyncExitStack() as stack:
        for component in components:
            await component.start()
            stack.push_async_callback(component.stop)
        yield
