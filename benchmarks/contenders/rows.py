"""What the peers on our tables share: SQLite's settings as ours has them, and the row of a new book."""

from typing import Any

from bookstore.v1 import books_pb2
from sqlalchemy import Engine, event

from benchmarks.contenders.messages import microseconds_now
from bookstore_grpc.dal.caseless import fold_case
from bookstore_grpc.dal.models import Book

# Only the time limit is not ours: where writers meet at SQLite's lock instead of in a queue, some wait past 5 s.
_PRAGMAS = ("journal_mode = WAL", "synchronous = FULL", "foreign_keys = ON", "busy_timeout = 60000")


def use_same_settings(engine: Engine) -> None:
    """Set up each connection of an engine as ours does, if it is SQLite's."""
    if engine.dialect.name != "sqlite":
        return

    @event.listens_for(engine, "connect")
    def execute_each(connection: Any, _record: object) -> None:
        cursor = connection.cursor()
        for pragma in _PRAGMAS:
            cursor.execute(f"PRAGMA {pragma}")
        cursor.close()


def new_book(request: books_pb2.CreateBookRequest) -> Book:
    """Make the row that a request asks for."""
    now = microseconds_now()
    return Book(
        name=request.book.name,
        author=request.book.author,
        release_year=request.book.release_year,
        create_time=now,
        update_time=now,
        name_folded=fold_case(request.book.name),
        author_folded=fold_case(request.book.author),
    )
