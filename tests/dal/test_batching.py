"""Calls in flight done together, whatever they are: who is in a group, how many there are, and what each is told."""

import asyncio
import random
from collections.abc import Callable, Sequence
from contextlib import suppress

import pytest

from bookstore_grpc.dal.batching import Group, Groups
from bookstore_grpc.errors import BookNotFound, BookstoreError, DatabaseUnavailable


class Defect(Exception):
    """No error meant for callers."""


class Works:
    """Work that waits to be let on, before it takes its group in and again before it is done."""

    def __init__(self, *, at_once: int = 1, most: int = 100, doors_open: bool = True) -> None:
        self.groups = Groups(self._work, at_once=at_once, most=most)
        self.begun = 0
        self.under_way = 0
        self.most_under_way = 0
        self.seen: list[list[str]] = []
        self.cancelled: list[list[str]] = []
        self.may_join = asyncio.Semaphore(1_000 if doors_open else 0)
        self.may_end = asyncio.Semaphore(0)
        self.answer: Callable[[str], str | Exception] = lambda item: f"done {item}"
        self.refuse_all: Callable[[Sequence[str]], None] = lambda items: None

    async def _work(self, group: Group[str]) -> list[str | Exception]:
        self.begun += 1
        self.under_way += 1
        self.most_under_way = max(self.most_under_way, self.under_way)
        try:
            await self.may_join.acquire()
            items = group.join()
            self.seen.append(items)
            try:
                await self.may_end.acquire()
            except asyncio.CancelledError:
                self.cancelled.append(items)
                raise
            self.refuse_all(items)
            return [self.answer(item) for item in group.items()]
        finally:
            self.under_way -= 1

    async def submit(self, *items: str, size: int = 1) -> list[asyncio.Task[str]]:
        """Submit items, each for a caller of its own, and wait until nothing goes on without being let."""
        tasks = [asyncio.create_task(self.groups.outcome(item, size=size)) for item in items]
        await pause()
        return tasks

    async def end_group(self) -> None:
        self.may_end.release()
        await pause()

    async def end_all(self, *tasks: asyncio.Task[str]) -> list[str | BaseException]:
        for _ in range(1_000):
            self.may_end.release()
        async with asyncio.timeout(10):
            return await asyncio.gather(*tasks, return_exceptions=True)


async def pause() -> None:
    for _ in range(20):
        await asyncio.sleep(0)


async def test_lone_call_starts_at_once() -> None:
    works = Works()
    tasks = await works.submit("a")
    assert works.seen == [["a"]]
    assert await works.end_all(*tasks) == ["done a"]


async def test_what_comes_while_a_group_runs_is_done_together_in_the_next_in_order() -> None:
    works = Works()
    tasks = [task for item in "abcd" for task in await works.submit(item)]
    assert works.seen == [["a"]]
    await works.end_group()
    assert works.seen == [["a"], ["b", "c", "d"]]
    assert await works.end_all(*tasks) == ["done a", "done b", "done c", "done d"]


async def test_no_more_groups_run_at_once_than_may() -> None:
    works = Works(at_once=2)
    tasks = [task for item in "abcde" for task in await works.submit(item)]
    assert works.seen == [["a"], ["b"]]
    await works.end_group()
    assert works.seen == [["a"], ["b"], ["c", "d", "e"]]
    assert await works.end_all(*tasks) == [f"done {item}" for item in "abcde"]
    assert works.most_under_way == 2


async def test_group_holds_no_more_than_it_may() -> None:
    works = Works(most=3)
    tasks = await works.submit("a") + await works.submit(*"bcdefgh")
    assert await works.end_all(*tasks) == [f"done {item}" for item in "abcdefgh"]
    assert works.seen == [["a"], ["b", "c", "d"], ["e", "f", "g"], ["h"]]


async def test_sizes_count_and_what_is_larger_than_a_group_goes_alone() -> None:
    works = Works(most=4)
    tasks = await works.submit("first")
    for item, size in (("two", 2), ("2", 2), ("one", 1), ("huge", 9), ("1", 1), ("four", 4), ("three", 3)):
        tasks += await works.submit(item, size=size)
    await works.end_all(*tasks)
    assert works.seen == [["first"], ["two", "2"], ["one"], ["huge"], ["1"], ["four"], ["three"]]


async def test_one_group_gathers_at_a_time() -> None:
    works = Works(at_once=3, doors_open=False)
    tasks = [task for item in "abc" for task in await works.submit(item)]
    assert works.begun == 1
    works.may_join.release()
    tasks += await works.submit("d")
    assert (works.begun, works.seen) == (2, [["a", "b", "c"]])
    works.may_join.release()
    await works.end_all(*tasks)
    assert works.seen == [["a", "b", "c"], ["d"]]
    assert works.begun == 2


async def test_what_a_full_group_leaves_over_does_not_wait_for_its_end() -> None:
    works = Works(at_once=2, most=2)
    tasks = await works.submit(*"abcde")
    assert works.seen == [["a", "b"], ["c", "d"]]
    assert await works.end_all(*tasks) == [f"done {item}" for item in "abcde"]
    assert works.most_under_way == 2


async def test_call_given_up_before_its_group_is_full_is_not_done() -> None:
    works = Works(doors_open=False)
    tasks = await works.submit("a", "b", "c")
    tasks[1].cancel()
    await pause()
    works.may_join.release()
    await works.end_all(*tasks)
    assert works.seen == [["a", "c"]]


async def test_group_that_all_have_left_before_it_began_hinders_none() -> None:
    works = Works(doors_open=False)
    for task in await works.submit("a", "b"):
        task.cancel()
    await pause()
    tasks = await works.submit("c")
    works.may_join.release()
    assert await works.end_all(*tasks) == ["done c"]
    assert works.seen == [["c"]]


async def test_caller_who_leaves_a_group_disturbs_no_other() -> None:
    works = Works()
    first = await works.submit("a")
    tasks = await works.submit(*"bcd")
    await works.end_group()
    tasks[1].cancel()
    await pause()
    assert works.cancelled == []
    b, c, d = await works.end_all(*tasks)
    assert (b, d) == ("done b", "done d")
    assert isinstance(c, asyncio.CancelledError)
    assert await works.end_all(*first) == ["done a"]


async def test_group_that_all_have_left_is_cancelled_and_the_next_goes_on() -> None:
    works = Works()
    left = await works.submit("a")
    kept = await works.submit("b", "c")
    left[0].cancel()
    await pause()
    assert works.cancelled == [["a"]]
    assert works.seen == [["a"], ["b", "c"]]
    assert await works.end_all(*kept) == ["done b", "done c"]


async def test_error_among_the_outcomes_reaches_its_caller_alone() -> None:
    works = Works()
    works.answer = lambda item: BookNotFound([1]) if item == "c" else f"done {item}"
    tasks = await works.submit("a") + await works.submit(*"bcd")
    a, b, c, d = await works.end_all(*tasks)
    assert (a, b, d) == ("done a", "done b", "done d")
    assert isinstance(c, BookNotFound)
    assert works.seen == [["a"], ["b", "c", "d"]]


async def test_raised_error_that_is_meant_for_callers_reaches_all_of_the_group() -> None:
    def refuse_all(items: Sequence[str]) -> None:
        if "c" in items:
            raise DatabaseUnavailable("away")

    works = Works()
    works.refuse_all = refuse_all
    tasks = await works.submit("a") + await works.submit(*"bcd")
    a, *others = await works.end_all(*tasks)
    assert a == "done a"
    assert [type(other) for other in others] == [DatabaseUnavailable] * 3
    assert works.seen == [["a"], ["b", "c", "d"]]
    assert await works.end_all(*await works.submit("e")) == ["done e"]


async def test_defect_fails_the_one_that_has_it() -> None:
    def refuse_all(items: Sequence[str]) -> None:
        if "c" in items:
            raise Defect

    works = Works()
    works.refuse_all = refuse_all
    tasks = await works.submit("a") + await works.submit(*"bcd")
    a, b, c, d = await works.end_all(*tasks)
    assert (a, b, d) == ("done a", "done b", "done d")
    assert isinstance(c, Defect)
    assert works.seen == [["a"], ["b", "c", "d"], ["b"], ["c"], ["d"]]
    assert works.most_under_way == 1


async def test_caller_who_leaves_while_each_is_tried_alone_is_not_tried() -> None:
    def refuse_all(items: Sequence[str]) -> None:
        if "b" in items:
            raise Defect

    works = Works()
    works.refuse_all = refuse_all
    tasks = await works.submit("a") + await works.submit(*"bcd")
    await works.end_group()
    await works.end_group()
    tasks[2].cancel()
    await works.end_all(*tasks)
    assert [items for items in works.seen if items] == [["a"], ["b", "c", "d"], ["b"], ["d"]]
    assert tasks[3].result() == "done d"


@pytest.mark.parametrize("error", [DatabaseUnavailable("away"), Defect()])
async def test_work_that_fails_before_it_takes_its_group_in_fails_those_who_wait(error: Exception) -> None:
    attempts = 0

    async def work(group: Group[str]) -> list[str | Exception]:
        nonlocal attempts
        attempts += 1
        await pause()
        raise error

    groups: Groups[str, str] = Groups(work, at_once=1, most=10)
    async with asyncio.timeout(10):
        outcomes = await asyncio.gather(*(groups.outcome(item) for item in "abc"), return_exceptions=True)
    assert outcomes == [error] * 3
    assert attempts == (1 if isinstance(error, BookstoreError) else 4)


async def test_another_attempt_takes_in_who_came_and_leaves_out_who_has_gone() -> None:
    attempts: list[list[str]] = []
    again = asyncio.Event()

    async def work(group: Group[str]) -> list[str | Exception]:
        attempts.append(group.join())
        await again.wait()
        attempts.append(group.join())
        return [f"done {item}" for item in attempts[-1]]

    groups: Groups[str, str] = Groups(work, at_once=1, most=3)
    tasks = [asyncio.create_task(groups.outcome(item)) for item in "ab"]
    await pause()
    tasks += [asyncio.create_task(groups.outcome(item)) for item in "cde"]
    await pause()
    tasks[0].cancel()
    again.set()
    outcomes = await asyncio.wait_for(asyncio.gather(*tasks, return_exceptions=True), 10)
    assert attempts[:2] == [["a", "b"], ["b", "c", "d"]]
    assert outcomes[1:] == ["done b", "done c", "done d", "done e"]


async def test_group_that_was_cancelled_takes_none_in() -> None:
    """A transaction that cannot be interrupted goes on after its group has ended, and may try again."""
    attempts: list[list[str]] = []
    again = asyncio.Event()
    late: list[asyncio.Task[list[str | Exception]]] = []

    async def uninterrupted(group: Group[str]) -> list[str | Exception]:
        attempts.append(group.join())
        await again.wait()
        attempts.append(group.join())
        return [f"done {item}" for item in attempts[-1]]

    async def work(group: Group[str]) -> list[str | Exception]:
        late.append(asyncio.create_task(uninterrupted(group)))
        return await asyncio.shield(late[-1])

    groups: Groups[str, str] = Groups(work, at_once=1, most=3)
    left = asyncio.create_task(groups.outcome("a"))
    await pause()
    left.cancel()
    kept = asyncio.create_task(groups.outcome("b"))
    again.set()
    done, _ = await asyncio.wait([kept], timeout=1)
    await asyncio.wait(late)
    kept.cancel()
    assert done, "a group that has ended took a call with it"
    assert kept.result() == "done b"


async def test_every_caller_who_waits_is_answered_its_own_whoever_leaves_and_whatever_fails() -> None:
    chance = random.Random(7)
    under_way = most_under_way = 0
    answered: list[int] = []
    told: list[tuple[int, ...]] = []

    async def work(group: Group[int]) -> list[int | Exception]:
        nonlocal under_way, most_under_way
        under_way += 1
        most_under_way = max(most_under_way, under_way)
        try:
            await asyncio.sleep(chance.random() * 0.001)
            items = group.join()
            assert len(items) <= 8
            assert items == sorted(items)
            await asyncio.sleep(chance.random() * 0.001)
            if any(item % 50 == 7 for item in items):
                raise Defect
            items = group.items()
            answered.extend(items)
            return [BookNotFound([item]) if item % 10 == 3 else item for item in items]
        finally:
            under_way -= 1

    async def call(number: int) -> None:
        try:
            assert await groups.outcome(number) == number
            assert number % 10 != 3
        except BookNotFound as error:
            told.append((number, *error.ids))
        except Defect:
            assert number % 50 == 7

    groups: Groups[int, int] = Groups(work, at_once=3, most=8)
    kept: list[asyncio.Task[None]] = []
    left: list[asyncio.Task[None]] = []
    for number in range(1_500):
        task = asyncio.create_task(call(number))
        (left if number % 3 == 0 else kept).append(task)
        if chance.random() < 0.2:
            await asyncio.sleep(chance.random() * 0.001)
            chance.choice(left).cancel()
    for task in left:
        task.cancel()
    async with asyncio.timeout(20):
        await asyncio.gather(*kept)
        for task in left:
            with suppress(asyncio.CancelledError):
                await task
        while under_way:  # noqa: ASYNC110  with what the last of those who left had begun
            await asyncio.sleep(0.001)
    assert most_under_way == 3
    assert all(asked == answer for asked, answer in told)
    assert len(told) > 50
    assert len(answered) == len(set(answered))


async def test_what_was_done_is_not_done_again_because_nobody_could_be_told_of_it() -> None:
    done: list[str] = []

    async def work(group: Group[str]) -> list[str | Exception]:
        items = group.join()
        done.extend(items)
        return list(items)

    def tell(_group: Group[str], _started_ns: int, _error: BaseException | None) -> None:
        raise Defect

    groups: Groups[str, str] = Groups(work, at_once=1, most=10, on_ended=tell)
    assert await asyncio.gather(*(groups.outcome(item) for item in "abc")) == ["a", "b", "c"]
    assert done == ["a", "b", "c"]
