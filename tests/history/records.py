"""What a history of a feed is made of: the calls of writers, and the responses that watchers received.

Times are those of `time.monotonic`, in seconds: all writers and watchers of a history are in one process.
"""

from collections.abc import Callable, Iterable, Mapping
from dataclasses import dataclass, field
from enum import Enum
from math import inf
from typing import NamedTuple

from bookstore.v1 import books_pb2

CREATED = books_pb2.BookChange.CREATED
UPDATED = books_pb2.BookChange.UPDATED
DELETED = books_pb2.BookChange.DELETED
EXISTING = books_pb2.BookChange.EXISTING

_SHOWN = 40  # code points of a long text

type_name = books_pb2.BookChange.Type.Name


class BookState(NamedTuple):
    """A book with all its fields. Times are in nanoseconds since 1970."""

    id: int
    name: str
    author: str = ""
    release_year: int = 0
    create_time: int = 0
    update_time: int = 0
    etag: str = ""

    @classmethod
    def of(cls, book: books_pb2.Book) -> "BookState":
        times = book.create_time.ToNanoseconds(), book.update_time.ToNanoseconds()
        return cls(book.id, book.name, book.author, book.release_year, *times, book.etag)

    def __str__(self) -> str:
        return f"{self.name[:_SHOWN]!r} ({self.author[:_SHOWN]}, {self.release_year}, etag {self.etag})"


class Change(NamedTuple):
    """A change as a watcher received it. The time is in nanoseconds since 1970, and with the number 0 for EXISTING."""

    number: int
    type: int
    book: BookState
    previous: BookState | None = None
    time: int = 0

    @classmethod
    def of(cls, change: books_pb2.BookChange) -> "Change":
        previous = BookState.of(change.previous_book) if change.HasField("previous_book") else None
        return cls(change.number, change.type, BookState.of(change.book), previous, change.change_time.ToNanoseconds())

    @property
    def effect(self) -> "Effect":
        """What a call asked for to make this change."""
        return Effect(
            self.type,
            book_id=0 if self.type == CREATED else self.book.id,
            name="" if self.type == DELETED else self.book.name,
        )

    def __str__(self) -> str:
        return f"change {self.number} ({type_name(self.type)} {self.book.id} {self.book.name[:_SHOWN]!r})"  # type: ignore[arg-type]


class Effect(NamedTuple):
    """What a call does to one book. No two calls have the same one, because every name is used once.

    Only deletes of the same book do. The id is 0 for a create, and the name is empty for a delete.
    """

    type: int
    book_id: int = 0
    name: str = ""


class Outcome(Enum):
    """How a call ended: with a response, with an error that says that it had no effect, or in another way."""

    OK = "OK"
    REJECTED = "rejected"
    UNKNOWN = "unknown"


@dataclass
class Write:
    """A call that changes books, with its retries.

    `etags` are those of the returned books, in the order of `effects`. A call that is not atomic, a purge, changes its
    books in any order and in several transactions.
    """

    method: str
    effects: list[Effect]
    began: float
    ended: float = inf
    outcome: Outcome = Outcome.UNKNOWN
    etags: list[str] = field(default_factory=list)
    is_atomic: bool = True

    def __str__(self) -> str:
        return f"{self.method} ({self.outcome.value}, {self.began:.4f} to {self.ended:.4f} s)"


@dataclass
class Response:
    """A response of a watch, and when it was received."""

    changes: list[Change]
    token: str
    continues: bool = False
    existing_sent: bool = True
    at: float = 0.0


class Place(NamedTuple):
    """A response of a watcher: the index of its stream, and its own in there."""

    stream: int
    response: int


@dataclass
class Stream:
    """One call of WatchBooks: from a start, or after the response whose token it resumes with."""

    opened: float = 0.0
    resumed_at: Place | None = None
    responses: list[Response] = field(default_factory=list)
    error: str = ""


@dataclass
class Watcher:
    """The streams of a watcher, each of which resumes where an earlier one was, perhaps not at its end.

    `matches` is its filter, None for a watcher of all books. `start` is a name of `WatchBooksRequest.Start`.
    `is_complete` tells that its last stream was read up to the last change of the history.
    """

    name: str
    start: str = "EARLIEST"
    matches: Callable[[BookState], bool] | None = None
    streams: list[Stream] = field(default_factory=list)
    is_complete: bool = True

    def wants(self, change: Change) -> bool:
        """Return whether the book matches before or after a change."""
        if self.matches is None:
            return True
        return self.matches(change.book) or (change.previous is not None and self.matches(change.previous))

    def response(self, place: Place) -> Response:
        return self.streams[place.stream].responses[place.response]

    def path(self, stream: int) -> list[tuple[Place, Response]]:
        """Return what a watcher that stores each response with its token has at the end of a stream."""
        segments = []
        place: Place | None = Place(stream, len(self.streams[stream].responses) - 1)
        while place is not None:
            responses = self.streams[place.stream].responses[: place.response + 1]
            segments.append([(Place(place.stream, at), response) for at, response in enumerate(responses)])
            place = self.streams[place.stream].resumed_at
        return [each for segment in reversed(segments) for each in segment]


@dataclass
class History:
    """All writes to a database that was empty before, and what all watchers received.

    `positions` has, for some of the tokens, the number of the last change before what follows them. `table` has the
    stored books at the end.
    """

    writes: list[Write]
    watchers: list[Watcher]
    positions: Mapping[str, int] = field(default_factory=dict)
    table: Mapping[int, BookState] = field(default_factory=dict)


def table_of(books: Iterable[BookState]) -> dict[int, BookState]:
    return {book.id: book for book in books}
