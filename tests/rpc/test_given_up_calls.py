"""The log lines of calls whose callers do not wait for the response."""

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
async def test_a_call_that_its_caller_gives_up_ends_and_is_not_logged_as_an_error(
    ending: str, log_lines: LogLines
) -> None:
    servicer = HangingServicer()
    options = [("grpc.use_local_subchannel_pool", 1)]
    async with server_with(servicer) as server:
        async with grpc.aio.insecure_channel(server.addresses[0], options=options) as channel:
            call = asyncio.ensure_future(
                Stub(channel).GetBook(
                    books_pb2.GetBookRequest(id=1),
                    metadata=((REQUEST_ID_KEY, "the-call"),),
                    timeout=1.5 if ending == "past its deadline" else None,
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
    # The server may detect by itself that the deadline has expired.
    assert line["event"] == "call cancelled" or line["reason"] == "DEADLINE_EXCEEDED"


class BusyServicer(BookServicer):
    """Blocks the event loop past the deadline of a call, and then aborts it as gRPC's own servicers do."""

    def __init__(self) -> None:
        pass

    async def GetBook(self, request: books_pb2.GetBookRequest, context: Any) -> books_pb2.Book:  # noqa: N802  the contract's name
        time.sleep(context.time_remaining() + 0.05)  # noqa: ASYNC251  the deadline expires while the status is sent
        await context.abort(grpc.StatusCode.NOT_FOUND, "There is none.")
        raise AssertionError("never reached")


async def test_a_deadline_that_expires_while_a_status_is_sent_is_not_a_defect(log_lines: LogLines) -> None:
    options = [("grpc.use_local_subchannel_pool", 1)]
    async with (
        server_with(BusyServicer()) as server,
        grpc.aio.insecure_channel(server.addresses[0], options=options) as channel,
    ):
        with pytest.raises(grpc.aio.AioRpcError) as caught:
            await Stub(channel).GetBook(books_pb2.GetBookRequest(id=1), timeout=1)
    assert caught.value.code() is grpc.StatusCode.DEADLINE_EXCEEDED
    (line,) = [line for line in log_lines() if "method" in line]
    assert (line["event"], line["status"]) == ("call rejected", "NOT_FOUND")


@pytest.mark.parametrize("calls", [300, pytest.param(1_000, marks=pytest.mark.thorough)])
async def test_callers_that_have_disconnected_when_they_are_rejected_are_not_a_defect(
    log_lines: LogLines, calls: int
) -> None:
    chance = random.Random(1)

    def call_and_leave(address: str) -> None:
        with grpc.insecure_channel(address, options=[("grpc.use_local_subchannel_pool", 1)]) as channel:
            for _ in range(calls):
                # As short as a call takes: some deadlines expire at the very moment of the rejection.
                call: Any = channel.unary_unary("/unknown")
                call.future(b"", timeout=chance.uniform(0, 0.002)).exception()

    async with server_with(HangingServicer()) as server:
        await asyncio.gather(*(asyncio.to_thread(call_and_leave, server.addresses[0]) for _ in range(3)))
        # Before the drain, which has events of its own for calls that arrive during it.
        lines = log_lines()
    assert {line["event"] for line in lines if "method" in line} == {"call rejected"}
    assert not [line for line in lines if line["level"] not in ("debug", "info")]
