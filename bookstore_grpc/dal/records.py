"""The plain values that enter and leave the DAL."""

from dataclasses import dataclass
from typing import NamedTuple
from uuid import UUID


class BookDraft(NamedTuple):
    """A book that is to be stored, its fields valid and in their stored form."""

    name: str
    author: str
    release_year: int
    request_id: UUID | None = None


class BookRecord(NamedTuple):
    """A stored book. Times are microseconds since 1970-01-01T00:00:00Z."""

    id: int
    name: str
    author: str
    release_year: int
    create_time: int
    update_time: int

    @property
    def etag(self) -> str:
        """Stand for this state of this book: `update_time` grows with every change, and ids are never reused."""
        return f"{self.id:x}-{self.update_time:x}"


class BookChanges(NamedTuple):
    """New values for a book's fields; None leaves a field as it is."""

    name: str | None = None
    author: str | None = None
    release_year: int | None = None


@dataclass(frozen=True, eq=False)
class BookPage:
    """A page of books and the token that leads to the next one, empty at the end.

    It equals nothing but itself, so that what is made of it can be kept with it.
    """

    books: list[BookRecord]
    next_page_token: str
