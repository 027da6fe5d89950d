"""Checks the log of a history: it is one order, and it has what the writes did, whole and in the order of time."""

from collections.abc import Iterator, Sequence
from itertools import pairwise

from tests.history.records import CREATED, DELETED, UPDATED, BookState, Change, History, Outcome, Write
from tests.history.union import Log
from tests.history.violations import Guarantee, Violation


def log_violations(log: Log, history: History) -> list[Violation]:
    """Return the violations by the log as a whole."""
    return [
        *_gaps(log),
        *_broken_chains(log),
        *_doubles(log),
        *_changes_by_nobody(log),
        *_partial_writes(log, history.writes),
        *_contradictions_of_time(log, history.writes),
        *_changes_before_their_call(log, history),
        *_wrong_table(log, history),
    ]


def _gaps(log: Log) -> Iterator[Violation]:
    if log.numbers and log.numbers[0] != 1:
        yield Violation(Guarantee.RELIABLE, f"nobody received the changes before {log[log.numbers[0]]}")
    for before, after in pairwise(log.numbers):
        if after != before + 1:
            yield Violation(Guarantee.RELIABLE, f"nobody received change {before + 1}, between {before} and {after}")


def _broken_chains(log: Log) -> Iterator[Violation]:
    """Yield each change that does not follow from the state of its book."""
    table: dict[int, BookState] = {}
    deleted: set[int] = set()
    for change in map(log.__getitem__, log.numbers):
        book_id = change.book.id
        state = table.get(book_id)
        if problem := _problem_with_state(change, state, was_deleted=book_id in deleted):
            yield Violation(Guarantee.ORDERED, f"{change} {problem}")
        if change.type == DELETED:
            table.pop(book_id, None)
            deleted.add(book_id)
        else:
            table[book_id] = change.book


def _problem_with_state(change: Change, state: BookState | None, *, was_deleted: bool) -> str:
    if was_deleted:
        return "follows the delete of its book"
    match change.type:
        case type if type == CREATED:
            return "" if state is None else "follows another change of its book"
        case type if type == UPDATED and change.previous != state:
            return f"has as its previous book {change.previous}, but it was {state}"
        case type if type == DELETED and change.book != state:
            return f"has as its last state {change.book}, but it was {state}"
    return ""


def _doubles(log: Log) -> Iterator[Violation]:
    for changes in log.by_effect.values():
        if len(changes) > 1:
            yield Violation(Guarantee.UNIQUE, f"one call made {' and '.join(map(str, changes))}")


def _changes_by_nobody(log: Log) -> Iterator[Violation]:
    for number in log.numbers:
        maker = log.maker(log[number])
        if maker is None:
            yield Violation(Guarantee.RELIABLE, f"no call made {log[number]}")
        elif maker.outcome is Outcome.REJECTED:
            yield Violation(Guarantee.RELIABLE, f"a rejected call, {maker}, made {log[number]}")


def _partial_writes(log: Log, writes: Sequence[Write]) -> Iterator[Violation]:
    """Yield the acknowledged calls that are not in the log as they were acknowledged, and any that is there in part."""
    for write in writes:
        if write.outcome is Outcome.REJECTED:
            continue
        # Of two deletes of a book whose outcome is unknown, one made the change.
        effects = [effect for effect in write.effects if log.makers[effect] is write]
        made = [changes[0] for effect in effects if (changes := log.by_effect.get(effect))]
        if write.outcome is Outcome.OK and len(made) < len(write.effects):
            have = {change.effect for change in made}
            missing = next(effect for effect in write.effects if effect not in have)
            yield Violation(Guarantee.RELIABLE, f"{write} was acknowledged, and nobody received {missing}")
        elif write.is_atomic and made and len(made) < len(effects):
            yield Violation(Guarantee.ATOMIC, f"of {write} there are only {len(made)} of {len(effects)} changes")
        elif write.is_atomic and any(after.number != before.number + 1 for before, after in pairwise(made)):
            numbers = [change.number for change in made]
            yield Violation(Guarantee.ATOMIC, f"the changes of {write} are not one after the other: {numbers}")
        elif write.etags and write.etags != [change.book.etag for change in made]:
            yield Violation(Guarantee.RELIABLE, f"{write} returned other books than those of {made[0]} and later")


def _contradictions_of_time(log: Log, writes: Sequence[Write]) -> Iterator[Violation]:
    """Yield each call with a lower number than one that had ended before it began."""
    spans = []
    for write in writes:
        if write.outcome is Outcome.OK:
            numbers = [each.number for effect in write.effects for each in log.by_effect.get(effect, ())]
            if numbers:
                spans.append((write, min(numbers), max(numbers)))
    by_end = sorted(spans, key=lambda span: span[0].ended)
    ended = 0
    earlier, highest = None, 0
    for write, first, _ in sorted(spans, key=lambda span: span[0].began):
        while by_end[ended][0].ended < write.began:
            if by_end[ended][2] > highest:
                earlier, _, highest = by_end[ended]
            ended += 1
        if first < highest:
            what = f"{write} has number {first}, and {earlier}, which had ended before, has {highest}"
            yield Violation(Guarantee.ORDERED, what)


def _changes_before_their_call(log: Log, history: History) -> Iterator[Violation]:
    for watcher in history.watchers:
        for stream in watcher.streams:
            for response in stream.responses:
                for change in response.changes:
                    maker = log.maker(change) if change.number else None
                    if maker and response.at and response.at < maker.began:
                        what = f"{watcher.name} received {change} at {response.at:.4f} s, before {maker}"
                        yield Violation(Guarantee.ORDERED, what)


def _wrong_table(log: Log, history: History) -> Iterator[Violation]:
    table = log.table()
    for book_id in sorted(table.keys() | history.table.keys()):
        left, stored = table.get(book_id), history.table.get(book_id)
        if left != stored:
            yield Violation(Guarantee.RELIABLE, f"all changes leave book {book_id} as {left}, stored is {stored}")
            return
