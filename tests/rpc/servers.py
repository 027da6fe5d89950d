"""The real server around a servicer of the test's own."""

from collections.abc import AsyncIterator
from contextlib import asynccontextmanager
from typing import Any

import grpc
from bookstore.v1.books_pb2_grpc import BookServiceServicer

from bookstore_grpc.rpc.server import Server
from bookstore_grpc.telemetry.call_log import CallLog
from tests.rpc.calls import Stub


@asynccontextmanager
async def server_with(servicer: BookServiceServicer, **options: Any) -> AsyncIterator[Server]:
    async def probe() -> None:
        pass

    defaults = {
        "probe": probe,
        "probe_writes": probe,
        "probe_interval_seconds": 3_600,
        "observers": [CallLog(slow_call_seconds=60)],
    }
    server = Server(servicer, **{**defaults, **options})
    await server.start(["127.0.0.1:0"])
    try:
        yield server
    finally:
        await server.drain(delay_seconds=0, grace_seconds=10)


@asynccontextmanager
async def stub_of(servicer: BookServiceServicer) -> AsyncIterator[Stub]:
    async with server_with(servicer) as server, grpc.aio.insecure_channel(server.addresses[0]) as channel:
        yield Stub(channel)
