"""What the log says of calls whose callers do not wait for the answer."""

import asyncio
from contextlib import suppress
from typing import Any

import grpc
import pytest
from bookstore.v1 import books_pb2

from bookstore_grpc.rpc.servicer import BookServicer
from tests.conftest import LogLines
from tests.rpc.calls import REQUEST_ID_KEY, Stub
from tests.rpc.obstacles import until
from tests.rpc.servers import server_with


class HangingServicer(BookServicer):
    def __init__(self) -> None:
        self.began = asyncio.Event()
        self.was_cancelled = asyncio.Event()

    async def GetBook(self, request: books_pb2.GetBookRequest, context: Any) -> books_pb2.Book:  # noqa: N802  the contract's name
        self.began.set()
        try:
            await asyncio.Event().wait()
        finally:
            self.was_cancelled.set()
        raise AssertionError("never reached")


@pytest.mark.parametrize("ending", ["cancelled", "past its deadline", "disconnected"])
async def test_a_call_that_its_caller_gives_up_ends_and_is_logged_as_no_error(ending: str, log_lines: LogLines) -> None:
    servicer = HangingServicer()
    options = [("grpc.use_local_subchannel_pool", 1)]
    async with server_with(servicer) as server:
        async with grpc.aio.insecure_channel(server.addresses[0], options=options) as channel:
            call = asyncio.ensure_future(
                Stub(channel).GetBook(
                    books_pb2.GetBookRequest(id=1),
                    metadata=((REQUEST_ID_KEY, "the-call"),),
                    timeout=0.3 if ending == "past its deadline" else None,
                )
            )
            await servicer.began.wait()
            if ending == "cancelled":
                call.cancel()
            elif ending == "disconnected":
                await channel.close()
            with suppress(asyncio.CancelledError, grpc.aio.AioRpcError):
                await call
        async with asyncio.timeout(30):
            await servicer.was_cancelled.wait()

        async def is_logged() -> bool:
            return any(line.get("request_id") == "the-call" for line in log_lines())

        await until(is_logged)
    (line,) = [line for line in log_lines() if line.get("request_id") == "the-call"]
    assert line["level"] == "info"
    # Where the deadline passes, the server may find that out by itself.
    assert line["event"] == "call cancelled" or line["reason"] == "DEADLINE_EXCEEDED"
