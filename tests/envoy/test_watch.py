"""A watch passes Envoy: over gRPC, and transcoded as Server-Sent Events without ids."""

import asyncio
import http.client
import json
import ssl
from collections.abc import Iterator
from contextlib import closing
from typing import TYPE_CHECKING, Any

from bookstore.v1 import books_pb2, books_pb2_grpc

from tests.envoy.edge import Edge
from tests.rpc.calls import create

if TYPE_CHECKING:
    from tests.rpc.calls import Stub


async def test_changes_pass_over_grpc(edge: Edge, stub: "Stub") -> None:
    async with edge.envoy.channel() as channel:
        watch: Any = books_pb2_grpc.BookServiceStub(channel).WatchBooks(books_pb2.WatchBooksRequest())
        first = await watch.read()
        assert (list(first.changes), bool(first.resume_token)) == ([], True)
        stored = await create(stub, name="Over gRPC")
        while not (response := await watch.read()).changes:
            pass
        assert [change.book for change in response.changes] == [stored]
        watch.cancel()


async def test_json_is_server_sent_events_from_which_a_token_resumes(edge: Edge, stub: "Stub") -> None:
    with closing(_connection(edge)) as connection:
        response = await asyncio.to_thread(_open, connection, "/v1/books:watch")
        assert response.status == 200
        assert response.getheader("content-type") == "text/event-stream"
        messages = _messages(response)
        first = await asyncio.to_thread(next, messages)
        assert first.keys() == {"resumeToken", "existingSent"}
        stored = await create(stub, name="As JSON")
        assert await asyncio.to_thread(_first_change, messages) == str(stored.id)
    with closing(_connection(edge)) as connection:
        response = await asyncio.to_thread(_open, connection, f"/v1/books:watch?resumeToken={first['resumeToken']}")
        assert await asyncio.to_thread(_first_change, _messages(response)) == str(stored.id)


def _connection(edge: Edge) -> http.client.HTTPSConnection:
    context = ssl.create_default_context(cafile=edge.envoy.ca)
    return http.client.HTTPSConnection(edge.envoy.address, context=context, timeout=30)


def _open(connection: http.client.HTTPSConnection, target: str) -> http.client.HTTPResponse:
    connection.request("GET", target)
    return connection.getresponse()


def _messages(response: http.client.HTTPResponse) -> Iterator[dict[str, Any]]:
    """Yield the messages of a stream of Server-Sent Events."""
    while line := response.readline():
        if line.startswith(b"data:"):
            yield json.loads(line.removeprefix(b"data:"))


def _first_change(messages: Iterator[dict[str, Any]]) -> str:
    """Return the id of the first book that changed."""
    changes = next(message["changes"] for message in messages if message.get("changes"))
    book_id: str = changes[0]["book"]["id"]
    return book_id
