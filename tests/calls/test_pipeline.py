"""The call pipeline without a transport: what is admitted, what leaves it, and what its observers see."""

import asyncio
import time
from collections.abc import Awaitable, Callable
from contextlib import suppress

import pytest

from bookstore_grpc.calls.admission import Admission
from bookstore_grpc.calls.call import Call, Outcome, new_call
from bookstore_grpc.calls.context import CallEnded
from bookstore_grpc.calls.pipeline import CallPipeline
from bookstore_grpc.errors import (
    BookNotFound,
    BookstoreError,
    CallInterrupted,
    DeadlineExceeded,
    InternalError,
    ResourceExhausted,
    ServerDraining,
    StartupError,
    TokenMissing,
)
from tests.calls.context import PlainContext

SECRET = "postgresql://admin:hunter2@db.internal/books"


class Outcomes:
    def __init__(self) -> None:
        self.began: list[Call] = []
        self.ended: list[Outcome] = []

    def call_began(self, call: Call) -> None:
        self.began.append(call)

    def call_ended(self, _call: Call, outcome: Outcome) -> None:
        self.ended.append(outcome)


def a_call(context: PlainContext | None = None) -> Call:
    return new_call("/a.Service/Method", context or PlainContext())


async def cancel_a_task() -> None:
    task = asyncio.create_task(asyncio.sleep(60))
    task.cancel()
    await task


async def raise_defect() -> None:
    raise RuntimeError(SECRET)


async def raise_startup_error() -> None:
    raise StartupError(SECRET)  # never meant for callers


async def end() -> None:
    raise CallEnded("CANCELLED")


async def do_nothing() -> None:
    pass


async def last() -> None:
    await asyncio.sleep(60)


async def raise_not_found() -> None:
    raise BookNotFound([1])


async def time_out() -> None:
    raise TimeoutError


@pytest.mark.parametrize(
    ("handle", "raised", "status"),
    [
        (raise_not_found, BookNotFound, "NOT_FOUND"),
        (raise_defect, InternalError, "INTERNAL"),
        (raise_startup_error, InternalError, "INTERNAL"),
        (time_out, InternalError, "INTERNAL"),
        (cancel_a_task, InternalError, "INTERNAL"),
    ],
)
async def test_what_is_raised_leaves_as_a_domain_error(
    handle: Callable[[], Awaitable[None]], raised: type[BookstoreError], status: str
) -> None:
    outcomes = Outcomes()
    with pytest.raises(BookstoreError) as caught:
        await CallPipeline(observers=[outcomes]).run(a_call(), handle)
    assert type(caught.value) is raised
    assert SECRET not in str(caught.value)
    (outcome,) = outcomes.ended
    assert (outcome.status, outcome.reason) == (status, raised.reason)
    if handle is not cancel_a_task:
        assert outcome.error is (caught.value.__cause__ or caught.value)  # the log has the defect itself


async def test_a_call_that_succeeds_is_ok() -> None:
    outcomes, call = Outcomes(), a_call()

    async def handle() -> int:
        assert outcomes.began == [call]
        assert outcomes.ended == []
        return 7

    assert await CallPipeline(observers=[outcomes]).run(call, handle) == 7
    assert [outcome.status for outcome in outcomes.ended] == ["OK"]


async def test_a_call_that_its_caller_cancels_stays_cancelled() -> None:
    outcomes = Outcomes()
    pipeline = CallPipeline(observers=[outcomes])
    has_begun = asyncio.Event()

    async def handle() -> None:
        has_begun.set()
        await asyncio.sleep(60)

    task = asyncio.create_task(pipeline.run(a_call(), handle))
    await has_begun.wait()
    task.cancel()
    with pytest.raises(asyncio.CancelledError):
        await task
    assert [outcome.status for outcome in outcomes.ended] == ["CANCELLED"]


async def test_a_status_already_sent_by_the_transport_is_not_sent_again() -> None:
    outcomes = Outcomes()
    pipeline = CallPipeline(observers=[outcomes])
    with pytest.raises(CallEnded):
        await pipeline.run(a_call(PlainContext(sent_status="NOT_FOUND")), raise_defect)
    with pytest.raises(CallEnded):
        await pipeline.run(a_call(), end)
    assert [outcome.status for outcome in outcomes.ended] == ["NOT_FOUND", "CANCELLED"]


@pytest.mark.parametrize(("seconds", "message"), [(0.01, "its deadline"), (60, "0.02 s that the server allows")])
async def test_a_call_ends_at_its_deadline_or_at_the_servers(seconds: float, message: str) -> None:
    with pytest.raises(DeadlineExceeded, match=message):
        await CallPipeline(max_call_seconds=0.02).run(a_call(PlainContext(seconds=seconds)), last)


async def test_no_call_ends_before_its_deadline_and_none_is_left_waiting() -> None:
    most = 0.12
    pipeline = CallPipeline(max_call_seconds=most)

    async def run(seconds: float) -> None:
        began = time.perf_counter()
        with pytest.raises(DeadlineExceeded):
            await pipeline.run(a_call(PlainContext(seconds=seconds)), last)
        assert time.perf_counter() - began >= min(seconds, most) - 0.002

    async with asyncio.timeout(10):
        await asyncio.gather(*map(run, (0.09, 0.03, 60, 0, 0.06)))


async def test_a_call_that_also_its_caller_cancels_is_not_late() -> None:
    outcomes, is_late, may_end = Outcomes(), asyncio.Event(), asyncio.Event()

    async def handle() -> None:
        try:
            await last()
        finally:
            is_late.set()
            await may_end.wait()

    pipeline = CallPipeline(observers=[outcomes], max_call_seconds=0.01)
    task = asyncio.create_task(pipeline.run(a_call(), handle))
    await is_late.wait()
    task.cancel()
    with pytest.raises(asyncio.CancelledError):
        await task
    assert [outcome.status for outcome in outcomes.ended] == ["CANCELLED"]


async def test_a_call_that_ends_well_in_spite_of_its_deadline_leaves_its_task_uncancelled() -> None:
    async def handle() -> int:
        with suppress(asyncio.CancelledError):
            await last()
        return 7

    assert await CallPipeline(max_call_seconds=0.01).run(a_call(), handle) == 7
    task = asyncio.current_task()
    assert task
    assert task.cancelling() == 0


async def test_no_timer_runs_while_no_call_is_in_progress() -> None:
    pipeline = CallPipeline(max_call_seconds=0.02)
    for _ in range(3):
        await pipeline.run(a_call(), do_nothing)
    async with asyncio.timeout(10):
        while pipeline.calls_in_progress._timer:  # noqa: ASYNC110  a timer sets no event
            await asyncio.sleep(0.01)
    with pytest.raises(DeadlineExceeded):
        await pipeline.run(a_call(), last)


async def test_checks_run_in_their_order_and_the_first_that_raises_rejects_the_call() -> None:
    passed: list[int] = []

    async def admit(_call: Call) -> None:
        passed.append(1)

    async def reject(_call: Call) -> None:
        raise TokenMissing("Say who calls.")

    with pytest.raises(TokenMissing):
        await CallPipeline(checks=[admit, reject, admit]).run(a_call(), raise_defect)
    assert passed == [1]


async def test_a_call_without_a_place_is_rejected_and_takes_none() -> None:
    pipeline = CallPipeline(admission=Admission(max_concurrent_calls=1))

    async def be_rejected() -> None:
        for _ in range(3):
            with pytest.raises(ResourceExhausted):
                await pipeline.run(a_call(), do_nothing)

    await pipeline.run(a_call(), be_rejected)
    await pipeline.run(a_call(), do_nothing)


async def test_a_drain_waits_for_unary_calls_ends_streams_and_rejects_what_comes_later() -> None:
    pipeline = CallPipeline()
    may_end, have_begun = asyncio.Event(), asyncio.Semaphore(0)

    async def handle() -> None:
        have_begun.release()
        await may_end.wait()

    unary = asyncio.create_task(pipeline.run(a_call(), handle))
    stream = asyncio.create_task(pipeline.run(a_call(), handle, is_stream=True, is_rejected_by_drain=True))
    for _ in range(2):
        await have_begun.acquire()
    draining = asyncio.create_task(pipeline.calls_in_progress.drain(grace_seconds=10))
    with pytest.raises(ServerDraining):
        await stream
    with pytest.raises(ServerDraining):
        await pipeline.run(a_call(), do_nothing, is_rejected_by_drain=True)
    assert not draining.done()
    may_end.set()
    assert await draining
    await unary


async def test_a_drain_interrupts_calls_that_last_too_long() -> None:
    pipeline = CallPipeline()
    has_begun = asyncio.Event()

    async def handle() -> None:
        has_begun.set()
        await asyncio.sleep(60)

    call = asyncio.create_task(pipeline.run(a_call(), handle))
    await has_begun.wait()
    assert not await pipeline.calls_in_progress.drain(grace_seconds=0.01)
    with pytest.raises(CallInterrupted):
        await call
