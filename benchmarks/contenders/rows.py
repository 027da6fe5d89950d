"""Shared by the alternatives on our tables: synchronous drivers, SQLite's settings, a page, and a new book's row."""

from collections.abc import Sequence
from typing import Any

from bookstore.v1 import books_pb2
from sqlalchemy import Engine, Select, create_engine, event, make_url, select

from benchmarks.contenders.messages import author_from_filter, book_message, microseconds_now
from bookstore_grpc.dal.folding import fold_case
from bookstore_grpc.dal.models import Book

# Only the timeout differs: writers that compete for SQLite's lock instead of queueing may wait longer than 5 s.
_PRAGMAS = ("journal_mode = WAL", "synchronous = FULL", "foreign_keys = ON", "busy_timeout = 60000")
_SYNC_DRIVERS = {"sqlite": "sqlite+pysqlite", "postgresql": "postgresql+psycopg", "mariadb": "mariadb+pymysql"}


def sync_engine(database_url: str) -> Engine:
    """Return an engine for the same database by a synchronous driver."""
    url = make_url(database_url)
    return create_engine(url.set(drivername=_SYNC_DRIVERS[url.get_backend_name()]))


def use_same_settings(engine: Engine) -> None:
    """Configure each connection of a SQLite engine as ours does."""
    if engine.dialect.name != "sqlite":
        return

    @event.listens_for(engine, "connect")
    def execute_each(connection: Any, _record: object) -> None:
        cursor = connection.cursor()
        for pragma in _PRAGMAS:
            cursor.execute(f"PRAGMA {pragma}")
        cursor.close()


def select_page(request: books_pb2.ListBooksRequest) -> Select[Book]:
    """Return the statement of a page plus one book, which shows whether another page follows."""
    statement = select(Book).order_by(Book.id).limit(_page_size(request) + 1)
    if request.page_token:
        statement = statement.where(Book.id > int(request.page_token))
    if request.filter:
        statement = statement.where(Book.author == author_from_filter(request.filter))
    return statement


def page_response(request: books_pb2.ListBooksRequest, books: Sequence[Book]) -> books_pb2.ListBooksResponse:
    """Return the result of `select_page` as a message."""
    size = _page_size(request)
    token = str(books[size - 1].id) if len(books) > size else ""
    return books_pb2.ListBooksResponse(books=map(book_message, books[:size]), next_page_token=token)


def new_book(request: books_pb2.CreateBookRequest) -> Book:
    """Return the row of a create request."""
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


def _page_size(request: books_pb2.ListBooksRequest) -> int:
    return request.page_size or 50
