"""Group commit, whatever the operations are: which share a batch, how many batches run, and what each caller gets."""

import asyncio
import random
from collections.abc import Awaitable, Callable, Sequence
from contextlib import suppress

import pytest

from bookstore_grpc.dal.group_commit import BatchEnd, GroupCommit
from bookstore_grpc.errors import BookNotFound, BookstoreError, DatabaseUnavailable

Results = list[str | Exception]
Work = Callable[[None], Awaitable[Results]]


class Defect(Exception):
    """No error meant for callers."""


class Echo:
    """A write batch that notes the operations it is to lock, waits, and returns them."""

    def __init__(self, seen: list[list[str]], wait: Callable[[], Awaitable[object]] | None = None) -> None:
        self._seen = seen
        self._wait = wait

    async def lock(self, operations: Sequence[str]) -> None:
        self._seen.append(list(operations))
        if self._wait:
            await self._wait()

    async def apply(self, operations: Sequence[str]) -> Results:
        return [f"done {operation}" for operation in operations]


async def transact(work: Work) -> Results:
    return await work(None)


class Writes:
    """Transactions that wait to be let on, before they begin and again before they have their locks."""

    def __init__(self, *, batches_max: int = 1, size_max: int = 100, may_begin: bool = True) -> None:
        self.group_commit: GroupCommit[None, str, str] = GroupCommit(
            self._transact, lambda _connection: _Write(self), batches_max=batches_max, size_max=size_max
        )
        self.begun = 0
        self.under_way = 0
        self.most_under_way = 0
        self.seen: list[list[str]] = []
        self.cancelled: list[list[str]] = []
        self.may_begin = asyncio.Semaphore(1_000 if may_begin else 0)
        self.may_end = asyncio.Semaphore(0)
        self.result_of: Callable[[str], str | Exception] = lambda item: f"done {item}"
        self.reject_all: Callable[[Sequence[str]], None] = lambda items: None

    async def _transact(self, work: Work) -> Results:
        self.begun += 1
        self.under_way += 1
        self.most_under_way = max(self.most_under_way, self.under_way)
        try:
            await self.may_begin.acquire()
            return await work(None)
        finally:
            self.under_way -= 1

    async def submit(self, *items: str, size: int = 1) -> list[asyncio.Task[str]]:
        """Submit items, each for a caller of its own, and wait until nothing goes on without being let."""
        tasks = [asyncio.create_task(self.group_commit.submit(item, size=size)) for item in items]
        await pause()
        return tasks

    async def end_batch(self) -> None:
        self.may_end.release()
        await pause()

    async def end_all(self, *tasks: asyncio.Task[str]) -> list[str | BaseException]:
        for _ in range(1_000):
            self.may_end.release()
        async with asyncio.timeout(10):
            return await asyncio.gather(*tasks, return_exceptions=True)


class _Write:
    def __init__(self, writes: Writes) -> None:
        self._writes = writes

    async def lock(self, operations: Sequence[str]) -> None:
        items = list(operations)
        self._writes.seen.append(items)
        try:
            await self._writes.may_end.acquire()
        except asyncio.CancelledError:
            self._writes.cancelled.append(items)
            raise
        self._writes.reject_all(items)

    async def apply(self, operations: Sequence[str]) -> Results:
        return [self._writes.result_of(item) for item in operations]


async def pause() -> None:
    for _ in range(20):
        await asyncio.sleep(0)


async def test_lone_call_starts_at_once() -> None:
    writes = Writes()
    tasks = await writes.submit("a")
    assert writes.seen == [["a"]]
    assert await writes.end_all(*tasks) == ["done a"]


async def test_operations_that_arrive_while_a_batch_runs_share_the_next_in_order() -> None:
    writes = Writes()
    tasks = [task for item in "abcd" for task in await writes.submit(item)]
    assert writes.seen == [["a"]]
    await writes.end_batch()
    assert writes.seen == [["a"], ["b", "c", "d"]]
    assert await writes.end_all(*tasks) == ["done a", "done b", "done c", "done d"]


async def test_no_more_batches_run_at_once_than_may() -> None:
    writes = Writes(batches_max=2)
    tasks = [task for item in "abcde" for task in await writes.submit(item)]
    assert writes.seen == [["a"], ["b"]]
    await writes.end_batch()
    assert writes.seen == [["a"], ["b"], ["c", "d", "e"]]
    assert await writes.end_all(*tasks) == [f"done {item}" for item in "abcde"]
    assert writes.most_under_way == 2


async def test_batch_holds_no_more_than_it_may() -> None:
    writes = Writes(size_max=3)
    tasks = await writes.submit("a") + await writes.submit(*"bcdefgh")
    assert await writes.end_all(*tasks) == [f"done {item}" for item in "abcdefgh"]
    assert writes.seen == [["a"], ["b", "c", "d"], ["e", "f", "g"], ["h"]]


async def test_sizes_count_and_an_operation_larger_than_a_batch_goes_alone() -> None:
    writes = Writes(size_max=4)
    tasks = await writes.submit("first")
    for item, size in (("two", 2), ("2", 2), ("one", 1), ("huge", 9), ("1", 1), ("four", 4), ("three", 3)):
        tasks += await writes.submit(item, size=size)
    await writes.end_all(*tasks)
    assert writes.seen == [["first"], ["two", "2"], ["one"], ["huge"], ["1"], ["four"], ["three"]]


async def test_one_batch_gathers_at_a_time() -> None:
    writes = Writes(batches_max=3, may_begin=False)
    tasks = [task for item in "abc" for task in await writes.submit(item)]
    assert writes.begun == 1
    writes.may_begin.release()
    tasks += await writes.submit("d")
    assert (writes.begun, writes.seen) == (2, [["a", "b", "c"]])
    writes.may_begin.release()
    await writes.end_all(*tasks)
    assert writes.seen == [["a", "b", "c"], ["d"]]
    assert writes.begun == 2


async def test_what_a_full_batch_leaves_over_does_not_wait_for_its_end() -> None:
    writes = Writes(batches_max=2, size_max=2)
    tasks = await writes.submit(*"abcde")
    assert writes.seen == [["a", "b"], ["c", "d"]]
    assert await writes.end_all(*tasks) == [f"done {item}" for item in "abcde"]
    assert writes.most_under_way == 2


async def test_call_cancelled_before_its_batch_begins_is_not_done() -> None:
    writes = Writes(may_begin=False)
    tasks = await writes.submit("a", "b", "c")
    tasks[1].cancel()
    await pause()
    writes.may_begin.release()
    await writes.end_all(*tasks)
    assert writes.seen == [["a", "c"]]


async def test_batch_that_all_have_left_before_it_began_hinders_none() -> None:
    writes = Writes(may_begin=False)
    for task in await writes.submit("a", "b"):
        task.cancel()
    await pause()
    tasks = await writes.submit("c")
    writes.may_begin.release()
    assert await writes.end_all(*tasks) == ["done c"]
    assert writes.seen == [["c"]]


async def test_a_cancelled_operation_of_a_batch_affects_no_other() -> None:
    writes = Writes()
    first = await writes.submit("a")
    tasks = await writes.submit(*"bcd")
    await writes.end_batch()
    tasks[1].cancel()
    await pause()
    assert writes.cancelled == []
    b, c, d = await writes.end_all(*tasks)
    assert (b, d) == ("done b", "done d")
    assert isinstance(c, asyncio.CancelledError)
    assert await writes.end_all(*first) == ["done a"]


async def test_batch_that_all_have_left_is_cancelled_and_the_next_goes_on() -> None:
    writes = Writes()
    left = await writes.submit("a")
    kept = await writes.submit("b", "c")
    left[0].cancel()
    await pause()
    assert writes.cancelled == [["a"]]
    assert writes.seen == [["a"], ["b", "c"]]
    assert await writes.end_all(*kept) == ["done b", "done c"]


async def test_error_among_the_results_reaches_its_caller_alone() -> None:
    writes = Writes()
    writes.result_of = lambda item: BookNotFound([1]) if item == "c" else f"done {item}"
    tasks = await writes.submit("a") + await writes.submit(*"bcd")
    a, b, c, d = await writes.end_all(*tasks)
    assert (a, b, d) == ("done a", "done b", "done d")
    assert isinstance(c, BookNotFound)
    assert writes.seen == [["a"], ["b", "c", "d"]]


async def test_raised_error_that_is_meant_for_callers_reaches_all_of_the_batch() -> None:
    def reject_all(items: Sequence[str]) -> None:
        if "c" in items:
            raise DatabaseUnavailable("away")

    writes = Writes()
    writes.reject_all = reject_all
    tasks = await writes.submit("a") + await writes.submit(*"bcd")
    a, *others = await writes.end_all(*tasks)
    assert a == "done a"
    assert [type(other) for other in others] == [DatabaseUnavailable] * 3
    assert writes.seen == [["a"], ["b", "c", "d"]]
    assert await writes.end_all(*await writes.submit("e")) == ["done e"]


async def test_defect_fails_the_one_that_has_it() -> None:
    def reject_all(items: Sequence[str]) -> None:
        if "c" in items:
            raise Defect

    writes = Writes()
    writes.reject_all = reject_all
    tasks = await writes.submit("a") + await writes.submit(*"bcd")
    a, b, c, d = await writes.end_all(*tasks)
    assert (a, b, d) == ("done a", "done b", "done d")
    assert isinstance(c, Defect)
    assert writes.seen == [["a"], ["b", "c", "d"], ["b"], ["c"], ["d"]]
    assert writes.most_under_way == 1


async def test_an_operation_cancelled_while_each_is_tried_alone_is_not_tried() -> None:
    def reject_all(items: Sequence[str]) -> None:
        if "b" in items:
            raise Defect

    writes = Writes()
    writes.reject_all = reject_all
    tasks = await writes.submit("a") + await writes.submit(*"bcd")
    await writes.end_batch()
    await writes.end_batch()
    tasks[2].cancel()
    await writes.end_all(*tasks)
    assert [items for items in writes.seen if items] == [["a"], ["b", "c", "d"], ["b"], ["d"]]
    assert tasks[3].result() == "done d"


@pytest.mark.parametrize("error", [DatabaseUnavailable("away"), Defect()])
async def test_transaction_that_fails_before_it_begins_fails_all_waiting_operations(error: Exception) -> None:
    attempts = 0

    async def fail(_work: Work) -> Results:
        nonlocal attempts
        attempts += 1
        await pause()
        raise error

    writes: GroupCommit[None, str, str] = GroupCommit(fail, lambda _: Echo([]), batches_max=1, size_max=10)
    async with asyncio.timeout(10):
        results = await asyncio.gather(*(writes.submit(item) for item in "abc"), return_exceptions=True)
    assert results == [error] * 3
    assert attempts == (1 if isinstance(error, BookstoreError) else 4)


async def test_another_attempt_includes_new_operations_and_excludes_cancelled_ones() -> None:
    attempts: list[list[str]] = []
    again = asyncio.Event()

    async def transact_twice(work: Work) -> Results:
        await work(None)
        await again.wait()
        return await work(None)

    writes: GroupCommit[None, str, str] = GroupCommit(
        transact_twice, lambda _: Echo(attempts), batches_max=1, size_max=3
    )
    tasks = [asyncio.create_task(writes.submit(item)) for item in "ab"]
    await pause()
    tasks += [asyncio.create_task(writes.submit(item)) for item in "cde"]
    await pause()
    tasks[0].cancel()
    again.set()
    results = await asyncio.wait_for(asyncio.gather(*tasks, return_exceptions=True), 10)
    assert attempts[:2] == [["a", "b"], ["b", "c", "d"]]
    assert results[1:] == ["done b", "done c", "done d", "done e"]


async def test_an_operation_cancelled_while_it_waits_for_locks_is_not_done() -> None:
    locked: list[list[str]] = []
    applied: list[str] = []
    may_go_on = asyncio.Event()

    class Recorder(Echo):
        async def apply(self, operations: Sequence[str]) -> Results:
            applied.extend(operations)
            return await super().apply(operations)

    writes: GroupCommit[None, str, str] = GroupCommit(
        transact, lambda _: Recorder(locked, may_go_on.wait), batches_max=1, size_max=3
    )
    tasks = [asyncio.create_task(writes.submit(item)) for item in "abc"]
    await pause()
    tasks[1].cancel()
    await pause()
    may_go_on.set()
    await asyncio.wait_for(asyncio.gather(*tasks, return_exceptions=True), 10)
    assert (locked, applied) == ([["a", "b", "c"]], ["a", "c"])
    assert [tasks[0].result(), tasks[2].result()] == ["done a", "done c"]


async def test_batch_that_was_cancelled_takes_none_in() -> None:
    """A transaction that cannot be interrupted goes on after its batch has ended, and may try again."""
    attempts: list[list[str]] = []
    again = asyncio.Event()
    late: list[asyncio.Task[Results]] = []

    async def uninterrupted(work: Work) -> Results:
        await work(None)
        await again.wait()
        return await work(None)

    async def transact_uninterrupted(work: Work) -> Results:
        late.append(asyncio.create_task(uninterrupted(work)))
        return await asyncio.shield(late[-1])

    writes: GroupCommit[None, str, str] = GroupCommit(
        transact_uninterrupted, lambda _: Echo(attempts), batches_max=1, size_max=3
    )
    left = asyncio.create_task(writes.submit("a"))
    await pause()
    left.cancel()
    kept = asyncio.create_task(writes.submit("b"))
    again.set()
    done, _ = await asyncio.wait([kept], timeout=1)
    await asyncio.wait(late)
    kept.cancel()
    assert done, "a batch that has ended took a call with it"
    assert kept.result() == "done b"


async def test_every_waiting_operation_gets_its_own_result_despite_cancellations_and_failures() -> None:
    chance = random.Random(7)
    under_way = most_under_way = 0
    applied: list[int] = []
    rejected: list[tuple[int, ...]] = []

    async def wait_a_little() -> None:
        await asyncio.sleep(chance.random() * 0.001)

    class Numbers:
        async def lock(self, operations: Sequence[int]) -> None:
            assert len(operations) <= 8
            assert list(operations) == sorted(operations)
            await wait_a_little()
            if any(number % 50 == 7 for number in operations):
                raise Defect

        async def apply(self, operations: Sequence[int]) -> list[int | Exception]:
            applied.extend(operations)
            return [BookNotFound([number]) if number % 10 == 3 else number for number in operations]

    async def transact(work: Callable[[None], Awaitable[list[int | Exception]]]) -> list[int | Exception]:
        nonlocal under_way, most_under_way
        under_way += 1
        most_under_way = max(most_under_way, under_way)
        try:
            await wait_a_little()
            return await work(None)
        finally:
            under_way -= 1

    async def call(number: int) -> None:
        try:
            assert await writes.submit(number) == number
            assert number % 10 != 3
        except BookNotFound as error:
            rejected.append((number, *error.ids))
        except Defect:
            assert number % 50 == 7

    writes: GroupCommit[None, int, int] = GroupCommit(transact, lambda _: Numbers(), batches_max=3, size_max=8)
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
    assert all(asked == reported for asked, reported in rejected)
    assert len(rejected) > 50
    assert len(applied) == len(set(applied))


async def test_failing_observer_neither_fails_nor_repeats_a_transaction() -> None:
    done: list[list[str]] = []

    def observe(_batch: BatchEnd[str]) -> None:
        raise Defect

    writes: GroupCommit[None, str, str] = GroupCommit(
        transact, lambda _: Echo(done), batches_max=1, size_max=10, on_batch_end=observe
    )
    results = await asyncio.gather(*(writes.submit(item) for item in "abc"))
    assert results == ["done a", "done b", "done c"]
    assert done == [["a", "b", "c"]]
