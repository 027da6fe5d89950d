"""How changes are divided into responses."""

from collections.abc import Callable, Sequence

import pytest
from hypothesis import given
from hypothesis import strategies as st

from bookstore_grpc.dal import change_pages
from bookstore_grpc.dal.change_log import Position
from bookstore_grpc.dal.change_pages import parts
from bookstore_grpc.dal.records import Change, ChangeType, code_points_of_change
from bookstore_grpc.limits import PAGE_MAX_CODE_POINTS, RESPONSE_CHANGES_MAX
from tests.dal.change_logs import record

_LONG = "x" * (PAGE_MAX_CODE_POINTS // 4)


def _calls(*calls: Sequence[str]) -> list[Change]:
    """Return the changes of calls, numbered from 1, with these authors and names without a code point."""
    changes: list[Change] = []
    for authors in calls:
        for remaining, author in zip(reversed(range(len(authors))), authors, strict=True):
            number = len(changes) + 1
            book = record(name="", author=author)
            changes.append(Change(ChangeType.CREATED, book, time=number, number=number, remaining=remaining))
    return changes


def _divided(
    changes: Sequence[Change], *, is_wanted: Callable[[Change], bool] = lambda _: True
) -> list[tuple[list[int], int, bool]]:
    """Return the numbers of each part's changes, the number of its position, and whether it is continued."""
    found = list(parts(changes, is_wanted=is_wanted))
    assert all(part.position.time == part.position.number for part in found)
    return [([change.number for change in part.changes], part.position.number, part.continues) for part in found]


def test_short_calls_share_a_part() -> None:
    assert _divided(_calls("a", "bc", "d")) == [([1, 2, 3, 4], 4, False)]


def test_a_call_that_does_not_fit_behind_others_has_a_part_of_its_own() -> None:
    assert _divided(_calls([_LONG], [_LONG, _LONG, _LONG, _LONG], ["a"])) == [
        ([1], 1, False),
        ([2, 3, 4, 5], 5, False),
        ([6], 6, False),
    ]


def test_a_call_too_long_for_a_part_is_continued_in_the_next() -> None:
    assert _divided(_calls(["a"], [_LONG] * 9, ["b"])) == [
        ([1], 1, False),
        ([2, 3, 4, 5], 5, True),
        ([6, 7, 8, 9], 9, True),
        ([10, 11], 11, False),
    ]


def test_a_call_of_the_most_changes_fills_a_part() -> None:
    changes = _calls(["a"] * RESPONSE_CHANGES_MAX, "a")
    assert [(len(numbers), number, more) for numbers, number, more in _divided(changes)] == [
        (RESPONSE_CHANGES_MAX, RESPONSE_CHANGES_MAX, False),
        (1, RESPONSE_CHANGES_MAX + 1, False),
    ]


def test_a_change_longer_than_a_part_is_alone_in_one() -> None:
    assert _divided(_calls([_LONG * 5], ["a", _LONG * 5, "b"])) == [
        ([1], 1, False),
        ([2], 2, True),
        ([3], 3, True),
        ([4], 4, False),
    ]


def test_unwanted_changes_are_left_out_and_move_the_position() -> None:
    def is_wanted(change: Change) -> bool:
        return change.number in (2, 4)

    assert _divided(_calls("abc", "de"), is_wanted=is_wanted) == [([2, 4], 5, False)]
    assert _divided(_calls("abc", "de"), is_wanted=lambda _: False) == [([], 5, False)]


def test_unwanted_changes_at_the_end_of_a_call_do_not_continue_it() -> None:
    changes = _calls([_LONG] * 6)
    assert _divided(changes, is_wanted=lambda change: change.number <= 4) == [([1, 2, 3, 4], 6, False)]
    assert _divided(changes, is_wanted=lambda change: change.number != 2) == [
        ([1, 3, 4, 5], 5, True),
        ([6], 6, False),
    ]


_authors = st.integers(0, 15).map(lambda length: "x" * length)


@pytest.fixture
def small(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(change_pages, "PAGE_MAX_CODE_POINTS", 10)
    monkeypatch.setattr(change_pages, "RESPONSE_CHANGES_MAX", 5)


@pytest.mark.usefixtures("small")
@given(
    calls=st.lists(st.lists(_authors, min_size=1, max_size=8), min_size=1, max_size=6),
    unwanted=st.sets(st.integers(1, 30)),
)
def test_parts_are_bounded_complete_and_keep_calls_together(calls: list[list[str]], unwanted: set[int]) -> None:
    changes = _calls(*calls)
    wanted = [change for change in changes if change.number not in unwanted]
    found = list(parts(changes, is_wanted=lambda change: change.number not in unwanted))
    assert [change for part in found for change in part.changes] == wanted
    assert found[-1].position == Position.of(changes[-1])
    end_of = {change.number: change.number + change.remaining for change in changes}
    for number, part in enumerate(found):
        size = sum(map(code_points_of_change, part.changes))
        assert len(part.changes) <= 1 or (size <= 10 and len(part.changes) <= 5)
        following = [change.number for later in found[number + 1 :] for change in later.changes]
        # A part is continued exactly if a wanted change of its last call follows.
        is_torn = bool(part.changes and following and end_of[part.changes[-1].number] == end_of[following[0]])
        assert part.continues == is_torn
        # Whoever resumes at the position gets what follows.
        assert not following or part.position.number < following[0]
        assert not part.changes or part.position.number >= part.changes[-1].number
    for end in set(end_of.values()):  # only a call that does not fit into a part is torn
        of_call = [change for change in wanted if end_of[change.number] == end]
        count = sum(any(end_of[change.number] == end for change in part.changes) for part in found)
        fits = sum(map(code_points_of_change, of_call)) <= 10 and len(of_call) <= 5
        assert not fits or count <= 1
