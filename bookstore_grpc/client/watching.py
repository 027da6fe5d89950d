"""Watches the changes of books: an iterator that reconnects and resumes by itself, whatever ends its calls."""

import asyncio
import math
import time
from collections import deque
from collections.abc import AsyncIterator, Callable
from dataclasses import dataclass
from types import TracebackType
from typing import Literal, Self, cast

import grpc
from bookstore.v1 import books_pb2
from google.protobuf.timestamp_pb2 import Timestamp

from bookstore_grpc.client.call_options import Pairs
from bookstore_grpc.client.errors import error_from_rpc_error
from bookstore_grpc.client.retries import ATTEMPTS_MAX, backoff_seconds, retry_delay_seconds
from bookstore_grpc.client.transport import Transport, deadline_exceeded, is_being_cancelled
from bookstore_grpc.errors import BookstoreError, ClientUnusable, TokenInvalid, Unavailable
from bookstore_grpc.limits import CHECKPOINT_SECONDS_DEFAULT

Start = Literal["now", "earliest", "existing"]
OutageCallback = Callable[[BookstoreError | None], None]

# A connection without responses for so many intervals, and at least so many seconds, is dead.
_STALE_INTERVALS = 3
_STALE_MIN_SECONDS = 30.0

# Statuses of gRPC itself, or of a proxy, for a stream that was cut off, as by a reset or a proxy's time limit.
_CUT_OFF = frozenset({grpc.StatusCode.INTERNAL, grpc.StatusCode.UNKNOWN, grpc.StatusCode.DEADLINE_EXCEEDED})


@dataclass(frozen=True, slots=True)
class WatchedChange:
    """A change of one book, and where to continue.

    A watch that resumes with `resume_token` yields everything after this change, and before that at most what came in
    the same response. It is empty only for changes of the first response, all but the last: then start as before.
    """

    message: books_pb2.BookChange
    resume_token: str

    @property
    def type(self) -> books_pb2.BookChange.Type.ValueType:
        """What happened: `BookChange.CREATED`, `UPDATED`, `DELETED`, or `EXISTING` for a book that exists."""
        return self.message.type

    @property
    def book(self) -> books_pb2.Book:
        """The book after the change; for `DELETED` its last state."""
        return self.message.book

    @property
    def previous_book(self) -> books_pb2.Book | None:
        """For `UPDATED` the book before the change."""
        return self.message.previous_book if self.message.HasField("previous_book") else None

    @property
    def change_time(self) -> Timestamp | None:
        """When the change was made. None for `EXISTING`."""
        return self.message.change_time if self.message.HasField("change_time") else None

    @property
    def number(self) -> int:
        """The position among all changes of the database, ascending. 0 for `EXISTING`."""
        return self.message.number


class BookWatch:
    """The changes of books, as an async iterator that ends only with an error or `aclose`.

    `resume_token` continues after everything that was yielded so far. Checkpoints move it on too. `existing_sent` is
    true once the last existing book has been yielded, or if there are none.

    Leaving a loop over the watch ends its call. `async with` does so at a known place, also if the watch is kept.
    A cancelled `anext` loses nothing: the next one resumes.
    """

    def __init__(
        self,
        transport: Transport,
        request: books_pb2.WatchBooksRequest,
        *,
        given: Pairs,
        timeout_seconds: float,
        on_outage: OutageCallback | None,
    ) -> None:
        self.resume_token = request.resume_token
        self.existing_sent = False
        self._transport = transport
        self._request = request
        self._given = given
        self._timeout_seconds = timeout_seconds
        self._on_outage = on_outage
        self._stale_seconds = _stale_seconds(request)
        self._call: grpc.aio.UnaryStreamCall[books_pb2.WatchBooksRequest, books_pb2.WatchBooksResponse] | None = None
        self._sleeping: asyncio.Task[None] | None = None
        self._received: deque[WatchedChange] = deque()
        self._existing_received = False
        self._has_begun = False
        self._has_responded = False
        self._deadline = math.inf  # of the first response
        self._attempts = 0  # since the last response
        self._is_closed = False
        self._last_number = 0

    def __aiter__(self) -> Self:
        return self

    async def __anext__(self) -> WatchedChange:
        while not self._received:
            before = self._request.resume_token
            response = await self._receive()
            if response is None:
                raise StopAsyncIteration
            self._received.extend(WatchedChange(change, before) for change in response.changes[:-1])
            self._received.extend(WatchedChange(change, response.resume_token) for change in response.changes[-1:])
            self._existing_received = response.existing_sent
            if not self._received:
                self._note_yielded(response.resume_token)
        change = self._received.popleft()
        self._note_yielded(change.resume_token)
        return change

    async def responses(self) -> AsyncIterator[books_pb2.WatchBooksResponse]:
        """Yield whole responses instead of single changes, checkpoints among them.

        For a caller that stores what it receives: the changes of a response and its `resume_token` belong together.
        """
        while (response := await self._receive()) is not None:
            self._existing_received = response.existing_sent
            self._note_yielded(response.resume_token)
            yield response

    async def aclose(self) -> None:
        """End the call. A loop over the watch ends. Idempotent."""
        self._is_closed = True
        self._received.clear()
        self._cancel()
        if self._sleeping is not None:
            self._sleeping.cancel()

    async def __aenter__(self) -> Self:
        return self

    async def __aexit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        await self.aclose()

    def __del__(self) -> None:
        # After `break` nothing else ends the call. With the event loop its calls have ended too.
        if self._call is not None and not self._transport.is_orphaned:
            self._cancel()

    def _note_yielded(self, resume_token: str) -> None:
        self.resume_token = resume_token
        if not self._received:
            self.existing_sent = self._existing_received

    async def _receive(self) -> books_pb2.WatchBooksResponse | None:
        """Return the next response, without changes that came before; None once the watch is closed."""
        if self._is_closed:
            return None
        try:
            response = await self._next_response()
        except asyncio.CancelledError:
            self._cancel()
            if is_being_cancelled():
                raise
            if self._transport.is_closed:
                raise ClientUnusable("This client was closed during the watch.") from None
            if self._is_closed:
                return None
            raise
        self._request.resume_token = response.resume_token
        # Only a server that resumes within the changes of one call could repeat them.
        changes = [change for change in response.changes if not self._is_repeated(change)]
        if len(changes) < len(response.changes):
            del response.changes[:]
            response.changes.extend(changes)
        return response

    def _is_repeated(self, change: books_pb2.BookChange) -> bool:
        if change.type == books_pb2.BookChange.EXISTING:
            return False  # it may have another state than before
        is_repeated = change.number <= self._last_number
        self._last_number = max(self._last_number, change.number)
        return is_repeated

    async def _next_response(self) -> books_pb2.WatchBooksResponse:
        """Return the next response, over as many calls as it takes.

        Raises a `BookstoreError` that no retry can help, and before the first response what lasts until the timeout.
        """
        if not self._has_begun:
            self._has_begun = True
            self._deadline = time.monotonic() + self._timeout_seconds
        while True:
            connecting = self._transport.connection().connecting()
            try:
                response = await self._read()
            except grpc.aio.AioRpcError as error:
                self._call = None
                raised, code = error_from_rpc_error(error), error.code()
                raised.__cause__ = error
            except (EOFError, TimeoutError) as error:
                self._cancel()
                if time.monotonic() >= self._deadline:
                    if connecting and not connecting.done():
                        raise await self._transport.connection_error() from None
                    raise deadline_exceeded("The watch did not begin in time.") from None
                raised, code = _unavailable(str(error)), grpc.StatusCode.UNAVAILABLE
            else:
                self._note_response()
                return response
            await self._wait_before_retry(raised, code)

    async def _read(self) -> books_pb2.WatchBooksResponse:
        """Return the next response of the call, opened if there is none.

        Raises `AioRpcError`, `TimeoutError` or `EOFError`, after which the caller opens another.
        """
        seconds = min(self._stale_seconds, max(self._deadline - time.monotonic(), 0))
        try:
            async with asyncio.timeout(seconds):
                if self._call is None:
                    self._call = self._transport.open_stream(
                        self._transport.connection().books.WatchBooks,
                        self._request,
                        given=self._given,
                        # During an outage attempts have to fail, to be counted.
                        wait_for_ready=False if self._has_responded else None,
                    )
                response = await self._call.read()
        except TimeoutError:
            raise TimeoutError(f"The server has sent nothing for {seconds:,.0f} s.") from None
        if response is grpc.aio.EOF:
            raise EOFError("The server has ended the watch.")
        return cast(books_pb2.WatchBooksResponse, response)

    def _note_response(self) -> None:
        if self._has_responded and self._attempts > 1 and self._on_outage:
            self._on_outage(None)
        self._transport.note_response()
        self._has_responded = True
        self._deadline = math.inf
        self._attempts = 0

    async def _wait_before_retry(self, error: BookstoreError, code: grpc.StatusCode) -> None:
        """Wait until another call may be made. Raises the error if none should be."""
        self._attempts += 1
        self._transport.note_failure(error, code)
        delay = self._retry_delay_seconds(error, code)
        if delay is None or time.monotonic() + delay >= self._deadline:
            raise error
        if self._transport.must_fail_fast(self._attempts):
            raise error
        # The first attempt after an interruption usually finds another server.
        if self._has_responded and self._attempts == 2 and self._on_outage:
            self._on_outage(error)
        self._sleeping = asyncio.create_task(self._transport.sleep(delay))
        try:
            await self._sleeping
        finally:
            self._sleeping.cancel()

    def _retry_delay_seconds(self, error: BookstoreError, code: grpc.StatusCode) -> float | None:
        if not self._has_responded:
            return retry_delay_seconds(error, code, attempts=self._attempts, is_idempotent=True)
        if code in _CUT_OFF and (not error.reason or code is grpc.StatusCode.DEADLINE_EXCEEDED):
            # Not without end: a response that the client cannot read has such a status too.
            return backoff_seconds(self._attempts) if self._attempts < ATTEMPTS_MAX else None
        if isinstance(error, TokenInvalid):
            # A watch ends when its token expires. The next call has the token of that moment.
            return backoff_seconds(self._attempts) if self._attempts == 1 else None
        return retry_delay_seconds(error, code, attempts=self._attempts, is_idempotent=True, attempts_max=math.inf)

    def _cancel(self) -> None:
        if self._call is not None:
            self._call.cancel()
            self._call = None


def _stale_seconds(request: books_pb2.WatchBooksRequest) -> float:
    interval: float = CHECKPOINT_SECONDS_DEFAULT
    if request.HasField("checkpoint_interval"):
        interval = request.checkpoint_interval.ToTimedelta().total_seconds()
    return max(_STALE_MIN_SECONDS, _STALE_INTERVALS * interval)


def _unavailable(message: str) -> Unavailable:
    error = Unavailable(message)
    error.reason = ""  # not reported by the service
    return error
