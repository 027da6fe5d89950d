"""Divides changes into pages: the changes of a call stay together, as far as a response can hold them."""

from collections.abc import Callable, Iterator, Sequence
from typing import NamedTuple

from bookstore_grpc.dal.change_log import Position
from bookstore_grpc.dal.records import Change, code_points_of_change
from bookstore_grpc.limits import PAGE_MAX_CODE_POINTS, RESPONSE_CHANGES_MAX


class Part(NamedTuple):
    """Changes that a response can hold, and the position after them. It `continues` if more of the same call follow."""

    changes: Sequence[Change]
    position: Position
    continues: bool = False


def first_part(changes: Sequence[Change], *, is_wanted: Callable[[Change], bool]) -> Part:
    """Return as many of the wanted ones of some changes as fit: none if none is wanted."""
    last = changes[-1]
    collected = _Collected()
    call: list[Change] = []
    for change in changes:
        if is_wanted(change):
            call.append(change)
        if change.remaining and change is not last:
            continue
        if not collected.has_room_for(call):
            return collected.take()
        for wanted in call:
            if not collected.has_room_for([wanted]):
                return collected.take(continues=True)
            collected.add(wanted)
        collected.position = Position.of(change)
        call = []
    return collected.take(continues=last.remaining > 0)


def parts(changes: Sequence[Change], *, is_wanted: Callable[[Change], bool]) -> Iterator[Part]:
    """Yield the wanted ones of some changes. The last part is at the position of the last change, and may be empty."""
    while changes:
        part = first_part(changes, is_wanted=is_wanted)
        yield part
        changes = [each for each in changes if each.number > part.position.number]


class _Collected:
    """The changes of the next part."""

    def __init__(self) -> None:
        self.changes: list[Change] = []
        self.position = Position(0, 0)
        self._code_points = 0

    def has_room_for(self, changes: Sequence[Change]) -> bool:
        """Return whether changes fit too, which they do in any case if there are none yet."""
        if not self.changes:
            return True
        return (
            len(self.changes) + len(changes) <= RESPONSE_CHANGES_MAX
            and self._code_points + sum(map(code_points_of_change, changes)) <= PAGE_MAX_CODE_POINTS
        )

    def add(self, change: Change) -> None:
        self.changes.append(change)
        self._code_points += code_points_of_change(change)
        self.position = Position.of(change)

    def take(self, *, continues: bool = False) -> Part:
        part = Part(self.changes, self.position, continues)
        self.changes, self._code_points = [], 0
        return part
