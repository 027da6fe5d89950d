"""Watches of changes over gRPC: streams that a test reads for a limited time and then ends."""

import asyncio
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager
from typing import TYPE_CHECKING, Any

import grpc
import pytest
from bookstore.v1 import books_pb2

from tests.rpc.calls import Rejection, Stub, rejection_from_error

if TYPE_CHECKING:
    Watch = grpc.aio.UnaryStreamCall[books_pb2.WatchBooksRequest, books_pb2.WatchBooksResponse]

WAIT_SECONDS = 30
Start = books_pb2.WatchBooksRequest
Type = books_pb2.BookChange


@asynccontextmanager
async def watching(
    stub: Stub, *, metadata: Any = None, timeout: float | None = None, **fields: Any
) -> "AsyncIterator[Watch]":
    """Watch within a block."""
    call = stub.WatchBooks(books_pb2.WatchBooksRequest(**fields), metadata=metadata, timeout=timeout)
    try:
        yield call
    finally:
        call.cancel()


async def next_response(call: "Watch") -> books_pb2.WatchBooksResponse:
    async with asyncio.timeout(WAIT_SECONDS):
        response = await call.read()
    assert isinstance(response, books_pb2.WatchBooksResponse), response
    assert response.resume_token
    return response


async def next_changes(call: "Watch", count: int) -> list[books_pb2.BookChange]:
    """Return the changes of the next responses, of which there must be `count`."""
    changes: list[books_pb2.BookChange] = []
    while len(changes) < count:
        changes += (await next_response(call)).changes
    assert len(changes) == count
    return changes


async def end_of(call: "Watch") -> Rejection:
    """Return the status that ends a watch, whatever it sends before."""
    with pytest.raises(grpc.aio.AioRpcError) as caught:  # noqa: PT012  until it is raised
        async with asyncio.timeout(WAIT_SECONDS):
            while await call.read() is not grpc.aio.EOF:
                pass
    return rejection_from_error(caught.value)
