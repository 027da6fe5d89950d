"""Checks that a watcher that starts with the existing books keeps a copy of what the database had, up to some id.

The copy after each response has to be the table at one moment, restricted to the ids up to the last existing book that
was sent, and these moments have to ascend.
"""

from collections.abc import Mapping
from math import inf

from tests.history.records import EXISTING, BookState, Change, Place, Response, Watcher
from tests.history.union import Log, apply
from tests.history.violations import Guarantee, Violation


def copy_violations(watcher: Watcher, log: Log, table: Mapping[int, BookState]) -> list[Violation]:
    """Return the first violation of each stream of a watcher of all books that started with the existing ones."""
    if watcher.start != "EXISTING" or watcher.matches is not None:
        return []
    found = []
    for stream, recorded in enumerate(watcher.streams):
        if not recorded.responses:
            continue
        copy = _Copy(log)
        problem = next((what for place, each in watcher.path(stream) if (what := _problem(copy, place, each))), "")
        if not problem and watcher.is_complete and stream == len(watcher.streams) - 1 and copy.books != table:
            problem = f"the copy of {len(copy.books)} books is not the table of {len(table)} at the end"
        if problem:
            found.append(Violation(Guarantee.EXISTING, f"{watcher.name}, {problem}"))
    return found


def _problem(copy: "_Copy", place: Place, response: Response) -> str:
    for change in response.changes:
        if problem := copy.apply(change):
            return f"{place}: {problem}"
    copy.extend(inf if response.existing_sent else copy.last_existing)
    if not copy.has_moment(may_be_within_call=response.continues):
        return f"{place}: the table was at no moment the copy; {copy.difference()}"
    return ""


class _Copy:
    """A copy, and the table at the first moment at which the copy may have been what the table was."""

    def __init__(self, log: Log) -> None:
        self.books: dict[int, BookState] = {}
        self.last_existing: float = 0
        self._log = log
        self._extent: float = 0  # the ids up to which the copy has all books
        self._table: dict[int, BookState] = {}
        self._number = 0
        self._different: set[int] = set()

    def apply(self, change: Change) -> str:
        """Apply a change; return what is wrong with it by itself."""
        book_id = change.book.id
        if change.type == EXISTING:
            if book_id <= self.last_existing:
                return f"book {book_id} comes as an existing one after {self.last_existing}"
            self.last_existing = book_id
        elif book_id > self._extent:
            return f"{change} comes before book {book_id} as an existing one, or instead of it"
        apply(change, self.books)
        self._compare(book_id)
        return ""

    def extend(self, extent: float) -> None:
        """Have all books up to an id from now on."""
        if extent > self._extent:
            newly = [each for each in self._table.keys() | self.books.keys() if self._extent < each <= extent]
            self._extent = extent
            for book_id in newly:
                self._compare(book_id)

    def has_moment(self, *, may_be_within_call: bool) -> bool:
        """Return whether the copy is what the table was, at the moment of the previous response or later."""
        while self._different or not (may_be_within_call or self._log.is_end_of_call(self._number)):
            number = self._log.after(self._number)
            if number is None:
                return False
            change = self._log[number]
            apply(change, self._table)
            self._number = number
            self._compare(change.book.id)
        return True

    def difference(self) -> str:
        """Return a difference to the table at the end of the log."""
        if not self._different:
            return "it ends within a call"
        book_id = min(self._different)
        return f"book {book_id} is {self.books.get(book_id)}, and in the end {self._table.get(book_id)}"

    def _compare(self, book_id: int) -> None:
        if book_id <= self._extent and self.books.get(book_id) != self._table.get(book_id):
            self._different.add(book_id)
        else:
            self._different.discard(book_id)
