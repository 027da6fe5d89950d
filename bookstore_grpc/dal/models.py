"""The mapped tables. `migrations/` builds them; a test holds the two in step.

Text compares by code point on every database. Times are whole microseconds since 1970-01-01T00:00:00Z: exact
and alike everywhere, where the databases' own date types differ in range, zone and precision.
"""

from collections.abc import Mapping
from typing import Any
from uuid import UUID

from sqlalchemy import BigInteger, Computed, Index, Integer, LargeBinary, String, Text, Uuid, select
from sqlalchemy.dialects import mysql, postgresql
from sqlalchemy.orm import DeclarativeBase, InstrumentedAttribute, Mapped, mapped_column
from sqlalchemy.types import TypeEngine

from bookstore_grpc.dal.records import BookRecord
from bookstore_grpc.limits import AUTHOR_MAX_CODE_POINTS, NAME_MAX_CODE_POINTS

# No database but SQLite can index 1,000 code points of four bytes (PostgreSQL stops at 2,704 bytes, MariaDB at
# 3,072), so what is indexed of an author is its head.
AUTHOR_HEAD_CODE_POINTS = 255

_POSTGRESQL_COLLATION = "C"
_MARIADB_COLLATION = "utf8mb4_nopad_bin"


def exact_string(length: int) -> TypeEngine[str]:
    """Name the type of a text of at most `length` code points that compares by code point."""
    return (
        String(length)
        .with_variant(postgresql.VARCHAR(length, collation=_POSTGRESQL_COLLATION), "postgresql")
        .with_variant(mysql.VARCHAR(length, charset="utf8mb4", collation=_MARIADB_COLLATION), "mariadb")
    )


def exact_text() -> TypeEngine[str]:
    """Name the type of a text without a limit of its own that compares by code point."""
    return (
        Text()
        .with_variant(postgresql.TEXT(collation=_POSTGRESQL_COLLATION), "postgresql")
        .with_variant(mysql.TEXT(charset="utf8mb4", collation=_MARIADB_COLLATION), "mariadb")
    )


def row_id() -> TypeEngine[int]:
    """Name the type of a key that counts up: SQLite counts only in a column declared INTEGER."""
    return BigInteger().with_variant(Integer(), "sqlite")


class Base(DeclarativeBase):
    """The root of the mapped tables."""


class Book(Base):
    """A book. The folded columns are what `:` and bare words of a filter search."""

    __tablename__ = "books"

    id: Mapped[int] = mapped_column(row_id(), primary_key=True, autoincrement=True)
    name: Mapped[str] = mapped_column(exact_string(NAME_MAX_CODE_POINTS))
    author: Mapped[str] = mapped_column(exact_string(AUTHOR_MAX_CODE_POINTS))
    release_year: Mapped[int] = mapped_column(Integer)
    create_time: Mapped[int] = mapped_column(BigInteger)
    update_time: Mapped[int] = mapped_column(BigInteger)
    name_folded: Mapped[str] = mapped_column(exact_text())
    author_folded: Mapped[str] = mapped_column(exact_text())
    author_head: Mapped[str] = mapped_column(
        exact_string(AUTHOR_HEAD_CODE_POINTS),
        Computed(f"substr(author, 1, {AUTHOR_HEAD_CODE_POINTS})", persisted=True),
        nullable=True,  # though it never is NULL: MariaDB takes no NOT NULL on a computed column
    )

    # Without AUTOINCREMENT SQLite gives the highest id again once its book is deleted.
    __table_args__ = (
        Index("ix_books_name", "name", "id"),
        Index("ix_books_author_head", "author_head", "id"),
        Index("ix_books_release_year", "release_year", "id"),
        Index("ix_books_create_time", "create_time", "id"),
        Index("ix_books_update_time", "update_time", "id"),
        {"sqlite_autoincrement": True},
    )


class CreateRequest(Base):
    """A create that was answered: what a replay of its `request_id` needs to be told apart and answered.

    `book_id` is no foreign key, for the answer outlives the book.
    """

    __tablename__ = "create_requests"

    # MariaDB's own UUID type refuses some.
    request_id: Mapped[UUID] = mapped_column(Uuid().with_variant(Uuid(native_uuid=False), "mariadb"), primary_key=True)
    book_id: Mapped[int] = mapped_column(BigInteger)
    digest: Mapped[bytes] = mapped_column(LargeBinary(32).with_variant(mysql.BINARY(32), "mariadb"))
    create_time: Mapped[int] = mapped_column(BigInteger)

    __table_args__ = (Index("ix_create_requests_create_time", "create_time"),)


#: The fields of the API that a filter or an order may name.
FIELDS: Mapping[str, InstrumentedAttribute[Any]] = {
    "id": Book.id,
    "name": Book.name,
    "author": Book.author,
    "release_year": Book.release_year,
    "create_time": Book.create_time,
    "update_time": Book.update_time,
}

#: What a `BookRecord` is made of, in its order; every statement that reads books builds on it.
SELECT_BOOKS = select(*(FIELDS[field] for field in BookRecord._fields))
