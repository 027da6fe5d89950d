"""Components: started in order, stopped in the reverse order, also if one does not start."""

import asyncio
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager

import pytest

from bookstore_grpc.server.components import Component, Entered, Step, running


def recorded(name: str, events: list[str]) -> Component:
    async def start() -> None:
        events.append(f"start {name}")

    async def stop() -> None:
        events.append(f"stop {name}")

    return Step(start, stop)


async def test_components_stop_in_the_reverse_order() -> None:
    events: list[str] = []
    async with running([recorded("a", events), Step(), recorded("b", events)]):
        assert events == ["start a", "start b"]
    assert events == ["start a", "start b", "stop b", "stop a"]


async def test_components_before_one_that_fails_are_stopped_and_later_ones_never_start() -> None:
    events: list[str] = []

    async def fail() -> None:
        raise ValueError("on purpose")

    failing = Step(start=fail, stop=recorded("failing", events).stop)
    with pytest.raises(ValueError, match="on purpose"):
        async with running([recorded("a", events), failing, recorded("b", events)]):
            raise AssertionError
    assert events == ["start a", "stop a"]


async def test_a_start_that_is_cancelled_stops_what_was_started() -> None:
    events: list[str] = []

    async def start() -> None:
        async with running([recorded("a", events), Step(start=asyncio.Event().wait)]):  # type: ignore[arg-type]
            raise AssertionError

    starting = asyncio.create_task(start())
    await asyncio.sleep(0)
    starting.cancel()
    with pytest.raises(asyncio.CancelledError):
        await starting
    assert events == ["start a", "stop a"]


async def test_a_component_that_does_not_stop_well_does_not_keep_the_others() -> None:
    events: list[str] = []

    async def fail() -> None:
        raise ValueError("on purpose")

    with pytest.raises(ValueError, match="on purpose"):
        async with running([recorded("a", events), Step(stop=fail)]):
            pass
    assert events == ["start a", "stop a"]


async def test_a_context_manager_is_entered_and_left() -> None:
    events: list[str] = []

    @asynccontextmanager
    async def manager() -> AsyncIterator[str]:
        events.append("entered")
        yield "value"
        events.append("left")

    entered = Entered(manager())
    async with running([entered]):
        assert entered.value == "value"
    assert events == ["entered", "left"]
