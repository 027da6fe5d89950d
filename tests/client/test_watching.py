"""How a watch goes on whatever ends its calls, and with which errors it ends."""

import asyncio
import gc
import time
from collections.abc import AsyncIterator
from itertools import count
from typing import Any

import grpc
import pytest
from bookstore.v1 import books_pb2

from bookstore_grpc.client import BookstoreClient, BookWatch, WatchedChange, retries, watching
from bookstore_grpc.errors import (
    BookstoreError,
    CallInterrupted,
    ClientUnusable,
    DatabaseUnavailable,
    DeadlineExceeded,
    InternalError,
    InvalidFilter,
    InvalidResumeToken,
    ResourceExhausted,
    ResumeTokenExpired,
    ServerDraining,
    TokenInvalid,
    Unavailable,
)
from tests.client.watched_service import (
    DELETED,
    EXISTING,
    UPDATED,
    WatchedService,
    a_book,
    a_change,
    address,
    numbers,
    service,
    serving_watches,
)

__all__ = ["address", "service"]  # fixtures

PATIENCE_SECONDS = 20


@pytest.fixture
async def client(address: str) -> AsyncIterator[BookstoreClient]:
    async with BookstoreClient(address) as client:
        yield client


async def take(watch: BookWatch, how_many: int) -> list[WatchedChange]:
    async with asyncio.timeout(PATIENCE_SECONDS):
        return [await anext(watch) for _ in range(how_many)]


def existing(*ids: int) -> list[books_pb2.BookChange]:
    return [books_pb2.BookChange(type=EXISTING, book=a_book(each)) for each in ids]


async def test_a_change_has_what_happened_to_the_book(service: WatchedService, client: BookstoreClient) -> None:
    updated = a_change(2, UPDATED, book=a_book(1, "New"), previous_book=a_book(1))
    await service.send(a_change(1), updated, a_change(3, DELETED))

    created, changed, deleted = await take(client.watch_books(start="earliest"), 3)

    assert (created.type, created.number, created.book) == (books_pb2.BookChange.CREATED, 1, a_book(1))
    assert created.previous_book is None
    assert (changed.book.name, changed.previous_book) == ("New", a_book(1))
    assert (changed.message, changed.change_time) == (updated, updated.change_time)
    assert (deleted.type, deleted.number) == (books_pb2.BookChange.DELETED, 3)


async def test_a_watch_sends_its_filter_start_and_checkpoint_interval(
    service: WatchedService, client: BookstoreClient
) -> None:
    await service.send(a_change(1))
    watch = client.watch_books(
        filter="author:zola", start="existing", checkpoint_interval_seconds=1.5, metadata={"x-a": "b"}
    )
    await take(watch, 1)

    (request,) = service.requests
    assert (request.filter, request.start) == ("author:zola", books_pb2.WatchBooksRequest.EXISTING)
    assert request.checkpoint_interval.ToMilliseconds() == 1_500
    assert service.metadata[0]["x-a"] == "b"


async def test_resuming_with_the_token_of_a_change_continues_after_it(
    service: WatchedService, client: BookstoreClient
) -> None:
    await service.send()
    await service.send(a_change(1), a_change(2), a_change(3))
    await service.send(a_change(4))
    changes = await take(client.watch_books(start="earliest"), 4)

    resumed = [await take(client.watch_books(resume_token=change.resume_token), 1) for change in changes[:3]]

    # All but the last change of a response have the token of the previous response.
    assert [numbers(each) for each in resumed] == [[1], [1], [4]]


async def test_checkpoints_move_the_token_of_a_watch_on(service: WatchedService, client: BookstoreClient) -> None:
    watch = client.watch_books(start="existing")
    await service.send(*existing(1), existing_sent=False)
    await take(watch, 1)
    assert not watch.existing_sent

    waiting = asyncio.ensure_future(anext(watch))
    last = await service.send()
    async with asyncio.timeout(PATIENCE_SECONDS):
        while watch.resume_token != last:  # noqa: ASYNC110  nothing else tells of a checkpoint
            await asyncio.sleep(0)
    assert watch.existing_sent

    await service.send(a_change(1))
    assert (await waiting).number == 1
    await watch.aclose()


async def test_existing_books_are_sent_once_the_last_of_them_is_yielded(
    service: WatchedService, client: BookstoreClient
) -> None:
    watch = client.watch_books(start="existing")
    await service.send(*existing(1, 2), existing_sent=True)

    assert [(await take(watch, 1), watch.existing_sent)[1] for _ in range(2)] == [False, True]


async def test_whole_responses_can_be_received_with_checkpoints_among_them(
    service: WatchedService, client: BookstoreClient
) -> None:
    await service.send(*existing(1), existing_sent=False)
    await service.send()
    await service.send(a_change(1), a_change(2))
    watch = client.watch_books(start="existing")
    received = []
    async for response in watch.responses():
        received.append((numbers(response.changes), response.resume_token, watch.existing_sent))
        assert watch.resume_token == response.resume_token
        if response.resume_token == service.last_token:
            break

    assert received == [([0], "t1", False), ([], "t2", True), ([1, 2], "t3", True)]


@pytest.mark.parametrize(
    "failure",
    [
        pytest.param(ServerDraining(), id="drain"),
        pytest.param(CallInterrupted(), id="interrupted"),
        pytest.param(DatabaseUnavailable(), id="database"),
        pytest.param(grpc.StatusCode.UNAVAILABLE, id="UNAVAILABLE"),
        pytest.param(grpc.StatusCode.CANCELLED, id="CANCELLED"),
        pytest.param(grpc.StatusCode.INTERNAL, id="INTERNAL without details, as of a reset"),
        pytest.param(grpc.StatusCode.UNKNOWN, id="UNKNOWN"),
        pytest.param(grpc.StatusCode.DEADLINE_EXCEEDED, id="a proxy's time limit"),
        pytest.param(grpc.StatusCode.OK, id="an end without an error"),
    ],
)
async def test_an_interrupted_watch_resumes_without_a_gap_and_without_doubles(
    service: WatchedService, client: BookstoreClient, failure: BookstoreError | grpc.StatusCode
) -> None:
    if isinstance(failure, Unavailable):
        failure.retry_seconds = 0.01
    watch = client.watch_books(start="earliest")
    await service.send(a_change(1), a_change(2))
    first = await take(watch, 1)
    await service.cut_off(failure)
    await service.until(lambda: service.watching == 0)
    await service.send(a_change(3))

    assert numbers(first + await take(watch, 2)) == [1, 2, 3]
    assert [request.resume_token for request in service.requests] == ["", "t1"]


async def test_a_repeated_part_of_a_call_is_yielded_once(service: WatchedService, client: BookstoreClient) -> None:
    """As by a server that resumes at the first change of a call, whichever part the token is of."""
    watch = client.watch_books(start="earliest")
    await service.send(a_change(1), continues=True, token="t0-1")
    first = await take(watch, 1)
    await service.cut_off(ServerDraining())
    await service.until(lambda: service.watching == 0)
    # The token of the part is gone, so the call starts over.
    service.forget()
    await service.send(a_change(1), a_change(2), a_change(3))

    assert numbers(first + await take(watch, 2)) == [1, 2, 3]


async def test_a_lost_server_is_reported_once_and_waited_for(service: WatchedService) -> None:
    reports: asyncio.Queue[BookstoreError | None] = asyncio.Queue()
    async with serving_watches(service) as address:
        client = BookstoreClient(address, timeout_seconds=5)
        watch = client.watch_books(start="earliest", on_outage=reports.put_nowait)
        await service.send(a_change(1))
        await take(watch, 1)
    waiting = asyncio.ensure_future(anext(watch))
    async with asyncio.timeout(PATIENCE_SECONDS):
        assert isinstance(await reports.get(), Unavailable)
    async with serving_watches(service, address):
        await service.send(a_change(2))
        async with asyncio.timeout(PATIENCE_SECONDS):
            assert (await waiting).number == 2
        await client.close()

    assert reports.get_nowait() is None
    assert reports.empty()


async def test_an_outage_may_last_longer_than_the_timeout_and_the_attempts_of_a_call(
    service: WatchedService, client: BookstoreClient, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(retries, "_BACKOFF_MAX_SECONDS", 0.01)
    watch = client.watch_books(start="earliest", timeout_seconds=1)
    await service.send(a_change(1))
    await take(watch, 1)
    unavailable = DatabaseUnavailable()
    unavailable.retry_seconds = 0.1
    service.failures = [unavailable] * 12
    await service.cut_off(grpc.StatusCode.UNAVAILABLE)
    await service.until(lambda: service.watching == 0)
    await service.send(a_change(2))

    began = time.monotonic()
    assert numbers(await take(watch, 1)) == [2]
    assert time.monotonic() - began > 1


async def test_a_limit_on_watchers_is_waited_for_as_long_as_the_server_asks(
    service: WatchedService, client: BookstoreClient
) -> None:
    service.failures = [ResourceExhausted("Too many watchers.", limit="watchers", retry_seconds=0.3)]
    await service.send(a_change(1))

    began = time.monotonic()
    await take(client.watch_books(start="earliest"), 1)

    assert 0.3 < time.monotonic() - began < 5


@pytest.mark.parametrize("has_begun", [False, True], ids=["at first", "later"])
@pytest.mark.parametrize(
    "failure",
    [
        InvalidFilter("is wrong", column=3),
        InvalidResumeToken("is damaged"),
        ResumeTokenExpired(),
        TokenInvalid("The token has expired."),
        InternalError(),
    ],
    ids=lambda failure: type(failure).__name__,
)
async def test_what_no_retry_can_help_is_raised(
    service: WatchedService, client: BookstoreClient, failure: BookstoreError, has_begun: bool
) -> None:
    watch = client.watch_books(start="earliest")
    if has_begun:
        await service.send(a_change(1))
        await take(watch, 1)
        service.failures = [failure]  # of the call by which a watch may go on with another token
        await service.cut_off(failure)
    else:
        service.failures = [failure]

    with pytest.raises(type(failure)) as raised:
        await take(watch, 1)

    assert raised.value.reason == failure.reason
    assert raised.value.message == failure.message


async def test_a_stream_that_is_cut_off_again_and_again_without_a_response_is_given_up(
    service: WatchedService, client: BookstoreClient
) -> None:
    watch = client.watch_books(start="earliest")
    await service.send(a_change(1))
    await take(watch, 1)
    service.failures = [grpc.StatusCode.INTERNAL] * 100
    await service.cut_off(grpc.StatusCode.INTERNAL)

    with pytest.raises(InternalError):
        await take(watch, 1)

    assert len(service.requests) == retries.ATTEMPTS_MAX


@pytest.mark.parametrize(
    "failure", [ServerDraining(), TokenInvalid("The token has expired; watch again with a new one.")], ids=repr
)
async def test_the_current_token_is_sent_at_each_reconnect(
    service: WatchedService, address: str, failure: BookstoreError
) -> None:
    counted = count(1)
    async with BookstoreClient(address, token=lambda: f"token-{next(counted)}") as client:
        watch = client.watch_books(start="earliest")
        await service.send(a_change(1))
        await take(watch, 1)
        await service.cut_off(failure)
        await service.until(lambda: service.watching == 0)
        await service.send(a_change(2))
        await take(watch, 1)

    assert [metadata["authorization"] for metadata in service.metadata] == ["Bearer token-1", "Bearer token-2"]


async def test_a_connection_without_checkpoints_is_dead_and_replaced(
    service: WatchedService, client: BookstoreClient, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(watching, "_STALE_MIN_SECONDS", 0.2)
    watch = client.watch_books(start="earliest", checkpoint_interval_seconds=0.1)
    await service.send(a_change(1))
    await take(watch, 1)
    service.is_silent = True
    await service.send(a_change(2))
    waiting = asyncio.ensure_future(anext(watch))
    await service.until(lambda: len(service.requests) > 1)
    service.is_silent = False
    await service.send(a_change(3))

    assert numbers([await waiting, *(await take(watch, 1))]) == [2, 3]


def test_a_connection_may_be_silent_for_three_intervals_and_at_least_30_seconds() -> None:
    seconds = []
    for interval in (None, 1, 100):
        request = books_pb2.WatchBooksRequest()
        if interval:
            request.checkpoint_interval.FromSeconds(interval)
        seconds.append(watching._stale_seconds(request))

    assert seconds == [30, 30, 300]


async def test_leaving_the_loop_ends_the_call(service: WatchedService, client: BookstoreClient) -> None:
    await service.send(a_change(1))
    async for change in client.watch_books(start="earliest"):
        assert change.number == 1
        break
    gc.collect()

    async with asyncio.timeout(5):
        await service.until(lambda: service.watching == 0)


async def test_aclose_ends_the_call_and_the_loop_of_another_task(
    service: WatchedService, client: BookstoreClient
) -> None:
    async with client.watch_books() as watch:
        looping = asyncio.ensure_future(anext(watch, None))
        await service.until(lambda: service.watching == 1)

    assert await looping is None
    async with asyncio.timeout(5):
        await service.until(lambda: service.watching == 0)
    assert [change async for change in watch] == []


async def test_aclose_does_not_wait_for_the_next_attempt(service: WatchedService, client: BookstoreClient) -> None:
    service.failures = [ResourceExhausted("Too many watchers.", limit="watchers", retry_seconds=60)]
    watch = client.watch_books(timeout_seconds=None)
    waiting = asyncio.ensure_future(anext(watch, None))
    async with asyncio.timeout(PATIENCE_SECONDS):
        while watch._sleeping is None:  # noqa: ASYNC110  nothing else tells of a wait
            await asyncio.sleep(0.01)
        await watch.aclose()
        assert await waiting is None


async def test_a_cancelled_wait_loses_nothing(service: WatchedService, client: BookstoreClient) -> None:
    watch = client.watch_books(start="earliest")
    await service.send(a_change(1))
    await take(watch, 1)
    waiting = asyncio.ensure_future(anext(watch))
    await asyncio.sleep(0)
    waiting.cancel()
    with pytest.raises(asyncio.CancelledError):
        await waiting
    await service.send(a_change(2))

    assert numbers(await take(watch, 1)) == [2]


async def test_a_closed_client_ends_its_watches_with_an_error(service: WatchedService, client: BookstoreClient) -> None:
    watch = client.watch_books()
    waiting = asyncio.ensure_future(anext(watch))
    await service.until(lambda: service.watching == 1)
    await client.close()

    with pytest.raises(ClientUnusable, match="closed during the watch"):
        await waiting


@pytest.mark.parametrize("wait_for_ready", [True, False])
async def test_a_server_that_cannot_be_reached_at_first_is_reported_with_the_cause(wait_for_ready: bool) -> None:
    async with serving_watches(WatchedService()) as address:
        pass
    seconds = 0.7 if wait_for_ready else 30
    async with BookstoreClient(address, wait_for_ready=wait_for_ready, timeout_seconds=seconds) as client:
        began = time.monotonic()
        with pytest.raises(Unavailable, match="Connection refused"):
            await take(client.watch_books(), 1)

    assert time.monotonic() - began < 10


async def test_a_first_response_has_to_arrive_within_the_timeout(service: WatchedService, address: str) -> None:
    async with BookstoreClient(address, timeout_seconds=0.3) as client:
        await client.list_change_page()
        service.is_silent = True
        with pytest.raises(DeadlineExceeded, match="did not begin"):
            await take(client.watch_books(start="earliest"), 1)


async def test_changes_are_listed_over_all_pages_and_from_a_token(
    service: WatchedService, client: BookstoreClient
) -> None:
    for number in (1, 2, 3, 4, 5):
        await service.send(a_change(number))

    page = await client.list_change_page()
    listed = [change.number async for change in client.list_book_changes()]
    rest = [change.number async for change in client.list_book_changes(page_token=page.next_page_token)]

    assert (numbers(page.changes), page.more_changes) == ([1, 2], True)
    assert listed == [1, 2, 3, 4, 5]
    assert rest == [3, 4, 5]


@pytest.mark.parametrize("options", [{"timeout_seconds": 0}, {"metadata": {"Bad Key": "x"}}, {"start": "later"}])
async def test_invalid_options_are_rejected_at_once(client: BookstoreClient, options: dict[str, Any]) -> None:
    with pytest.raises(ValueError, match=r"."):
        client.watch_books(**options)
