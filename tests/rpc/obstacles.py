"""What stands in a server's way in these tests: locks held in its database, networks that fail, calls that last."""

import asyncio
from collections.abc import AsyncIterator, Awaitable, Callable, Iterator
from contextlib import asynccontextmanager, contextmanager, suppress
from typing import Any

from bookstore.v1 import books_pb2
from sqlalchemy import event, text
from sqlalchemy.engine import Engine
from sqlalchemy.ext.asyncio import create_async_engine
from sqlalchemy.pool import NullPool

from bookstore_grpc.service.servicer import BookServicer

_WAIT_SECONDS = 30


async def until(condition: Callable[[], Awaitable[bool]]) -> None:
    """Wait until a condition holds; give up after a time that no machine needs."""
    async with asyncio.timeout(_WAIT_SECONDS):
        while not await condition():  # noqa: ASYNC110  the condition changes elsewhere and sets no event
            await asyncio.sleep(0.01)


@asynccontextmanager
async def locked_book(database_url: str, book_id: int) -> AsyncIterator[None]:
    """Hold the lock that a write of this book needs (on SQLite the lock of every write)."""
    engine = create_async_engine(database_url, poolclass=NullPool)
    try:
        async with engine.connect() as connection:
            lock = text("UPDATE books SET release_year = release_year WHERE id = :id")
            await connection.execute(lock, {"id": book_id})
            yield
            await connection.rollback()
    finally:
        await engine.dispose()


@contextmanager
def lock_request() -> Iterator[asyncio.Event]:
    """Yield an event that is set when a connection of this process requests a book's lock."""
    asked = asyncio.Event()

    def note(_connection: Any, _cursor: Any, statement: str, *_rest: Any) -> None:
        if "FOR UPDATE" in statement or "BEGIN IMMEDIATE" in statement:
            asked.set()

    event.listen(Engine, "before_cursor_execute", note)
    try:
        yield asked
    finally:
        event.remove(Engine, "before_cursor_execute", note)


class Network:
    """A TCP way to a host that can be cut and restored, and that can stall: it accepts and forwards nothing.

    It may forget what it has stalled, like a firewall that restarts: earlier connections stay silent.
    """

    def __init__(self, host: str, port: int) -> None:
        self._target = (host, port)
        self._server: asyncio.Server | None = None
        self._links: set[asyncio.StreamWriter] = set()
        self._pumps: set[asyncio.Task[None]] = set()
        self._arriving: set[asyncio.Task[Any]] = set()
        self._flows = asyncio.Event()
        self._flows.set()
        self._forgotten: list[asyncio.Event] = []
        self.port = 0

    def stall(self) -> None:
        self._flows.clear()

    def flow(self) -> None:
        self._flows.set()

    def forget(self) -> None:
        self._forgotten.append(self._flows)
        self._flows = asyncio.Event()
        self._flows.set()

    async def restore(self) -> None:
        self._server = await asyncio.start_server(self._connect, "127.0.0.1", self.port)
        self.port = self._server.sockets[0].getsockname()[1]

    async def cut(self) -> None:
        if self._server is None:
            return
        self._server.close()
        for link in self._links:
            link.transport.abort()
        for forgotten in self._forgotten:
            forgotten.set()
        for arriving in self._arriving:
            arriving.cancel()
        while self._pumps:
            await asyncio.wait(self._pumps)
        await self._server.wait_closed()
        self._server = None

    async def _connect(self, reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        if self._server is None or not self._server.is_serving():
            writer.transport.abort()
            return
        flows = self._flows
        task = asyncio.current_task()
        assert task is not None
        self._arriving.add(task)
        try:
            await flows.wait()
            far_reader, far_writer = await asyncio.open_connection(*self._target)
        except (OSError, asyncio.CancelledError):
            writer.transport.abort()
            return
        finally:
            self._arriving.discard(task)
        for source, sink in ((reader, far_writer), (far_reader, writer)):
            pump = asyncio.create_task(self._pump(source, sink, flows))
            self._pumps.add(pump)
            pump.add_done_callback(self._pumps.discard)

    async def _pump(self, source: asyncio.StreamReader, sink: asyncio.StreamWriter, flows: asyncio.Event) -> None:
        self._links.add(sink)
        try:
            with suppress(ConnectionError):
                while data := await source.read(65_536):
                    await flows.wait()
                    sink.write(data)
                    await sink.drain()
        finally:
            sink.close()
            with suppress(ConnectionError):
                await sink.wait_closed()
            self._links.discard(sink)


class Waiting(BookServicer):
    """Responds when it is allowed to."""

    def __init__(self) -> None:  # it has no books
        self.begun = asyncio.Semaphore(0)
        self.may_go_on = asyncio.Event()

    async def GetBook(self, request: books_pb2.GetBookRequest, context: object) -> books_pb2.Book:  # noqa: N802
        self.begun.release()
        await self.may_go_on.wait()
        return books_pb2.Book(id=request.id)
