"""The guarantees of the feed of changes, in the words of `books.proto`, and what violates one."""

from enum import StrEnum
from typing import NamedTuple


class Guarantee(StrEnum):
    ORDERED = "ordered"
    UNIQUE = "unique"
    RELIABLE = "reliable"
    ATOMIC = "atomic"
    RESUMABLE = "resumable"
    BOOKMARKABLE = "bookmarkable"
    EXISTING = "existing"


class Violation(NamedTuple):
    """What is wrong, with the numbers of the changes and the places in the streams that show it."""

    guarantee: Guarantee
    what: str

    def __str__(self) -> str:
        return f"not {self.guarantee}: {self.what}"
