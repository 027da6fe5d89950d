"""The feed of changes: watches, pages for those who poll, and what is no longer kept."""

from collections.abc import AsyncGenerator, Callable
from contextlib import aclosing

from bookstore_grpc.dal.change_log import ChangeReader, Head, Position
from bookstore_grpc.dal.change_signals import ChangeSignals
from bookstore_grpc.dal.change_tail import ChangeTails
from bookstore_grpc.dal.database import Database
from bookstore_grpc.dal.records import Change, ChangePage, code_points_of_change
from bookstore_grpc.dal.resume_tokens import ResumePoint, resume_point_from_token, token_from_resume_point
from bookstore_grpc.dal.watch import Watch, WatchStart, is_wanted_by
from bookstore_grpc.errors import InvalidResumeToken
from bookstore_grpc.limits import PAGE_MAX_CODE_POINTS

# How often a page reads the log, if few changes match its filter.
_READS_MAX = 10


class ChangeFeed:
    """The changes of a database, for the watchers of this process. Every method may raise `DatabaseUnavailable`.

    `on_committed` is called after each commit of changes by this process.
    """

    def __init__(self, database: Database, *, on_committed: Callable[[], None] | None = None) -> None:
        self._database = database
        self._reader = ChangeReader(database)
        self._tails = ChangeTails(self._reader, lambda: ChangeSignals(database))
        self._watches: set[Watch] = set()
        self._on_committed = on_committed
        #: Lets the watchers see at once what another process has committed.
        self.others_committed = self._tails.changes_committed
        self.trim = self._reader.trim
        self.earliest_time = self._reader.earliest_time

    @property
    def watchers(self) -> int:
        """How many watches there are."""
        return len(self._watches)

    @property
    def lag(self) -> int:
        """How many changes the slowest watch is behind the last change that this process has read."""
        if not self._watches:
            return 0
        return max(0, self._tails.number - min(watch.number for watch in self._watches))

    def committed(self) -> None:
        """Let all watchers see at once what this process has committed."""
        self._tails.changes_committed()
        if self._on_committed:
            self._on_committed()

    async def watch(
        self, *, filter: str, resume_token: str, start: WatchStart, checkpoint_seconds: float
    ) -> AsyncGenerator[ChangePage]:
        """Yield pages as `BookDAL.watch_books` does."""
        head = await self._reader.head()
        point, is_within_call = await self._start(head, resume_token=resume_token, start=start, filter=filter)
        watch = Watch(
            self._database,
            self._reader,
            head=head,
            point=point,
            is_within_call=is_within_call,
            filter=filter,
            checkpoint_seconds=checkpoint_seconds,
        )
        self._watches.add(watch)
        try:
            async with self._tails.watching(head.position) as tail, aclosing(watch.pages(tail)) as pages:
                while True:  # no name keeps the page while a slow caller makes this generator wait
                    yield await anext(pages)
        finally:
            self._watches.discard(watch)

    async def page(self, *, page_size: int, page_token: str, filter: str) -> ChangePage:
        """Return a page as `BookDAL.list_book_changes` does."""
        try:
            return await self._page(page_size=page_size, page_token=page_token, filter=filter)
        except InvalidResumeToken as error:
            raise InvalidResumeToken(error.violations[0].description, field="page_token") from error

    async def _page(self, *, page_size: int, page_token: str, filter: str) -> ChangePage:
        head = await self._reader.head()
        point, _ = await self._start(head, resume_token=page_token, start=WatchStart.EARLIEST, filter=filter)
        if point.after_id is not None:
            raise InvalidResumeToken("is of a watch that had not sent all existing books; only a watch can continue it")
        page = _Page(point.position, page_size=page_size, is_wanted=is_wanted_by(filter))
        is_full = False
        for _ in range(_READS_MAX):
            changes = await self._reader.read_after(page.position)
            is_full = not all(map(page.take, changes))
            if is_full or not changes:
                break
        has_more = is_full or page.position.number < head.position.number
        token = token_from_resume_point(ResumePoint(page.position), log_id=head.log_id, filter=filter)
        return ChangePage(page.changes, token, has_more=has_more)

    async def _start(
        self, head: Head, *, resume_token: str, start: WatchStart, filter: str
    ) -> tuple[ResumePoint, bool]:
        """Return where to start, and whether this is within the changes of a call."""
        if resume_token:
            point = resume_point_from_token(resume_token, log_id=head.log_id, filter=filter)
            return point, await self._reader.verify(point.position)
        match start:
            case WatchStart.NOW:
                return ResumePoint(head.position), False
            case WatchStart.EARLIEST:
                return ResumePoint(await self._reader.earliest()), False
            case WatchStart.EXISTING:
                return ResumePoint(head.position, after_id=0), False


class _Page:
    """The wanted changes of a page, and the position after the last change that was looked at."""

    def __init__(self, position: Position, *, page_size: int, is_wanted: Callable[[Change], bool]) -> None:
        self.changes: list[Change] = []
        self.position = position
        self._page_size = page_size
        self._is_wanted = is_wanted
        self._code_points = 0

    def take(self, change: Change) -> bool:
        """Look at the next change. Returns False if the page is full, and it is left to the next one."""
        if self._is_wanted(change):
            self._code_points += code_points_of_change(change)
            has_room = len(self.changes) < self._page_size and self._code_points <= PAGE_MAX_CODE_POINTS
            if self.changes and not has_room:
                return False
            self.changes.append(change)
        self.position = Position.of(change)
        return True
