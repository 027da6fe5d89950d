"""Shared by the alternatives with the same contract: a book's message, and the only filter that the loads use."""

import re
import time
from typing import Protocol

from bookstore.v1 import books_pb2

_AUTHOR = re.compile(r'author = "(.*)"')


class StoredBook(Protocol):
    """A book with its times in microseconds since 1970-01-01T00:00:00Z: a row, or a synthetic book."""

    @property
    def id(self) -> int: ...
    @property
    def name(self) -> str: ...
    @property
    def author(self) -> str: ...
    @property
    def release_year(self) -> int: ...
    @property
    def create_time(self) -> int: ...
    @property
    def update_time(self) -> int: ...


def book_message(book: StoredBook) -> books_pb2.Book:
    """Return a book as a message."""
    message = books_pb2.Book(
        id=book.id,
        name=book.name,
        author=book.author,
        release_year=book.release_year,
        etag=f"{book.id:x}-{book.update_time:x}",
    )
    message.create_time.FromMicroseconds(book.create_time)
    message.update_time.FromMicroseconds(book.update_time)
    return message


def author_from_filter(text: str) -> str:
    """Return the author of `author = "NAME"`, the only filter that the loads use."""
    match = _AUTHOR.fullmatch(text)
    if match is None:
        raise ValueError(text)
    return match[1]


def microseconds_now() -> int:
    """Return the time in microseconds since 1970-01-01T00:00:00Z."""
    return time.time_ns() // 1_000
