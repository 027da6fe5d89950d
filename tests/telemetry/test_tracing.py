"""Traces: from the caller over the call to SQL, as a collector gets them from a real server."""

import asyncio
import socket
import sqlite3
import time
from collections.abc import AsyncIterator, Iterator
from contextlib import ExitStack, asynccontextmanager, closing
from pathlib import Path

import grpc
import pytest
from bookstore.v1 import books_pb2
from grpc_health.v1 import health_pb2
from opentelemetry.sdk.trace import TracerProvider
from sqlalchemy.engine import make_url

from bookstore_grpc.client import BookstoreClient
from bookstore_grpc.errors import StartupError
from bookstore_grpc.net.address import Address
from bookstore_grpc.rpc.server import Server
from bookstore_grpc.server.app import running_server
from bookstore_grpc.telemetry.tracing import database_attributes, server_attributes
from tests.certificates import Authority
from tests.collector import CLIENT, SERVER, Collector, Span, collecting
from tests.conftest import DATABASES, LogLines, new_database, settings_for
from tests.rpc.calls import Stub, book, create, delete, get, list_page, rejection, update
from tests.tokens import Issuer, bearer, token_settings

TRACE_ID = "4bf92f3577b34da6a3ce929d0e0e4736"
PARENT_ID = "00f067aa0ba902b7"
SECRET = "hunter2"


def traceparent(flags: str = "01", trace_id: str = TRACE_ID) -> tuple[str, str]:
    return ("traceparent", f"00-{trace_id}-{PARENT_ID}-{flags}")


@pytest.fixture
def collector() -> Iterator[Collector]:
    with collecting() as collector:
        yield collector


@pytest.fixture
def url(tmp_path: Path) -> str:
    return f"sqlite+aiosqlite:///{tmp_path}/bookstore.db"


@pytest.fixture(params=DATABASES)
async def any_url(request: pytest.FixtureRequest, tmp_path: Path) -> AsyncIterator[str]:
    """The URL of an empty database of each kind."""
    async for url in new_database(request.param, tmp_path):
        yield url


@asynccontextmanager
async def traced(url: str, collector: Collector, **settings: object) -> AsyncIterator[Stub]:
    """The stub of a server that sends its spans when it ends."""
    async with (
        running_server(settings_for(url, migrate=True, trace_endpoint=collector.endpoint, **settings)) as server,
        grpc.aio.insecure_channel(server.addresses[0]) as channel,
    ):
        yield Stub(channel)


def of_kind(kind: int, spans: list[Span]) -> list[Span]:
    return [span for span in spans if span.kind == kind]


async def test_a_call_is_in_its_callers_trace_and_its_statement_beneath_it(collector: Collector, url: str) -> None:
    async with traced(url, collector) as stub:
        created = await create(stub, "Dune")
        request = books_pb2.GetBookRequest(id=created.id)
        metadata = (traceparent(), ("tracestate", "vendor=1"), ("x-request-id", "the-call"))
        await stub.GetBook(request, metadata=metadata)
    (call,) = [span for span in collector.spans() if span.name == "bookstore.v1.BookService/GetBook"]
    assert (call.kind, call.trace_id, call.parent_id, call.trace_state) == (SERVER, TRACE_ID, PARENT_ID, "vendor=1")
    port = call.attributes.pop("network.peer.port")
    assert isinstance(port, int)
    assert call.attributes == {
        "rpc.system.name": "grpc",
        "rpc.method": "bookstore.v1.BookService/GetBook",
        "rpc.response.status_code": "OK",
        "server.address": "127.0.0.1",
        "network.peer.address": "127.0.0.1",
        "bookstore.request_id": "the-call",
    }
    (read,) = [span for span in collector.spans() if span.parent_id == call.span_id]
    assert (read.name, read.kind, read.trace_id) == ("SELECT books", CLIENT, TRACE_ID)
    assert read.attributes == {"db.system.name": "sqlite", "db.query.summary": "SELECT books"}
    assert call.started_ns <= read.started_ns < read.ended_ns <= call.ended_ns
    assert {call.is_error, read.is_error} == {False}
    assert call.resource["service.name"] == "bookstore"
    assert call.resource["service.version"] == "0.1.0"


async def test_each_way_to_read_and_to_write_has_a_span(collector: Collector, any_url: str) -> None:
    calls = ("CreateBook", "UpdateBook", "BatchGetBooks", "ListBooks", "DeleteBook")
    async with traced(any_url, collector) as stub:
        created = await create(stub, "Dune")
        await update(stub, created.id, name="Dune Messiah")
        await stub.BatchGetBooks(books_pb2.BatchGetBooksRequest(ids=[created.id]))
        await list_page(stub, filter="author:herbert")
        if any_url.startswith("sqlite"):
            await list_page(stub, filter="author:herbert")  # kept: nothing goes to the database
        await delete(stub, created.id)
    spans = collector.spans()
    summaries: dict[str, list[str]] = {}
    for call in of_kind(SERVER, spans):
        name = call.name.rpartition("/")[2]
        summaries.setdefault(name, [span.name for span in spans if span.parent_id == call.span_id])
    assert summaries == dict(
        zip(
            calls,
            [["INSERT books"], ["UPDATE books"], ["SELECT books"], ["SELECT books"], ["DELETE books"]],
            strict=True,
        )
    )
    assert {span.parent_id for span in of_kind(SERVER, spans)} == {""}
    assert len(of_kind(CLIENT, spans)) == len({span.trace_id for span in of_kind(CLIENT, spans)}) == len(calls)
    database = make_url(any_url)
    for span in of_kind(CLIENT, spans):
        assert span.attributes["db.system.name"] == database.get_backend_name()
        if database.host:
            assert span.attributes["db.namespace"] == database.database
            assert span.attributes["server.address"] == database.host


async def test_a_read_that_takes_longer_and_runs_in_a_thread_has_one_too(collector: Collector, url: str) -> None:
    async with traced(url, collector) as stub:
        requests = [books_pb2.CreateBookRequest(book=book(f"N{number}" * 50)) for number in range(1_000)]
        for _ in range(20):
            await stub.BatchCreateBooks(books_pb2.BatchCreateBooksRequest(requests=requests))
        await stub.ListBooks(
            books_pb2.ListBooksRequest(filter='name:"no such text"', order_by="author, release_year"),
            metadata=(traceparent(),),
        )
    call, read = [span for span in collector.spans() if span.trace_id == TRACE_ID][::-1]
    assert (read.name, read.parent_id) == ("SELECT books", call.span_id)


@pytest.mark.parametrize("ratio", [1.0, 0.0])
async def test_what_one_transaction_does_for_several_calls_is_linked_with_them(
    collector: Collector, any_url: str, ratio: float
) -> None:
    calls = 30
    async with traced(any_url, collector, trace_ratio=ratio) as stub:

        async def create_traced(number: int) -> None:
            request = books_pb2.CreateBookRequest(book=book(f"N{number}"))
            await stub.CreateBook(request, metadata=(traceparent(trace_id=f"{number + 1:032x}"),))

        await asyncio.gather(*map(create_traced, range(calls)))
    spans = collector.spans()
    callers = {(span.trace_id, span.span_id): span for span in of_kind(SERVER, spans)}
    assert len(callers) == calls
    shared = [span for span in of_kind(CLIENT, spans) if span.links]
    assert shared
    for span in shared:
        assert span.name == "INSERT books"
        assert span.parent_id == ""
        assert span.attributes["db.operation.batch.size"] == len(span.links) > 1
        for link in span.links:
            assert callers[link].links == {(span.trace_id, span.span_id)}
    alone = [span for span in of_kind(CLIENT, spans) if not span.links]
    assert sum(len(span.links) for span in shared) + len(alone) == calls
    for span in alone:
        assert (span.trace_id, span.parent_id) in callers
        assert "db.operation.batch.size" not in span.attributes


async def test_a_transaction_for_one_traced_call_among_others_is_that_ones(collector: Collector, url: str) -> None:
    async with traced(url, collector, trace_ratio=0.0) as stub:
        path = url.removeprefix("sqlite+aiosqlite:///")
        with closing(sqlite3.connect(path, isolation_level=None)) as other:
            # The group begins with the first of them, and takes in who comes while it waits.
            other.execute("BEGIN IMMEDIATE")
            others = [asyncio.create_task(create(stub, f"N{number}")) for number in range(20)]
            await asyncio.sleep(0.1)
            request = books_pb2.CreateBookRequest(book=book("Traced"))
            traced_one = asyncio.ensure_future(stub.CreateBook(request, metadata=(traceparent(),)))
            await asyncio.sleep(0.1)
            other.execute("ROLLBACK")
        await asyncio.gather(*others, traced_one)
    call, written = sorted(collector.spans(), key=lambda span: span.kind)
    assert (call.trace_id, call.parent_id) == (TRACE_ID, PARENT_ID)
    assert (written.trace_id, written.parent_id, written.links) == (TRACE_ID, call.span_id, frozenset())
    assert call.started_ns <= written.started_ns < written.ended_ns <= call.ended_ns
    size = written.attributes["db.operation.batch.size"]
    assert isinstance(size, int)
    assert size > 1


async def test_only_what_is_the_servers_fault_is_an_error(collector: Collector, tmp_path: Path, url: str) -> None:
    async with traced(url, collector, max_call_seconds=0.3, database_timeout_seconds=5.0) as stub:
        await rejection(get(stub, 999))
        with closing(sqlite3.connect(tmp_path / "bookstore.db", isolation_level=None)) as other:
            other.execute("BEGIN IMMEDIATE")
            assert (await rejection(create(stub, "Locked out"))).code is grpc.StatusCode.DEADLINE_EXCEEDED
            call = create(stub, "Given up")
            with pytest.raises(TimeoutError):
                await asyncio.wait_for(call, 0.1)
            other.execute("ROLLBACK")
        (tmp_path / "bookstore.db").rename(tmp_path / "moved.db")
        assert (await rejection(get(stub, 1))).code is grpc.StatusCode.UNAVAILABLE
    calls = {str(span.attributes["rpc.response.status_code"]): span for span in of_kind(SERVER, collector.spans())}
    errors = {status: (span.is_error, span.attributes.get("error.type")) for status, span in calls.items()}
    assert errors == {
        "NOT_FOUND": (False, None),
        "DEADLINE_EXCEEDED": (True, "DEADLINE_EXCEEDED"),
        "CANCELLED": (False, None),
        "UNAVAILABLE": (True, "UNAVAILABLE"),
    }
    assert calls["NOT_FOUND"].attributes["bookstore.reason"] == "BOOK_NOT_FOUND"
    assert calls["UNAVAILABLE"].attributes["bookstore.reason"] == "DATABASE_UNAVAILABLE"
    statements = {span.parent_id: span for span in of_kind(CLIENT, collector.spans())}
    found = {status: statements[span.span_id] for status, span in calls.items() if span.span_id in statements}
    # Nothing was done for those who have waited for their turn in vain.
    assert {
        status: (span.name, span.is_error, span.attributes.get("error.type")) for status, span in found.items()
    } == {
        "NOT_FOUND": ("SELECT books", False, None),
        "UNAVAILABLE": ("SELECT books", True, "FileNotFoundError"),
    }


async def test_a_transaction_that_fails_is_an_error_for_those_that_it_was_for(collector: Collector, url: str) -> None:
    async with traced(url, collector, database_timeout_seconds=0.1) as stub:
        path = url.removeprefix("sqlite+aiosqlite:///")
        with closing(sqlite3.connect(path, isolation_level=None)) as other:
            other.execute("BEGIN IMMEDIATE")
            rejected = await asyncio.gather(*(rejection(create(stub, f"N{number}")) for number in range(3)))
            other.execute("ROLLBACK")
    assert {each.reason for each in rejected} == {"DATABASE_UNAVAILABLE"}
    statements = of_kind(CLIENT, collector.spans())
    assert statements
    for span in statements:
        assert (span.name, span.is_error, span.attributes["error.type"]) == ("INSERT books", True, "OperationalError")
    linked = sum(len(span.links) or 1 for span in statements)
    assert linked == len(of_kind(SERVER, collector.spans())) == 3


async def test_a_method_that_there_is_not_has_a_span_without_its_name(collector: Collector, url: str) -> None:
    async with traced(url, collector):
        pass
    async with (
        running_server(settings_for(url, trace_endpoint=collector.endpoint)) as server,
        grpc.aio.insecure_channel(server.addresses[0]) as channel,
    ):
        nonsense: grpc.aio.UnaryUnaryMultiCallable[bytes, bytes] = channel.unary_unary(f"/a/{SECRET}")
        assert await nonsense(b"").code() is grpc.StatusCode.UNIMPLEMENTED
    (span,) = collector.spans()
    assert (span.name, span.attributes["rpc.method"], span.is_error) == ("grpc", "_OTHER", True)
    assert SECRET not in collector.text


async def _stream(server: Server, method: str, request: bytes) -> None:
    async with grpc.aio.insecure_channel(server.addresses[0]) as channel:
        watch: grpc.aio.UnaryStreamMultiCallable[bytes, bytes] = channel.unary_stream(method)
        call = watch(request)
        await anext(aiter(call))
        call.cancel()
        describe: grpc.aio.StreamStreamMultiCallable[bytes, bytes] = channel.stream_stream(
            "/grpc.reflection.v1.ServerReflection/ServerReflectionInfo"
        )
        described = describe(iter([b"\x3a\x00"]))  # list_services
        assert b"bookstore.v1.BookService" in await anext(aiter(described))


async def test_health_has_no_spans_and_streams_have_theirs(collector: Collector, url: str) -> None:
    async with running_server(settings_for(url, trace_endpoint=collector.endpoint)) as server:
        request = health_pb2.HealthCheckRequest().SerializeToString()
        await _stream(server, "/grpc.health.v1.Health/Watch", request)
        async with BookstoreClient(server.addresses[0]) as client:
            assert await client.health() == "SERVING"
    assert [span.name for span in collector.spans()] == ["grpc.reflection.v1.ServerReflection/ServerReflectionInfo"]


@pytest.mark.parametrize(
    ("ratio", "flags", "is_sampled"),
    [
        (1.0, None, True),
        (1.0, "00", False),
        (1.0, "01", True),
        (0.0, None, False),
        (0.0, "01", True),
        (0.0, "00", False),
    ],
)
async def test_the_caller_decides_about_sampling_or_else_the_ratio(
    collector: Collector, url: str, log_lines: LogLines, *, ratio: float, flags: str | None, is_sampled: bool
) -> None:
    metadata = (traceparent(flags),) if flags else ()
    async with traced(url, collector, trace_ratio=ratio) as stub:
        await stub.ListBooks(books_pb2.ListBooksRequest(), metadata=metadata)
    assert len(collector.spans()) == (2 if is_sampled else 0)
    (line,) = [line for line in log_lines() if line["event"] == "call finished"]
    traces = {span.trace_id for span in collector.spans()}
    assert line.get("trace_id") == (TRACE_ID if flags else next(iter(traces), None))
    assert traces <= {line.get("trace_id")}


async def test_the_ratio_is_the_share_of_calls_that_begin_a_trace(collector: Collector, url: str) -> None:
    calls, ratio = 400, 0.25
    async with traced(url, collector, trace_ratio=ratio) as stub:
        for _ in range(calls):
            await list_page(stub)
    spans = len(of_kind(SERVER, collector.spans()))
    assert abs(spans - calls * ratio) < 60  # seven times the deviation that is to be expected


@pytest.mark.parametrize("garbled", ["nonsense", f"00-{'0' * 32}-{PARENT_ID}-01", f"ff-{TRACE_ID}-{PARENT_ID}-01"])
async def test_an_invalid_context_starts_a_trace_and_appears_nowhere(
    collector: Collector, url: str, log_lines: LogLines, garbled: str
) -> None:
    async with traced(url, collector) as stub:
        metadata = (("traceparent", garbled), ("tracestate", f"{SECRET}!,{SECRET}"))
        await stub.ListBooks(books_pb2.ListBooksRequest(), metadata=metadata)
        await stub.ListBooks(books_pb2.ListBooksRequest(), metadata=(traceparent(), metadata[1]))
    first, second = of_kind(SERVER, collector.spans())
    assert (first.parent_id, second.parent_id) == ("", PARENT_ID)
    assert SECRET not in collector.text + str(log_lines())


async def test_the_clients_calls_are_in_the_programs_trace(collector: Collector, url: str) -> None:
    tracer = TracerProvider(shutdown_on_exit=False).get_tracer("program")
    async with running_server(settings_for(url, trace_endpoint=collector.endpoint)) as server:
        expected = (("traceparent", f"00-{TRACE_ID}-{PARENT_ID}-01"),)
        async with BookstoreClient(server.addresses[0], trace_context=expected) as client:
            await client.list_page()
            with tracer.start_as_current_span("work") as span:
                await client.list_page()
    outer, inner = of_kind(SERVER, collector.spans())
    assert (outer.trace_id, outer.parent_id) == (TRACE_ID, PARENT_ID)
    context = span.get_span_context()
    assert (inner.trace_id, inner.parent_id) == (f"{context.trace_id:032x}", f"{context.span_id:016x}")


async def test_neither_contents_nor_tokens_are_in_a_span(collector: Collector, url: str, tmp_path: Path) -> None:
    issuer = Issuer()
    settings = token_settings(issuer.write_jwks(tmp_path / "jwks.json"))
    async with traced(url, collector, **settings) as stub:
        token = issuer.token(sub=SECRET)
        metadata = (*bearer(token), ("x-secret", SECRET))
        request = books_pb2.CreateBookRequest(book=book(SECRET, SECRET))
        created = await stub.CreateBook(request, metadata=metadata)
        change = books_pb2.UpdateBookRequest(book=books_pb2.Book(id=created.id, name=SECRET * 2))
        await stub.UpdateBook(change, metadata=metadata)
        await stub.ListBooks(books_pb2.ListBooksRequest(filter=f'author:"{SECRET}"'), metadata=metadata)
        await rejection(stub.ListBooks(books_pb2.ListBooksRequest(filter=f"{SECRET} ="), metadata=metadata))
    assert len(of_kind(SERVER, collector.spans())) == 4
    assert SECRET not in collector.text
    assert token not in collector.text


async def test_opentelemetrys_variables_count_where_no_setting_says_otherwise(
    collector: Collector, url: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("OTEL_SERVICE_NAME", "catalogue")
    monkeypatch.setenv("OTEL_RESOURCE_ATTRIBUTES", "deployment.environment.name=test")
    monkeypatch.setenv("OTEL_EXPORTER_OTLP_HEADERS", "x-key=value")
    monkeypatch.setenv("OTEL_EXPORTER_OTLP_ENDPOINT", "http://127.0.0.1:1")
    async with traced(url, collector) as stub:
        await list_page(stub)
    (span, _) = collector.spans()
    assert span.resource["service.name"] == "catalogue"
    assert span.resource["deployment.environment.name"] == "test"
    assert collector.headers["x-key"] == "value"


async def test_a_proxy_is_not_asked_for_what_stays_on_this_machine(
    collector: Collector, url: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("grpc_proxy", "http://127.0.0.1:1")
    async with running_server(settings_for(url, trace_endpoint=collector.endpoint)) as server:
        monkeypatch.delenv("grpc_proxy")
        async with grpc.aio.insecure_channel(server.addresses[0]) as channel:
            await list_page(Stub(channel))
    assert len(collector.spans()) == 2


@pytest.mark.parametrize(
    ("endpoint", "variables", "expected"),
    [
        ("127.0.0.1:4317", {}, "is not a URL"),
        ("ftp://127.0.0.1", {}, "is not a URL"),
        ("http://127.0.0.1:port", {}, "is not a URL"),
        ("http://user:hunter2@127.0.0.1:1", {}, "is not a URL"),
        ("http://127.0.0.1:1/?key=hunter2", {}, "is not a URL"),
        ("http://127.0.0.1:1", {"OTEL_EXPORTER_OTLP_HEADERS": "Bearer hunter2"}, "HEADERS is not of the form"),
        ("http://127.0.0.1:1", {"OTEL_BSP_MAX_QUEUE_SIZE": "100"}, "max_export_batch_size must be"),
        ("http://127.0.0.1:1", {"OTEL_BSP_SCHEDULE_DELAY": "soon"}, "OTEL_BSP_SCHEDULE_DELAY"),
        ("http://127.0.0.1:1", {"OTEL_EXPORTER_OTLP_COMPRESSION": "zip"}, "zip"),
        ("http://127.0.0.1:1", {"OTEL_EXPORTER_OTLP_TIMEOUT": "soon"}, "soon"),
        ("https://127.0.0.1:1", {"OTEL_EXPORTER_OTLP_CERTIFICATE": "/no/such.pem"}, "/no/such.pem"),
    ],
)
async def test_unusable_settings_are_an_error_at_the_start(
    url: str,
    monkeypatch: pytest.MonkeyPatch,
    log_lines: LogLines,
    endpoint: str,
    variables: dict[str, str],
    expected: str,
) -> None:
    for name, value in variables.items():
        monkeypatch.setenv(name, value)
    with pytest.raises(StartupError, match=expected) as caught:
        async with running_server(settings_for(url, trace_endpoint=endpoint)):
            pass
    assert SECRET not in caught.value.message
    assert not [line for line in log_lines() if line["level"] in ("warning", "error")]


async def test_an_unreachable_collector_is_logged_once_and_delays_no_call(
    url: str, log_lines: LogLines, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("OTEL_BSP_SCHEDULE_DELAY", "50")
    monkeypatch.setenv("OTEL_EXPORTER_OTLP_TIMEOUT", "1")
    monkeypatch.setenv("OTEL_BSP_MAX_EXPORT_BATCH_SIZE", "8")
    monkeypatch.setenv("OTEL_BSP_MAX_QUEUE_SIZE", "16")  # there is no room soon
    with collecting() as collector:
        endpoint, port = collector.endpoint, collector.port

    def events() -> list[str]:
        return [line["event"] for line in log_lines() if line["event"].startswith("traces ")]

    with ExitStack() as stack:
        async with (
            running_server(settings_for(url, trace_endpoint=endpoint)) as server,
            grpc.aio.insecure_channel(server.addresses[0]) as channel,
        ):
            durations = []
            give_up = time.monotonic() + 3  # time for a second failure and a third
            while not events() or time.monotonic() < give_up:
                before = time.perf_counter()
                await list_page(Stub(channel))
                durations.append(time.perf_counter() - before)
                await asyncio.sleep(0.01)
            # Each attempt takes 1 s, and there were several; one call may be slow because the machine is.
            assert sorted(durations)[-2] < 1
            assert events() == ["traces not sent"]
            collector = stack.enter_context(collecting(port))
            while len(events()) == 1:
                await list_page(Stub(channel))
                await asyncio.sleep(0.01)
        assert collector.spans()
    (line,) = [line for line in log_lines() if line["event"] == "traces not sent"]
    assert (line["level"], line["endpoint"]) == ("warning", endpoint)
    assert events() == ["traces not sent", "traces sent again"]
    assert [line for line in log_lines() if line["level"] not in ("debug", "info")] == [line]


async def test_a_collector_can_be_reached_by_tls(url: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    authority = Authority()
    pem, key = authority.server()
    monkeypatch.setenv("OTEL_EXPORTER_OTLP_CERTIFICATE", authority.write(tmp_path))
    with collecting(credentials=grpc.ssl_server_credentials([(key, pem)])) as collector:
        async with traced(url, collector) as stub:
            await list_page(stub)
        assert len(collector.spans()) == 2


async def test_opentelemetry_can_be_turned_off_by_its_own_variable(
    url: str, collector: Collector, log_lines: LogLines, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("OTEL_SDK_DISABLED", "true")
    async with traced(url, collector) as stub:
        await list_page(stub)
        await stub.ListBooks(books_pb2.ListBooksRequest(), metadata=(traceparent(),))
    assert collector.spans() == []
    untraced, named = (line for line in log_lines() if line["event"] == "call finished")
    assert "trace_id" not in untraced
    assert named["trace_id"] == TRACE_ID


def test_what_tells_which_server_and_which_database() -> None:
    assert server_attributes(Address.parse("[::1]:50051")) == {"server.address": "::1", "server.port": 50051}
    assert server_attributes(Address.parse("localhost:0")) == {"server.address": "localhost"}
    assert server_attributes(Address.parse("unix:/run/bookstore")) == {"server.address": "/run/bookstore"}
    assert database_attributes("postgresql", name="books", host="db.example", port=5433) == {
        "db.system.name": "postgresql",
        "db.namespace": "books",
        "server.address": "db.example",
        "server.port": 5433,
    }


@pytest.mark.parametrize("is_silent", [False, True], ids=["away", "silent"])
async def test_an_unreachable_or_silent_collector_does_not_delay_the_end(
    url: str, log_lines: LogLines, *, is_silent: bool
) -> None:
    with socket.create_server(("127.0.0.1", 0)) as listening:
        endpoint = f"http://127.0.0.1:{listening.getsockname()[1]}"
        if not is_silent:
            listening.close()
        await _call_and_end(url, endpoint)
    events = [line["event"] for line in log_lines() if line["level"] not in ("debug", "info")]
    assert events == ["traces not sent"]


async def _call_and_end(url: str, endpoint: str) -> None:
    async with (
        running_server(settings_for(url, trace_endpoint=endpoint)) as server,
        grpc.aio.insecure_channel(server.addresses[0]) as channel,
    ):
        for _ in range(600):  # more than go into one request
            await list_page(Stub(channel))
        before = time.perf_counter()
    assert time.perf_counter() - before < 5
