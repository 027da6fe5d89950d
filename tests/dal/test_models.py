"""The mapped class, which the benchmark's peers use by the ORM."""

from sqlalchemy import select
from sqlalchemy.ext.asyncio import AsyncSession

from bookstore_grpc.dal.database import Database
from bookstore_grpc.dal.models import Book


async def test_the_orm_stores_and_reads_a_book(own_database: Database) -> None:
    texts = {"name": "Dune", "author": "Frank Herbert", "name_folded": "dune", "author_folded": "frank herbert"}
    async with AsyncSession(own_database._writer, expire_on_commit=False) as session:
        book = Book(**texts, release_year=1965, create_time=0, update_time=0)
        session.add(book)
        await session.commit()
    async with AsyncSession(own_database._reader) as session:
        found = (await session.scalars(select(Book).where(Book.id == book.id))).one()
        assert (found.name, found.author_head) == ("Dune", "Frank Herbert")
