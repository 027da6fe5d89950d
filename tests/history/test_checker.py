"""Each guarantee is violated by a small history, and the checker says which one and where."""

from collections.abc import Callable

import pytest

from tests.history.checker import check, violations
from tests.history.records import (
    CREATED,
    DELETED,
    EXISTING,
    UPDATED,
    BookState,
    Change,
    Effect,
    History,
    Outcome,
    Place,
    Response,
    Stream,
    Watcher,
    Write,
)

A, B = BookState(1, "A", release_year=1), BookState(2, "B", release_year=2)
A2 = A._replace(name="A2", etag="2")
CREATE_A, CREATE_B = Change(1, CREATED, A), Change(2, CREATED, B)
UPDATE_A, DELETE_B = Change(3, UPDATED, A2, A), Change(4, DELETED, B)
# A batch creates both books; then one is updated, and one deleted.
CHANGES = [CREATE_A, CREATE_B, UPDATE_A, DELETE_B]


def writes() -> list[Write]:
    return [
        Write("BatchCreateBooks", [CREATE_A.effect, CREATE_B.effect], 0.0, 1.0, Outcome.OK, ["", ""]),
        Write("UpdateBook", [UPDATE_A.effect], 2.0, 3.0, Outcome.OK, ["2"]),
        Write("DeleteBook", [DELETE_B.effect], 4.0, 5.0, Outcome.OK),
    ]


def response(*changes: Change, token: str = "", continues: bool = False, existing_sent: bool = True) -> Response:
    return Response(list(changes), token, continues, existing_sent)


def everything() -> list[Response]:
    return [response(CREATE_A, CREATE_B), response(UPDATE_A), response(DELETE_B)]


def watched(*responses: Response, name: str = "watcher") -> Watcher:
    return Watcher(name, streams=[Stream(responses=list(responses))])


def resumed(first: list[Response], place: Place, second: list[Response]) -> Watcher:
    return Watcher("watcher", streams=[Stream(responses=first), Stream(resumed_at=place, responses=second)])


def history(
    *watchers: Watcher,
    calls: list[Write] | None = None,
    positions: dict[str, int] | None = None,
    table: dict[int, BookState] | None = None,
) -> History:
    """A history in which one watcher has it right."""
    reference = watched(*everything(), name="reference")
    return History(calls or writes(), [reference, *watchers], positions or {}, table or {1: A2})


def copying(*responses: Response) -> Watcher:
    return Watcher("copy", "EXISTING", streams=[Stream(responses=list(responses))])


def filtered(matches: Callable[[BookState], bool], *responses: Response) -> Watcher:
    return Watcher("filtered", matches=matches, streams=[Stream(responses=list(responses))])


@pytest.mark.parametrize(
    "right",
    [
        pytest.param(lambda: watched(*everything()), id="whole"),
        pytest.param(lambda: watched(response(), response(CREATE_A, CREATE_B, UPDATE_A, DELETE_B)), id="at-once"),
        pytest.param(
            lambda: watched(response(CREATE_A, continues=True), response(CREATE_B), *everything()[1:]), id="in-parts"
        ),
        pytest.param(
            lambda: resumed(everything()[:2], Place(0, 0), everything()[1:]),
            id="resumed-before-what-was-received",
        ),
        pytest.param(
            lambda: resumed([response(CREATE_A, continues=True)], Place(0, 0), [response(*CHANGES[1:])]),
            id="resumed-within-a-call",
        ),
        pytest.param(
            lambda: Watcher(
                "watcher",
                matches=lambda book: book.release_year == 2,
                streams=[Stream(responses=[response(CREATE_B), response(DELETE_B)])],
            ),
            id="filtered",
        ),
        pytest.param(
            lambda: copying(
                response(Change(0, EXISTING, A), existing_sent=False),
                response(UPDATE_A, existing_sent=False),
                response(Change(0, EXISTING, B)),
                response(DELETE_B),
            ),
            id="existing-with-changes-in-between",
        ),
    ],
)
def test_a_history_without_violations_passes(right: Callable[[], Watcher]) -> None:
    check(history(right()))


def log(*changes: Change) -> Watcher:
    """A watcher that received each of these in a response of its own."""
    return watched(*map(response, changes), name="log")


def of_log(*changes: Change, calls: list[Write] | None = None, table: dict[int, BookState] | None = None) -> History:
    """A history whose only watcher received these."""
    return History(calls or writes(), [log(*changes)], table=table or {1: A2})


def with_writes(*changed: Write) -> list[Write]:
    """Return the writes with these in place of those of the same method."""
    by_method = {write.method: write for write in [*writes(), *changed]}
    return list(by_method.values())


VIOLATIONS: dict[str, tuple[Callable[[], History], str]] = {
    # Ordered.
    "a number is that of another change for another watcher": (
        lambda: history(log(CREATE_A._replace(book=B), CREATE_B)),
        "not ordered: log received change 1 (CREATED 2 'B'), and another watcher change 1 (CREATED 1 'A')",
    ),
    "numbers descend in a stream": (
        lambda: history(copying(response(), response(UPDATE_A), response(CREATE_B))),
        "not ordered: copy, stream 0, response 2: change 2 (CREATED 2 'B') came after 3",
    ),
    "an update follows another state than its previous book": (
        lambda: of_log(CREATE_A, CREATE_B, UPDATE_A._replace(previous=A._replace(etag="0")), DELETE_B),
        "not ordered: change 3 (UPDATED 1 'A2') has as its previous book 'A' (, 1, etag 0), but it was 'A'",
    ),
    "an update comes before its create": (
        lambda: of_log(Change(1, UPDATED, A2, A), Change(2, CREATED, B), Change(3, CREATED, A), DELETE_B),
        "not ordered: change 3 (CREATED 1 'A') follows another change of its book",
    ),
    "a delete has another last state": (
        lambda: of_log(CREATE_A, CREATE_B, UPDATE_A, DELETE_B._replace(book=B._replace(name="old"))),
        "not ordered: change 4 (DELETED 2 'old') has as its last state",
    ),
    "a change follows the delete of its book": (
        lambda: of_log(CREATE_A, CREATE_B, Change(3, DELETED, B), Change(4, UPDATED, B._replace(name="C"), B)),
        "not ordered: change 4 (UPDATED 2 'C') follows the delete of its book",
    ),
    "a call has a lower number than one that had ended before": (
        lambda: of_log(CREATE_A, CREATE_B, Change(3, DELETED, B), Change(4, UPDATED, A2, A)),
        "not ordered: DeleteBook (OK, 4.0000 to 5.0000 s) has number 3, and UpdateBook (OK, 2.0000 to 3.0000 s), "
        "which had ended before, has 4",
    ),
    "a change comes before its call": (
        lambda: history(watched(*everything()[:1], Response([UPDATE_A], "", at=1.5), *everything()[2:])),
        "not ordered: watcher received change 3 (UPDATED 1 'A2') at 1.5000 s, before UpdateBook",
    ),
    "a watch from now on has an earlier change": (
        lambda: history(
            Watcher("late", "NOW", streams=[Stream(3.5, responses=[response(UPDATE_A), response(DELETE_B)])])
        ),
        "not ordered: late, stream 0, response 0: change 3 (UPDATED 1 'A2') was made by UpdateBook",
    ),
    # Unique.
    "a change comes twice in a stream": (
        lambda: history(watched(*everything()[:2], response(UPDATE_A), response(DELETE_B))),
        "not unique: watcher, stream 0, response 2: change 3 (UPDATED 1 'A2') came again, after 3",
    ),
    "a change before the token comes after a resume": (
        lambda: history(resumed(everything()[:2], Place(0, 1), everything()[1:])),
        "not unique: watcher, stream 1, response 0: change 3 (UPDATED 1 'A2') came again after resuming after 3",
    ),
    "a create took effect twice": (
        lambda: of_log(*CHANGES, Change(5, CREATED, A._replace(id=3)), table={1: A2, 3: A._replace(id=3)}),
        "not unique: one call made change 1 (CREATED 1 'A') and change 5 (CREATED 3 'A')",
    ),
    # Reliable.
    "a watcher lacks a change": (
        lambda: history(watched(everything()[0], everything()[2])),
        "not reliable: watcher, stream 0, response 1: change 3 (UPDATED 1 'A2') is missing between 2 and 4",
    ),
    "a watcher lacks the last change": (
        lambda: history(watched(*everything()[:2])),
        "not reliable: watcher, stream 0: change 4 (DELETED 2 'B') is missing at the end",
    ),
    "a watcher with a filter lacks a change that matched before it": (
        lambda: history(filtered(lambda book: book.name == "A", response(CREATE_A))),
        "not reliable: filtered, stream 0: change 3 (UPDATED 1 'A2') is missing at the end",
    ),
    "a change does not match the filter": (
        lambda: history(filtered(lambda book: book.id == 2, response(CREATE_B), response(UPDATE_A, DELETE_B))),
        "not reliable: filtered, stream 0, response 1: change 3 (UPDATED 1 'A2') does not match the filter",
    ),
    "nobody received a number": (
        lambda: of_log(CREATE_A, CREATE_B, Change(4, UPDATED, A2, A), Change(5, DELETED, B)),
        "not reliable: nobody received change 3, between 2 and 4",
    ),
    "an acknowledged call is not in the log": (
        lambda: of_log(CREATE_A, CREATE_B, UPDATE_A, table={1: A2, 2: B}),
        "not reliable: DeleteBook (OK, 4.0000 to 5.0000 s) was acknowledged, and nobody received",
    ),
    "a call returned another version": (
        lambda: history(calls=with_writes(Write("UpdateBook", [UPDATE_A.effect], 2.0, 3.0, Outcome.OK, ["3"]))),
        "not reliable: UpdateBook (OK, 2.0000 to 3.0000 s) returned other books than those of change 3",
    ),
    "a change was made by no call": (
        lambda: history(calls=writes()[:2]),
        "not reliable: no call made change 4 (DELETED 2 'B')",
    ),
    "a rejected call took effect": (
        lambda: history(calls=with_writes(Write("DeleteBook", [DELETE_B.effect], 4.0, 5.0, Outcome.REJECTED))),
        "not reliable: a rejected call, DeleteBook (rejected, 4.0000 to 5.0000 s), made change 4 (DELETED 2 'B')",
    ),
    "the stored books are others than the changes leave": (
        lambda: of_log(*CHANGES, table={1: A}),
        "not reliable: all changes leave book 1 as",
    ),
    # Atomic.
    "a call of an unknown outcome took effect in part": (
        lambda: of_log(
            *CHANGES,
            calls=with_writes(
                Write("BatchCreateBooks", [CREATE_A.effect, CREATE_B.effect, Effect(CREATED, 0, "C")], 0.0)
            ),
        ),
        "not atomic: of BatchCreateBooks (unknown, 0.0000 to inf s) there are only 2 of 3 changes",
    ),
    "a change of another call is between those of one": (
        lambda: of_log(CREATE_A, Change(2, UPDATED, A2, A), Change(3, CREATED, B), DELETE_B),
        "not atomic: the changes of BatchCreateBooks (OK, 0.0000 to 1.0000 s) are not one after the other: [1, 3]",
    ),
    "a call is divided without a mark": (
        lambda: history(watched(response(CREATE_A), response(CREATE_B), *everything()[1:])),
        "not atomic: watcher, stream 0, response 1: change 2 (CREATED 2 'B') is of the same call",
    ),
    "a checkpoint is within a call": (
        lambda: history(watched(response(CREATE_A, continues=True), response(), response(CREATE_B), *everything()[1:])),
        "not atomic: watcher, stream 0, response 1: it has no changes, but the response before it continues",
    ),
    "a response that continues is followed by another call": (
        lambda: history(watched(response(CREATE_A, CREATE_B, continues=True), *everything()[1:])),
        "not atomic: watcher, stream 0, response 1: the response before it continues, but change 3",
    ),
    # Resumable.
    "a change after the token does not come after a resume": (
        lambda: history(resumed(everything()[:2], Place(0, 0), everything()[2:])),
        "not resumable: watcher, stream 1, response 0: change 3 (UPDATED 1 'A2') is missing between 2 and 4",
    ),
    "a token is rejected": (
        lambda: history(Watcher("watcher", streams=[Stream(error="INVALID_ARGUMENT INVALID_RESUME_TOKEN")])),
        "not resumable: watcher, stream 0: it ended with INVALID_ARGUMENT INVALID_RESUME_TOKEN",
    ),
    # Bookmarkable.
    "a change at or before a checkpoint comes later": (
        lambda: history(
            filtered(lambda book: book.id == 2, response(CREATE_B), response(token="4"), response(DELETE_B)),
            positions={"4": 4},
        ),
        "not bookmarkable: filtered, stream 0, response 1: its token continues after 4, but change 4 (DELETED 2 'B') "
        "has not been sent",
    ),
    "a checkpoint is before what has been sent": (
        lambda: history(watched(*everything(), response(token="3")), positions={"3": 3}),
        "not bookmarkable: watcher, stream 0, response 3: its token continues after 3, although 4 has been sent",
    ),
    # Existing.
    "an existing book is missing": (
        lambda: history(copying(response(Change(0, EXISTING, B)), response(DELETE_B))),
        "not existing: copy, Place(stream=0, response=0): the table was at no moment the copy",
    ),
    "an existing book is of another moment": (
        lambda: history(
            copying(
                response(Change(0, EXISTING, A), existing_sent=False), response(existing_sent=True), response(DELETE_B)
            )
        ),
        "not existing: copy, Place(stream=0, response=1): the table was at no moment the copy",
    ),
    "a change comes before its book as an existing one": (
        lambda: history(copying(response(UPDATE_A, existing_sent=False), response(Change(0, EXISTING, A2)))),
        "not existing: copy, Place(stream=0, response=0): change 3 (UPDATED 1 'A2') comes before book 1 as an existing",
    ),
    "existing books come twice": (
        lambda: history(copying(response(Change(0, EXISTING, A), Change(0, EXISTING, A)))),
        "not existing: copy, Place(stream=0, response=0): book 1 comes as an existing one after 1",
    ),
    "the copy is not the table at the end": (
        lambda: history(copying(response(Change(0, EXISTING, A2)), response(DELETE_B)), table={1: A}),
        "not existing: copy, the copy of 1 books is not the table of 1 at the end",
    ),
}


@pytest.mark.parametrize("violated", VIOLATIONS)
def test_a_violation_is_found_where(violated: str) -> None:
    make, expected = VIOLATIONS[violated]
    found = list(map(str, violations(make())))
    assert any(each.startswith(expected) for each in found), found


def test_a_check_raises_with_what_it_found() -> None:
    with pytest.raises(AssertionError, match="1 violations, the first of which are:\nnot reliable: watcher, stream 0"):
        check(history(watched(*everything()[:2])))
