"""Calls in flight done together: while one group is under way, the next one gathers.

There is no timer. A call that comes alone starts at once; under load a group is what came meanwhile.
"""

import asyncio
import time
from collections import deque
from collections.abc import Awaitable, Callable, Sequence
from contextvars import Context, copy_context
from typing import Any, Generic, NamedTuple, TypeVar

import structlog

from bookstore_grpc.errors import BookstoreError

_log = structlog.stdlib.get_logger("bookstore_grpc.groups")

Item = TypeVar("Item")
Outcome = TypeVar("Outcome")


class _Member(NamedTuple):
    item: Any
    size: int
    future: asyncio.Future[Any]
    context: Context | None

    @property
    def is_waited_for(self) -> bool:
        return not self.future.done()


class Group(Generic[Item]):
    """The items that are done together, in the order in which they came."""

    def __init__(self, waiting: deque[_Member], *, most: int, on_left_over: Callable[[], None]) -> None:
        self._waiting = waiting
        self._most = most
        self._on_left_over = on_left_over
        self.members: list[_Member] = []
        self.is_gathering = True
        self.has_ended = False

    def join(self) -> list[Item]:
        """Take in those who wait, as far as there is room, and answer the items.

        To be asked as late as can be, and again for another attempt: more may have come, and callers may have gone.
        """
        self.is_gathering = False
        items = self.items()
        room = self._most - sum(member.size for member in self.members)
        # A group that was cancelled may go on in a thread; who joined it would wait for ever.
        while not self.has_ended and self._waiting and (self._waiting[0].size <= room or not self.members):
            member = self._waiting.popleft()
            if member.is_waited_for:
                self.members.append(member)
                items.append(member.item)
                room -= member.size
        if self._waiting:
            self._on_left_over()
        return items

    def items(self) -> list[Item]:
        """Answer the items whose callers are still there; from now on the group has no others."""
        self.members = [member for member in self.members if member.is_waited_for]
        return [member.item for member in self.members]

    def callers(self) -> list[Context]:
        """Answer the contexts of those whose items these are, where they are kept."""
        return [member.context for member in self.members if member.context is not None]

    def settle(self, outcomes: Sequence[Any]) -> None:
        """Give each member its outcome."""
        for member, outcome in zip(self.members, outcomes, strict=True):
            if member.future.done():
                continue  # its caller has gone
            if isinstance(outcome, Exception):
                member.future.set_exception(outcome)
            else:
                member.future.set_result(outcome)


class Groups(Generic[Item, Outcome]):
    """Does what callers submit in groups, at most `at_once` at a time, each of at most `most` by size or of one item.

    `work` answers an outcome for each item that the group has in the end, an exception for one that failed. What it
    raises instead concerns all; if that is no error meant for callers, the items are tried one by one, so that a
    defect that one of them meets does not fail the others. It is cancelled when no caller is left.

    `on_ended` is told of each group that has members, when it began, in nanoseconds since 1970-01-01T00:00:00Z, and
    what its work has raised, before the callers know. With `keeps_contexts` it can ask the group who its callers are.
    """

    def __init__(
        self,
        work: Callable[[Group[Item]], Awaitable[Sequence[Outcome | Exception]]],
        *,
        at_once: int,
        most: int,
        on_ended: Callable[[Group[Item], int, BaseException | None], None] | None = None,
        keeps_contexts: bool = False,
    ) -> None:
        self._work = work
        self._on_ended = on_ended
        self._keeps_contexts = keeps_contexts
        self._at_once = at_once
        self._most = most
        self._waiting: deque[_Member] = deque()
        self._under_way: dict[asyncio.Task[None], Group[Item]] = {}

    async def outcome(self, item: Item, *, size: int = 1) -> Outcome:
        """Wait until an item is done and answer its outcome, or raise it."""
        future: asyncio.Future[Outcome] = asyncio.get_running_loop().create_future()
        self._waiting.append(_Member(item, size, future, copy_context() if self._keeps_contexts else None))
        self._start_group()
        try:
            return await future
        except asyncio.CancelledError:
            self._cancel_abandoned_groups()
            raise

    def _start_group(self) -> None:
        is_gathering = any(group.is_gathering for group in self._under_way.values())
        if is_gathering or len(self._under_way) == self._at_once:
            return
        group: Group[Item] = Group(self._waiting, most=self._most, on_left_over=self._start_group)
        task = asyncio.create_task(self._do(group))
        self._under_way[task] = group
        task.add_done_callback(self._end_group)

    def _end_group(self, task: asyncio.Task[None]) -> None:
        del self._under_way[task]
        if any(member.is_waited_for for member in self._waiting):
            self._start_group()

    def _cancel_abandoned_groups(self) -> None:
        for task, group in self._under_way.items():
            if group.members and not any(member.is_waited_for for member in group.members):
                group.has_ended = True
                task.cancel()

    async def _do(self, group: Group[Item]) -> None:
        started_ns = time.time_ns()
        try:
            outcomes = await self._work(group)
        except asyncio.CancelledError as cancelled:
            self._tell(group, started_ns, cancelled)
            raise
        except Exception as error:
            if group.is_gathering:
                group.join()
            self._tell(group, started_ns, error)
            if len(group.members) == 1 or isinstance(error, BookstoreError):
                group.settle([error] * len(group.members))
            else:
                await self._do_one_by_one(group.members)
        else:
            self._tell(group, started_ns, None)
            group.settle(outcomes)
        finally:
            group.has_ended = True

    def _tell(self, group: Group[Item], started_ns: int, error: BaseException | None) -> None:
        if self._on_ended and group.members:
            try:
                self._on_ended(group, started_ns, error)
            except Exception:  # what was done is done, and its callers wait
                _log.exception("observer failed")

    async def _do_one_by_one(self, members: Sequence[_Member]) -> None:
        for member in members:
            if member.is_waited_for:
                await self._do(Group(deque([member]), most=1, on_left_over=lambda: None))
