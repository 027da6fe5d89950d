"""Who gets in over HTTP: TLS and mutual TLS from the same files, hosts by their names, and pages of other origins."""

import asyncio
import http.client
import socket
import ssl
import warnings
from pathlib import Path
from typing import Any

import grpc
import pytest
from bookstore.v1 import books_pb2
from cryptography import x509

from bookstore_grpc.errors import StartupError
from bookstore_grpc.rpc.server import Server
from tests.certificates import Authority, Certificate
from tests.conftest import LogLines
from tests.gateway.client import Wire, answer_on, ask, head, refused
from tests.gateway.servers import http_server
from tests.rpc.calls import Stub

BOOK = {"name": "N", "author": "A", "releaseYear": 1}

authority = Authority()
stranger = Authority("stranger")


def files(folder: Path, **settings: Any) -> dict[str, Any]:
    cert, key = authority.server().write(folder, "server")
    return {"tls_cert": cert, "tls_key": key, **settings}


def trusting(
    trusts: Authority = authority, *, shows: Certificate | None = None, folder: Path | None = None
) -> ssl.SSLContext:
    context = ssl.create_default_context(cadata=trusts.pem.decode())
    if shows and folder:
        context.load_cert_chain(*shows.write(folder, "shown"))
    return context


def write(path: str, contents: bytes) -> None:
    Path(path).write_bytes(contents)


async def is_served(server: Server, tls: ssl.SSLContext) -> bool:
    try:
        return (await ask(server.http_address, "GET", "/v1/books", tls=tls)).status == 200
    except OSError:  # TLS 1.3 tells of a refused certificate when something is read
        return False


def certificate_number(server: Server) -> int:
    host, _, port = server.http_address.rpartition(":")
    with ssl.create_default_context(cadata=authority.pem.decode()).wrap_socket(
        Wire(server.http_address).socket, server_hostname=host
    ) as encrypted:
        assert port
        return x509.load_der_x509_certificate(encrypted.getpeercert(binary_form=True) or b"").serial_number


async def test_http_travels_by_tls_where_grpc_does(tmp_path: Path) -> None:
    async with http_server(tmp_path, **files(tmp_path)) as server:
        assert await is_served(server, trusting())
        assert not await is_served(server, trusting(stranger))
        credentials = grpc.ssl_channel_credentials(authority.pem)
        async with grpc.aio.secure_channel(server.addresses[0], credentials) as channel:
            await Stub(channel).ListBooks(books_pb2.ListBooksRequest(), timeout=30)


async def test_plaintext_gets_no_answer_from_a_port_of_tls(tmp_path: Path, log_lines: LogLines) -> None:
    async with http_server(tmp_path, **files(tmp_path)) as server:

        def plain() -> bytes:
            with Wire(server.http_address) as wire:
                wire.send(head("GET", "/v1/books"))
                return wire.read_to_end(5)

        assert b"HTTP/1.1 200" not in await asyncio.to_thread(plain)
        assert await is_served(server, trusting())
    assert "error" not in {line["level"] for line in log_lines()}


@pytest.mark.parametrize(
    ("most", "spoken"),
    [(ssl.TLSVersion.TLSv1_1, ""), (ssl.TLSVersion.TLSv1_2, "TLSv1.2"), (ssl.TLSVersion.TLSv1_3, "TLSv1.3")],
)
async def test_tls_is_spoken_from_1_2_on(tmp_path: Path, most: ssl.TLSVersion, spoken: str) -> None:
    context = ssl.SSLContext(ssl.PROTOCOL_TLS_CLIENT)
    context.load_verify_locations(cadata=authority.pem.decode())
    context.set_alpn_protocols(["h2", "http/1.1"])
    context.set_ciphers("ALL:@SECLEVEL=0")  # so that it is the server that refuses
    with warnings.catch_warnings():
        warnings.simplefilter("ignore", DeprecationWarning)
        context.minimum_version = ssl.TLSVersion.TLSv1
        context.maximum_version = most

    def handshake() -> tuple[str | None, str | None]:
        with context.wrap_socket(Wire(server.http_address).socket, server_hostname="127.0.0.1") as encrypted:
            return encrypted.version(), encrypted.selected_alpn_protocol()

    async with http_server(tmp_path, **files(tmp_path)) as server:
        if spoken:
            assert await asyncio.to_thread(handshake) == (spoken, "http/1.1")
        else:
            with pytest.raises((ssl.SSLError, ConnectionError)):
                await asyncio.to_thread(handshake)


async def test_new_handshakes_get_the_new_certificate_and_old_connections_live_on(tmp_path: Path) -> None:
    async with http_server(tmp_path, **files(tmp_path)) as server:
        old = http.client.HTTPSConnection(server.http_address, context=trusting(), timeout=30)
        assert (await asyncio.to_thread(answer_on, old, "GET", "/v1/books")).status == 200
        first = await asyncio.to_thread(certificate_number, server)
        for _ in range(3):
            replacement = authority.server()
            replacement.write(tmp_path, "server")
            assert await asyncio.to_thread(certificate_number, server) == replacement.number != first
        assert (await asyncio.to_thread(answer_on, old, "GET", "/v1/books")).status == 200
        old.close()


async def test_new_files_that_cannot_be_used_keep_the_old_ones(tmp_path: Path) -> None:
    async with http_server(tmp_path, **files(tmp_path)) as server:
        first = await asyncio.to_thread(certificate_number, server)
        (tmp_path / "server.pem").write_text("nonsense")
        assert await asyncio.to_thread(certificate_number, server) == first
        replacement = authority.server()
        replacement.write(tmp_path, "server")
        assert await asyncio.to_thread(certificate_number, server) == replacement.number


async def test_with_mutual_tls_only_clients_that_the_authority_vouches_for_are_served(tmp_path: Path) -> None:
    async with http_server(tmp_path, **files(tmp_path, tls_client_ca=authority.write(tmp_path))) as server:
        assert await is_served(server, trusting(shows=authority.certificate("client"), folder=tmp_path))
        assert not await is_served(server, trusting())
        assert not await is_served(server, trusting(shows=stranger.certificate("client"), folder=tmp_path))
        assert not await is_served(server, trusting(shows=authority.certificate("client", days=-1), folder=tmp_path))


async def test_a_new_authority_for_clients_counts_without_a_restart(tmp_path: Path) -> None:
    ca = authority.write(tmp_path)
    ours = trusting(shows=authority.certificate("client"), folder=tmp_path)
    theirs = trusting(shows=stranger.certificate("client"), folder=tmp_path)
    async with http_server(tmp_path, **files(tmp_path, tls_client_ca=ca)) as server:
        assert (await is_served(server, ours), await is_served(server, theirs)) == (True, False)
        write(ca, authority.pem + stranger.pem)
        assert (await is_served(server, ours), await is_served(server, theirs)) == (True, True)
        write(ca, stranger.pem)
        assert (await is_served(server, ours), await is_served(server, theirs)) == (False, True)


@pytest.mark.parametrize("version", [ssl.TLSVersion.TLSv1_2, ssl.TLSVersion.TLSv1_3])
async def test_a_session_from_before_does_not_get_a_client_past_a_new_authority(
    tmp_path: Path, version: ssl.TLSVersion
) -> None:
    ca = authority.write(tmp_path)
    context = trusting(shows=authority.certificate("client"), folder=tmp_path)
    context.minimum_version = context.maximum_version = version

    def status(session: ssl.SSLSession | None) -> tuple[bytes, ssl.SSLSession | None]:
        with context.wrap_socket(
            Wire(server.http_address).socket, server_hostname="127.0.0.1", session=session
        ) as encrypted:
            encrypted.sendall(head("GET", "/v1/books"))
            return encrypted.recv(65_536)[:12], encrypted.session

    async with http_server(tmp_path, **files(tmp_path, tls_client_ca=ca)) as server:
        answer, session = await asyncio.to_thread(status, None)
        assert answer == b"HTTP/1.1 200"
        write(ca, stranger.pem)
        try:
            answer, _ = await asyncio.to_thread(status, session)
        except OSError:
            answer = b""
        assert answer == b""


async def test_names_in_certificates_have_their_scopes_over_http(tmp_path: Path, log_lines: LogLines) -> None:
    reader = trusting(shows=authority.certificate("reader"), folder=tmp_path)
    writer = trusting(shows=authority.certificate("anything", hosts=["writer.example", "10.0.0.1"]), folder=tmp_path)
    by_number = trusting(shows=authority.certificate("else", hosts=["10.0.0.2"]), folder=tmp_path)
    unknown = trusting(shows=authority.certificate('x","level":"error"\n\x1b[2J'), folder=tmp_path)
    scopes = ("reader=books.read", "writer.example=books.write,books.read", "10.0.0.2=books.read")
    settings = files(tmp_path, tls_client_ca=authority.write(tmp_path), client_scopes=scopes)
    async with http_server(tmp_path, **settings) as server:
        address = server.http_address
        assert (await ask(address, "GET", "/v1/books", tls=reader)).status == 200
        assert (await refused(address, "POST", "/v1/books", BOOK, tls=reader)).reason == "SCOPE_MISSING"
        assert (await ask(address, "POST", "/v1/books", BOOK, tls=writer)).status == 201
        assert (await ask(address, "GET", "/v1/books", tls=by_number)).status == 200
        refusal = await refused(address, "GET", "/v1/books", tls=unknown)
        assert (refusal.status, refusal.reason) == (401, "TOKEN_MISSING")
    callers = [line["caller"] for line in log_lines() if line["event"].startswith("call ")]
    assert callers == ["reader", "reader", "writer.example", "10.0.0.2", 'x","level":"error"\n\x1b[2J']


async def test_plaintext_to_other_machines_is_refused_at_the_start(tmp_path: Path, log_lines: LogLines) -> None:
    with pytest.raises(StartupError, match=r"0\.0\.0\.0:0 can be reached from other machines"):
        async with http_server(tmp_path, http_listen="0.0.0.0:0"):
            pass
    async with http_server(tmp_path, http_listen="0.0.0.0:0", insecure=True) as server:
        assert (await ask(server.http_address, "GET", "/v1/books", host="any.example")).status == 200
    told = [line["address"] for line in log_lines() if line["event"] == "serving in plaintext to other machines"]
    assert told == ["0.0.0.0:0"]


@pytest.mark.parametrize(
    "address", ["nonsense", "127.0.0.1", "127.0.0.1:x", "unix:/tmp/socket", ":80", "127.0.0.1:99999"]
)
async def test_what_is_no_address_is_refused_at_the_start(tmp_path: Path, address: str) -> None:
    with pytest.raises(StartupError, match="address"):
        async with http_server(tmp_path, http_listen=address):
            pass


async def test_a_port_in_use_is_refused_at_the_start_and_leaves_nobody_listening(tmp_path: Path) -> None:
    async with http_server(tmp_path) as server:
        (grpc_address,) = server.addresses
    listen = {"listen": (grpc_address,)}
    async with http_server(tmp_path) as server:
        with pytest.raises(StartupError, match=rf"Cannot listen on {server.http_address}: the address is in use"):
            async with http_server(tmp_path, http_listen=server.http_address, **listen):
                pass
        assert not can_connect(grpc_address)


def can_connect(address: str) -> bool:
    host, _, port = address.rpartition(":")
    with socket.socket() as connection:
        return connection.connect_ex((host, int(port))) == 0


OURS = ["localhost", "127.0.0.1", "127.8.9.1", "[::1]", "LocalHost"]
STRANGERS = ["evil.example", "localhost.evil.example", "127.0.0.1.evil.example", "10.0.0.1", "0.0.0.0", "[::2]", ""]


@pytest.mark.parametrize("port", ["", ":80", ":8080"])
async def test_on_the_loopback_only_its_names_are_answered(address: str, port: str) -> None:
    for host in OURS:
        assert (await ask(address, "GET", "/v1/books", host=f"{host}{port}")).status == 200
    for host in STRANGERS:
        for verb, path in (("GET", "/v1/books"), ("DELETE", "/v1/books/1"), ("GET", "/nowhere")):
            refusal = await refused(address, verb, path, host=f"{host}{port}")
            assert (refusal.status, refusal.reason) == (403, "HOST_UNKNOWN")
            assert "--http-hosts" in refusal.message


async def test_hosts_that_are_named_are_answered_too(tmp_path: Path) -> None:
    async with http_server(tmp_path, http_hosts=("Books.Example", "10.0.0.1")) as server:
        for host in ("books.example", "BOOKS.example:443", "10.0.0.1", "localhost"):
            assert (await ask(server.http_address, "GET", "/v1/books", host=host)).status == 200
        assert (await refused(server.http_address, "GET", "/v1/books", host="a.books.example")).status == 403


async def test_hosts_that_are_named_are_the_only_ones_on_an_address_that_others_reach(tmp_path: Path) -> None:
    settings = {"http_listen": "0.0.0.0:0", "insecure": True, "http_hosts": ("books.example",)}
    async with http_server(tmp_path, **settings) as server:
        assert (await ask(server.http_address, "GET", "/v1/books", host="books.example")).status == 200
        assert (await refused(server.http_address, "GET", "/v1/books", host="evil.example")).status == 403


SHOP, EVIL = "https://shop.example", "https://evil.example"
PREFLIGHT = {"access_control_request_method": "PATCH", "access_control_request_headers": "content-type,if-match"}


def cors_headers(answer: Any) -> set[str]:
    return {name for name in answer.headers if name.startswith("access-control-")}


async def test_pages_of_other_origins_are_told_nothing_unless_they_are_named(address: str) -> None:
    for verb in ("GET", "OPTIONS", "POST"):
        answer = await ask(address, verb, "/v1/books", None, tls=None, origin=SHOP, **PREFLIGHT)
        assert not cors_headers(answer)
        assert verb == "GET" or answer.status >= 400


async def test_pages_of_named_origins_may_call_and_others_may_not(tmp_path: Path) -> None:
    async with http_server(tmp_path, http_origins=(SHOP, "http://localhost:3000")) as server:
        address = server.http_address
        for origin in (SHOP, "http://localhost:3000"):
            answer = await ask(address, "GET", "/v1/books", origin=origin)
            assert answer.headers["access-control-allow-origin"] == origin
            assert "Origin" in answer.headers["vary"]
            assert "ETag" in answer.headers["access-control-expose-headers"]
            assert "access-control-allow-credentials" not in answer.headers
            preflight = await ask(address, "OPTIONS", "/v1/books/1", tls=None, origin=origin, **PREFLIGHT)
            assert (preflight.status, preflight.headers["access-control-allow-origin"]) == (200, origin)
            assert "PATCH" in preflight.headers["access-control-allow-methods"]
        for origin in (EVIL, "null", "https://shop.example.evil.example", "http://shop.example", f"{SHOP}:444"):
            answer = await ask(address, "GET", "/v1/books", origin=origin)
            assert "access-control-allow-origin" not in answer.headers
            preflight = await ask(address, "OPTIONS", "/v1/books/1", tls=None, origin=origin, **PREFLIGHT)
            assert preflight.status == 400
            assert "access-control-allow-origin" not in preflight.headers
        failed = await ask(address, "GET", "/v1/books/9", origin=SHOP)
        assert (failed.status, failed.headers["access-control-allow-origin"]) == (404, SHOP)


@pytest.mark.parametrize(
    "origin",
    [
        "*",
        "https://*.example",
        "shop.example",
        "null",
        "https://shop.example/",
        "ftp://a",
        "https://",
        "",
        # What no browser sends, so it would never be met.
        "https://Shop.example",
        "https://shop.example:443",
        "http://shop.example:80",
    ],
)
async def test_what_is_no_origin_is_refused_at_the_start(tmp_path: Path, origin: str) -> None:
    with pytest.raises(StartupError, match="is not an origin"):
        async with http_server(tmp_path, http_origins=(origin,)):
            pass


@pytest.mark.parametrize("host", ["", "*", "books.example:443", "https://books.example", "[::1]", "a b", ".example"])
async def test_what_is_no_host_name_is_refused_at_the_start(tmp_path: Path, host: str) -> None:
    with pytest.raises(StartupError, match="is not a host name"):
        async with http_server(tmp_path, http_hosts=(host,)):
            pass


@pytest.mark.parametrize(
    "content_type", ["text/plain", "application/x-www-form-urlencoded", "multipart/form-data; boundary=x"]
)
async def test_a_form_of_a_stranger_s_page_writes_nothing(address: str, content_type: str) -> None:
    # What browsers send to other origins without asking first.
    body = b'{"name": "N", "author": "A", "releaseYear": 1}'
    for path in ("/v1/books", "/v1/books:batchCreate"):
        assert (await refused(address, "POST", path, body, content_type=content_type, origin=EVIL)).status == 415
    assert (await ask(address, "GET", "/v1/books")).json == {}
