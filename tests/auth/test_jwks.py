"""The keys of tokens: what may be one, and that they are read again as they change and kept while they cannot be."""

import asyncio
import json
import threading
import time
from collections.abc import Iterator
from contextlib import contextmanager
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from pathlib import Path
from typing import Any

import grpc
import pytest
from bookstore.v1 import books_pb2

from bookstore_grpc.auth.jwks import keys_from_jwks
from bookstore_grpc.errors import StartupError
from bookstore_grpc.server.app import running_server
from tests.conftest import LogLines, settings_for
from tests.rpc.calls import Stub
from tests.rpc.obstacles import until
from tests.tokens import Issuer, bearer, elliptic_key, public_jwk, rsa_key, token_settings


def jwks(*keys: Any) -> bytes:
    return json.dumps({"keys": keys}).encode()


class Origin:
    """Where keys are fetched: a web server on the loopback."""

    def __init__(self) -> None:
        self.text = b""
        self.status = 200
        self.location = ""
        self.length: int | None = None
        self.may_respond = threading.Event()
        self.may_respond.set()
        self.fetched = 0
        self.url = ""


@pytest.fixture
def origin() -> Iterator[Origin]:
    with serving_keys() as found:
        yield found


@contextmanager
def serving_keys() -> Iterator[Origin]:
    origin = Origin()

    class Handler(BaseHTTPRequestHandler):
        def do_GET(self) -> None:
            origin.fetched += 1
            origin.may_respond.wait(20)
            self.send_response(origin.status)
            if origin.location:
                self.send_header("Location", origin.location)
            if origin.length:
                self.send_header("Content-Length", str(origin.length))
            self.end_headers()
            self.wfile.write(origin.text)

        def log_message(self, *_arguments: object) -> None:
            pass

    with ThreadingHTTPServer(("127.0.0.1", 0), Handler) as server:
        origin.url = f"http://127.0.0.1:{server.server_port}/keys"
        thread = threading.Thread(target=server.serve_forever, kwargs={"poll_interval": 0.01})
        thread.start()
        try:
            yield origin
        finally:
            server.shutdown()
            thread.join()


def settings(tmp_path: Path, **values: Any) -> Any:
    return settings_for(f"sqlite+aiosqlite:///{tmp_path}/bookstore.db", **{**token_settings(Path()), **values})


async def is_let_in(stub: Stub, issuer: Issuer) -> bool:
    call = stub.ListBooks(books_pb2.ListBooksRequest(), metadata=bearer(issuer.token()), timeout=30)
    code = await call.code()
    assert code in (grpc.StatusCode.OK, grpc.StatusCode.UNAUTHENTICATED)
    return code is grpc.StatusCode.OK


@pytest.mark.parametrize(
    ("jwk", "cause"),
    [
        ({"kty": "oct", "k": "c2VjcmV0", "kid": "a"}, "not a public key of a known type"),
        ("text", "not a public key of a known type"),
        (public_jwk(elliptic_key(), "a", d="AA"), "private"),
        (public_jwk(elliptic_key(), "a", use="enc"), "not meant for signatures"),
        (public_jwk(elliptic_key(), "a", key_ops=["encrypt"]), "not meant for signatures"),
        (public_jwk(elliptic_key(), "a", key_ops=None), "damaged"),
        (public_jwk(elliptic_key(), "a", alg=[]), "damaged"),
        (public_jwk(elliptic_key(), "a", alg="HS256"), "does not match"),
        (public_jwk(elliptic_key(), "a", alg="RS256"), "does not match"),
        (public_jwk(elliptic_key(), "a", x="!!"), "damaged"),
        (public_jwk(rsa_key(1_024), "a"), "shorter than 2048"),
    ],
    ids=lambda value: value if isinstance(value, str) else "",
)
def test_unusable_keys_are_ignored_and_logged(jwk: Any, cause: str, log_lines: LogLines) -> None:
    good = public_jwk(elliptic_key(), "good", use="sig", key_ops=["verify"], alg="ES256")
    assert [key.name for key in keys_from_jwks(jwks(jwk, good))] == ["good"]
    (line,) = [line for line in log_lines() if line["event"] == "key ignored"]
    assert cause in line["cause"]


@pytest.mark.parametrize("text", [b"", b"{}", b"[]", b'{"keys": 7}', b'{"keys": []}', b"\xff", b"[" * 100_000])
async def test_a_file_without_keys_keeps_the_server_from_starting(text: bytes, tmp_path: Path) -> None:
    path = tmp_path / "jwks"
    path.write_bytes(text)
    with pytest.raises(StartupError, match=r"Cannot read the keys of tokens from .*jwks"):
        async with running_server(settings(tmp_path, jwks_file=str(path))):
            pass


@pytest.mark.parametrize(
    ("values", "sentence"),
    [
        ({"jwks_file": "/nowhere/jwks"}, "No such file"),
        ({"jwks_url": "https://keys.example", "jwks_file": "a"}, "either --jwks-file or --jwks-url"),
        ({"jwks_url": "http://keys.example/", "jwks_file": ""}, "give an https URL"),
        ({"jwks_url": "file:///etc/passwd", "jwks_file": ""}, "give an https URL"),
        ({"jwks_file": "a", "token_issuer": ""}, "--token-issuer"),
        ({"jwks_file": "a", "token_audience": ""}, "--token-audience"),
        ({"jwks_file": ""}, "give --jwks-file or --jwks-url"),
        ({"jwks_file": "", "token_issuer": "", "token_audience": "", "client_scopes": ("a=books.read",)}, "client-ca"),
    ],
    ids=lambda value: value if isinstance(value, str) else "",
)
async def test_contradicting_settings_are_an_error(values: dict[str, Any], sentence: str, tmp_path: Path) -> None:
    with pytest.raises(StartupError, match=sentence):
        async with running_server(settings(tmp_path, **values)):
            pass


async def test_a_file_that_changes_is_read_again_and_a_withdrawn_key_counts_no_more(tmp_path: Path) -> None:
    first, second = Issuer(name="first"), Issuer(name="second")
    path = first.write_jwks(tmp_path / "jwks")
    async with (
        running_server(settings(tmp_path, jwks_file=str(path), jwks_refresh_seconds=0.02)) as server,
        grpc.aio.insecure_channel(server.addresses[0]) as channel,
    ):
        stub = Stub(channel)
        assert await is_let_in(stub, first)
        second.write_jwks(path)
        await until(lambda: is_let_in(stub, second))
        assert not await is_let_in(stub, first)


async def test_keys_are_kept_while_the_file_is_invalid_which_is_logged_once(
    tmp_path: Path, log_lines: LogLines
) -> None:
    issuer = Issuer()
    path = issuer.write_jwks(tmp_path / "jwks")

    async def has_logged(event: str) -> bool:
        return event in [line["event"] for line in log_lines()]

    async with (
        running_server(settings(tmp_path, jwks_file=str(path), jwks_refresh_seconds=0.02)) as server,
        grpc.aio.insecure_channel(server.addresses[0]) as channel,
    ):
        path.unlink()
        await until(lambda: has_logged("keys not refreshed: old ones stay in use"))
        assert await is_let_in(Stub(channel), issuer)
        issuer.write_jwks(path)
        await until(lambda: has_logged("keys refreshed again"))
    assert [line["event"] for line in log_lines()].count("keys not refreshed: old ones stay in use") == 1


async def test_a_file_that_stays_invalid_is_not_reported_as_valid(tmp_path: Path, log_lines: LogLines) -> None:
    issuer, later = Issuer(name="first"), Issuer(name="later")
    path = issuer.write_jwks(tmp_path / "jwks")
    async with (
        running_server(settings(tmp_path, jwks_file=str(path), jwks_refresh_seconds=0.01)) as server,
        grpc.aio.insecure_channel(server.addresses[0]) as channel,
    ):
        path.write_bytes(b"oops")
        await asyncio.sleep(0.2)
        assert await is_let_in(Stub(channel), issuer)
        assert "keys refreshed again" not in [line["event"] for line in log_lines()]
        later.write_jwks(path)
        await until(lambda: is_let_in(Stub(channel), later))
    events = [line["event"] for line in log_lines()]
    assert events.count("keys not refreshed: old ones stay in use") == events.count("keys refreshed again") == 1


async def test_an_ignored_key_is_logged_when_it_appears_and_not_at_every_refresh(
    tmp_path: Path, origin: Origin, log_lines: LogLines
) -> None:
    keys = (public_jwk(elliptic_key(), "good"), public_jwk(elliptic_key(), "bad", use="enc"))
    origin.text = jwks(*keys)

    async def has_looked_again() -> bool:
        return origin.fetched > 4

    async with running_server(settings(tmp_path, jwks_file="", jwks_url=origin.url, jwks_refresh_seconds=0.01)):
        await until(has_looked_again)
    assert [line["event"] for line in log_lines()].count("key ignored") == 1


async def test_an_incomplete_response_is_a_failure_like_others(tmp_path: Path, origin: Origin) -> None:
    issuer, later = Issuer(name="first"), Issuer(name="later")
    origin.text = issuer.jwks().encode()
    async with (
        running_server(settings(tmp_path, jwks_file="", jwks_url=origin.url, jwks_refresh_seconds=0.02)) as server,
        grpc.aio.insecure_channel(server.addresses[0]) as channel,
    ):
        stub = Stub(channel)
        origin.length = 1_000_000  # urllib waits for more, and finds the end
        fetched = origin.fetched

        async def has_failed() -> bool:
            return origin.fetched > fetched + 2

        await until(has_failed)
        assert await is_let_in(stub, issuer)
        origin.length, origin.text = None, later.jwks().encode()
        await until(lambda: is_let_in(stub, later))


async def test_a_password_in_the_url_is_rejected_and_not_repeated(tmp_path: Path, origin: Origin) -> None:
    url = origin.url.replace("http://", "http://me:hidden@")
    with pytest.raises(StartupError, match="without user and password") as caught:
        async with running_server(settings(tmp_path, jwks_file="", jwks_url=url)):
            pass
    assert "hidden" not in str(caught.value)


async def test_an_unknown_key_sends_for_the_keys_at_once_but_a_flood_of_them_does_not(
    tmp_path: Path, origin: Origin
) -> None:
    first, second = Issuer(name="first"), Issuer(name="second")
    origin.text = first.jwks().encode()
    async with (
        running_server(settings(tmp_path, jwks_file="", jwks_url=origin.url, jwks_refresh_seconds=3_600)) as server,
        grpc.aio.insecure_channel(server.addresses[0]) as channel,
    ):
        stub = Stub(channel)
        assert await is_let_in(stub, first)
        assert origin.fetched == 1
        origin.text = second.jwks().encode()
        assert await is_let_in(stub, second)
        for number in range(20):
            assert not await is_let_in(stub, Issuer(name=f"unknown {number}"))
        assert origin.fetched == 2


async def test_other_calls_do_not_wait_while_unknown_keys_are_fetched(tmp_path: Path, origin: Origin) -> None:
    issuer = Issuer()
    origin.text = issuer.jwks().encode()
    values = settings(tmp_path, jwks_file="", jwks_url=origin.url, max_concurrent_calls=5)
    async with running_server(values) as server, grpc.aio.insecure_channel(server.addresses[0]) as channel:
        stub = Stub(channel)
        origin.may_respond.clear()
        began = time.monotonic()
        waiting = asyncio.create_task(is_let_in(stub, Issuer(name="unknown")))
        await asyncio.sleep(0.1)
        rejected = await asyncio.gather(*(is_let_in(stub, Issuer(name=f"unknown {number}")) for number in range(5)))
        assert not any(rejected)
        assert await is_let_in(stub, issuer)
        assert not waiting.done()
        assert not await waiting
        assert time.monotonic() - began < 3
    # The server has ended although its request is still open; now the origin may respond.
    assert time.monotonic() - began < 6
    origin.may_respond.set()


@pytest.mark.parametrize("name", ["http_proxy", "HTTP_PROXY", "all_proxy"])
async def test_keys_in_plaintext_do_not_come_by_way_of_a_proxy(
    name: str, tmp_path: Path, origin: Origin, monkeypatch: pytest.MonkeyPatch
) -> None:
    origin.text = Issuer().jwks().encode()
    monkeypatch.setenv(name, origin.url)
    with pytest.raises(StartupError, match="refused"):
        async with running_server(settings(tmp_path, jwks_file="", jwks_url="http://127.0.0.1:1/keys")):
            pass
    assert origin.fetched == 0


async def test_keys_outlive_an_outage_of_their_origin(tmp_path: Path) -> None:
    issuer, later = Issuer(name="first"), Issuer(name="later")
    with serving_keys() as origin:
        origin.text = issuer.jwks().encode()
        async with (
            running_server(settings(tmp_path, jwks_file="", jwks_url=origin.url, jwks_refresh_seconds=0.02)) as server,
            grpc.aio.insecure_channel(server.addresses[0]) as channel,
        ):
            stub = Stub(channel)
            origin.status, origin.text = 500, b"oops"
            fetched = origin.fetched

            async def has_failed() -> bool:
                return origin.fetched > fetched + 2

            await until(has_failed)
            assert await is_let_in(stub, issuer)
            origin.status, origin.text = 200, later.jwks().encode()
            await until(lambda: is_let_in(stub, later))


async def test_an_unreachable_origin_at_the_start_is_an_error(tmp_path: Path) -> None:
    with serving_keys() as origin:
        url = origin.url
    with pytest.raises(StartupError, match=r"Cannot read the keys of tokens from http://127\.0\.0\.1"):
        async with running_server(settings(tmp_path, jwks_file="", jwks_url=url)):
            pass


async def test_keys_come_from_the_url_that_is_named_and_from_nowhere_else(tmp_path: Path, origin: Origin) -> None:
    with serving_keys() as elsewhere:
        elsewhere.text = Issuer().jwks().encode()
        origin.status, origin.location = 302, elsewhere.url
        with pytest.raises(StartupError, match="302"):
            async with running_server(settings(tmp_path, jwks_file="", jwks_url=origin.url)):
                pass
        assert elsewhere.fetched == 0


async def test_the_key_set_of_a_url_is_bounded(tmp_path: Path, origin: Origin) -> None:
    origin.text = b" " * (1024 * 1024 + 1)
    with pytest.raises(StartupError, match="too long"):
        async with running_server(settings(tmp_path, jwks_file="", jwks_url=origin.url)):
            pass
