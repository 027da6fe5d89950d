"""Tokens and scopes: which calls are accepted, which are rejected, and that this is decided before anything else."""

import asyncio
import base64
import hashlib
import hmac
import json
import time
from collections.abc import AsyncIterator, Callable
from pathlib import Path
from typing import Any

import grpc
import pytest
from bookstore.v1 import books_pb2
from google.protobuf import message_factory
from google.protobuf.message import Message
from hypothesis import given
from hypothesis import strategies as st

from bookstore_grpc.auth.authentication import READ, SCOPES_BY_METHOD, WRITE
from bookstore_grpc.server.app import running_server
from tests.conftest import LogLines, settings_for
from tests.rpc.calls import Rejection, Stub, book, rejection, rejection_from_error
from tests.tokens import BOTH, Issuer, bearer, public_pem, rsa_key, token_settings

SERVICE = books_pb2.DESCRIPTOR.services_by_name["BookService"]
METHODS = [f"/{SERVICE.full_name}/{method.name}" for method in SERVICE.methods]
READING = {"GetBook", "ListBooks", "BatchGetBooks", "WatchBooks", "ListBookChanges"}
HEALTH = "/grpc.health.v1.Health/Check"
REFLECTION = "/grpc.reflection.v1.ServerReflection/ServerReflectionInfo"

UNAUTHENTICATED, PERMISSION_DENIED = grpc.StatusCode.UNAUTHENTICATED, grpc.StatusCode.PERMISSION_DENIED

issuer = Issuer()
rsa_issuer = Issuer(rsa_key(), name="rsa")
foreign = Issuer(name=issuer.name)


@pytest.fixture(scope="module")
async def address(tmp_path_factory: pytest.TempPathFactory) -> AsyncIterator[str]:
    folder = tmp_path_factory.mktemp("tokens")
    jwks = folder / "jwks.json"
    keys = [json.loads(each.jwks())["keys"][0] for each in (issuer, rsa_issuer)]
    jwks.write_text(json.dumps({"keys": keys}))
    settings = settings_for(f"sqlite+aiosqlite:///{folder}/bookstore.db", **token_settings(jwks))
    async with running_server(settings) as server:
        yield server.addresses[0]


@pytest.fixture
async def channel(address: str) -> AsyncIterator[grpc.aio.Channel]:
    async with grpc.aio.insecure_channel(address) as channel:
        yield channel


Metadata = tuple[tuple[str, str | bytes], ...]


async def outcome(channel: grpc.aio.Channel, method: str, data: bytes, metadata: Metadata) -> Rejection | bytes:
    """Call any unary method with any bytes."""
    is_stream = method.endswith("/WatchBooks")
    call: Any = (channel.unary_stream if is_stream else channel.unary_unary)(method)
    try:
        made = call(data, metadata=metadata, timeout=30)
        response: bytes = await (made.read() if is_stream else made)
        made.cancel()
        return response
    except grpc.aio.AioRpcError as error:
        return rejection_from_error(error)


def unsigned(header: dict[str, Any], signature: Callable[[bytes], bytes] = lambda _signed: b"") -> str:
    """A token with any header and any signature."""
    claims = json.loads(base64.urlsafe_b64decode(issuer.token().split(".")[1] + "=="))
    parts = [base64.urlsafe_b64encode(json.dumps(part).encode()).rstrip(b"=") for part in (header, claims)]
    signed = b".".join(parts)
    return (signed + b"." + base64.urlsafe_b64encode(signature(signed)).rstrip(b"=")).decode()


def confused() -> str:
    """Signed with the public key as if it were a shared secret."""
    return unsigned(
        {"alg": "HS256", "kid": rsa_issuer.name},
        lambda signed: hmac.new(public_pem(rsa_issuer.key), signed, hashlib.sha256).digest(),
    )


def now() -> int:
    return int(time.time())


REJECTED: dict[str, tuple[Callable[[], Metadata], str, str]] = {
    "no token": (lambda: (), "TOKEN_MISSING", "Authentication required"),
    "no bearer": (lambda: (("authorization", "Basic YTpi"),), "TOKEN_INVALID", "Bearer TOKEN"),
    "nothing": (lambda: bearer(""), "TOKEN_INVALID", "not a valid JWT"),
    "garbage": (lambda: bearer("garbage"), "TOKEN_INVALID", "not a valid JWT"),
    "two": (lambda: bearer(issuer.token()) * 2, "TOKEN_INVALID", "must be a single value"),
    "huge": (lambda: bearer("a." * 2_500), "TOKEN_INVALID", "not a valid JWT"),
    "expired": (lambda: bearer(issuer.token(exp=now() - 5)), "TOKEN_INVALID", "has expired"),
    "not yet valid": (lambda: bearer(issuer.token(nbf=now() + 60)), "TOKEN_INVALID", "not valid yet"),
    "issued in the future": (lambda: bearer(issuer.token(iat=now() + 60)), "TOKEN_INVALID", "not valid yet"),
    "foreign-signed": (lambda: bearer(foreign.token()), "TOKEN_INVALID", "signature"),
    "unknown key": (lambda: bearer(issuer.token(headers={"kid": "?"})), "TOKEN_INVALID", "an unknown key"),
    "no key named": (lambda: bearer(Issuer().token(headers={})), "TOKEN_INVALID", "signature"),
    "alg none": (lambda: bearer(unsigned({"alg": "none"})), "TOKEN_INVALID", "not allowed"),
    "alg none, named key": (
        lambda: bearer(unsigned({"alg": "none", "kid": issuer.name})),
        "TOKEN_INVALID",
        "not allowed",
    ),
    "alg of a wrong kind": (lambda: bearer(unsigned({"alg": ["ES256"], "kid": issuer.name})), "TOKEN_INVALID", ""),
    "alg of another wrong kind": (lambda: bearer(unsigned({"alg": {}, "kid": issuer.name})), "TOKEN_INVALID", ""),
    "algorithm confusion": (lambda: bearer(confused()), "TOKEN_INVALID", "not allowed"),
    "secret as key": (
        lambda: bearer(issuer.token(key="s" * 32, algorithm="HS256")),
        "TOKEN_INVALID",
        "not allowed",
    ),
    "other algorithm": (
        lambda: bearer(rsa_issuer.token(algorithm="RS512")),
        "TOKEN_INVALID",
        "not allowed",
    ),
    "key of another type": (
        lambda: bearer(rsa_issuer.token(headers={"kid": issuer.name})),
        "TOKEN_INVALID",
        "an unknown key",
    ),
    "wrong audience": (lambda: bearer(issuer.token(aud="another")), "TOKEN_INVALID", "audience"),
    "wrong issuer": (lambda: bearer(issuer.token(iss="https://another")), "TOKEN_INVALID", "issuer"),
    "no expiry": (lambda: bearer(issuer.token(without="exp")), "TOKEN_INVALID", "lacks"),
    "no audience": (lambda: bearer(issuer.token(without="aud")), "TOKEN_INVALID", "lacks"),
    "no issuer": (lambda: bearer(issuer.token(without="iss")), "TOKEN_INVALID", "lacks"),
    "no subject": (lambda: bearer(issuer.token(without="sub")), "TOKEN_INVALID", "lacks"),
}


def message(method: str) -> Message:
    descriptor = SERVICE.methods_by_name[method.rpartition("/")[2]].input_type
    request: Message = message_factory.GetMessageClass(descriptor)()
    return request


def good_bytes(method: str) -> bytes:
    """A request that would have an effect if it were accepted."""
    name = method.rpartition("/")[2]
    create = books_pb2.CreateBookRequest(book=book("Not accepted"))
    requests: dict[str, Message] = {
        "CreateBook": create,
        "BatchCreateBooks": books_pb2.BatchCreateBooksRequest(requests=[create]),
        "PurgeBooks": books_pb2.PurgeBooksRequest(filter="id > 0", force=True),
    }
    return requests.get(name, message(method)).SerializeToString()


@pytest.mark.parametrize("method", [*METHODS, "/bookstore.v1.BookService/Unknown", "/another/Method", REFLECTION])
async def test_a_call_without_a_valid_token_is_rejected_and_stores_nothing(
    channel: grpc.aio.Channel, method: str
) -> None:
    data = good_bytes(method) if method in METHODS else b""
    for name, (make, reason, sentence) in REJECTED.items():
        rejected = await outcome(channel, method, data, make())
        assert isinstance(rejected, Rejection), name
        assert (rejected.code, rejected.reason) == (UNAUTHENTICATED, reason), name
        assert sentence in rejected.message, name
    listed = await Stub(channel).ListBooks(books_pb2.ListBooksRequest(), metadata=bearer(issuer.token()))
    assert not [each for each in listed.books if each.name == "Not accepted"]


@pytest.mark.parametrize("method", METHODS)
async def test_each_method_requires_its_scope_and_no_other(channel: grpc.aio.Channel, method: str) -> None:
    needed = READ if method.rpartition("/")[2] in READING else WRITE
    for scope in ("", "books", "books.reader", "books.read", "books.write", "BOOKS.READ BOOKS.WRITE"):
        found = await outcome(channel, method, message(method).SerializeToString(), bearer(issuer.token(scope=scope)))
        if scope == needed:
            assert not isinstance(found, Rejection) or found.code not in (UNAUTHENTICATED, PERMISSION_DENIED)
        else:
            assert isinstance(found, Rejection), scope
            assert (found.code, found.reason) == (PERMISSION_DENIED, "SCOPE_MISSING"), scope
            assert found.metadata["scope"] == needed
            assert needed in found.message


def test_every_method_has_a_scope() -> None:
    assert {method: READ if method.rpartition("/")[2] in READING else WRITE for method in METHODS} == SCOPES_BY_METHOD


@pytest.mark.parametrize(
    "data",
    [
        pytest.param(books_pb2.GetBookRequest(id=1).SerializeToString(), id="a book that may exist"),
        pytest.param(books_pb2.GetBookRequest(id=2**40).SerializeToString(), id="a book that does not exist"),
        pytest.param(books_pb2.GetBookRequest(id=-1).SerializeToString(), id="an invalid request"),
        pytest.param(b"\xff\xff", id="a malformed message"),
    ],
)
async def test_permission_is_checked_before_the_database_is_read(channel: grpc.aio.Channel, data: bytes) -> None:
    method = "/bookstore.v1.BookService/GetBook"
    rejected = await outcome(channel, method, data, bearer(issuer.token(scope=WRITE)))
    assert isinstance(rejected, Rejection)
    assert (rejected.code, rejected.reason) == (PERMISSION_DENIED, "SCOPE_MISSING")


@pytest.mark.parametrize(
    "claims",
    [
        {"scope": BOTH},
        {"scope": "", "scp": BOTH.split()},
        {"scope": 7, "scp": BOTH},
        {"aud": ["another", "bookstore"]},
    ],
    ids=repr,
)
async def test_a_valid_token_is_accepted_in_every_form_of_its_claims(
    channel: grpc.aio.Channel, claims: dict[str, Any]
) -> None:
    request = books_pb2.CreateBookRequest(book=book("Accepted"))
    created = await Stub(channel).CreateBook(request, metadata=bearer(issuer.token(**claims)))
    assert created.name == "Accepted"


@pytest.mark.parametrize(
    "metadata",
    [
        lambda: bearer(rsa_issuer.token()),
        lambda: (("authorization", f"bearer  {issuer.token()}"),),
        lambda: bearer(issuer.token(headers={})),  # only one key is for its algorithm
    ],
    ids=["RSA", "scheme in any case", "no key named"],
)
async def test_valid_tokens_of_several_forms_are_accepted(
    channel: grpc.aio.Channel, metadata: Callable[[], Metadata]
) -> None:
    await Stub(channel).ListBooks(books_pb2.ListBooksRequest(), metadata=metadata())


async def test_a_token_that_was_accepted_is_rejected_once_it_has_expired(channel: grpc.aio.Channel) -> None:
    expires_at = now() + 3
    metadata = bearer(issuer.token(exp=expires_at))
    stub = Stub(channel)
    await stub.ListBooks(books_pb2.ListBooksRequest(), metadata=metadata)
    await stub.ListBooks(books_pb2.ListBooksRequest(), metadata=metadata)
    await asyncio.sleep(expires_at - time.time() + 0.01)
    rejected = await rejection(stub.ListBooks(books_pb2.ListBooksRequest(), metadata=metadata))
    assert rejected.reason == "TOKEN_INVALID"


async def test_health_is_open_and_reflection_is_not(channel: grpc.aio.Channel) -> None:
    assert await outcome(channel, HEALTH, b"", ()) == b"\x08\x01"
    assert await outcome(channel, HEALTH, b"", bearer("garbage")) == b"\x08\x01"
    call: grpc.aio.StreamStreamMultiCallable[bytes, bytes] = channel.stream_stream(REFLECTION)
    with pytest.raises(grpc.aio.AioRpcError) as caught:
        await call(iter([b":\x00"])).read()
    assert rejection_from_error(caught.value).reason == "TOKEN_MISSING"
    assert await call(iter([b":\x00"]), metadata=bearer(issuer.token(scope=""))).read()


async def test_health_can_be_closed(tmp_path: Path) -> None:
    settings = settings_for(
        f"sqlite+aiosqlite:///{tmp_path}/bookstore.db",
        **token_settings(issuer.write_jwks(tmp_path / "jwks"), health_access="guarded"),
    )
    async with running_server(settings) as server, grpc.aio.insecure_channel(server.addresses[0]) as channel:
        rejected = await outcome(channel, HEALTH, b"", ())
        assert isinstance(rejected, Rejection)
        assert rejected.reason == "TOKEN_MISSING"
        assert await outcome(channel, HEALTH, b"", bearer(issuer.token(scope=""))) == b"\x08\x01"


@given(
    value=st.one_of(st.text(st.characters(min_codepoint=0x20, max_codepoint=0x7E)), st.from_regex(r"Bearer [\w.-]*"))
)
async def test_no_authorization_causes_an_internal_error(channel: grpc.aio.Channel, value: str) -> None:
    value = "".join(each for each in value if " " <= each <= "~")
    rejected = await outcome(channel, METHODS[0], b"", (("authorization", value),))
    assert isinstance(rejected, Rejection)
    assert rejected.code is UNAUTHENTICATED


async def test_the_log_names_the_caller_and_contains_no_token(channel: grpc.aio.Channel, log_lines: LogLines) -> None:
    good, bad = issuer.token(sub="the-subject"), issuer.token(exp=1)
    await Stub(channel).ListBooks(books_pb2.ListBooksRequest(), metadata=bearer(good))
    await rejection(Stub(channel).ListBooks(books_pb2.ListBooksRequest(), metadata=bearer(bad)))
    text = json.dumps(log_lines())
    assert "the-subject" in text
    for token in (good, bad):
        assert not any(part in text for part in token.split("."))
