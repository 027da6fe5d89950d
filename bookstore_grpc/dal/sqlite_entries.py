"""Stored entries: every book of a SQLite database as lists send it (docs/decisions/0028-stored-entries.md)."""

from collections.abc import Mapping

from sqlalchemy import bindparam, update
from sqlalchemy.ext.asyncio import AsyncConnection

from bookstore_grpc.dal.models import ENTRY, ENTRY_FIELDS, SELECT_BOOKS, Book
from bookstore_grpc.dal.records import BookRecord, Encode

#: How many fields of a book an entry has that this version encodes.
FIELDS_OF_ENTRY = len(BookRecord._fields)
#: The books without an entry, which an index covers.
SELECT_WITHOUT_ENTRY = SELECT_BOOKS.where(ENTRY.is_(None)).limit(bindparam("limit"))
_COMPLETE = update(Book.metadata.tables[Book.__tablename__]).where(Book.id == bindparam("book_id"))


def entry_columns(record: BookRecord, encode: Encode | None) -> Mapping[str, object]:
    """Return the values of a book's columns of its entry, which is unknown without an `encode`."""
    return {ENTRY.key: encode(record) if encode else None, ENTRY_FIELDS.key: FIELDS_OF_ENTRY}


async def complete_entries(connection: AsyncConnection, encode: Encode, *, limit: int) -> int:
    """Store the entries of up to `limit` books that have none, and return how many."""
    rows = await connection.execute(SELECT_WITHOUT_ENTRY, {"limit": limit})
    records = [BookRecord._make(row) for row in rows]
    if records:
        completed = [{"book_id": record.id, **entry_columns(record, encode)} for record in records]
        await connection.execute(_COMPLETE, completed)
    return len(records)
