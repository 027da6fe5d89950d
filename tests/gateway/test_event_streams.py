"""Server streaming over HTTP: responses are Server-Sent Events, and a stream ends with its caller, error or server."""

import asyncio
import json
from collections.abc import AsyncIterator, Callable
from contextlib import AsyncExitStack
from pathlib import Path
from typing import Any

import pytest
from google.protobuf import json_format
from google.rpc import status_pb2

from bookstore_grpc.compat import uvicorn as connections
from bookstore_grpc.errors import BookNotFound, ResumeTokenExpired
from bookstore_grpc.limits import ERROR_MAX_BYTES
from bookstore_grpc.net.connection_limit import ConnectionLimit
from bookstore_grpc.rpc.server import Server
from tests.conftest import LogLines
from tests.gateway.client import Wire, ask, details_of, head, rejected
from tests.gateway.event_stream import EventResponse, watching
from tests.gateway.servers import http_server, http_server_with
from tests.gateway.shelves import Librarian, shelf_service

WATCH = "/v1/shelves:watch"
LARGE_BYTES = 1_000_000


@pytest.fixture
def librarian() -> Librarian:
    return Librarian(shelf_service())


@pytest.fixture
async def server(librarian: Librarian) -> AsyncIterator[Server]:
    async with http_server_with(librarian, shelf_service()) as server:
        yield server


@pytest.fixture
def address(server: Server) -> str:
    return server.http_address


@pytest.fixture
def brief(monkeypatch: pytest.MonkeyPatch) -> None:
    """Shorten the timeouts of connections."""
    monkeypatch.setattr(connections, "_HEAD_SECONDS", 0.2)
    monkeypatch.setattr(connections, "_UNREAD_SECONDS", 0.5)


def change(librarian: Librarian, token: str = "", **shelf: Any) -> Any:
    made: Any = librarian.change(resume_token=token)
    for name, value in shelf.items():
        setattr(made.shelf, name, value)
    return made


@pytest.mark.parametrize("form", [lambda message: message, lambda message: message.SerializeToString()])
async def test_each_response_is_an_event_with_its_token_as_the_id(
    librarian: Librarian, address: str, form: Callable[[Any], Any]
) -> None:
    for number in (1, 2):
        librarian.responses.put_nowait(
            form(change(librarian, f"token-{number}", name="top\r\nrow\n\nid: x", room=number))
        )
    librarian.responses.put_nowait(form(change(librarian, room=3)))
    librarian.responses.put_nowait(None)
    async with watching(address, WATCH) as stream:
        first, second, last = await stream.rest()
    assert (set(first.fields), first.fields["id"]) == ({"id", "data"}, "token-1")
    assert first.json == {"shelf": {"name": "top\r\nrow\n\nid: x", "room": "1"}, "resumeToken": "token-1"}
    assert (second.fields["id"], second.json["shelf"]["room"]) == ("token-2", "2")
    assert last.fields == {"data": '{"shelf":{"room":"3"}}'}


async def test_an_event_comes_as_soon_as_its_response(librarian: Librarian, address: str) -> None:
    librarian.responses.put_nowait(change(librarian, room=0))
    async with watching(address, WATCH) as response:
        for number in range(3):
            assert (await response.event()).json == {"shelf": {"room": str(number)} if number else {}}
            librarian.responses.put_nowait(change(librarian, room=number + 1))


async def test_responses_without_a_token_have_no_id(address: str) -> None:
    async with watching(address, "/v1/shelves:count?times=2") as response:
        assert [event.fields for event in await response.rest()] == [{"data": '{"room":"1"}'}, {"data": '{"room":"2"}'}]


@pytest.mark.parametrize("token", ["a\nb", "a\r", "a\0", "é"], ids=repr)
async def test_a_token_that_a_browser_could_not_send_back_is_no_id(
    librarian: Librarian, address: str, token: str
) -> None:
    librarian.responses.put_nowait(change(librarian, token))
    async with watching(address, WATCH) as response:
        event = await response.event()
    assert (set(event.fields), event.json) == ({"data"}, {"resumeToken": token})


async def test_a_stream_is_neither_cached_nor_collected_and_names_its_call(librarian: Librarian, address: str) -> None:
    librarian.responses.put_nowait(change(librarian))
    async with watching(address, WATCH, x_request_id="the-call") as response:
        headers = {**response.headers}
    assert headers.pop("date")
    assert (response.status, headers) == (
        200,
        {
            "content-type": "text/event-stream",
            "cache-control": "no-store",
            "x-content-type-options": "nosniff",
            "x-accel-buffering": "no",
            "connection": "close",
            "x-request-id": "the-call",
            "transfer-encoding": "chunked",
        },
    )


async def test_the_last_event_of_a_browser_is_the_token_to_resume_with(librarian: Librarian, address: str) -> None:
    librarian.responses.put_nowait(change(librarian))
    async with watching(address, f"{WATCH}?resumeToken=old&name=top", last_event_id="new"):
        assert librarian.requests == [type(librarian.requests[0])(name="top", resume_token="new")]


async def test_a_stream_may_have_its_request_in_a_body(librarian: Librarian, address: str) -> None:
    librarian.responses.put_nowait(change(librarian, room=1))
    librarian.responses.put_nowait(None)
    response = await ask(address, "POST", "/v1/shelves/top:watch", {"resumeToken": "old"})
    assert (response.status, response.body) == (200, b'data: {"shelf":{"room":"1"}}\n\n')
    (request,) = librarian.requests
    assert (request.name, request.resume_token) == ("shelves/top", "old")


async def test_an_error_before_the_first_response_is_a_response_of_its_own(librarian: Librarian, address: str) -> None:
    librarian.responses.put_nowait(BookNotFound([7]))
    missing = await rejected(address, "GET", WATCH)
    assert (missing.status, missing.reason) == (404, "BOOK_NOT_FOUND")
    invalid = await rejected(address, "GET", f"{WATCH}?shelf=top")
    assert (invalid.status, invalid.violations) == (400, {"shelf": "is not a parameter of WatchShelves"})
    with_body = await rejected(address, "GET", WATCH, {})
    assert (with_body.status, with_body.reason) == (400, "MALFORMED_MESSAGE")
    assert len(librarian.requests) == 1


@pytest.mark.parametrize(
    ("error", "reason"), [(BookNotFound([7]), "BOOK_NOT_FOUND"), (RuntimeError("a secret"), "INTERNAL")]
)
async def test_an_error_after_it_is_the_last_event(
    librarian: Librarian, address: str, error: Exception, reason: str
) -> None:
    librarian.responses.put_nowait(change(librarian, "token"))
    librarian.responses.put_nowait(error)
    async with watching(address, WATCH, x_request_id="the-call") as response:
        await response.event()
        (last,) = await response.rest()
        assert await response.until_closed() == b""
    assert last.fields.keys() == {"event", "data"}
    assert last.fields["event"] == "status"
    status = json_format.Parse(last.fields["data"], status_pb2.Status())
    assert reason in " ".join(details_of(status))
    assert '"requestId":"the-call"' in last.fields["data"]
    assert "a secret" not in last.fields["data"]
    assert len(last.fields["data"]) < ERROR_MAX_BYTES


async def test_a_stream_takes_longer_than_other_calls_may(librarian: Librarian) -> None:
    options: dict[str, Any] = {"keep_alive_seconds": 0.1, "max_call_seconds": 0.3, "max_concurrent_calls": 1}
    async with (
        http_server_with(librarian, shelf_service(), **options) as server,
        watching(server.http_address, WATCH) as response,
    ):
        assert all([(await response.event()).is_comment for _ in range(5)])
        assert (await ask(server.http_address, "GET", "/v1/shelves/top")).status == 200  # it takes no call's place


async def test_a_stream_without_responses_is_empty(librarian: Librarian, address: str) -> None:
    librarian.responses.put_nowait(None)
    async with watching(address, WATCH) as response:
        assert (response.status, response.headers["content-type"]) == (200, "text/event-stream")
        assert await response.rest() == []


@pytest.mark.usefixtures("brief")
async def test_comments_keep_a_quiet_stream_open_from_its_beginning_on(librarian: Librarian) -> None:
    async with (
        http_server_with(librarian, shelf_service(), keep_alive_seconds=0.1) as server,
        watching(server.http_address, WATCH) as response,
    ):
        # They take longer than an idle connection is kept.
        assert all([(await response.event()).is_comment for _ in range(5)])
        librarian.responses.put_nowait(change(librarian, room=1))
        while (event := await response.event()).is_comment:
            pass
        assert event.json == {"shelf": {"room": "1"}}
        assert (await response.event()).is_comment
        librarian.responses.put_nowait(BookNotFound([7]))
        assert (await response.rest())[-1].fields["event"] == "status"


async def test_head_ends_with_the_first_response(librarian: Librarian, address: str) -> None:
    librarian.responses.put_nowait(change(librarian))
    async with watching(address, WATCH, verb="HEAD", x_request_id="the-call") as response:
        assert (response.status, response.headers["content-type"]) == (200, "text/event-stream")
        assert response.headers["x-request-id"] == "the-call"
        assert "content-length" not in response.headers
        assert await response.until_closed() == b""
        await librarian.ended.acquire()
    librarian.responses.put_nowait(BookNotFound([7]))
    async with watching(address, WATCH, verb="HEAD") as response:
        assert response.status == 404


async def test_head_does_not_wait_longer_than_a_call_may_take(librarian: Librarian) -> None:
    async with http_server_with(librarian, shelf_service(), max_call_seconds=0.2) as server:
        assert (await ask(server.http_address, "HEAD", WATCH)).status == 504
        await librarian.ended.acquire()


@pytest.mark.parametrize("responses", [0, 1])
async def test_a_stream_ends_when_its_client_disconnects(
    librarian: Librarian, address: str, responses: int, log_lines: LogLines
) -> None:
    for _ in range(responses):
        librarian.responses.put_nowait(change(librarian))
    with Wire(address) as wire:
        wire.send(head("GET", WATCH))
        await librarian.begun.acquire()
        if responses:
            await asyncio.to_thread(wire.read_until, b"data: ")
    await librarian.ended.acquire()
    await ask(address, "GET", "/v1/shelves/top")
    watch, _ = [line for line in log_lines() if line["event"].startswith("call ")]
    assert (watch["method"], watch["status"]) == ("/shelves.v1.Shelves/WatchShelves", "CANCELLED")
    assert "error" not in {line["level"] for line in log_lines()}


async def test_the_line_of_a_stream_counts_its_bytes(librarian: Librarian, address: str, log_lines: LogLines) -> None:
    response = await ask(address, "GET", "/v1/shelves:count?times=3")
    (line,) = [line for line in log_lines() if line["event"] == "call finished"]
    assert (line["method"], line["status"]) == ("/shelves.v1.Shelves/CountShelves", "OK")
    assert line["response_bytes"] == len(response.body) == 3 * len(b'data: {"room":"1"}\n\n')


async def test_a_drain_ends_streams_with_an_error_and_accepts_no_new_ones(librarian: Librarian) -> None:
    async with http_server_with(librarian, shelf_service()) as server:
        librarian.responses.put_nowait(change(librarian))
        async with watching(server.http_address, WATCH) as response:
            await response.event()
            await server.drain(delay_seconds=0, grace_seconds=10)
            (last,) = await response.rest()
            assert await response.until_closed() == b""
        assert last.fields["event"] == "status"
        assert '"reason":"SERVER_DRAINING"' in last.fields["data"]
        late = await rejected(server.http_address, "GET", WATCH)
        assert (late.status, late.reason) == (503, "SERVER_DRAINING")


async def test_streams_do_not_lock_out_other_calls(librarian: Librarian) -> None:
    limit = ConnectionLimit(4, name="http")  # three of them for one address
    options: dict[str, Any] = {"limit": limit, "keep_alive_seconds": 0.05}
    async with http_server_with(librarian, shelf_service(), **options) as server, AsyncExitStack() as stack:
        for _ in range(3):
            await stack.enter_async_context(watching(server.http_address, WATCH))
        assert (await ask(server.http_address, "GET", "/v1/shelves/top")).status == 200
        await librarian.ended.acquire()  # the oldest, whose client resumes it
    assert limit.closed.count == 1


class Flood(Librarian):
    """Streams large responses without end, and counts them."""

    streamed = 0

    async def WatchShelves(self, request: Any, _context: Any) -> AsyncIterator[Any]:  # noqa: N802
        self.begun.release()
        try:
            while True:
                self.streamed += 1
                yield change(self, str(self.streamed), name="N" * LARGE_BYTES)
        finally:
            self.ended.release()


@pytest.mark.usefixtures("brief")
async def test_a_client_that_does_not_read_holds_the_stream_back_and_is_given_up(log_lines: LogLines) -> None:
    flood = Flood(shelf_service())
    async with http_server_with(flood, shelf_service()) as server:
        with Wire(server.http_address, receive_buffer_bytes=4_096) as wire:
            wire.send(head("GET", WATCH))
            async with asyncio.timeout(10):
                await flood.ended.acquire()
    assert flood.streamed < 20  # what the kernel buffers, and two in the process
    assert [line["level"] for line in log_lines() if line["level"] == "error"] == []


async def test_a_drain_does_not_wait_for_a_client_that_does_not_read(log_lines: LogLines) -> None:
    flood = Flood(shelf_service())
    async with http_server_with(flood, shelf_service()) as server:
        with Wire(server.http_address, receive_buffer_bytes=4_096) as wire:
            wire.send(head("GET", WATCH))
            await flood.begun.acquire()
            async with asyncio.timeout(5):
                await server.drain(delay_seconds=0, grace_seconds=10)
                await flood.ended.acquire()
            received = await asyncio.to_thread(wire.read_to_end)
    assert received.startswith(b"HTTP/1.1 200 OK\r\n")
    assert [line["level"] for line in log_lines() if line["level"] == "error"] == []


async def test_events_that_are_written_late_are_written_whole(librarian: Librarian, address: str) -> None:
    """Also at the end of a stream whose client reads slowly."""
    names = [f"{number}".ljust(LARGE_BYTES, "x") for number in range(8)]
    for name in names:
        librarian.responses.put_nowait(change(librarian, name=name))
    librarian.responses.put_nowait(None)

    def read_slowly() -> bytes:
        with Wire(address, receive_buffer_bytes=65_536) as wire:
            wire.send(head("GET", WATCH))
            return wire.read_until(b"\r\n0\r\n\r\n")

    received = await asyncio.to_thread(read_slowly)
    body = received.partition(b"\r\n\r\n")[2]
    found = b""
    while body:
        size, _, body = body.partition(b"\r\n")
        found += body[: int(size, 16)]
        body = body[int(size, 16) + 2 :]
    events = [json.loads(event.removeprefix(b"data: ")) for event in found.split(b"\n\n") if event]
    assert [event["shelf"]["name"] for event in events] == names


async def changes_of(response: EventResponse, count: int) -> list[Any]:
    """Return the type and the book of the next changes. Between them there may be checkpoints."""
    found: list[Any] = []
    while len(found) < count:
        found += (await response.event()).json.get("changes", [])
    return [(change["type"], change["book"]) for change in found]


async def test_watch_books_streams_the_changes_of_books_and_resumes(tmp_path: Path) -> None:
    book = {"name": "Dune", "author": "Frank Herbert", "releaseYear": 1965}
    async with http_server(tmp_path) as server:
        address = server.http_address
        async with watching(address, "/v1/books:watch") as response:
            checkpoint = await response.event()
            created = (await ask(address, "POST", "/v1/books", book)).json
            assert await changes_of(response, 1) == [("CREATED", created)]
        assert checkpoint.json == {"resumeToken": checkpoint.fields["id"], "existingSent": True}
        await ask(address, "DELETE", f"/v1/books/{created['id']}")
        # A browser repeats the query of its first request.
        path = "/v1/books:watch?start=EARLIEST&resumeToken=damaged"
        async with watching(address, path, last_event_id=checkpoint.fields["id"]) as response:
            assert await changes_of(response, 2) == [("CREATED", created), ("DELETED", created)]


@pytest.mark.parametrize(
    ("path", "headers", "reason", "violations"),
    [
        ("?filter=name+%3D", {}, "INVALID_FILTER", {"filter"}),
        ("?resumeToken=damaged", {}, "INVALID_RESUME_TOKEN", {"resume_token"}),
        ("", {"last_event_id": "damaged"}, "INVALID_RESUME_TOKEN", {"resume_token"}),
        ("?checkpointInterval=0.5s&start=SOON", {}, "INVALID_FIELD", {"checkpoint_interval", "start"}),
    ],
)
async def test_an_invalid_watch_is_rejected_before_it_starts(
    tmp_path: Path, path: str, headers: dict[str, str], reason: str, violations: set[str]
) -> None:
    async with http_server(tmp_path) as server:
        rejection = await rejected(server.http_address, "GET", f"/v1/books:watch{path}", **headers)
    assert (rejection.status, rejection.reason, set(rejection.violations)) == (400, reason, violations)


async def test_a_token_that_has_expired_is_gone(librarian: Librarian, address: str) -> None:
    librarian.responses.put_nowait(ResumeTokenExpired())
    gone = await rejected(address, "GET", WATCH, last_event_id="old")
    assert (gone.status, gone.reason) == (410, "RESUME_TOKEN_EXPIRED")


async def test_a_caller_with_too_many_streams_is_told_when_to_try_again(tmp_path: Path) -> None:
    async with (
        http_server(tmp_path, max_watchers_per_caller=1) as server,
        watching(server.http_address, "/v1/books:watch"),
    ):
        rejection = await rejected(server.http_address, "GET", "/v1/books:watch")
        assert (rejection.status, rejection.metadata["limit"]) == (429, "watchers_per_caller")
        assert rejection.headers["retry-after"]
