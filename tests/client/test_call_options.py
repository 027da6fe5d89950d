"""The options of a single call, and which are rejected before anything is sent."""

import asyncio
import time
from collections.abc import AsyncIterator, Awaitable, Callable, Iterator
from typing import Any

import grpc
import pytest
from bookstore.v1 import books_pb2, books_pb2_grpc
from grpc_health.v1 import health_pb2, health_pb2_grpc

from bookstore_grpc.client import BookstoreClient
from bookstore_grpc.client.call_options import Pairs, checked_metadata, remaining_seconds
from bookstore_grpc.errors import BookNotFound
from bookstore_grpc.rpc.server import Server


class Attentive(books_pb2_grpc.BookServiceServicer, health_pb2_grpc.HealthServicer):
    """Notes the metadata of calls and how long each may take."""

    def __init__(self) -> None:
        self.metadata: list[tuple[str, str | bytes]] = []
        self.seconds: float | None = None

    def _note(self, context: Any) -> None:
        self.metadata = [(key, value) for key, value in context.invocation_metadata()]
        self.seconds = context.time_remaining()

    async def GetBook(self, request: Any, context: Any) -> Any:  # noqa: N802  the contract's names
        self._note(context)
        return books_pb2.Book()

    CreateBook = UpdateBook = GetBook

    async def ListBooks(self, request: Any, context: Any) -> Any:  # noqa: N802
        self._note(context)
        return books_pb2.ListBooksResponse(books=[books_pb2.Book()])

    async def BatchGetBooks(self, request: Any, context: Any) -> Any:  # noqa: N802
        self._note(context)
        return books_pb2.BatchGetBooksResponse(books=[books_pb2.Book()])

    async def BatchCreateBooks(self, request: Any, context: Any) -> Any:  # noqa: N802
        self._note(context)
        return books_pb2.BatchCreateBooksResponse(books=[books_pb2.Book()])

    async def BatchUpdateBooks(self, request: Any, context: Any) -> Any:  # noqa: N802
        self._note(context)
        return books_pb2.BatchUpdateBooksResponse(books=[books_pb2.Book()])

    async def PurgeBooks(self, request: Any, context: Any) -> Any:  # noqa: N802
        self._note(context)
        return books_pb2.PurgeBooksResponse()

    async def DeleteBook(self, request: Any, context: Any) -> Any:  # noqa: N802
        from google.protobuf.empty_pb2 import Empty

        self._note(context)
        return Empty()

    BatchDeleteBooks = DeleteBook

    async def ListBookChanges(self, request: Any, context: Any) -> Any:  # noqa: N802
        self._note(context)
        return books_pb2.ListBookChangesResponse()

    WatchBooks: Any = ListBookChanges

    async def Check(self, request: Any, context: Any) -> Any:  # noqa: N802
        self._note(context)
        return health_pb2.HealthCheckResponse(status=health_pb2.HealthCheckResponse.SERVING)


@pytest.fixture
async def attentive() -> AsyncIterator[tuple[Attentive, str]]:
    server, servicer = grpc.aio.server(), Attentive()
    books_pb2_grpc.add_BookServiceServicer_to_server(servicer, server)
    health_pb2_grpc.add_HealthServicer_to_server(servicer, server)
    port = server.add_insecure_port("127.0.0.1:0")
    await server.start()
    yield servicer, f"127.0.0.1:{port}"
    await server.stop(None)


Call = Callable[..., Awaitable[object]]
CALLS = [
    pytest.param(lambda client, **o: client.create_book(name="N", author="A", release_year=1, **o), id="create_book"),
    pytest.param(lambda client, **o: client.create_books([books_pb2.Book()], **o), id="create_books"),
    pytest.param(lambda client, **o: client.get_book(1, **o), id="get_book"),
    pytest.param(lambda client, **o: client.get_books([1], **o), id="get_books"),
    pytest.param(lambda client, **o: client.list_page(**o), id="list_page"),
    pytest.param(lambda client, **o: anext(client.list_books(**o)), id="list_books"),
    pytest.param(lambda client, **o: client.list_change_page(**o), id="list_change_page"),
    pytest.param(lambda client, **o: client.update_book(1, name="N", **o), id="update_book"),
    pytest.param(lambda client, **o: client.delete_book(1, **o), id="delete_book"),
    pytest.param(lambda client, **o: client.update_books([], **o), id="update_books"),
    pytest.param(lambda client, **o: client.delete_books([1], **o), id="delete_books"),
    pytest.param(lambda client, **o: client.purge_books("id > 0", **o), id="purge_books"),
    pytest.param(lambda client, **o: client.health(**o), id="health"),
]


@pytest.mark.parametrize("call", CALLS)
async def test_every_method_takes_the_options_of_a_call(attentive: tuple[Attentive, str], call: Call) -> None:
    servicer, address = attentive
    async with BookstoreClient(address, token="t", timeout_seconds=50) as client:
        await call(client)
        assert servicer.seconds is not None
        assert 40 < servicer.seconds <= 51
        await call(client, timeout_seconds=5, metadata={"x-tenant": "a b", "x-raw-bin": b"\xff"}, call_id="mine.1")
        assert 0 < servicer.seconds <= 6
        await call(client, metadata=[("x-tenant", "a"), ("x-tenant", "b")], timeout_seconds=None)

    assert [value for key, value in servicer.metadata if key == "x-tenant"] == ["a", "b"]
    assert ("authorization", "Bearer t") in servicer.metadata
    assert (servicer.seconds or 1e9) > 1e6


async def test_metadata_of_an_iterator_is_sent_with_each_of_several_calls() -> None:
    class Paging(Attentive):
        """Returns three pages, and notes the tenants of all calls."""

        def __init__(self) -> None:
            super().__init__()
            self.tenants: list[str | bytes] = []

        def _note(self, context: Any) -> None:
            super()._note(context)
            self.tenants += [value for key, value in self.metadata if key == "x-tenant"]

        async def ListBooks(self, request: Any, context: Any) -> Any:  # noqa: N802
            self._note(context)
            return books_pb2.ListBooksResponse(next_page_token="more" if len(self.tenants) < 3 else "")

    def pairs() -> Iterator[tuple[str, str]]:
        yield "x-tenant", "a"

    server, servicer = grpc.aio.server(), Paging()
    books_pb2_grpc.add_BookServiceServicer_to_server(servicer, server)
    port = server.add_insecure_port("127.0.0.1:0")
    await server.start()
    async with BookstoreClient(f"127.0.0.1:{port}") as client, asyncio.timeout(10):
        assert [book async for book in client.list_books(metadata=pairs())] == []
        assert servicer.tenants == ["a"] * 3
        await client.get_books(range(1, 2_002), metadata=pairs())
        assert servicer.tenants == ["a"] * 6
    await server.stop(None)


async def test_a_call_is_named_by_its_caller(client: BookstoreClient, sqlite_server: Server) -> None:
    with pytest.raises(BookNotFound) as raised:
        await client.get_book(1, call_id="mine.1")

    assert raised.value.request_id == "mine.1"


async def test_the_trace_of_a_call_goes_before_the_clients(attentive: tuple[Attentive, str]) -> None:
    servicer, address = attentive
    one, other = (f"00-{digit * 32}-{digit * 16}-01" for digit in "12")
    async with BookstoreClient(address, trace_context=(("traceparent", one),)) as client:
        await client.get_book(1, metadata={"traceparent": other})

    assert [value for key, value in servicer.metadata if key == "traceparent"] == [other]


@pytest.mark.parametrize("seconds", [1e9, 1e308, float("inf"), 10**400], ids=["1e9", "1e308", "inf", "10**400"])
async def test_a_timeout_longer_than_a_lifetime_is_no_deadline(client: BookstoreClient, seconds: float) -> None:
    assert await client.health(timeout_seconds=seconds) == "SERVING"
    async with BookstoreClient(client.server, timeout_seconds=seconds) as patient:
        assert await patient.health() == "SERVING"


@pytest.mark.parametrize("server", ["", " "])
def test_an_empty_address_is_rejected_at_once(server: str) -> None:
    with pytest.raises(ValueError, match="HOST:PORT"):
        BookstoreClient(server)


@pytest.mark.parametrize("seconds", [0, -1, float("nan"), -float("inf"), -0.0])
async def test_an_invalid_timeout_is_rejected_at_once(client: BookstoreClient, seconds: float) -> None:
    with pytest.raises(ValueError, match="above 0, or None"):
        BookstoreClient(timeout_seconds=seconds)
    for call in CALLS:
        with pytest.raises(ValueError, match="above 0, or None"):
            await call.values[0](client, timeout_seconds=seconds)  # type: ignore[operator]  # a ParameterSet


@pytest.mark.parametrize("seconds", [None, float("inf"), 1e10, 1e300, 1e9, 86_400])
async def test_a_call_may_have_no_deadline_or_a_very_long_one(sqlite_server: Server, seconds: float | None) -> None:
    async with BookstoreClient(sqlite_server.addresses[0], timeout_seconds=seconds) as client:
        assert await client.health() == "SERVING"
        assert await client.health(timeout_seconds=seconds) == "SERVING"


def test_a_timeout_longer_than_grpc_can_represent_is_no_limit() -> None:
    assert remaining_seconds(time.monotonic() + 1e10) is None
    assert remaining_seconds(float("inf")) is None
    assert 9 < (remaining_seconds(time.monotonic() + 10) or 0) <= 10


@pytest.mark.parametrize(
    ("metadata", "sentence"),
    [
        ({"Upper": "a"}, "not a valid metadata key"),
        ({"a key": "a"}, "not a valid metadata key"),
        ({"": "a"}, "not a valid metadata key"),
        ({":path": "a"}, "not a valid metadata key"),
        ({"é": "a"}, "not a valid metadata key"),
        ({"key\n": "a"}, "not a valid metadata key"),
        ({"grpc-timeout": "1S"}, "gRPC uses it"),
        ({"grpc-anything-bin": b""}, "gRPC uses it"),
        ({"content-type": "text/plain"}, "HTTP uses it"),
        ({"te": "gzip"}, "HTTP uses it"),
        ({"authorization": "Bearer x"}, "`token`"),
        ({"x-request-id": "x"}, "`call_id`"),
        ({"k": "é"}, "printable ASCII"),
        ({"k": "a\nb"}, "printable ASCII"),
        ({"k": "a\r\nb: c"}, "printable ASCII"),
        ({"k": "a\x00"}, "printable ASCII"),
        ({"k": "a\n"}, "printable ASCII"),
        ({"k": "\ud800"}, "printable ASCII"),
        ({"k": b"bytes"}, "wrong type"),
        ({"k-bin": "text"}, "wrong type"),
        ({"k": 1}, "pairs"),
        ([("k", None)], "pairs"),
        ([("k",)], "pairs"),
        (["kv"], "pairs"),
        ([1], "pairs"),
    ],
    ids=repr,
)
async def test_metadata_that_cannot_be_sent_is_rejected_with_a_message(
    client: BookstoreClient, metadata: Any, sentence: str
) -> None:
    with pytest.raises(ValueError, match=sentence):
        await client.get_book(1, metadata=metadata)
    with pytest.raises(ValueError, match=sentence):
        BookstoreClient(trace_context=metadata)
    assert await client.health() == "SERVING"


def test_valid_metadata_is_accepted_in_every_form() -> None:
    pairs: Pairs = (("x.y_z-1", " any ~text!"), ("empty", ""), ("raw-bin", b"\x00\xff"))

    assert checked_metadata(pairs) == checked_metadata(dict(pairs)) == checked_metadata(iter(pairs)) == pairs


@pytest.mark.parametrize("call_id", ["a b", "é", "a\n", "x" * 129, "a/b"])
async def test_a_call_id_that_the_server_would_not_accept_is_rejected(client: BookstoreClient, call_id: str) -> None:
    with pytest.raises(ValueError, match="not a valid call id"):
        await client.get_book(1, call_id=call_id)


@pytest.mark.parametrize("token", ["", "a\nb", "é", "two words"])
async def test_a_token_that_cannot_be_sent_is_rejected_at_the_call(client: BookstoreClient, token: str) -> None:
    async with BookstoreClient(client.server, token=lambda: token) as other:
        with pytest.raises(ValueError, match="is not a token"):
            await other.get_book(1)


async def test_an_unknown_option_is_a_type_error(client: BookstoreClient) -> None:
    with pytest.raises(TypeError, match="timeout"):
        await client.get_book(1, timeout=1)  # type: ignore[call-arg]
