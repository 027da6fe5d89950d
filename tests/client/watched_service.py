"""A service whose changes a test makes up, and whose watches it cuts off: what a real server does only by chance."""

import asyncio
from collections.abc import AsyncIterator, Callable, Sequence
from contextlib import asynccontextmanager
from functools import partial
from typing import Any

import grpc
import pytest
from bookstore.v1 import books_pb2, books_pb2_grpc

from bookstore_grpc.calls.pipeline import CallPipeline
from bookstore_grpc.errors import BookstoreError, ResumeTokenExpired
from bookstore_grpc.rpc.interceptor import CallInterceptor

CREATED, UPDATED = books_pb2.BookChange.CREATED, books_pb2.BookChange.UPDATED
DELETED, EXISTING = books_pb2.BookChange.DELETED, books_pb2.BookChange.EXISTING


def a_book(book_id: int, name: str = "") -> books_pb2.Book:
    book = books_pb2.Book(id=book_id, name=name or f"Book {book_id}", author="Anon", release_year=1_900 + book_id)
    book.create_time.FromSeconds(1_700_000_000)
    book.update_time.FromSeconds(1_700_000_000 + book_id)
    return book


def a_change(number: int, kind: books_pb2.BookChange.Type.ValueType = CREATED, **fields: Any) -> books_pb2.BookChange:
    change = books_pb2.BookChange(type=kind, number=number, book=fields.pop("book", a_book(number)), **fields)
    change.change_time.FromSeconds(1_800_000_000 + number)
    return change


class WatchedService(books_pb2_grpc.BookServiceServicer):
    """Keeps responses, whose tokens are their positions, and sends them to each watch from where it starts.

    `failures` are raised by the next calls, instead of their first responses. `cut_off` fails those that are watching.
    """

    def __init__(self) -> None:
        self.requests: list[books_pb2.WatchBooksRequest] = []
        self.metadata: list[dict[str, str | bytes]] = []
        self.failures: list[BookstoreError | grpc.StatusCode] = []
        self.expired_before = 0
        self.watching = 0
        self.is_silent = False
        self._responses: list[books_pb2.WatchBooksResponse] = []
        self._more = asyncio.Condition()
        self._cut_off: BookstoreError | grpc.StatusCode | None = None
        self._generation = 0

    @property
    def last_token(self) -> str:
        return f"t{len(self._responses)}"

    async def send(
        self, *changes: books_pb2.BookChange, continues: bool = False, existing_sent: bool = True, token: str = ""
    ) -> str:
        """Send a response to all watches, a checkpoint without changes, and return its token."""
        async with self._more:
            token = token or f"t{len(self._responses) + 1}"
            self._responses.append(
                books_pb2.WatchBooksResponse(
                    changes=changes, resume_token=token, continues=continues, existing_sent=existing_sent
                )
            )
            self._more.notify_all()
        return token

    def forget(self) -> None:
        """Let the next watch start with what is sent from now on, whatever its token."""
        self._responses.clear()

    async def cut_off(self, failure: BookstoreError | grpc.StatusCode) -> None:
        """End all watches with a failure; `OK` ends them without one."""
        async with self._more:
            self._cut_off = failure
            self._generation += 1
            self._more.notify_all()

    async def until(self, condition: Callable[[], bool]) -> None:
        """Wait until something is true of the watches."""
        async with self._more:
            await self._more.wait_for(condition)

    async def WatchBooks(self, request: Any, context: Any) -> AsyncIterator[books_pb2.WatchBooksResponse]:  # noqa: N802
        self.requests.append(books_pb2.WatchBooksRequest.FromString(request.SerializeToString()))
        self.metadata.append(dict(context.invocation_metadata()))
        if self.failures:
            await _fail(self.failures.pop(0), context)
        await self._count(1)
        generation = self._generation
        position = self._start(request)
        try:
            if request.start == books_pb2.WatchBooksRequest.NOW and not request.resume_token:
                yield books_pb2.WatchBooksResponse(resume_token=f"t{position}", existing_sent=True)
            while True:
                for response in self._responses[position:]:
                    if not self.is_silent:
                        yield response
                        position += 1
                await self.until(partial(self._has_more, position, generation))
                if self._generation != generation:
                    if self._cut_off is grpc.StatusCode.OK:
                        return
                    assert self._cut_off is not None
                    await _fail(self._cut_off, context)
        finally:
            await self._count(-1)

    async def ListBookChanges(self, request: Any, context: Any) -> books_pb2.ListBookChangesResponse:  # noqa: N802
        position = int(request.page_token.removeprefix("t") or 0)
        page = self._responses[position : position + 2]
        return books_pb2.ListBookChangesResponse(
            changes=[change for response in page for change in response.changes],
            next_page_token=f"t{position + len(page)}",
            more_changes=position + len(page) < len(self._responses),
        )

    def _has_more(self, position: int, generation: int) -> bool:
        return self._generation != generation or (len(self._responses) > position and not self.is_silent)

    def _start(self, request: books_pb2.WatchBooksRequest) -> int:
        if request.resume_token:
            position = next(
                (index for index, each in enumerate(self._responses, 1) if each.resume_token == request.resume_token),
                int(request.resume_token.removeprefix("t").partition("-")[0] or 0),
            )
            if position < self.expired_before:
                raise ResumeTokenExpired
            return position
        return len(self._responses) if request.start == books_pb2.WatchBooksRequest.NOW else 0

    async def _count(self, added: int) -> None:
        async with self._more:
            self.watching += added
            self._more.notify_all()

    async def _other(self, request: Any, context: Any) -> Any:
        raise NotImplementedError

    GetBook = ListBooks = CreateBook = UpdateBook = DeleteBook = BatchGetBooks = BatchCreateBooks = _other
    BatchUpdateBooks = BatchDeleteBooks = PurgeBooks = _other


async def _fail(failure: BookstoreError | grpc.StatusCode, context: Any) -> None:
    if isinstance(failure, BookstoreError):
        raise failure
    await context.abort(failure, "cut off")


@asynccontextmanager
async def serving_watches(service: WatchedService, address: str = "127.0.0.1:0") -> AsyncIterator[str]:
    """Serve it while a block runs, and yield the address."""
    server = grpc.aio.server(interceptors=[CallInterceptor(CallPipeline())])
    books_pb2_grpc.add_BookServiceServicer_to_server(service, server)
    port = server.add_insecure_port(address)
    await server.start()
    try:
        yield f"127.0.0.1:{port}"
    finally:
        await server.stop(None)


def numbers(changes: Sequence[Any]) -> list[int]:
    return [change.number for change in changes]


@pytest.fixture
def service() -> WatchedService:
    return WatchedService()


@pytest.fixture
async def address(service: WatchedService) -> AsyncIterator[str]:
    async with serving_watches(service) as address:
        yield address
