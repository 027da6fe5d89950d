"""The tutorial: FastAPI, pydantic and SQLAlchemy's ORM, combined as in typical services."""

from collections.abc import AsyncIterator, Sequence
from contextlib import asynccontextmanager
from typing import Annotated

import click
import uvicorn
from fastapi import Depends, FastAPI, HTTPException, Query
from pydantic import BaseModel, ConfigDict, Field
from sqlalchemy import String, select
from sqlalchemy.ext.asyncio import AsyncSession, async_sessionmaker, create_async_engine
from sqlalchemy.orm import DeclarativeBase, Mapped, mapped_column


class Base(DeclarativeBase):
    """The declarative base."""


class Book(Base):
    """A book."""

    __tablename__ = "books"

    id: Mapped[int] = mapped_column(primary_key=True)
    name: Mapped[str] = mapped_column(String(500))
    author: Mapped[str] = mapped_column(String(1_000), index=True)
    release_year: Mapped[int]


class BookIn(BaseModel):
    """A book in a request."""

    name: str = Field(min_length=1, max_length=500)
    author: str = Field(min_length=1, max_length=1_000)
    release_year: int = Field(ge=-5_000, le=9_999)


class BookOut(BookIn):
    """A book in a response."""

    model_config = ConfigDict(from_attributes=True)

    id: int


def create_app(database_url: str) -> FastAPI:
    """Return the application."""
    # SQLite's default lock timeout of 5 s is too short for some of the competing writers.
    options = {"timeout": 60} if database_url.startswith("sqlite") else {}
    engine = create_async_engine(database_url, connect_args=options)
    sessions = async_sessionmaker(engine, expire_on_commit=False)

    @asynccontextmanager
    async def lifespan(_app: FastAPI) -> AsyncIterator[None]:
        async with engine.begin() as connection:
            await connection.run_sync(Base.metadata.create_all)
        yield
        await engine.dispose()

    async def get_session() -> AsyncIterator[AsyncSession]:
        async with sessions() as session:
            yield session

    app = FastAPI(lifespan=lifespan)
    Session = Annotated[AsyncSession, Depends(get_session)]  # noqa: N806  a type

    @app.post("/books", response_model=BookOut, status_code=201)
    async def create_book(new: BookIn, session: Session) -> Book:
        book = Book(**new.model_dump())
        session.add(book)
        await session.commit()
        return book

    @app.get("/books", response_model=list[BookOut])
    async def list_books(
        session: Session,
        skip: Annotated[int, Query(ge=0)] = 0,
        limit: Annotated[int, Query(ge=1, le=1_000)] = 50,
        author: str | None = None,
    ) -> Sequence[Book]:
        statement = select(Book).order_by(Book.id).offset(skip).limit(limit)
        if author is not None:
            statement = statement.where(Book.author == author)
        return (await session.scalars(statement)).all()

    @app.get("/books/{book_id}", response_model=BookOut)
    async def get_book(book_id: int, session: Session) -> Book:
        book = await session.get(Book, book_id)
        if book is None:
            raise HTTPException(status_code=404, detail="Book not found")
        return book

    @app.put("/books/{book_id}", response_model=BookOut)
    async def update_book(book_id: int, new: BookIn, session: Session) -> Book:
        book = await session.get(Book, book_id)
        if book is None:
            raise HTTPException(status_code=404, detail="Book not found")
        for field, value in new.model_dump().items():
            setattr(book, field, value)
        await session.commit()
        return book

    return app


@click.command()
@click.option("--listen", required=True, help="Where to serve, HOST:PORT.")
@click.option("--database-url", required=True, envvar="BOOKSTORE_DATABASE_URL", help="The database.")
def main(listen: str, database_url: str) -> None:
    """Serve books over HTTP and JSON."""
    host, _, port = listen.rpartition(":")
    uvicorn.run(
        create_app(database_url),
        host=host,
        port=int(port),
        loop="uvloop",
        http="httptools",
        log_level="warning",
        access_log=False,
    )


if __name__ == "__main__":
    main()
