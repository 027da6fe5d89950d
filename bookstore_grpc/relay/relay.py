"""The relay: receives changes, publishes them in order with many awaiting acknowledgement, and keeps its position."""

import asyncio
import math
import time
from collections import deque
from collections.abc import Callable, Coroutine
from contextlib import suppress
from typing import Any, NamedTuple

from bookstore.v1.books_pb2 import BookChange

from bookstore_grpc.client import BookWatch, WatchedChange
from bookstore_grpc.limits import RELAY_IN_FLIGHT_MAX
from bookstore_grpc.relay.events import Event
from bookstore_grpc.relay.jetstream import JetStream, Published, PublishFailed, StreamMoved, message_id
from bookstore_grpc.relay.nats_connection import RelayError, Report
from bookstore_grpc.relay.positions import Position

Encode = Callable[[WatchedChange], Event]
# Open a watch that continues after a resume token, or without one starts as the relay is told to.
OpenWatch = Callable[[str], BookWatch]

# A message without an acknowledgement for so long is published again, unless the stream has it.
_ACK_SECONDS = 10.0
_RETRY_SECONDS = 0.5
_SAVE_SECONDS = 1.0
_PROGRESS_SECONDS = 10.0
# A stream that stays as it is for so long is not published to by another relay.
_STAND_BY_SECONDS = 2.0
# How long acknowledgements may take after `stop`.
_STOP_SECONDS = 10.0


class _Sent(NamedTuple):
    """A change that was published, and its acknowledgement."""

    change: WatchedChange
    sequence: int  # of the message, 0 if the stream had it before it was published
    ack: "asyncio.Future[bool]"
    at: float  # of time.monotonic


class Relay:
    """Publishes what a watch yields, until `stop` or an error.

    After a failure it reads what the stream has, and publishes what it has not, in order. So a change is neither lost
    nor stored twice, whichever side is killed. Existing books have no order among changes: they are published only if
    they were read after all that the stream has, and are read again after a failure.
    """

    def __init__(
        self, open_watch: OpenWatch, jetstream: JetStream, position: Position, *, encode: Encode, report: Report
    ) -> None:
        self._open_watch = open_watch
        self._watch: BookWatch | None = None
        self._receiving: asyncio.Task[None] | None = None
        self._existing_count = 0  # of existing books that are not acknowledged
        self._jetstream = jetstream
        self._position = self._saved = position
        self._encode = encode
        self._report = report
        self._acked_sequence = position.sequence
        self._published = Published(0, 0, frozenset())
        self._waiting: deque[WatchedChange] = deque()
        self._sent: deque[_Sent] = deque()
        self._room = asyncio.Semaphore(RELAY_IN_FLIGHT_MAX)
        self._progress = asyncio.Event()  # a change was received or acknowledged, or the watch has ended
        self._has_ended = False
        self._error: Exception | None = None
        self._count = 0
        self._last_number = 0
        self._is_over = asyncio.Event()
        self._stop_at = math.inf  # of time.monotonic
        self._limit: asyncio.Timeout | None = None
        self._stopping = asyncio.Event()
        self._closing: asyncio.Task[None] | None = None

    async def run(self) -> None:
        """Publish until `stop`, and return once all is acknowledged and the position is stored.

        Raises what the watch raises, and `RelayError`.
        """
        background = [asyncio.create_task(self._in_background(each)) for each in (self._save(), self._show_progress())]
        try:
            async with asyncio.timeout(_STOP_SECONDS if self._stopping.is_set() else None) as self._limit:
                await self._publish_all()
        except TimeoutError:
            left = len(self._waiting) + len(self._sent)
            raise RelayError(f"{left:,} changes are not acknowledged in time; the next run publishes them.") from None
        finally:
            await self._close_watch()
            # Not cancelled: a request of nats-py whose response has just arrived would not notice it.
            self._is_over.set()
            await asyncio.gather(*background, return_exceptions=True)
            with suppress(PublishFailed, TimeoutError):
                async with asyncio.timeout(_STOP_SECONDS):
                    await self._save_position()
            self._report(f"Stopped. {self._progress_text()}")
        if self._error is not None:
            raise self._error

    def stop(self) -> None:
        """Receive no more changes, and let `run` return once those so far are acknowledged."""
        self._stopping.set()
        if self._watch is not None:
            self._closing = asyncio.create_task(self._watch.aclose())
        self._stop_at = time.monotonic() + _STOP_SECONDS
        if self._limit is not None:
            self._limit.reschedule(asyncio.get_running_loop().time() + _STOP_SECONDS)

    @property
    def _has_existing(self) -> bool:
        """Whether existing books are not all acknowledged."""
        return self._watch is not None and (not self._watch.existing_sent or self._existing_count > 0)

    def _begin_watch(self) -> None:
        if self._watch is not None:
            return
        if self._stopping.is_set():
            self._has_ended = True
        elif not self._has_ended:
            self._watch = self._open_watch(self._position.resume_token)
            self._receiving = asyncio.create_task(self._receive(self._watch))

    async def _close_watch(self) -> None:
        watch, self._watch = self._watch, None
        if watch is not None and self._receiving is not None:
            await watch.aclose()
            self._receiving.cancel()
            await asyncio.gather(self._receiving, return_exceptions=True)

    async def _receive(self, watch: BookWatch) -> None:
        try:
            while True:
                await self._room.acquire()
                # Nothing is awaited between the two: the watch's token is never ahead of `_waiting`.
                change = await anext(watch)
                self._waiting.append(change)
                self._existing_count += change.type == BookChange.EXISTING
                self._progress.set()
        except StopAsyncIteration:
            pass
        except Exception as error:
            self._error = error  # raised once what came before is published
        finally:
            self._has_ended = True
            self._progress.set()

    async def _publish_all(self) -> None:
        while True:
            await self._recover()
            self._begin_watch()  # after `_recover`: existing books are newer than what the stream has
            try:
                await self._publish_until_failure()
                return
            except StreamMoved:
                pass  # by another relay with the same options
            except PublishFailed as failure:
                self._report(f"A change could not be published: {failure}. Trying again.")
            self._jetstream.forget_acks("an earlier one failed")
            # Without a token a watch that starts with new changes would miss those of its first response.
            if self._has_existing and (self._existing_count or self._position.resume_token):
                await self._discard_received()
                await self._stand_by()
            else:
                self._waiting.extendleft(each.change for each in reversed(self._sent))
                self._sent.clear()

    async def _discard_received(self) -> None:
        """Forget what is not acknowledged: of an existing book the stream may have a newer state by now."""
        await self._close_watch()
        self._waiting.clear()
        self._sent.clear()
        self._existing_count = 0
        self._room = asyncio.Semaphore(RELAY_IN_FLIGHT_MAX)
        self._has_ended = self._error is not None

    async def _stand_by(self) -> None:
        """Take over the stored position, once it is after the existing books or no other relay publishes them."""
        before = None
        while not self._stopping.is_set():
            with suppress(PublishFailed):
                position, sequence = await self._jetstream.progress()
                if position is not None and (position.existing_sent or sequence == before):
                    self._position = self._saved = position
                    self._acked_sequence = position.sequence
                    return
                if sequence == before:
                    return  # without the bucket from its own position
                before = sequence
            with suppress(TimeoutError):
                async with asyncio.timeout(_STAND_BY_SECONDS):
                    await self._stopping.wait()

    async def _publish_until_failure(self) -> None:
        """Publish until the watch has ended and all is acknowledged. Raises `PublishFailed`."""
        sequence, last_id = self._published.sequence, ""
        while True:
            self._progress.clear()
            self._take_acks()
            while self._waiting:
                change = self._waiting[0]
                identifier = message_id(change.message, epoch=self._position.epoch)
                if is_new := not self._published.includes(change.message, identifier):
                    event = self._encode(change)
                    ack = await self._jetstream.publish(event, identifier, after_sequence=sequence, after_id=last_id)
                    sequence, last_id = sequence + 1, identifier
                else:
                    ack = asyncio.get_running_loop().create_future()
                    ack.set_result(False)
                self._waiting.popleft()
                self._sent.append(_Sent(change, sequence if is_new else 0, ack, time.monotonic()))
                ack.add_done_callback(lambda _: self._progress.set())
            if self._has_ended and not self._sent:
                return
            await self._wait_for_progress()

    async def _wait_for_progress(self) -> None:
        """Wait for a change or an acknowledgement. Raises `PublishFailed` if the oldest message has none in time."""
        self._check_limit()
        seconds = None
        if self._sent:
            seconds = self._sent[0].at + _ACK_SECONDS - time.monotonic()
            if seconds <= 0:
                raise PublishFailed(f"no acknowledgement for {_ACK_SECONDS:.0f} s")
        with suppress(TimeoutError):
            async with asyncio.timeout(seconds):
                await self._progress.wait()

    def _take_acks(self) -> None:
        """Take the changes that are acknowledged, in order. Raises `PublishFailed`."""
        while self._sent and self._sent[0].ack.done():
            is_stored = self._sent[0].ack.result()
            change, sequence, *_ = self._sent.popleft()
            self._room.release()
            self._existing_count -= change.type == BookChange.EXISTING
            if is_stored:
                self._count += 1
                self._last_number = max(self._last_number, change.number)
            self._acked_sequence = max(self._acked_sequence, sequence)
            self._position = self._position._replace(number=max(self._position.number, change.number))
            self._move_to(change.resume_token)

    def _move_to(self, resume_token: str) -> None:
        """Move the position to a token, which follows what is acknowledged so far.

        A token that stays, as among the changes of one response, keeps the sequence it came with.
        """
        if resume_token not in ("", self._position.resume_token):
            self._position = self._position._replace(
                resume_token=resume_token,
                sequence=self._acked_sequence,
                existing_sent=self._position.existing_sent or not self._has_existing,
            )

    async def _recover(self) -> None:
        """Read what the stream has, as soon as NATS responds. Raises `RelayError`."""
        while self._waiting or not (self._has_ended or self._stopping.is_set()):
            self._check_limit()
            try:
                self._published = await self._jetstream.published(self._position)
                return
            except PublishFailed:
                await asyncio.sleep(_RETRY_SECONDS)

    def _check_limit(self) -> None:
        """Raise `TimeoutError` after the time that `stop` allows, even if nats-py did not notice the cancellation."""
        if time.monotonic() >= self._stop_at:
            raise TimeoutError

    async def _ends_within(self, seconds: float) -> bool:
        with suppress(TimeoutError):
            async with asyncio.timeout(seconds):
                await self._is_over.wait()
        return self._is_over.is_set()

    async def _in_background(self, work: Coroutine[Any, Any, None]) -> None:
        """Run work beside the publishing, and let `run` end with its error."""
        try:
            await work
        except Exception as error:
            self._error = self._error or error
            self.stop()

    async def _save(self) -> None:
        has_failed = False
        while not await self._ends_within(_SAVE_SECONDS):
            try:
                await self._save_position()
            except PublishFailed as failure:
                # While the connection is lost, that is reported.
                if not has_failed and self._jetstream.is_connected:
                    has_failed = True
                    self._report(
                        f"The position could not be stored: {failure}. The next run publishes from the last one."
                    )
            else:
                if has_failed:
                    has_failed = False
                    self._report("The position is stored again.")

    async def _save_position(self) -> None:
        if self._watch is not None and not self._waiting and not self._sent:
            self._move_to(self._watch.resume_token)  # a checkpoint's, perhaps
        position = self._position
        if position != self._saved:
            await self._jetstream.save(position)
            self._saved = position

    async def _show_progress(self) -> None:
        shown = 0
        while not await self._ends_within(_PROGRESS_SECONDS):
            if self._count != shown:
                shown = self._count
                self._report(self._progress_text())

    def _progress_text(self) -> str:
        last = f", the last has the number {self._last_number}" if self._last_number else ""
        return f"{self._count:,} changes published{last}."
