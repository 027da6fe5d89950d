"""What a caller and the log learn of a defect of the service, through the real server and interceptor."""

import asyncio
from collections.abc import AsyncIterator, Awaitable, Callable
from typing import Any

import grpc
import pytest
from bookstore.v1 import books_pb2, books_pb2_grpc

from bookstore_grpc.calls.call import Call, Outcome
from bookstore_grpc.calls.pipeline import CallPipeline
from bookstore_grpc.rpc.interceptor import CallInterceptor
from bookstore_grpc.service.servicer import BookServicer
from bookstore_grpc.telemetry.call_log import CallLog
from tests.conftest import LogLines
from tests.rpc.calls import REQUEST_ID_KEY, Stub, get, rejection, rejection_from_error
from tests.rpc.obstacles import Waiting
from tests.rpc.servers import server_with, stub_of

SECRET = "postgresql://admin:hunter2@db.internal/books"


class Defect(Exception):
    pass


async def raise_defect() -> None:
    raise Defect(SECRET)


async def raise_cancelled() -> None:
    raise asyncio.CancelledError(SECRET)


async def await_a_cancelled_task() -> None:
    task = asyncio.create_task(asyncio.sleep(60))
    task.cancel()
    await task


async def time_out() -> None:
    raise TimeoutError(SECRET)


async def raise_a_group() -> None:
    raise ExceptionGroup(SECRET, [Defect(SECRET)])


async def abort_nothing() -> None:
    assert not SECRET, SECRET


DEFECTS = [raise_defect, raise_cancelled, await_a_cancelled_task, time_out, raise_a_group, abort_nothing]


class DefectiveServicer(BookServicer):
    def __init__(self, defect: Callable[[], Awaitable[None]]) -> None:
        self._defect = defect

    async def GetBook(self, request: books_pb2.GetBookRequest, context: Any) -> books_pb2.Book:  # noqa: N802  the contract's name
        await self._defect()
        return books_pb2.Book()

    async def ListBooks(self, request: books_pb2.ListBooksRequest, context: Any) -> Any:  # noqa: N802  the contract's name
        return "no message at all"


@pytest.mark.parametrize("defect", DEFECTS, ids=lambda defect: defect.__name__)
async def test_a_defect_leaves_as_a_bare_internal_and_is_logged_under_the_request_id(
    defect: Callable[[], Awaitable[None]], log_lines: LogLines
) -> None:
    async with stub_of(DefectiveServicer(defect)) as stub:
        request = books_pb2.GetBookRequest(id=1)
        metadata = ((REQUEST_ID_KEY, "the-call"),)
        rejected = await rejection(stub.GetBook(request, metadata=metadata, timeout=60))
    assert (rejected.code, rejected.reason) == (grpc.StatusCode.INTERNAL, "INTERNAL")
    assert rejected.message == "An internal error occurred."
    assert (rejected.request_id, rejected.metadata) == ("the-call", {})
    assert SECRET not in repr(rejected)
    assert defect.__name__ not in repr(rejected)
    (line,) = [line for line in log_lines() if line["level"] == "error"]
    assert line["request_id"] == "the-call"
    assert line["method"] == "/bookstore.v1.BookService/GetBook"
    if defect is not await_a_cancelled_task:
        assert defect.__name__ in line["exception"]


async def test_a_server_goes_on_after_a_defect() -> None:
    async with stub_of(DefectiveServicer(raise_defect)) as stub:
        rejected = [await rejection(get(stub, 1)) for _ in range(20)]
    assert len({each.request_id for each in rejected}) == 20


async def test_a_method_that_is_not_implemented_is_not_unknown() -> None:
    bare = books_pb2_grpc.BookServiceServicer()  # type: ignore[abstract]  # for the type checker alone
    async with stub_of(bare) as stub:
        with pytest.raises(grpc.aio.AioRpcError) as caught:
            await get(stub, 1)
    assert caught.value.code() in {grpc.StatusCode.UNIMPLEMENTED, grpc.StatusCode.INTERNAL}


async def test_a_response_that_is_not_a_message_is_not_unknown() -> None:
    async with stub_of(DefectiveServicer(raise_defect)) as stub:
        with pytest.raises(grpc.aio.AioRpcError) as caught:
            await stub.ListBooks(books_pb2.ListBooksRequest())
    assert caught.value.code() is grpc.StatusCode.INTERNAL
    assert "no message" not in (caught.value.details() or "")


# Handlers of each kind that a method can have; `written` is how many responses a stream sends before the defect.
def handler(kind: str, defect: Callable[[], Awaitable[None]], written: int) -> "grpc.RpcMethodHandler[Any, Any]":
    async def all_received(request: Any) -> None:
        # grpc.aio's client reports an error of its own if it still sends when the call is rejected.
        if kind.startswith("stream"):
            async for _ in request:
                pass

    async def coroutine(request: Any, _context: Any) -> bytes:
        await all_received(request)
        await defect()
        return b""

    async def generator(request: Any, _context: Any) -> AsyncIterator[bytes]:
        await all_received(request)
        for _ in range(written):
            yield b"response"
        await defect()

    async def writer(request: Any, context: Any) -> None:
        await all_received(request)
        for _ in range(written):
            await context.write(b"response")
        await defect()

    stream_behaviour: Any = writer if "writer" in kind else generator
    match kind.split(","):
        case ["unary", "unary"]:
            return grpc.unary_unary_rpc_method_handler(coroutine, request_deserializer=bytes)
        case ["stream", "unary"]:
            return grpc.stream_unary_rpc_method_handler(coroutine, request_deserializer=bytes)
        case ["unary", *_]:
            return grpc.unary_stream_rpc_method_handler(stream_behaviour, request_deserializer=bytes)
        case _:
            return grpc.stream_stream_rpc_method_handler(stream_behaviour, request_deserializer=bytes)


@pytest.mark.parametrize("defect", [raise_defect, raise_cancelled, await_a_cancelled_task], ids=lambda d: d.__name__)
@pytest.mark.parametrize("written", [0, 3])
@pytest.mark.parametrize(
    "kind",
    [
        "unary,unary",
        "stream,unary",
        "unary,stream generator",
        "unary,stream writer",
        "stream,stream generator",
        "stream,stream writer",
    ],
)
async def test_a_failing_handler_of_any_kind_leaves_as_a_bare_internal(
    kind: str, written: int, defect: Callable[[], Awaitable[None]], log_lines: LogLines
) -> None:
    server = grpc.aio.server(interceptors=[CallInterceptor(CallPipeline(observers=[CallLog(slow_call_seconds=1)]))])
    server.add_generic_rpc_handlers(
        [grpc.method_handlers_generic_handler("test", {"Fail": handler(kind, defect, written)})]
    )
    port = server.add_insecure_port("127.0.0.1:0")
    await server.start()
    responses = 0
    try:
        async with grpc.aio.insecure_channel(f"127.0.0.1:{port}") as channel:
            method: grpc.aio.StreamStreamMultiCallable[bytes, bytes] = channel.stream_stream("/test/Fail")
            call = method(iter([b"request"]), metadata=((REQUEST_ID_KEY, "the-call"),), timeout=60)
            with pytest.raises(grpc.aio.AioRpcError) as caught:  # noqa: PT012  some of it comes first
                async for _ in call:
                    responses += 1
    finally:
        await server.stop(0)
    rejected = rejection_from_error(caught.value)
    assert (rejected.code, rejected.reason) == (grpc.StatusCode.INTERNAL, "INTERNAL")
    assert rejected.request_id == "the-call"
    assert SECRET not in repr(rejected)
    assert responses == (written if "stream " in kind else 0)
    (line,) = [line for line in log_lines() if line["level"] == "error"]
    assert line["request_id"] == "the-call"


class DefectiveObserver:
    def call_began(self, _call: Call) -> None:
        raise Defect(SECRET)

    def call_ended(self, _call: Call, _outcome: Outcome) -> None:
        raise Defect(SECRET)


async def test_a_call_does_not_depend_on_its_observers(log_lines: LogLines) -> None:
    servicer = Waiting()
    servicer.may_go_on.set()
    observers = [DefectiveObserver(), CallLog(slow_call_seconds=1)]
    async with (
        asyncio.timeout(10),  # for the drain too
        server_with(servicer, max_concurrent_calls=2, observers=observers) as server,
        grpc.aio.insecure_channel(server.addresses[0]) as channel,
    ):
        for number in range(5):  # more than may be under way
            assert (await get(Stub(channel), number)).id == number
    events = [line["event"] for line in log_lines()]
    assert events.count("call finished") == 5
    assert events.count("observer failed") == 10
