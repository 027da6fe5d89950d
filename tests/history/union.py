"""The log of a history: the union of all changes that its watchers received, and the calls that made them."""

from bisect import bisect_right
from collections import defaultdict
from collections.abc import Sequence

from tests.history.records import DELETED, EXISTING, BookState, Change, Effect, History, Outcome, Write
from tests.history.violations import Guarantee, Violation


class Log:
    """All changes by their numbers."""

    def __init__(self, changes: dict[int, Change], writes: Sequence[Write]) -> None:
        self.numbers = sorted(changes)
        self._changes = changes
        self.by_effect: dict[Effect, list[Change]] = defaultdict(list)
        for number in self.numbers:
            self.by_effect[changes[number].effect].append(changes[number])
        self.makers = _makers(writes)

    def __getitem__(self, number: int) -> Change:
        return self._changes[number]

    @property
    def last(self) -> int:
        """The highest number, or 0."""
        return self.numbers[-1] if self.numbers else 0

    def after(self, number: int) -> int | None:
        """Return the lowest number above another."""
        place = bisect_right(self.numbers, number)
        return self.numbers[place] if place < len(self.numbers) else None

    def between(self, after: int, last: int) -> Sequence[int]:
        """Return the numbers above one, up to another."""
        return self.numbers[bisect_right(self.numbers, after) : bisect_right(self.numbers, last)]

    def maker(self, change: Change) -> Write | None:
        """Return the call that made a change, as far as it is known."""
        return self.makers.get(change.effect)

    def is_end_of_call(self, number: int) -> bool:
        """Return whether the change after this one is of another call, as far as it is known."""
        following = self.after(number)
        if number == 0 or following is None:
            return True
        maker = self.maker(self[number])
        return maker is None or not maker.is_atomic or self.maker(self[following]) is not maker

    def table(self) -> dict[int, BookState]:
        """Return the books that all changes together leave."""
        table: dict[int, BookState] = {}
        for number in self.numbers:
            apply(self[number], table)
        return table


def apply(change: Change, table: dict[int, BookState]) -> None:
    """Apply a change to a copy."""
    if change.type == DELETED:
        table.pop(change.book.id, None)
    else:
        table[change.book.id] = change.book


def union_of(history: History) -> tuple[Log, list[Violation]]:
    """Return the log, and where two watchers received different changes under one number."""
    changes: dict[int, Change] = {}
    found: list[Violation] = []
    for watcher in history.watchers:
        for stream in watcher.streams:
            for response in stream.responses:
                for change in response.changes:
                    if change.type == EXISTING:
                        continue
                    known = changes.setdefault(change.number, change)
                    if known != change:
                        what = f"{watcher.name} received {change}, and another watcher {known}"
                        found.append(Violation(Guarantee.ORDERED, what))
    return Log(changes, history.writes), found


def _makers(writes: Sequence[Write]) -> dict[Effect, Write]:
    """Return the call of each effect. Of several deletes of one book it is the one that may have had an effect."""
    makers: dict[Effect, Write] = {}
    likelihood = {Outcome.REJECTED: 0, Outcome.UNKNOWN: 1, Outcome.OK: 2}
    for write in sorted(writes, key=lambda write: likelihood[write.outcome]):
        for effect in write.effects:
            makers[effect] = write
    return makers
