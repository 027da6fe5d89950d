"""The log of calls: one line each, at a level by outcome, and never what callers have sent."""

import json
from collections.abc import AsyncIterator
from pathlib import Path
from typing import Any

import grpc
import pytest
from bookstore.v1 import books_pb2
from google.protobuf.empty_pb2 import Empty
from google.protobuf.field_mask_pb2 import FieldMask

from bookstore_grpc.server.app import running_server
from bookstore_grpc.service.servicer import BookServicer
from tests.conftest import LogLines, settings_for
from tests.rpc.calls import Stub, book, get, rejection
from tests.rpc.servers import stub_of

SECRET = "hunter2"  # what stands in everything that callers send here


@pytest.fixture
async def stub(tmp_path: Path) -> AsyncIterator[Stub]:
    settings = settings_for(f"sqlite+aiosqlite:///{tmp_path}/bookstore.db")
    async with running_server(settings) as server, grpc.aio.insecure_channel(server.addresses[0]) as channel:
        yield Stub(channel)


def calls(log_lines: LogLines) -> list[dict[str, Any]]:
    return [line for line in log_lines() if line["event"].startswith("call ")]


async def test_a_successful_call_has_one_line_with_its_method_time_and_sizes(stub: Stub, log_lines: LogLines) -> None:
    request = books_pb2.CreateBookRequest(book=book("Dune"))
    created = await stub.CreateBook(request, metadata=(("x-request-id", "the-call"),))
    (line,) = calls(log_lines)
    assert line.pop("duration_ms") > 0
    assert line.pop("timestamp")
    assert line.pop("peer").startswith("ipv4:127.0.0.1:")
    assert line == {
        "event": "call finished",
        "level": "info",
        "method": "/bookstore.v1.BookService/CreateBook",
        "status": "OK",
        "request_id": "the-call",
        "request_bytes": request.ByteSize(),
        "response_bytes": created.ByteSize(),
    }


async def test_a_rejected_call_has_one_line_with_its_reason(stub: Stub, log_lines: LogLines) -> None:
    await rejection(get(stub, 999))
    (line,) = calls(log_lines)
    assert (line["event"], line["level"]) == ("call rejected", "info")
    assert (line["status"], line["reason"]) == ("NOT_FOUND", "BOOK_NOT_FOUND")


async def test_a_call_beyond_a_limit_has_a_line_that_says_which(tmp_path: Path, log_lines: LogLines) -> None:
    settings = settings_for(
        f"sqlite+aiosqlite:///{tmp_path}/bookstore.db", rate_limit_per_second=0.01, rate_limit_burst=1
    )
    async with running_server(settings) as server, grpc.aio.insecure_channel(server.addresses[0]) as channel:
        await Stub(channel).ListBooks(books_pb2.ListBooksRequest())
        await rejection(Stub(channel).ListBooks(books_pb2.ListBooksRequest()))
    finished, rejected = calls(log_lines)
    assert "limit" not in finished
    assert (rejected["reason"], rejected["limit"]) == ("TOO_MANY_REQUESTS", "rate")


async def test_a_successful_health_check_is_logged_at_level_debug(tmp_path: Path, log_lines: LogLines) -> None:
    settings = settings_for(f"sqlite+aiosqlite:///{tmp_path}/bookstore.db")
    async with running_server(settings) as server, grpc.aio.insecure_channel(server.addresses[0]) as channel:
        check: grpc.aio.UnaryUnaryMultiCallable[bytes, bytes] = channel.unary_unary("/grpc.health.v1.Health/Check")
        await check(b"")
    (line,) = calls(log_lines)
    assert (line["event"], line["level"]) == ("call finished", "debug")


async def test_a_slow_call_is_marked_and_a_warning(tmp_path: Path, log_lines: LogLines) -> None:
    settings = settings_for(f"sqlite+aiosqlite:///{tmp_path}/bookstore.db", slow_call_seconds=0.0)
    async with running_server(settings) as server, grpc.aio.insecure_channel(server.addresses[0]) as channel:
        await Stub(channel).ListBooks(books_pb2.ListBooksRequest())
    (line,) = calls(log_lines)
    assert (line["event"], line["level"], line["slow"]) == ("call finished", "warning", True)


class Broken(BookServicer):
    def __init__(self) -> None:
        pass

    async def GetBook(self, request: books_pb2.GetBookRequest, context: object) -> books_pb2.Book:  # noqa: N802
        raise LookupError("a defect")


async def test_a_defect_is_an_error_with_its_trace(log_lines: LogLines) -> None:
    async with stub_of(Broken()) as stub:
        await rejection(get(stub, 1))
    (line,) = calls(log_lines)
    assert (line["event"], line["level"], line["reason"]) == ("call failed", "error", "INTERNAL")
    assert "LookupError: a defect" in line["exception"]


async def test_nothing_that_callers_send_stands_in_the_log(stub: Stub, log_lines: LogLines) -> None:
    create = books_pb2.CreateBookRequest(book=book(SECRET, SECRET))
    stored = await stub.CreateBook(create)
    bad_book = book(f"{SECRET}\0", SECRET * 1_000)
    batch = books_pb2.BatchCreateBooksRequest(requests=[books_pb2.CreateBookRequest(book=bad_book), create])
    await rejection(stub.CreateBook(books_pb2.CreateBookRequest(book=bad_book)))
    await rejection(stub.CreateBook(books_pb2.CreateBookRequest(book=book(), request_id=SECRET)))
    await rejection(stub.BatchCreateBooks(batch))
    for filter in (f'name = "{SECRET}"', f"name = {SECRET} AND (", SECRET):
        try:
            await stub.ListBooks(books_pb2.ListBooksRequest(filter=filter))
        except grpc.aio.AioRpcError:
            continue
    await rejection(stub.ListBooks(books_pb2.ListBooksRequest(order_by=SECRET)))
    await rejection(stub.ListBooks(books_pb2.ListBooksRequest(page_token=SECRET)))
    update = books_pb2.UpdateBookRequest(book=book(SECRET, id=stored.id), update_mask=FieldMask(paths=["name"]))
    await stub.UpdateBook(update)
    update.update_mask.paths[:] = [SECRET]
    await rejection(stub.UpdateBook(update))
    await rejection(stub.DeleteBook(books_pb2.DeleteBookRequest(id=stored.id, etag=SECRET)))
    assert await stub.DeleteBook(books_pb2.DeleteBookRequest(id=stored.id)) == Empty()
    await rejection(
        stub.GetBook(
            books_pb2.GetBookRequest(id=1), metadata=(("authorization", SECRET), ("x-request-id", SECRET + " "))
        ),
    )

    lines = log_lines()
    assert len(calls(log_lines)) >= 14
    assert SECRET not in json.dumps(lines)


async def test_a_malformed_message_is_not_shown_either(tmp_path: Path, log_lines: LogLines) -> None:
    settings = settings_for(f"sqlite+aiosqlite:///{tmp_path}/bookstore.db")
    async with running_server(settings) as server, grpc.aio.insecure_channel(server.addresses[0]) as channel:
        for method in ("/bookstore.v1.BookService/GetBook", "/bookstore.v1.BookService/CreateBook"):
            call: grpc.aio.UnaryUnaryMultiCallable[bytes, bytes] = channel.unary_unary(method)
            await rejection(call(b"\xff" + SECRET.encode()))
    assert len(calls(log_lines)) == 2
    assert SECRET not in json.dumps(log_lines())


async def test_the_name_of_a_method_cannot_add_lines(tmp_path: Path, log_lines: LogLines) -> None:
    settings = settings_for(f"sqlite+aiosqlite:///{tmp_path}/bookstore.db")
    async with running_server(settings) as server, grpc.aio.insecure_channel(server.addresses[0]) as channel:
        call: grpc.aio.UnaryUnaryMultiCallable[bytes, bytes] = channel.unary_unary('/a/b","level":"error","x":"')
        await rejection(call(b""))
    (line,) = calls(log_lines)
    assert (line["method"], line["level"]) == ("unknown", "info")


async def test_the_line_has_the_trace_id_of_the_caller(stub: Stub, log_lines: LogLines) -> None:
    trace_id = "4bf92f3577b34da6a3ce929d0e0e4736"
    for traceparent in (f"00-{trace_id}-00f067aa0ba902b7-00", "00-nonsense-00f067aa0ba902b7-01"):
        await stub.ListBooks(books_pb2.ListBooksRequest(), metadata=(("traceparent", traceparent),))
    await stub.ListBooks(books_pb2.ListBooksRequest())
    named, garbled, silent = calls(log_lines)
    assert named["trace_id"] == trace_id
    assert "trace_id" not in garbled
    assert "trace_id" not in silent
