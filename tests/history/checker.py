"""Checks the guarantees of the feed of changes over a recorded history.

The union of what all watchers received is the log of the history. It has to be one order that agrees with the writes
(`log_checks.py`); every stream has to be the part of it that its watcher asked for (`stream_checks.py`); and every copy
that starts with the existing books has to be what the database had (`copy_checks.py`).
"""

from tests.history.copy_checks import copy_violations
from tests.history.log_checks import log_violations
from tests.history.records import History
from tests.history.stream_checks import stream_violations
from tests.history.union import union_of
from tests.history.violations import Violation

_SHOWN = 5


def violations(history: History) -> list[Violation]:
    """Return what violates a guarantee: of each stream the first, and then those of the whole log."""
    log, conflicts = union_of(history)
    found = [*conflicts, *log_violations(log, history)]
    for watcher in history.watchers:
        found += stream_violations(watcher, log, history.positions)
        found += copy_violations(watcher, log, history.table)
    return found


def check(history: History) -> None:
    """Raise with the first violations, if there are any."""
    found = violations(history)
    shown = "\n".join(map(str, found[:_SHOWN]))
    assert not found, f"{len(found)} violations, the first of which are:\n{shown}"
