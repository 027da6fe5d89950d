"""The textbook: a grpc.aio servicer with an ORM session for each call, on the same tables and settings as ours."""

import click
import grpc
import uvloop
from bookstore.v1 import books_pb2, books_pb2_grpc
from sqlalchemy import select
from sqlalchemy.ext.asyncio import AsyncSession, async_sessionmaker, create_async_engine

from benchmarks.contenders.messages import book_message, microseconds_now
from benchmarks.contenders.rows import new_book, page_response, select_page, use_same_settings
from benchmarks.contenders.serving import serve
from bookstore_grpc.dal.folding import fold_case
from bookstore_grpc.dal.models import Book

_Context = grpc.aio.ServicerContext[object, object]


class TextbookServicer(books_pb2_grpc.BookServiceServicer):
    """The measured operations, without optimizations."""

    def __init__(self, sessions: async_sessionmaker[AsyncSession]) -> None:
        self._sessions = sessions

    async def CreateBook(self, request: books_pb2.CreateBookRequest, context: _Context) -> books_pb2.Book:
        async with self._sessions() as session:
            book = new_book(request)
            session.add(book)
            await session.commit()
            return book_message(book)

    async def GetBook(self, request: books_pb2.GetBookRequest, context: _Context) -> books_pb2.Book:
        async with self._sessions() as session:
            book = await session.get(Book, request.id)
            if book is None:
                await context.abort(grpc.StatusCode.NOT_FOUND, "There is no such book.")
            return book_message(book)

    async def ListBooks(self, request: books_pb2.ListBooksRequest, context: _Context) -> books_pb2.ListBooksResponse:
        async with self._sessions() as session:
            books = (await session.scalars(select_page(request))).all()
        return page_response(request, books)

    async def UpdateBook(self, request: books_pb2.UpdateBookRequest, context: _Context) -> books_pb2.Book:
        async with self._sessions() as session:
            book = await session.get(Book, request.book.id, with_for_update=True)
            if book is None:
                await context.abort(grpc.StatusCode.NOT_FOUND, "There is no such book.")
            book.name = request.book.name
            book.name_folded = fold_case(book.name)
            book.update_time = microseconds_now()
            await session.commit()
            return book_message(book)

    async def BatchGetBooks(
        self, request: books_pb2.BatchGetBooksRequest, context: _Context
    ) -> books_pb2.BatchGetBooksResponse:
        async with self._sessions() as session:
            found = {book.id: book for book in await session.scalars(select(Book).where(Book.id.in_(request.ids)))}
        return books_pb2.BatchGetBooksResponse(books=[book_message(found[book_id]) for book_id in request.ids])

    async def BatchCreateBooks(
        self, request: books_pb2.BatchCreateBooksRequest, context: _Context
    ) -> books_pb2.BatchCreateBooksResponse:
        async with self._sessions() as session:
            books = [new_book(create) for create in request.requests]
            session.add_all(books)
            await session.commit()
            return books_pb2.BatchCreateBooksResponse(books=map(book_message, books))


@click.command()
@click.option("--listen", required=True, help="Where to serve, HOST:PORT.")
@click.option("--database-url", required=True, envvar="BOOKSTORE_DATABASE_URL", help="A database with our tables.")
def main(listen: str, database_url: str) -> None:
    """Serve books with a session for each call."""
    uvloop.run(_serve(listen, database_url))


async def _serve(listen: str, database_url: str) -> None:
    engine = create_async_engine(database_url)
    use_same_settings(engine.sync_engine)
    sessions = async_sessionmaker(engine, expire_on_commit=False)
    servicer = TextbookServicer(sessions)  # type: ignore[abstract]  # what is not measured stays UNIMPLEMENTED
    await serve(servicer, listen)


if __name__ == "__main__":
    main()
