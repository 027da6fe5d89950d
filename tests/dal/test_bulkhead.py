"""A few searches run at a time, others wait in order, and the rest are rejected."""

import asyncio
from contextlib import suppress

import pytest

from bookstore_grpc.dal.bulkhead import Bulkhead
from bookstore_grpc.errors import ResourceExhausted


class _Callers:
    """Callers who go through a bulkhead and stay in it until they are let go."""

    def __init__(self, bulkhead: Bulkhead) -> None:
        self._bulkhead = bulkhead
        self._may_go = asyncio.Semaphore(0)
        self.entered: list[int] = []

    async def come(self, *numbers: int) -> list[asyncio.Task[None]]:
        tasks = []
        for number in numbers:
            tasks.append(asyncio.create_task(self._pass(number)))
            await asyncio.sleep(0)
        await asyncio.sleep(0)
        return tasks

    async def let_go(self, count: int) -> None:
        for _ in range(count):
            self._may_go.release()
        await asyncio.sleep(0.01)

    async def _pass(self, number: int) -> None:
        async with self._bulkhead.slot():
            self.entered.append(number)
            await self._may_go.acquire()


def bulkhead(*, waiting_max: int = 10, wait_seconds: float = 10) -> Bulkhead:
    return Bulkhead("searches", max_concurrent=2, waiting_max=waiting_max, wait_seconds=wait_seconds)


async def test_those_beyond_the_slots_wait_and_go_on_in_their_order() -> None:
    slots = bulkhead()
    callers = _Callers(slots)
    tasks = await callers.come(1, 2, 3, 4, 5)
    assert callers.entered == [1, 2]
    assert slots.running == 2
    await callers.let_go(2)
    assert callers.entered == [1, 2, 3, 4]
    await callers.let_go(3)
    await asyncio.gather(*tasks)
    assert callers.entered == [1, 2, 3, 4, 5]
    assert slots.running == 0


async def test_searches_beyond_the_queue_are_rejected_at_once_with_the_name_of_the_limit() -> None:
    callers = _Callers(bulkhead(waiting_max=1))
    tasks = await callers.come(1, 2, 3, 4)
    assert tasks[3].done()
    with pytest.raises(ResourceExhausted, match="Too many searches") as caught:
        await tasks[3]
    assert caught.value.metadata == {"limit": "searches"}
    await callers.let_go(3)
    await asyncio.gather(*tasks[:3])


async def test_a_search_that_waits_too_long_is_rejected_and_uses_no_slot() -> None:
    slots = bulkhead(wait_seconds=0.05)
    callers = _Callers(slots)
    tasks = await callers.come(1, 2, 3)
    with pytest.raises(ResourceExhausted):
        await tasks[2]
    await callers.let_go(2)
    later = await callers.come(4, 5)
    assert callers.entered == [1, 2, 4, 5]
    await callers.let_go(2)
    await asyncio.gather(*tasks[:2], *later)
    assert slots.running == 0


async def test_a_cancelled_search_frees_its_place_in_the_queue_or_its_slot() -> None:
    callers = _Callers(bulkhead(waiting_max=2))
    tasks = await callers.come(1, 2, 3, 4)
    for gone in (tasks[2], tasks[0]):
        gone.cancel()
        with suppress(asyncio.CancelledError):
            await gone
    await asyncio.sleep(0.01)
    assert callers.entered == [1, 2, 4]
    tasks += await callers.come(5, 6)
    await callers.let_go(4)
    await asyncio.gather(tasks[1], *tasks[3:])
    assert callers.entered == [1, 2, 4, 5, 6]
