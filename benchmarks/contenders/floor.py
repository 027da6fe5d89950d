"""The floor: a servicer of the same contract that responds from memory, the fastest possible on grpc.aio."""

import asyncio
from collections import defaultdict

import click
import grpc
import uvloop
from bookstore.v1 import books_pb2, books_pb2_grpc

from benchmarks.books import synthetic_books
from benchmarks.contenders.messages import author_from_filter, book_message, microseconds_now
from benchmarks.contenders.serving import serve
from bookstore_grpc.dal.records import BookRecord

_Context = grpc.aio.ServicerContext[object, object]

_RESUME_TOKEN = "A" * 43  # as long as those of ours
_CHECKPOINT = books_pb2.WatchBooksResponse(resume_token=_RESUME_TOKEN, existing_sent=True).SerializeToString()


class FloorServicer(books_pb2_grpc.BookServiceServicer):
    """Books as prepared messages, from which responses are built."""

    def __init__(self, size: int) -> None:
        self._books: dict[int, books_pb2.Book] = {}
        self._in_order: list[books_pb2.Book] = []
        self._by_author: defaultdict[str, list[books_pb2.Book]] = defaultdict(list)
        self._watchers: set[asyncio.Queue[bytes]] = set()
        for book in synthetic_books(size):
            self._add(book_message(book))

    async def CreateBook(self, request: books_pb2.CreateBookRequest, context: _Context) -> books_pb2.Book:
        return self._create(request)

    async def GetBook(self, request: books_pb2.GetBookRequest, context: _Context) -> books_pb2.Book:
        return self._books[request.id]

    async def ListBooks(self, request: books_pb2.ListBooksRequest, context: _Context) -> books_pb2.ListBooksResponse:
        books = self._by_author[author_from_filter(request.filter)] if request.filter else self._in_order
        start = int(request.page_token or 0)
        end = start + request.page_size
        token = str(end) if end < len(books) else ""
        return books_pb2.ListBooksResponse(books=books[start:end], next_page_token=token)

    async def UpdateBook(self, request: books_pb2.UpdateBookRequest, context: _Context) -> books_pb2.Book:
        book = self._books[request.book.id]
        now = microseconds_now()
        book.name = request.book.name
        book.update_time.FromMicroseconds(now)
        book.etag = f"{book.id:x}-{now:x}"
        return book

    async def BatchGetBooks(
        self, request: books_pb2.BatchGetBooksRequest, context: _Context
    ) -> books_pb2.BatchGetBooksResponse:
        return books_pb2.BatchGetBooksResponse(books=[self._books[book_id] for book_id in request.ids])

    async def BatchCreateBooks(
        self, request: books_pb2.BatchCreateBooksRequest, context: _Context
    ) -> books_pb2.BatchCreateBooksResponse:
        return books_pb2.BatchCreateBooksResponse(books=[self._create(create) for create in request.requests])

    async def watch(self, request: bytes, context: _Context) -> None:
        """Write every change, as bytes that all watchers share. Only the first response is a checkpoint."""
        changes = asyncio.Queue[bytes]()
        self._watchers.add(changes)
        try:
            await context.write(_CHECKPOINT)
            while True:
                await context.write(await changes.get())
        finally:
            self._watchers.discard(changes)

    def _create(self, request: books_pb2.CreateBookRequest) -> books_pb2.Book:
        book = request.book
        now = microseconds_now()
        new = BookRecord(len(self._books) + 1, book.name, book.author, book.release_year, now, now)
        message = self._add(book_message(new))
        if self._watchers:
            response = _response_of_change(message)
            for changes in self._watchers:
                changes.put_nowait(response)
        return message

    def _add(self, book: books_pb2.Book) -> books_pb2.Book:
        self._books[book.id] = book
        self._in_order.append(book)
        self._by_author[book.author].append(book)
        return book


def _response_of_change(book: books_pb2.Book) -> bytes:
    change = books_pb2.BookChange(
        type=books_pb2.BookChange.CREATED, book=book, change_time=book.create_time, number=book.id
    )
    return books_pb2.WatchBooksResponse(
        changes=[change], resume_token=_RESUME_TOKEN, existing_sent=True
    ).SerializeToString()


@click.command()
@click.option("--listen", required=True, help="Where to serve, HOST:PORT.")
@click.option("--size", default=10_000, show_default=True, help="How many synthetic books to hold.")
def main(listen: str, size: int) -> None:
    """Serve books from memory."""
    uvloop.run(_serve(listen, size))


async def _serve(listen: str, size: int) -> None:
    servicer = FloorServicer(size)  # type: ignore[abstract]  # what is not measured stays UNIMPLEMENTED
    await serve(servicer, listen, watch=servicer.watch)


if __name__ == "__main__":
    main()
