"""Ordered start-up and shutdown: components start one after the other and stop in reverse order."""

from collections.abc import AsyncIterator, Awaitable, Callable, Iterable
from contextlib import AbstractAsyncContextManager, AsyncExitStack, asynccontextmanager
from dataclasses import dataclass
from typing import Protocol


class Component(Protocol):
    """A part of the process with a start and a stop."""

    def start(self) -> Awaitable[None]:
        """Start. If this raises, `stop` is not called, and the components before this one are stopped."""

    def stop(self) -> Awaitable[None]:
        """Stop. Called once, even if a later component failed to start or the start was cancelled."""


async def _nothing() -> None:
    pass


@dataclass(frozen=True)
class Step:
    """A component that consists of functions."""

    start: Callable[[], Awaitable[None]] = _nothing
    stop: Callable[[], Awaitable[None]] = _nothing


class Entered:
    """A component that wraps a context manager. After the start, `value` is what it yielded."""

    def __init__(self, manager: AbstractAsyncContextManager[str]) -> None:
        self.value = ""
        self._manager = manager

    async def start(self) -> None:
        """Enter the context manager."""
        self.value = await self._manager.__aenter__()

    async def stop(self) -> None:
        """Exit the context manager."""
        await self._manager.__aexit__(None, None, None)


@asynccontextmanager
async def running(components: Iterable[Component]) -> AsyncIterator[None]:
    """Start the components in order, and stop them in reverse order at the end of the block."""
    async with AsyncExitStack() as stack:
        for component in components:
            await component.start()
            stack.push_async_callback(component.stop)
        yield
