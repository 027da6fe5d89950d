"""Group commit: concurrent writes share a transaction.

While one batch is in its transaction, further writes are queued for the next batch. There is no timer: a single write
starts immediately, and under load a batch consists of what arrived in the meantime
(docs/decisions/0008-group-commit.md).
"""

import asyncio
import time
from collections import deque
from collections.abc import Awaitable, Callable, Sequence
from contextvars import Context, copy_context
from typing import Generic, NamedTuple, Protocol, TypeVar

import structlog

from bookstore_grpc.errors import BookstoreError

_log = structlog.stdlib.get_logger("bookstore_grpc.dal.group_commit")

Connection = TypeVar("Connection")
Operation = TypeVar("Operation")
Result = TypeVar("Result")
Operation_contra = TypeVar("Operation_contra", contravariant=True)

Transaction = Callable[[Connection], Awaitable[list[Result | Exception]]]


class WriteBatch(Protocol[Operation_contra, Result]):
    """Executes operations within one transaction."""

    async def lock(self, operations: Sequence[Operation_contra], /) -> None:
        """Read and lock the rows that the operations affect. May wait for other transactions."""

    async def apply(self, operations: Sequence[Operation_contra], /) -> list[Result | Exception]:
        """Execute the operations, a subset of those given to `lock`, and return a result or an exception for each."""


class BatchEnd(NamedTuple, Generic[Operation]):
    """The end of a transaction, for observers.

    `contexts` are those of the callers, if they are kept. `started_ns` is in nanoseconds since 1970-01-01T00:00:00Z.
    `error` is the exception of the transaction, which fails the whole batch.
    """

    operations: Sequence[Operation]
    contexts: Sequence[Context]
    started_ns: int
    error: BaseException | None


class _Submission(NamedTuple, Generic[Operation, Result]):
    """An operation and the future that its caller awaits."""

    operation: Operation
    size: int
    future: asyncio.Future[Result]
    context: Context | None

    @property
    def is_awaited(self) -> bool:
        return not self.future.done()


class _Batch(Generic[Operation, Result]):
    """The submissions that share a transaction, in order of arrival. More can be added only while it is open."""

    def __init__(self, submissions: Sequence[_Submission[Operation, Result]] = (), *, is_open: bool = True) -> None:
        self.submissions = list(submissions)
        self.is_open = is_open
        self.has_begun = False

    @property
    def operations(self) -> list[Operation]:
        return [submission.operation for submission in self.submissions]

    @property
    def is_abandoned(self) -> bool:
        return bool(self.submissions) and not any(submission.is_awaited for submission in self.submissions)

    def drop_cancelled(self) -> None:
        self.submissions = [submission for submission in self.submissions if submission.is_awaited]

    def resolve(self, results: Sequence[Result | Exception]) -> None:
        for submission, result in zip(self.submissions, results, strict=True):
            if not submission.is_awaited:
                continue
            if isinstance(result, Exception):
                submission.future.set_exception(result)
            else:
                submission.future.set_result(result)


class GroupCommit(Generic[Connection, Operation, Result]):
    """Commits submitted operations in batches.

    At most `batches_max` batches run concurrently. The sizes of a batch's operations add up to at most `size_max`,
    unless it consists of a single larger operation.

    `transact` runs a function in a transaction, repeatedly if the transaction is retried. `new_write_batch` returns the
    object that executes the operations on the transaction's connection. If either raises a `BookstoreError`, it fails
    the whole batch. Any other exception is a defect: the operations are then retried one by one, so that the one that
    causes it does not fail the others. A batch is cancelled when all of its callers are cancelled.

    `on_batch_end` is called for every transaction that had operations, before their callers resume, and with
    `keeps_contexts` it gets the contexts of the callers.
    """

    def __init__(
        self,
        transact: Callable[[Transaction[Connection, Result]], Awaitable[list[Result | Exception]]],
        new_write_batch: Callable[[Connection], WriteBatch[Operation, Result]],
        *,
        batches_max: int,
        size_max: int,
        on_batch_end: Callable[[BatchEnd[Operation]], None] | None = None,
        keeps_contexts: bool = False,
    ) -> None:
        self._transact = transact
        self._new_write_batch = new_write_batch
        self._batches_max = batches_max
        self._size_max = size_max
        self._on_batch_end = on_batch_end
        self._keeps_contexts = keeps_contexts
        self._queue: deque[_Submission[Operation, Result]] = deque()
        self._running: dict[asyncio.Task[None], _Batch[Operation, Result]] = {}

    async def submit(self, operation: Operation, *, size: int = 1) -> Result:
        """Execute an operation in the next transaction, and return its result or raise its exception."""
        future: asyncio.Future[Result] = asyncio.get_running_loop().create_future()
        context = copy_context() if self._keeps_contexts else None
        self._queue.append(_Submission(operation, size, future, context))
        self._start_batch()
        try:
            return await future
        except asyncio.CancelledError:
            self._cancel_abandoned_batches()
            raise

    def _start_batch(self) -> None:
        """Start a batch for the queue, unless one is already waiting to take it or the maximum is running."""
        has_waiting_batch = any(not batch.has_begun for batch in self._running.values())
        if has_waiting_batch or len(self._running) == self._batches_max:
            return
        batch: _Batch[Operation, Result] = _Batch()
        task = asyncio.create_task(self._run(batch))
        self._running[task] = batch
        task.add_done_callback(self._on_task_done)

    def _on_task_done(self, task: asyncio.Task[None]) -> None:
        del self._running[task]
        if any(submission.is_awaited for submission in self._queue):
            self._start_batch()

    def _cancel_abandoned_batches(self) -> None:
        for task, batch in self._running.items():
            if batch.is_abandoned:
                batch.is_open = False
                task.cancel()

    async def _run(self, batch: _Batch[Operation, Result]) -> None:
        """Commit a batch and resolve its futures."""
        started_ns = time.time_ns()
        try:
            results = await self._transact(lambda connection: self._execute(batch, connection))
        except asyncio.CancelledError as cancelled:
            self._observe(batch, started_ns, cancelled)
            raise
        except Exception as error:
            if not batch.has_begun:
                self._take_pending(batch)
            self._observe(batch, started_ns, error)
            if len(batch.submissions) == 1 or isinstance(error, BookstoreError):
                batch.resolve([error] * len(batch.submissions))
            else:
                await self._run_one_by_one(batch)
        else:
            self._observe(batch, started_ns, None)
            batch.resolve(results)
        finally:
            batch.is_open = False

    async def _execute(self, batch: _Batch[Operation, Result], connection: Connection) -> list[Result | Exception]:
        """Execute a batch in a transaction, which may be a retry."""
        self._take_pending(batch)
        writes = self._new_write_batch(connection)
        await writes.lock(batch.operations)
        # `lock` may have waited; the operations of callers that were cancelled in the meantime must not be executed.
        batch.drop_cancelled()
        return await writes.apply(batch.operations)

    def _take_pending(self, batch: _Batch[Operation, Result]) -> None:
        """Move queued operations into the batch up to `size_max`. An empty batch takes one operation of any size.

        A cancelled batch may still be running in a thread. It is closed, so that it takes no operations that it would
        never resolve.
        """
        batch.has_begun = True
        batch.drop_cancelled()
        if not batch.is_open:
            return
        room = self._size_max - sum(submission.size for submission in batch.submissions)
        while self._queue and (self._queue[0].size <= room or not batch.submissions):
            submission = self._queue.popleft()
            if submission.is_awaited:
                batch.submissions.append(submission)
                room -= submission.size
        if self._queue:
            self._start_batch()

    async def _run_one_by_one(self, batch: _Batch[Operation, Result]) -> None:
        for submission in batch.submissions:
            if submission.is_awaited:
                await self._run(_Batch([submission], is_open=False))

    def _observe(self, batch: _Batch[Operation, Result], started_ns: int, error: BaseException | None) -> None:
        if self._on_batch_end and batch.submissions:
            contexts = [each.context for each in batch.submissions if each.context is not None]
            try:
                self._on_batch_end(BatchEnd(batch.operations, contexts, started_ns, error))
            except Exception:  # a defect of an observer must not keep the callers from resuming
                _log.exception("observer failed")
