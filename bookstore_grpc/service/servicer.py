"""BookServicer: each method decodes, makes one call to the DAL and encodes. Errors are left to the call pipeline."""

from collections.abc import AsyncGenerator
from contextlib import aclosing
from typing import Any

from bookstore.v1 import books_pb2, books_pb2_grpc
from google.protobuf.empty_pb2 import Empty

from bookstore_grpc.dal.books import BookDAL
from bookstore_grpc.limits import PURGE_SAMPLE_MAX
from bookstore_grpc.service import messages

BOOK_SERVICE = books_pb2.DESCRIPTOR.services_by_name["BookService"]

# How much of the time until its deadline a purge uses. The rest is for its last portion and for the response.
_PURGE_SHARE = 0.75

_Context = Any  # that of the transport, of which only `time_remaining` is used
_Encoded = Any  # a serialized response, which is sent as it is


class BookServicer(books_pb2_grpc.BookServiceServicer):
    """The service `bookstore.v1.BookService`, as `books.proto` describes it.

    `books` encodes by `messages.entry_from_record`, so that a page is its entries. The transport ends
    each call after `max_call_seconds`, or at the caller's deadline.
    """

    def __init__(self, books: BookDAL, *, max_call_seconds: float = 30) -> None:
        self._books = books
        self._max_call_seconds = max_call_seconds

    async def CreateBook(self, request: books_pb2.CreateBookRequest, context: _Context) -> books_pb2.Book:
        draft = messages.draft_from_create_request(request)
        return messages.book_message_from_record(await self._books.create_book(draft))

    async def GetBook(self, request: books_pb2.GetBookRequest, context: _Context) -> books_pb2.Book:
        book_id = messages.id_from_request(request)
        return messages.book_message_from_record(await self._books.get_book(book_id))

    async def ListBooks(self, request: books_pb2.ListBooksRequest, context: _Context) -> _Encoded:
        page = await self._books.list_books(
            page_size=messages.page_size_from_request(request),
            page_token=request.page_token,
            filter=request.filter,
            order_by=request.order_by,
            include_total=request.include_total,
        )
        return messages.list_response_from_page(page)

    async def UpdateBook(self, request: books_pb2.UpdateBookRequest, context: _Context) -> books_pb2.Book:
        book_id, changes, etag = messages.update_from_request(request)
        return messages.book_message_from_record(await self._books.update_book(book_id, changes, etag=etag))

    async def DeleteBook(self, request: books_pb2.DeleteBookRequest, context: _Context) -> Empty:
        await self._books.delete_book(messages.id_from_request(request), etag=request.etag)
        return Empty()

    async def BatchGetBooks(self, request: books_pb2.BatchGetBooksRequest, context: _Context) -> _Encoded:
        ids = messages.ids_from_batch_get_request(request)
        return messages.batch_response_from_records(await self._books.get_books(ids))

    async def BatchCreateBooks(self, request: books_pb2.BatchCreateBooksRequest, context: _Context) -> _Encoded:
        drafts = messages.drafts_from_batch_create_request(request)
        return messages.batch_response_from_records(await self._books.create_books(drafts))

    async def BatchUpdateBooks(self, request: books_pb2.BatchUpdateBooksRequest, context: _Context) -> _Encoded:
        updates = messages.updates_from_batch_update_request(request)
        return messages.batch_response_from_records(await self._books.update_books(updates))

    async def BatchDeleteBooks(self, request: books_pb2.BatchDeleteBooksRequest, context: _Context) -> Empty:
        await self._books.delete_books(messages.versions_from_batch_delete_request(request))
        return Empty()

    async def PurgeBooks(self, request: books_pb2.PurgeBooksRequest, context: _Context) -> books_pb2.PurgeBooksResponse:
        filter = messages.filter_from_purge_request(request)
        if not request.force:
            page = await self._books.list_books(
                page_size=PURGE_SAMPLE_MAX, page_token="", filter=filter, order_by="", include_total=True
            )
            return messages.purge_response_from_page(page)
        seconds = self._purge_seconds(context.time_remaining())
        return messages.purge_response_from_purged(await self._books.purge_books(filter, seconds=seconds))

    async def WatchBooks(self, request: books_pb2.WatchBooksRequest, context: _Context) -> AsyncGenerator[_Encoded]:
        start, checkpoint_seconds = messages.watch_from_request(request)
        pages = self._books.watch_books(
            filter=request.filter,
            resume_token=request.resume_token,
            start=start,
            checkpoint_seconds=checkpoint_seconds,
        )
        async with aclosing(pages):
            while True:  # no name keeps the page while a slow caller makes this generator wait
                yield messages.watch_response_from_page(await anext(pages))

    async def ListBookChanges(self, request: books_pb2.ListBookChangesRequest, context: _Context) -> _Encoded:
        page = await self._books.list_book_changes(
            page_size=messages.page_size_from_request(request), page_token=request.page_token, filter=request.filter
        )
        return messages.changes_response_from_page(page)

    def _purge_seconds(self, remaining: float | None) -> float:
        """Return for how long a purge may delete books, so that its response is sent before the call's deadline."""
        limit = self._max_call_seconds if remaining is None else min(remaining, self._max_call_seconds)
        return _PURGE_SHARE * limit
