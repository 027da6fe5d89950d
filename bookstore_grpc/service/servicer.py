"""BookServicer: each method decodes, makes one call to the DAL and encodes. Errors are left to the call pipeline."""

from typing import Any

from bookstore.v1 import books_pb2, books_pb2_grpc
from google.protobuf.empty_pb2 import Empty

from bookstore_grpc.dal.books import BookDAL
from bookstore_grpc.service import messages

BOOK_SERVICE = books_pb2.DESCRIPTOR.services_by_name["BookService"]

_Context = Any  # no method uses it
_Encoded = Any  # a serialized response, which is sent as it is


class BookServicer(books_pb2_grpc.BookServiceServicer):
    """The service `bookstore.v1.BookService`, as `books.proto` describes it."""

    def __init__(self, books: BookDAL) -> None:
        self._books = books

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
        return messages.batch_get_response_from_records(await self._books.get_books(ids))

    async def BatchCreateBooks(
        self, request: books_pb2.BatchCreateBooksRequest, context: _Context
    ) -> books_pb2.BatchCreateBooksResponse:
        drafts = messages.drafts_from_batch_create_request(request)
        return messages.batch_create_response_from_records(await self._books.create_books(drafts))
