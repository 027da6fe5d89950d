"""Every request passes what calls of gRPC pass, and shares it: log, metrics, traces, limits, tokens and the drain."""

import asyncio
import re
import time
from collections.abc import AsyncIterator
from contextlib import ExitStack
from pathlib import Path

import grpc
import pytest
from bookstore.v1 import books_pb2

from bookstore_grpc.auth.authentication import READ, SCOPES_BY_METHOD, WRITE
from bookstore_grpc.rpc.server import Server
from bookstore_grpc.telemetry.metrics import Metrics
from tests.auth.test_authentication import REJECTED, rsa_issuer
from tests.auth.test_authentication import issuer as signing
from tests.collector import SERVER as SERVER_SPAN
from tests.collector import collecting
from tests.conftest import LogLines
from tests.gateway.client import Response, Wire, ask, head, rejected
from tests.gateway.servers import http_server, http_server_with
from tests.gateway.test_errors import send_and_read
from tests.rpc.calls import Stub, get, rejection
from tests.rpc.obstacles import Waiting, locked_book
from tests.tokens import bearer, public_jwk, token_settings

TRACE_ID, PARENT_ID = "4bf92f3577b34da6a3ce929d0e0e4736", "00f067aa0ba902b7"
BOOK = {"name": "N", "author": "A", "releaseYear": 1}
POST = {"content_type": "application/json"}

# A request of each method, as it stands in a request line.
REQUESTS = {
    "CreateBook": ("POST", "/v1/books", BOOK),
    "GetBook": ("GET", "/v1/books/1", None),
    "ListBooks": ("GET", "/v1/books", None),
    "UpdateBook": ("PATCH", "/v1/books/1", {"name": "N"}),
    "DeleteBook": ("DELETE", "/v1/books/1", None),
    "BatchGetBooks": ("GET", "/v1/books:batchGet?ids=1", None),
    "BatchCreateBooks": ("POST", "/v1/books:batchCreate", {"requests": [{"book": BOOK}]}),
    "BatchUpdateBooks": ("POST", "/v1/books:batchUpdate", {"requests": [{"book": {"id": 1, "name": "N"}}]}),
    "BatchDeleteBooks": ("POST", "/v1/books:batchDelete", {"requests": [{"id": 1}]}),
    "PurgeBooks": ("POST", "/v1/books:purge", {"filter": "id > 0", "force": True}),
    "WatchBooks": ("GET", "/v1/books:watch", None),
    "ListBookChanges": ("GET", "/v1/books:changes", None),
}
NO_CALLS = [("GET", "/nowhere"), ("PUT", "/v1/books"), ("GET", "/openapi.yaml")]


def calls(log_lines: LogLines) -> list[dict[str, object]]:
    return [line for line in log_lines() if line["event"].startswith("call ")]


async def test_a_request_has_the_line_of_a_call(tmp_path: Path, log_lines: LogLines) -> None:
    async with http_server(tmp_path) as server:
        body = b'{"name": "N", "author": "A", "releaseYear": 1}'
        response = await ask(server.http_address, "POST", "/v1/books", body, x_request_id="the-call")
        assert response.headers["x-request-id"] == "the-call"
        await rejected(server.http_address, "GET", "/v1/books/9")
        await rejected(server.http_address, "GET", "/nowhere")
    made, missing, unknown = calls(log_lines)
    assert made.pop("duration_ms")
    assert made.pop("timestamp")
    assert str(made.pop("peer")).startswith("ipv4:127.0.0.1:")
    assert made == {
        "event": "call finished",
        "level": "info",
        "method": "/bookstore.v1.BookService/CreateBook",
        "status": "OK",
        "request_id": "the-call",
        "request_bytes": len(body),
        "response_bytes": len(response.body),
    }
    assert (missing["method"], missing["reason"]) == ("/bookstore.v1.BookService/GetBook", "BOOK_NOT_FOUND")
    assert (unknown["method"], unknown["reason"]) == ("unknown", "METHOD_UNKNOWN")


@pytest.mark.parametrize("request_id", ["", "a b", "x" * 129, "<script>", "é"])
async def test_a_request_id_that_is_none_is_replaced(request_id: str, address: str) -> None:
    response = await ask(address, "GET", "/v1/books", x_request_id=request_id)
    assert re.fullmatch("[0-9a-f]{32}", response.headers["x-request-id"])


async def test_requests_are_counted_as_calls() -> None:
    metrics = Metrics()
    servicer = Waiting()
    servicer.may_go_on.set()
    async with http_server_with(servicer, observers=[metrics]) as server:
        for path in ("/v1/books/1", "/v1/books/2", "/v1/books/x", "/nowhere", "/nowhere/else"):
            await ask(server.http_address, "GET", path)
    line = r'^bookstore_calls_total{method="(.*)",reason="(.*)",status="(.*)"} (.*)$'
    assert set(re.findall(line, metrics.text().decode(), re.MULTILINE)) == {
        ("/bookstore.v1.BookService/GetBook", "", "OK", "2.0"),
        ("/bookstore.v1.BookService/GetBook", "INVALID_FIELD", "INVALID_ARGUMENT", "1.0"),
        ("unknown", "METHOD_UNKNOWN", "UNIMPLEMENTED", "2.0"),
    }


async def test_a_request_joins_its_callers_trace(tmp_path: Path) -> None:
    with collecting() as collector:
        async with http_server(tmp_path, trace_endpoint=collector.endpoint) as server:
            response = await ask(
                server.http_address,
                "POST",
                "/v1/books",
                BOOK,
                traceparent=f"00-{TRACE_ID}-{PARENT_ID}-01",
                tracestate="vendor=1",
                x_request_id="the-call",
            )
            assert response.status == 201
            await ask(server.http_address, "GET", "/v1/books", traceparent="nonsense")
            await ask(server.http_address, "GET", "/nowhere")
        spans = {span.name: span for span in collector.spans() if span.kind == SERVER_SPAN}
    call = spans["bookstore.v1.BookService/CreateBook"]
    assert (call.trace_id, call.parent_id, call.trace_state) == (TRACE_ID, PARENT_ID, "vendor=1")
    assert spans["bookstore.v1.BookService/ListBooks"].trace_id != TRACE_ID
    assert not call.is_error


@pytest.mark.parametrize("family", ["127.0.0.1", "[::1]"])
async def test_a_caller_s_rate_is_one_over_both_ways(tmp_path: Path, family: str) -> None:
    listen = {"listen": (f"{family}:0",), "http_listen": f"{family}:0"}
    async with (
        http_server(tmp_path, rate_limit_per_second=0.01, rate_limit_burst=4, **listen) as server,
        grpc.aio.insecure_channel(server.addresses[0]) as channel,
    ):
        for _ in range(2):
            assert (await ask(server.http_address, "GET", "/v1/books")).status == 200
            await Stub(channel).ListBooks(books_pb2.ListBooksRequest())
        limited = await rejected(server.http_address, "GET", "/v1/books")
        assert (limited.status, limited.reason, limited.metadata["limit"]) == (429, "TOO_MANY_REQUESTS", "rate")
        assert 90 < int(limited.headers["retry-after"]) <= 100
        assert (await rejection(Stub(channel).ListBooks(books_pb2.ListBooksRequest()))).reason == "TOO_MANY_REQUESTS"
        assert (await rejected(server.http_address, "GET", "/nowhere")).status == 429


async def test_a_caller_with_a_name_has_one_rate_over_both_ways(tmp_path: Path) -> None:
    settings = token_settings(signing.write_jwks(tmp_path / "jwks"), rate_limit_per_second=0.01, rate_limit_burst=2)
    busy, other = signing.token(sub="busy"), signing.token(sub="other")
    async with http_server(tmp_path, **settings) as server, grpc.aio.insecure_channel(server.addresses[0]) as channel:
        await Stub(channel).ListBooks(books_pb2.ListBooksRequest(), metadata=bearer(busy))
        assert (await authorized(server, busy)).status == 200
        assert (await authorized(server, busy)).status == 429
        assert (await authorized(server, other)).status == 200


async def authorized(
    server: Server, token: str, verb: str = "GET", path: str = "/v1/books", body: object = None
) -> Response:
    return await ask(server.http_address, verb, path, body, authorization=f"Bearer {token}")


async def test_calls_of_both_ways_share_the_room() -> None:
    servicer = Waiting()
    async with (
        http_server_with(servicer, max_concurrent_calls=2) as server,
        grpc.aio.insecure_channel(server.addresses[0]) as channel,
    ):
        over_grpc = asyncio.create_task(get(Stub(channel), 1))
        await servicer.begun.acquire()
        over_http = asyncio.create_task(ask(server.http_address, "GET", "/v1/books/2"))
        await servicer.begun.acquire()
        for _ in range(3):
            full = await rejected(server.http_address, "GET", "/v1/books/3")
            assert (full.status, full.metadata["limit"]) == (429, "concurrent_calls")
        servicer.may_go_on.set()
        assert (await over_grpc).id == 1
        assert (await over_http).json["id"] == "2"
        assert (await ask(server.http_address, "GET", "/v1/books/4")).status == 200


async def test_a_call_takes_no_longer_than_it_may_nor_does_its_body(tmp_path: Path, log_lines: LogLines) -> None:
    async with http_server(tmp_path, max_call_seconds=0.5) as server:

        def trickle() -> tuple[bytes, float]:
            began = time.monotonic()
            with Wire(server.http_address) as wire:
                wire.send(head("POST", "/v1/books", **POST, content_length="1000"))
                wire.socket.settimeout(0.05)
                received = b""
                while time.monotonic() - began < 10:
                    try:
                        wire.send(b" ")
                        data = wire.socket.recv(10_000)
                        if not data:
                            break
                        received += data
                    except TimeoutError:
                        continue
                    except ConnectionError:
                        break
                return received, time.monotonic() - began

        received, seconds = await asyncio.to_thread(trickle)
    assert received.startswith(b"HTTP/1.1 504 ")
    assert b"connection: close" in received
    assert seconds < 3
    (line,) = calls(log_lines)
    assert line["status"] == "DEADLINE_EXCEEDED"


async def test_a_call_that_waits_is_ended_in_time() -> None:
    servicer = Waiting()
    async with http_server_with(servicer, max_call_seconds=0.3) as server:
        late = await rejected(server.http_address, "GET", "/v1/books/1")
        assert (late.status, late.reason) == (504, "DEADLINE_EXCEEDED")
        servicer.may_go_on.set()


@pytest.fixture(scope="module")
async def guarded(tmp_path_factory: pytest.TempPathFactory) -> AsyncIterator[Server]:
    folder = tmp_path_factory.mktemp("tokens")
    jwks = folder / "jwks"
    jwks.write_text(signing.jwks(public_jwk(rsa_issuer.key, rsa_issuer.name)))
    async with http_server(folder, **token_settings(jwks)) as server:
        yield server


@pytest.mark.parametrize("name", sorted(REJECTED.keys() - {"two", "huge"}))
async def test_without_a_valid_token_nothing_is_done_or_disclosed(guarded: Server, name: str) -> None:
    make, reason, sentence = REJECTED[name]
    headers = {key: str(value) for key, value in make()}
    for verb, path, body in [*REQUESTS.values(), *((*each, None) for each in NO_CALLS)]:
        rejection = await rejected(guarded.http_address, verb, path, body, **headers)
        assert (rejection.status, rejection.reason, rejection.headers["www-authenticate"]) == (401, reason, "Bearer")
        assert sentence in rejection.message
    assert (await authorized(guarded, signing.token())).json == {}


async def test_two_tokens_are_none(guarded: Server) -> None:
    line = f"authorization: Bearer {signing.token()}\r\n".encode()
    request = b"GET /v1/books HTTP/1.1\r\nhost: localhost\r\nconnection: close\r\n" + line * 2 + b"\r\n"
    response = await asyncio.to_thread(send_and_read, guarded.http_address, request)
    assert (response.status, response.json["details"][0]["reason"]) == (401, "TOKEN_INVALID")


@pytest.mark.parametrize("name", REQUESTS)
async def test_each_method_asks_for_its_scope(guarded: Server, name: str) -> None:
    needed = SCOPES_BY_METHOD[f"/bookstore.v1.BookService/{name}"]
    lacking = WRITE if needed == READ else READ
    verb, path, body = REQUESTS[name]
    rejection = await rejected(
        guarded.http_address, verb, path, body, authorization=f"Bearer {signing.token(scope=lacking)}"
    )
    assert (rejection.status, rejection.reason, rejection.metadata["scope"]) == (403, "SCOPE_MISSING", needed)


@pytest.mark.parametrize(
    "data",
    [
        pytest.param(head("POST", "/v1/books", **POST, content_length="1000"), id="body to come"),
        pytest.param(head("POST", "/v1/books", **POST, transfer_encoding="chunked"), id="chunks to come"),
        pytest.param(
            head("POST", "/v1/books", **POST, content_length="4", expect="100-continue"), id="waits to be asked"
        ),
        pytest.param(head("POST", "/v1/books", content_type="text/plain", content_length="4") + b"junk", id="no JSON"),
        pytest.param(head("PATCH", "/v1/books/x?y=z", **POST, content_length="1") + b"{", id="nothing right"),
        pytest.param(head("DELETE", "/v1/books/999", host="evil.example"), id="wrong host"),
    ],
)
async def test_an_unauthorized_call_is_rejected_before_its_body_is_read(guarded: Server, data: bytes) -> None:
    began = time.monotonic()

    def send() -> bytes:
        with Wire(guarded.http_address) as wire:
            wire.send(data)
            return wire.read_until(b"]}")

    received = await asyncio.to_thread(send)
    assert received.startswith(b"HTTP/1.1 401 ")
    assert time.monotonic() - began < 3


async def test_a_known_caller_learns_what_there_is_not(guarded: Server) -> None:
    token = signing.token(scope="")
    assert [(await authorized(guarded, token, *each)).status for each in NO_CALLS] == [404, 405, 404]


async def test_the_log_names_the_caller_and_holds_no_token(guarded: Server, log_lines: LogLines) -> None:
    token = signing.token(sub="the-subject")
    await authorized(guarded, token)
    await ask(guarded.http_address, "GET", "/v1/books", authorization=f"Bearer {signing.token(exp=1)}")
    finished, rejected_line = calls(log_lines)
    assert finished["caller"] == "the-subject"
    assert rejected_line["reason"] == "TOKEN_INVALID"
    assert not any(part in str(log_lines()) for part in token.split("."))


async def test_a_drain_finishes_calls_under_way_and_rejects_new_ones() -> None:
    servicer = Waiting()
    with ExitStack() as stack:
        async with http_server_with(servicer) as server:
            under_way = asyncio.create_task(ask(server.http_address, "GET", "/v1/books/1"))
            await servicer.begun.acquire()
            kept = stack.enter_context(Wire(server.http_address))
            kept.send(head("GET", "/nowhere"))
            await asyncio.to_thread(kept.read_until, b"]}")
            draining = asyncio.create_task(server.drain(delay_seconds=0, grace_seconds=10))

            await asyncio.sleep(0.3)  # until then calls are begun
            failure = await rejected(server.http_address, "GET", "/v1/books/2")
            assert (failure.status, failure.reason, failure.headers["retry-after"]) == (
                503,
                "SERVER_DRAINING",
                "1",
            )
            # On a connection that stays open a client would retry at this server again and again.
            kept.send(head("GET", "/v1/books/2"))
            last = await asyncio.to_thread(kept.read_to_end, 5)
            assert last.startswith(b"HTTP/1.1 503 ")
            assert b"connection: close" in last
            assert not draining.done()
            servicer.may_go_on.set()
            response = await under_way
            assert (response.status, response.json["id"]) == (200, "1")
            await draining


async def test_a_call_cut_off_by_the_drain_gets_an_error() -> None:
    servicer = Waiting()
    async with http_server_with(servicer) as server:
        under_way = asyncio.create_task(rejected(server.http_address, "GET", "/v1/books/1"))
        await servicer.begun.acquire()
        await server.drain(delay_seconds=0, grace_seconds=0.1)
        failure = await under_way
        assert (failure.status, failure.reason) == (503, "CALL_INTERRUPTED")
        servicer.may_go_on.set()


async def test_an_outage_of_the_database_is_a_503(tmp_path: Path) -> None:
    async with http_server(tmp_path, database_timeout_seconds=0.3) as server:
        made = (await ask(server.http_address, "POST", "/v1/books", BOOK)).json
        async with locked_book(f"sqlite+aiosqlite:///{tmp_path}/bookstore.db", int(made["id"])):
            failure = await rejected(server.http_address, "PATCH", f"/v1/books/{made['id']}", {"name": "Other"})
        assert (failure.status, failure.reason, failure.headers["retry-after"]) == (
            503,
            "DATABASE_UNAVAILABLE",
            "1",
        )
