"""What the log says of calls whose callers do not wait for the answer."""

import asyncio
import random
import time
from contextlib import suppress
from typing import Any

import grpc
import pytest
from bookstore.v1 import books_pb2

from bookstore_grpc.service.servicer import BookServicer
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


class BusyServicer(BookServicer):
    """One that holds up everything past the deadline of its caller, and then refuses as gRPC's own servicers do."""

    def __init__(self) -> None:
        pass

    async def GetBook(self, request: books_pb2.GetBookRequest, context: Any) -> books_pb2.Book:  # noqa: N802  the contract's name
        time.sleep(context.time_remaining() + 0.05)  # noqa: ASYNC251  the deadline is noticed while the refusal is sent
        await context.abort(grpc.StatusCode.NOT_FOUND, "There is none.")
        raise AssertionError("never reached")


async def test_a_deadline_that_comes_while_a_refusal_is_sent_is_no_defect(log_lines: LogLines) -> None:
    options = [("grpc.use_local_subchannel_pool", 1)]
    async with (
        server_with(BusyServicer()) as server,
        grpc.aio.insecure_channel(server.addresses[0], options=options) as channel,
    ):
        with pytest.raises(grpc.aio.AioRpcError) as caught:
            await Stub(channel).GetBook(books_pb2.GetBookRequest(id=1), timeout=0.1)
    assert caught.value.code() is grpc.StatusCode.DEADLINE_EXCEEDED
    (line,) = log_lines()
    assert (line["event"], line["status"]) == ("call refused", "NOT_FOUND")


async def test_callers_that_have_gone_when_they_are_refused_are_no_defect(log_lines: LogLines) -> None:
    chance = random.Random(1)

    def call_and_go(address: str) -> None:
        with grpc.insecure_channel(address, options=[("grpc.use_local_subchannel_pool", 1)]) as channel:
            for _ in range(2_000):
                # As short as a call takes: some callers go in the very moment in which they are refused.
                call: Any = channel.unary_unary("/unknown")
                call.future(b"", timeout=chance.uniform(0, 0.002)).exception()

    async with server_with(HangingServicer()) as server:
        await asyncio.gather(*(asyncio.to_thread(call_and_go, server.addresses[0]) for _ in range(3)))
        # Before the drain, which has words of its own for those that come with it.
        assert {line["event"] for line in log_lines()} == {"call refused"}
