"""Checks each stream of a watcher: it has every change that the watcher asked for, once, in order, in whole calls."""

from collections.abc import Iterator, Mapping

from tests.history.records import EXISTING, Change, Place, Response, Watcher
from tests.history.union import Log
from tests.history.violations import Guarantee, Violation

# How a stream may end: the server or its database went away, or the watcher itself did. All of these can be resumed.
_EXPECTED_ERRORS = ("", "UNAVAILABLE", "CANCELLED")


def stream_violations(watcher: Watcher, log: Log, positions: Mapping[str, int]) -> list[Violation]:
    """Return the first violation of each guarantee by each stream."""
    found: list[Violation] = []
    reached: dict[Place, int | None] = {}
    for index in range(len(watcher.streams)):
        by_guarantee: dict[Guarantee, Violation] = {}
        for violation in _Walk(watcher, index, log, positions, reached).violations():
            by_guarantee.setdefault(violation.guarantee, violation)
        found += by_guarantee.values()
    return found


class _Walk:
    """Walks through a stream.

    After each response there is a number up to which the watcher has every change that it wants, and which no later
    change may have: that of the last change, or the position of the token if it is known. `reached_at` has this number
    for all streams so far. It is None while it is not known.
    """

    def __init__(
        self,
        watcher: Watcher,
        index: int,
        log: Log,
        positions: Mapping[str, int],
        reached_at: dict[Place, int | None],
    ) -> None:
        self._watcher = watcher
        self._index = index
        self._stream = watcher.streams[index]
        self._log = log
        self._positions = positions
        self._reached_at = reached_at
        self._reached = self._start()
        self._previous = watcher.response(self._stream.resumed_at) if self._stream.resumed_at else None
        # Among the existing books some changes are left out; `copy_checks.py` looks at what was sent.
        self._has_all = watcher.start != "EXISTING" or bool(self._previous and self._previous.existing_sent)
        self._is_resumed = self._stream.resumed_at is not None

    def violations(self) -> Iterator[Violation]:
        if self._stream.error not in _EXPECTED_ERRORS:
            yield self._violation(Guarantee.RESUMABLE, None, f"it ended with {self._stream.error}")
        for at, response in enumerate(self._stream.responses):
            yield from self._violations_of_response(Place(self._index, at), response)
        if self._watcher.is_complete and self._index == len(self._watcher.streams) - 1:
            yield from self._violations_of_end()

    def _start(self) -> int | None:
        """Return the number after which the stream has to start."""
        if self._stream.resumed_at is not None:
            token = self._watcher.response(self._stream.resumed_at).token
            return self._positions.get(token, self._reached_at.get(self._stream.resumed_at))
        if self._watcher.start == "EARLIEST":
            return 0
        first = self._stream.responses[0] if self._stream.responses else None
        is_from_now = self._watcher.start == "NOW" and first is not None and not first.changes
        return self._positions.get(first.token) if first and is_from_now else None

    def _violations_of_response(self, place: Place, response: Response) -> Iterator[Violation]:
        for change in response.changes:
            if change.type == EXISTING:
                continue
            if found := self._problem_of_change(change, place):
                guarantee, what = found
                yield self._violation(guarantee, place, what)
            self._reached = max(self._reached or 0, change.number)
            self._is_resumed = False
        if self._has_all and (problem := self._problem_of_token(response)):
            yield self._violation(Guarantee.BOOKMARKABLE, place, problem)
        if problem := _problem_of_parts(self._previous, response, self._log):
            yield self._violation(Guarantee.ATOMIC, place, problem)
        if response.existing_sent and not self._has_all:
            # The existing books stand for all changes up to the token.
            self._has_all, self._reached = True, None
        self._reached = self._positions.get(response.token, self._reached)
        self._reached_at[place] = self._reached
        self._previous = response

    def _problem_of_change(self, change: Change, place: Place) -> tuple[Guarantee, str] | None:
        if not self._watcher.wants(change):
            return Guarantee.RELIABLE, f"{change} does not match the filter"
        maker = self._log.maker(change)
        if self._watcher.start == "NOW" and maker and maker.ended < self._watcher.streams[0].opened:
            return Guarantee.ORDERED, f"{change} was made by {maker}, before the watch"
        if self._reached is None:
            return None
        if change.number <= self._reached:
            return self._problem_of_place(change, place, self._reached)
        missing = self._missing(self._reached, change.number - 1) if self._has_all else None
        if missing is None:
            return None
        guarantee = Guarantee.RESUMABLE if self._is_resumed else Guarantee.RELIABLE
        return guarantee, f"{missing} is missing between {self._reached} and {change.number}"

    def _problem_of_place(self, change: Change, place: Place, reached: int) -> tuple[Guarantee, str]:
        """Return what a change that comes too late violates."""
        if self._is_resumed:
            return Guarantee.UNIQUE, f"{change} came again after resuming after {reached}"
        received = [response for earlier, response in self._watcher.path(place.stream) if earlier <= place]
        numbers = [each.number for response in received for each in response.changes]
        if numbers.count(change.number) > 1:
            return Guarantee.UNIQUE, f"{change} came again, after {reached}"
        if reached not in numbers:
            return Guarantee.BOOKMARKABLE, f"{change} came after a token that continues after {reached}"
        return Guarantee.ORDERED, f"{change} came after {reached}"

    def _problem_of_token(self, response: Response) -> str:
        position = self._positions.get(response.token)
        if position is None or self._reached is None:
            return ""
        if position < self._reached:
            return f"its token continues after {position}, although {self._reached} has been sent"
        missing = self._missing(self._reached, position)
        return f"its token continues after {position}, but {missing} has not been sent" if missing else ""

    def _violations_of_end(self) -> Iterator[Violation]:
        if self._previous is None or self._reached is None:
            yield self._violation(Guarantee.RELIABLE, None, "it ended without a change")
            return
        if self._previous.continues:
            yield self._violation(Guarantee.ATOMIC, None, "it ended within the changes of a call")
        if missing := self._missing(self._reached, self._log.last):
            yield self._violation(Guarantee.RELIABLE, None, f"{missing} is missing at the end")

    def _missing(self, after: int, last: int) -> Change | None:
        """Return the first change between two numbers that the watcher wants."""
        changes = map(self._log.__getitem__, self._log.between(after, last))
        return next(filter(self._watcher.wants, changes), None)

    def _violation(self, guarantee: Guarantee, place: Place | None, what: str) -> Violation:
        where = f"stream {self._index}" + (f", response {place.response}" if place else "")
        return Violation(guarantee, f"{self._watcher.name}, {where}: {what}")


def _problem_of_parts(previous: Response | None, response: Response, log: Log) -> str:
    """Return what is wrong with where the changes of one call were divided."""
    logged = [change for change in response.changes if change.number]
    before = [change for change in previous.changes if change.number] if previous else []
    if previous and previous.continues:
        if not logged:
            return "it has no changes, but the response before it continues"
        if log.maker(logged[0]) is not log.maker(before[-1]):
            return f"the response before it continues, but {logged[0]} is of another call than {before[-1]}"
    elif before and logged:
        maker = log.maker(logged[0])
        if maker is not None and maker.is_atomic and maker is log.maker(before[-1]):
            return f"{logged[0]} is of the same call as {before[-1]}, whose response does not continue"
    return ""
