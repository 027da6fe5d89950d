"""The threads contender: gRPC's synchronous server with its thread pool, and a synchronous ORM session per call."""

from concurrent.futures import ThreadPoolExecutor

import click
import grpc
from bookstore.v1 import books_pb2, books_pb2_grpc
from grpc_health.v1 import health, health_pb2, health_pb2_grpc
from sqlalchemy import select
from sqlalchemy.orm import Session, sessionmaker

from benchmarks.contenders.messages import book_message, microseconds_now
from benchmarks.contenders.rows import new_book, page_response, select_page, sync_engine, use_same_settings
from bookstore_grpc.dal.folding import fold_case
from bookstore_grpc.dal.models import Book

# As in gRPC's own examples. More threads would only wait for the interpreter lock.
_THREADS = 10


class ThreadsServicer(books_pb2_grpc.BookServiceServicer):
    """The measured operations, without optimizations."""

    def __init__(self, sessions: sessionmaker[Session]) -> None:
        self._sessions = sessions

    def CreateBook(self, request: books_pb2.CreateBookRequest, context: grpc.ServicerContext) -> books_pb2.Book:
        with self._sessions() as session:
            book = new_book(request)
            session.add(book)
            session.commit()
            return book_message(book)

    def GetBook(self, request: books_pb2.GetBookRequest, context: grpc.ServicerContext) -> books_pb2.Book:
        with self._sessions() as session:
            book = session.get(Book, request.id)
            if book is None:
                context.abort(grpc.StatusCode.NOT_FOUND, "There is no such book.")
            return book_message(book)

    def ListBooks(
        self, request: books_pb2.ListBooksRequest, context: grpc.ServicerContext
    ) -> books_pb2.ListBooksResponse:
        with self._sessions() as session:
            books = session.scalars(select_page(request)).all()
        return page_response(request, books)

    def UpdateBook(self, request: books_pb2.UpdateBookRequest, context: grpc.ServicerContext) -> books_pb2.Book:
        with self._sessions() as session:
            book = session.get(Book, request.book.id, with_for_update=True)
            if book is None:
                context.abort(grpc.StatusCode.NOT_FOUND, "There is no such book.")
            book.name = request.book.name
            book.name_folded = fold_case(book.name)
            book.update_time = microseconds_now()
            session.commit()
            return book_message(book)

    def BatchGetBooks(
        self, request: books_pb2.BatchGetBooksRequest, context: grpc.ServicerContext
    ) -> books_pb2.BatchGetBooksResponse:
        with self._sessions() as session:
            found = {book.id: book for book in session.scalars(select(Book).where(Book.id.in_(request.ids)))}
        return books_pb2.BatchGetBooksResponse(books=[book_message(found[book_id]) for book_id in request.ids])

    def BatchCreateBooks(
        self, request: books_pb2.BatchCreateBooksRequest, context: grpc.ServicerContext
    ) -> books_pb2.BatchCreateBooksResponse:
        with self._sessions() as session:
            books = [new_book(create) for create in request.requests]
            session.add_all(books)
            session.commit()
            return books_pb2.BatchCreateBooksResponse(books=map(book_message, books))


@click.command()
@click.option("--listen", required=True, help="Where to serve, HOST:PORT.")
@click.option("--database-url", required=True, envvar="BOOKSTORE_DATABASE_URL", help="A database with our tables.")
def main(listen: str, database_url: str) -> None:
    """Serve books from threads."""
    engine = sync_engine(database_url)
    use_same_settings(engine)
    server = grpc.server(ThreadPoolExecutor(_THREADS))
    sessions = sessionmaker(engine, expire_on_commit=False)
    servicer = ThreadsServicer(sessions)  # type: ignore[abstract]  # what is not measured stays UNIMPLEMENTED
    books_pb2_grpc.add_BookServiceServicer_to_server(servicer, server)
    healthy = health.HealthServicer()
    healthy.set("", health_pb2.HealthCheckResponse.SERVING)
    health_pb2_grpc.add_HealthServicer_to_server(healthy, server)
    server.add_insecure_port(listen)
    server.start()
    server.wait_for_termination()


if __name__ == "__main__":
    main()
