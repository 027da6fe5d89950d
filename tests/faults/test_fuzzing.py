"""No request, whatever its bytes, makes the service fail by a defect."""

import itertools
import time
from collections import Counter
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import grpc
import pytest
from bookstore.v1 import books_pb2, books_pb2_grpc
from google.protobuf.descriptor import Descriptor, FieldDescriptor
from google.protobuf.message import Message
from google.protobuf.message_factory import GetMessageClass
from hypothesis import HealthCheck, given, seed, settings
from hypothesis import strategies as st

from tests.executable import Serving
from tests.faults.conftest import Figures
from tests.faults.load import resident_megabytes
from tests.tokens import AUDIENCE, ISSUER, Issuer

pytestmark = pytest.mark.e2e

SERVICE = books_pb2.DESCRIPTOR.services_by_name["BookService"]
STREAMS = {f"/{SERVICE.full_name}/{method.name}" for method in SERVICE.methods if method.server_streaming}
LONG_SECONDS = 200
EXAMPLES_AT_ONCE = 100
SHORT_EXAMPLES = 300
DEFECTS = (grpc.StatusCode.INTERNAL, grpc.StatusCode.UNKNOWN, grpc.StatusCode.UNAVAILABLE)

FRAGMENTS = (
    "name", "author", "release_year", "id", "create_time", "etag", "=", "!=", "<", ">=", ":", "AND", "OR", "NOT", "-",
    "(", ")", '"', '"a"', "'", "*", '"*x*"', ",", "desc", "asc", "1", "-1", "1e9", "99999999999999999999", ".", "\\",
    "2024-01-01T00:00:00Z", "timestamp(", "duration(", " ", "\n", "%", "_", "\x00", "\ud7ff", "İ", "🦊", "a" * 300,
    "true", "null", "has(", "books", "0x1",
)  # fmt: skip

texts = st.one_of(
    st.text(max_size=60),
    st.lists(st.sampled_from(FRAGMENTS), max_size=25).map(" ".join),
    st.lists(st.sampled_from(FRAGMENTS), max_size=25).map("".join),
    st.integers(1, 400).map(lambda depth: "(" * depth + "id=1" + ")" * depth),
    st.integers(1, 400).map(lambda depth: "NOT " * depth + "id=1"),
    st.integers(1, 400).map(lambda many: " OR ".join(["name:a"] * many)),
    st.text("ABCDEFGHIJKLMNOPQRSTUVWXYZabcdefghijklmnopqrstuvwxyz0123456789-_=", max_size=120),
    st.uuids().map(str),
)
sizes = st.one_of(st.integers(-2, 2), st.integers(-(2**31), 2**31 - 1))
ids = st.one_of(st.integers(-2, 50), st.integers(-(2**63), 2**63 - 1))


def values_of(field: FieldDescriptor) -> st.SearchStrategy[Any]:
    kinds: dict[int, st.SearchStrategy[Any]] = {
        FieldDescriptor.TYPE_BOOL: st.booleans(),
        FieldDescriptor.TYPE_STRING: texts,
        FieldDescriptor.TYPE_INT32: sizes,
        FieldDescriptor.TYPE_INT64: ids,
        FieldDescriptor.TYPE_ENUM: sizes,
    }
    kind = messages(field.message_type) if field.message_type else kinds[field.type]
    return st.lists(kind, max_size=4) if field.is_repeated else kind


def messages(descriptor: Descriptor) -> st.SearchStrategy[Message]:
    fields = {field.name: values_of(field) for field in descriptor.fields}
    return st.fixed_dictionaries({}, optional=fields).map(lambda values: GetMessageClass(descriptor)(**values))


def damaged(data: bytes, places: list[tuple[int, int]]) -> bytes:
    changed = bytearray(data)
    for place, value in places:
        if changed:
            changed[place % len(changed)] = value
    return bytes(changed)


requests = st.sampled_from(list(SERVICE.methods)).flatmap(
    lambda method: st.tuples(
        st.just(f"/{SERVICE.full_name}/{method.name}"),
        messages(method.input_type).map(lambda message: message.SerializeToString()),
    )
)
wild_requests = st.tuples(
    st.one_of(
        st.sampled_from([f"/{SERVICE.full_name}/{method.name}" for method in SERVICE.methods]),
        st.sampled_from(["/grpc.health.v1.Health/Check", "/bookstore.v1.BookService/", "/", "//", "/a/b/c"]),
        st.text(st.characters(min_codepoint=33, max_codepoint=126), max_size=200).map("/".__add__),
    ),
    st.one_of(
        st.binary(max_size=300),
        st.builds(
            damaged,
            requests.map(lambda request: request[1]),
            st.lists(st.tuples(st.integers(0, 10_000), st.integers(0, 255)), max_size=5),
        ),
    ),
)
keys = st.one_of(
    st.sampled_from(["x-request-id", "authorization", "traceparent", "tracestate", "baggage", "x-forwarded-for"]),
    st.from_regex(r"[a-z0-9_.-]{1,30}", fullmatch=True),
).filter(lambda key: not key.startswith("grpc-") and not key.endswith("-bin"))
plain_values = st.one_of(
    st.text(st.characters(min_codepoint=32, max_codepoint=126), max_size=100),
    st.text(st.characters(min_codepoint=32, max_codepoint=126), min_size=1, max_size=20).map(lambda text: text * 50),
)
metadata = st.lists(
    st.one_of(
        st.tuples(keys, plain_values),
        st.tuples(
            st.sampled_from(["grpc-trace-bin", "grpc-tags-bin", "x-bin", "x-request-id-bin", "traceparent-bin"]),
            st.binary(max_size=200),
        ),
    ),
    max_size=8,
)
timeouts = st.one_of(st.just(30.0), st.sampled_from([0.0, 0.000_001, 0.001, 0.01, 10.0**9]))


@pytest.fixture
def server(tmp_path: Path) -> Iterator[Serving]:
    url = f"sqlite+aiosqlite:///{tmp_path}/bookstore.db"
    server = Serving(url, tmp_path / "log")
    yield server
    server.end()


class Fuzz:
    """Sends calls to a server, a number of them or for some time, and counts their statuses."""

    def __init__(self, server: Serving, *, is_long: bool) -> None:
        self.outcomes: Counter[grpc.StatusCode] = Counter()
        self._server = server
        self._is_long = is_long
        self.seconds = 0.0

    def run(self, strategy: st.SearchStrategy[Any], call: Callable[[grpc.Channel, Any], None]) -> None:
        began = time.monotonic()
        with grpc.insecure_channel(self._server.address) as channel:

            def example(drawn: Any) -> None:
                try:
                    call(channel, drawn)
                    self.outcomes[grpc.StatusCode.OK] += 1
                except grpc.RpcError as error:
                    code = error.code()
                    self.outcomes[code] += 1
                    if code in DEFECTS:
                        raise

            bounds = settings(
                max_examples=EXAMPLES_AT_ONCE,
                derandomize=False,
                database=None,
                deadline=None,
                suppress_health_check=list(HealthCheck),
            )
            for number in itertools.count(1):
                seed(number)(bounds(given(strategy)(example)))()
                self.seconds = time.monotonic() - began
                is_enough = number * EXAMPLES_AT_ONCE >= SHORT_EXAMPLES
                if self.seconds >= LONG_SECONDS if self._is_long else is_enough:
                    return

    def check(self) -> None:
        """Raise unless the server still serves, and has logged no defect."""
        with grpc.insecure_channel(self._server.address) as channel:
            books_pb2_grpc.BookServiceStub(channel).ListBooks(books_pb2.ListBooksRequest(), timeout=30)
        assert "Traceback" not in self._server.log_text()
        assert '"level": "error"' not in self._server.log_text()
        assert self._server.stop() == 0


def raw_call(channel: grpc.Channel, drawn: Any) -> None:
    (path, body), extra, timeout = drawn
    if path not in STREAMS:
        channel.unary_unary(path)(body, metadata=extra, timeout=timeout)
        return
    responses: Any = channel.unary_stream(path)(body, metadata=extra, timeout=timeout)
    next(responses)  # a stream has no end
    responses.cancel()


@pytest.mark.timeout(900)
@pytest.mark.parametrize("kind", ["requests", "bytes"])
def test_no_request_causes_internal(server: Serving, is_long: bool, figures: Figures, kind: str) -> None:
    fuzz = Fuzz(server, is_long=is_long)
    before = resident_megabytes(server.process.pid)
    strategy = requests if kind == "requests" else wild_requests
    fuzz.run(st.tuples(strategy, metadata, timeouts if kind == "bytes" else st.just(30.0)), raw_call)

    after = resident_megabytes(server.process.pid)
    fuzz.check()
    figures(
        calls=fuzz.outcomes.total(),
        succeeded=fuzz.outcomes[grpc.StatusCode.OK],
        defects=0,
        seconds=round(fuzz.seconds),
        rss_before_mb=round(before),
        rss_after_mb=round(after),
    )
    assert fuzz.outcomes[grpc.StatusCode.OK]
    assert fuzz.outcomes[grpc.StatusCode.INVALID_ARGUMENT]


@pytest.mark.timeout(900)
def test_no_token_causes_internal_and_no_forged_token_is_accepted(
    tmp_path: Path, is_long: bool, figures: Figures
) -> None:
    issuer = Issuer()
    server = Serving(
        f"sqlite+aiosqlite:///{tmp_path}/bookstore.db",
        tmp_path / "log",
        *("--jwks-file", str(issuer.write_jwks(tmp_path / "jwks"))),
        *("--token-issuer", ISSUER, "--token-audience", AUDIENCE),
    )
    good = issuer.token()
    claims = st.sampled_from(["exp", "nbf", "iat", "aud", "iss", "sub", "scope", "jti"])
    junk = st.recursive(
        st.none() | st.booleans() | st.integers(-(2**70), 2**70) | st.text(max_size=20),
        lambda inner: st.lists(inner, max_size=3) | st.dictionaries(st.text(max_size=5), inner, max_size=3),
        max_leaves=6,
    )
    signature = good.rindex(".") + 1

    def with_claims(odd: dict[str, Any]) -> str:
        try:
            return issuer.token(**odd)
        except (TypeError, ValueError):
            return "not a token"

    # The last character of a signature has bits without a meaning.
    damaged_tokens = st.tuples(
        st.integers(0, len(good) - 2).filter(lambda place: place != signature - 1), st.sampled_from("AZaz09-_.=")
    ).map(lambda change: good[: change[0]] + change[1] + good[change[0] + 1 :])
    forged = st.one_of(
        st.text(st.characters(min_codepoint=32, max_codepoint=126), max_size=300),
        damaged_tokens,
        st.integers(0, len(good) - 1).map(lambda length: good[:length]),
    ).filter(lambda token: token.strip() != good)
    odd = st.dictionaries(claims, junk, min_size=1, max_size=3).map(with_claims)
    fuzz = Fuzz(server, is_long=is_long)

    def call(channel: grpc.Channel, drawn: Any) -> None:
        is_forged, token, scheme = drawn
        stub = books_pb2_grpc.BookServiceStub(channel)
        header = (("authorization", f"{scheme}{token}"),)
        stub.ListBooks(books_pb2.ListBooksRequest(), metadata=header, timeout=30)
        assert not is_forged, token

    try:
        schemes = st.sampled_from(["Bearer ", "bearer ", "Bearer  ", "Basic ", "", "Bearer"])
        tokens = st.one_of(st.tuples(st.just(True), forged), st.tuples(st.just(False), odd))
        fuzz.run(st.tuples(tokens, schemes).map(lambda drawn: (*drawn[0], drawn[1])), call)
        assert "Traceback" not in server.log_text()
        assert '"level": "error"' not in server.log_text()
        assert server.stop() == 0
    finally:
        server.end()
    figures(
        calls=fuzz.outcomes.total(),
        succeeded=fuzz.outcomes[grpc.StatusCode.OK],
        defects=0,
        seconds=round(fuzz.seconds),
    )
    assert fuzz.outcomes[grpc.StatusCode.UNAUTHENTICATED]
