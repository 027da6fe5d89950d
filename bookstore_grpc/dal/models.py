"""The mapped tables. `migrations/` creates them; a test checks that the two agree.

Text compares by code point on every database. Times are whole microseconds since 1970-01-01T00:00:00Z, because the
date types of the databases differ in range, zone and precision.
"""

from collections.abc import Mapping
from typing import Any
from uuid import UUID

from sqlalchemy import BigInteger, Computed, Index, Integer, LargeBinary, String, Text, Uuid, select
from sqlalchemy.dialects import mysql, postgresql
from sqlalchemy.orm import DeclarativeBase, InstrumentedAttribute, Mapped, mapped_column
from sqlalchemy.types import TypeEngine

from bookstore_grpc.dal.records import FIELDS, BookRecord, Field, FieldType

_POSTGRESQL_COLLATION = "C"
_MARIADB_COLLATION = "utf8mb4_nopad_bin"


def exact_string(length: int) -> TypeEngine[str]:
    """Return the type of a text of at most `length` code points that compares by code point."""
    return (
        String(length)
        .with_variant(postgresql.VARCHAR(length, collation=_POSTGRESQL_COLLATION), "postgresql")
        .with_variant(mysql.VARCHAR(length, charset="utf8mb4", collation=_MARIADB_COLLATION), "mariadb")
    )


def exact_text() -> TypeEngine[str]:
    """Return the type of a text without a limit of its own that compares by code point."""
    return (
        Text()
        .with_variant(postgresql.TEXT(collation=_POSTGRESQL_COLLATION), "postgresql")
        .with_variant(mysql.TEXT(charset="utf8mb4", collation=_MARIADB_COLLATION), "mariadb")
    )


def row_id() -> TypeEngine[int]:
    """Return the type of an autoincrement key: SQLite increments only a column declared INTEGER."""
    return BigInteger().with_variant(Integer(), "sqlite")


class Base(DeclarativeBase):
    """The declarative base of the mapped tables."""


class Book(Base):
    """A book. `:` and bare words of a filter search the folded columns.

    A field without a column here is an optional text, whose columns are added from `FIELDS` below.
    """

    __tablename__ = "books"

    id: Mapped[int] = mapped_column(row_id(), primary_key=True, autoincrement=True)
    name: Mapped[str] = mapped_column(exact_string(FIELDS["name"].max_code_points))
    author: Mapped[str] = mapped_column(exact_string(FIELDS["author"].max_code_points))
    release_year: Mapped[int] = mapped_column(Integer)
    create_time: Mapped[int] = mapped_column(BigInteger)
    update_time: Mapped[int] = mapped_column(BigInteger)
    name_folded: Mapped[str] = mapped_column(exact_text())
    author_folded: Mapped[str] = mapped_column(exact_text())
    author_head: Mapped[str] = mapped_column(
        exact_string(FIELDS["author"].head_code_points),
        Computed(f"substr(author, 1, {FIELDS['author'].head_code_points})", persisted=True),
        nullable=True,  # though it is never NULL: MariaDB allows no NOT NULL on a computed column
    )

    # Without AUTOINCREMENT SQLite reuses the highest id once its book is deleted.
    __table_args__ = ({"sqlite_autoincrement": True},)


def _add_optional_text(field: Field) -> None:
    """Add the columns of an optional text, with a default for the INSERTs of an older version."""
    if not field.is_optional or field.type is not FieldType.TEXT:
        raise TypeError(f"the field {field.name} has no column in {Book.__name__}")
    setattr(Book, field.name, mapped_column(exact_string(field.max_code_points), nullable=False, server_default=""))
    if field.is_searchable:
        setattr(Book, f"{field.name}_folded", mapped_column(exact_text(), nullable=False, server_default=""))


for _field in FIELDS.values():
    if not hasattr(Book, _field.name):
        _add_optional_text(_field)
    if _field.is_orderable and _field.name != "id":
        _indexed = f"{_field.name}_head" if _field.head_code_points else _field.name
        Index(f"ix_books_{_indexed}", getattr(Book, _indexed), Book.id)


class CreateRequest(Base):
    """The idempotency key of a create that succeeded, and what a replay needs to verify and repeat its response.

    `book_id` is no foreign key, because the key outlives the book.
    """

    __tablename__ = "create_requests"

    # MariaDB's own UUID type rejects some UUIDs.
    request_id: Mapped[UUID] = mapped_column(Uuid().with_variant(Uuid(native_uuid=False), "mariadb"), primary_key=True)
    book_id: Mapped[int] = mapped_column(BigInteger)
    digest: Mapped[bytes] = mapped_column(LargeBinary(32).with_variant(mysql.BINARY(32), "mariadb"))
    create_time: Mapped[int] = mapped_column(BigInteger)

    __table_args__ = (Index("ix_create_requests_create_time", "create_time"),)


Columns = Mapping[str, InstrumentedAttribute[Any]]

#: The column of each field, that of its folded text if it is searchable, and that of its head if only that is indexed.
COLUMNS: Columns = {name: getattr(Book, name) for name in FIELDS}
FOLDED_COLUMNS: Columns = {
    name: getattr(Book, f"{name}_folded") for name, field in FIELDS.items() if field.is_searchable
}
HEAD_COLUMNS: Columns = {
    name: getattr(Book, f"{name}_head") for name, field in FIELDS.items() if field.head_code_points
}

#: The columns of a `BookRecord`, in its order; every statement that reads books builds on it.
SELECT_BOOKS = select(*(COLUMNS[name] for name in BookRecord._fields))
