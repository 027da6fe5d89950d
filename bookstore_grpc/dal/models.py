"""The mapped tables. `migrations/` creates them; a test checks that the two agree.

Text compares by code point on every database. Times are whole microseconds since 1970-01-01T00:00:00Z, because the
date types of the databases differ in range, zone and precision.
"""

from collections.abc import Mapping
from typing import Any
from uuid import UUID

from sqlalchemy import (
    DDL,
    BigInteger,
    Column,
    CompoundSelect,
    Computed,
    Dialect,
    Index,
    Integer,
    LargeBinary,
    Select,
    SmallInteger,
    String,
    Text,
    Uuid,
    event,
    select,
    text,
)
from sqlalchemy.dialects import mysql, postgresql
from sqlalchemy.ext.compiler import compiles
from sqlalchemy.orm import DeclarativeBase, InstrumentedAttribute, Mapped, mapped_column
from sqlalchemy.schema import CreateColumn
from sqlalchemy.sql.compiler import DDLCompiler
from sqlalchemy.types import TypeDecorator, TypeEngine

from bookstore_grpc.dal.records import FIELDS, BookRecord, Field, FieldType

# As SQL, because Alembic does not take "" for the default that SQLite reports.
_EMPTY = text("''")
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


_SORT_KEY_BYTES_PER_CODE_POINT = 3
# The `info` of what only one database has.
_ON_MARIADB = {"only_on": "mariadb"}
_ON_SQLITE = {"only_on": "sqlite"}


class SortKey(TypeDecorator[str]):
    """The bytes that order a text by code point: those of MariaDB's WEIGHT_STRING. A parameter is the text itself."""

    impl = mysql.VARBINARY
    cache_ok = True

    def process_bind_param(self, value: str | None, dialect: Dialect) -> bytes | None:
        """Return three bytes for each code point."""
        if value is None:
            return None
        key = bytearray(value.encode("utf-32-be"))
        del key[::4]  # the first of four bytes, which is always 0
        return bytes(key)


@compiles(CreateColumn)
def _create_column(column: CreateColumn, compiler: DDLCompiler, **options: Any) -> str | None:
    only_on = column.element.info.get("only_on", compiler.dialect.name)
    if only_on != compiler.dialect.name:
        return None
    return compiler.visit_create_column(column, **options)  # type: ignore[no-any-return, no-untyped-call]  # it has no types


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

    # An index entry of PostgreSQL is too short for it, and SQLite reads the order from that of `author_head`.
    author_sort_key: Mapped[str] = mapped_column(
        SortKey(_SORT_KEY_BYTES_PER_CODE_POINT * FIELDS["author"].max_code_points),
        Computed("weight_string(author,0,0,1)", persisted=False),  # as MariaDB describes `weight_string(author)`
        nullable=True,
        info=_ON_MARIADB,
        deferred=True,
    )

    # Without AUTOINCREMENT SQLite reuses the highest id once its book is deleted.
    __table_args__ = ({"sqlite_autoincrement": True},)
    # An INSERT of the ORM would return the computed columns, also one that the database does not have.
    __mapper_args__ = {"eager_defaults": False}  # noqa: RUF012  the base class has no annotation of it


def _add_optional_text(field: Field) -> None:
    """Add the columns of an optional text, with a default for the INSERTs of an older version."""
    if not field.is_optional or field.type is not FieldType.TEXT:
        raise TypeError(f"the field {field.name} has no column in {Book.__name__}")
    setattr(Book, field.name, mapped_column(exact_string(field.max_code_points), nullable=False, server_default=_EMPTY))
    if field.is_searchable:
        setattr(Book, f"{field.name}_folded", mapped_column(exact_text(), nullable=False, server_default=_EMPTY))


for _field in FIELDS.values():
    if not hasattr(Book, _field.name):
        _add_optional_text(_field)
    if _field.is_orderable and _field.name != "id":
        _indexed = f"{_field.name}_head" if _field.head_code_points else _field.name
        Index(f"ix_books_{_indexed}", getattr(Book, _indexed), Book.id)
    if _field.head_code_points:
        _key = f"{_field.name}_sort_key"
        Index(f"ix_books_{_key}", getattr(Book, _key), Book.id, info=_ON_MARIADB).ddl_if(dialect="mariadb")

#: The whole book as lists send it, encoded by the caller of the DAL; NULL if that is not known or out of date.
ENTRY: Column[bytes] = Column("entry", LargeBinary, info=_ON_SQLITE)
#: How many fields the entry's writer knew. A migration that adds a field needs it to tell a server that does not.
ENTRY_FIELDS: Column[int] = Column("entry_fields", Integer, info=_ON_SQLITE)
# They are no attributes of the mapped class, because its INSERT would name them on every database.
_BOOKS = Base.metadata.tables[Book.__tablename__]
_BOOKS.append_column(ENTRY)
_BOOKS.append_column(ENTRY_FIELDS)
Index("ix_books_without_entry", _BOOKS.c.id, sqlite_where=ENTRY.is_(None), info=_ON_SQLITE).ddl_if(dialect="sqlite")
# A server of a version that knows no entries leaves one that is out of date, and one that does not know an optional
# field, which it leaves as it is, an entry without the field.
_IS_OUTDATED_ENTRY = " OR ".join(
    [
        "new.entry IS old.entry",
        *(
            f"new.entry_fields < {count} AND new.{name} <> ''"
            for count, name in enumerate(BookRecord._fields, 1)
            if FIELDS[name].is_optional
        ),
    ]
)
_DROP_OUTDATED_ENTRY = DDL(  # type: ignore[no-untyped-call]  # it has no types
    " ".join(
        [
            "CREATE TRIGGER books_outdated_entry AFTER UPDATE ON books",
            f"WHEN new.entry IS NOT NULL AND ({_IS_OUTDATED_ENTRY})",
            "BEGIN UPDATE books SET entry = NULL WHERE id = new.id; END",
        ]
    )
)
event.listen(_BOOKS, "after_create", _DROP_OUTDATED_ENTRY.execute_if(dialect="sqlite"))


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


class BookCount(Base):
    """A part of the number of books, which triggers keep (docs/decisions/0026-counts.md). The sum is the number.

    There are no rows if the database permits no triggers.
    """

    __tablename__ = "book_counts"

    slot: Mapped[int] = mapped_column(Integer, primary_key=True, autoincrement=False)
    count: Mapped[int] = mapped_column(BigInteger)


class BookChange(Base):
    """A change of a book, in the log of changes (docs/decisions/0029-change-log.md).

    `number` is its position in the order of all commits. `remaining` is how many further changes of the same call
    follow. The books are in the form of `change_log.text_from_record`.
    """

    __tablename__ = "book_changes"

    number: Mapped[int] = mapped_column(row_id(), primary_key=True, autoincrement=False)
    remaining: Mapped[int] = mapped_column(Integer)
    type: Mapped[int] = mapped_column(SmallInteger)
    change_time: Mapped[int] = mapped_column(BigInteger)
    book: Mapped[str] = mapped_column(exact_text())
    previous_book: Mapped[str | None] = mapped_column(exact_text())


class ChangeLog(Base):
    """The one row that transactions lock, until their commit, before they number changes (SQLite has one writer).

    `log_id` distinguishes the logs of different databases.
    """

    __tablename__ = "change_log"

    log_id: Mapped[str] = mapped_column(exact_string(32), primary_key=True)


Columns = Mapping[str, InstrumentedAttribute[Any]]

#: The column of each field, and that of its folded text if it is searchable.
COLUMNS: Columns = {name: getattr(Book, name) for name in FIELDS}
FOLDED_COLUMNS: Columns = {
    name: getattr(Book, f"{name}_folded") for name, field in FIELDS.items() if field.is_searchable
}
# For a text that is too long for an index: the column of its head, and that of its sort key, which MariaDB has.
_HEAD_COLUMNS: Columns = {
    name: getattr(Book, f"{name}_head") for name, field in FIELDS.items() if field.head_code_points
}
_SORT_KEY_COLUMNS: Columns = {name: getattr(Book, f"{name}_sort_key") for name in _HEAD_COLUMNS}


def ordered_column(field: str, *, dialect: str) -> InstrumentedAttribute[Any]:
    """Return the column to compare and to order by: that of the field, or of its sort key if only that has an index."""
    return _SORT_KEY_COLUMNS.get(field, COLUMNS[field]) if dialect == "mariadb" else COLUMNS[field]


def head_column(field: str, *, dialect: str) -> InstrumentedAttribute[Any] | None:
    """Return the column of a text's head, if only that has an index."""
    return None if dialect == "mariadb" else _HEAD_COLUMNS.get(field)


#: A statement that reads.
Query = Select[Any] | CompoundSelect[Any]

#: The columns of a `BookRecord`, in its order; every statement that reads books builds on it.
SELECT_BOOKS = select(*(COLUMNS[name] for name in BookRecord._fields))
