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
from tests.gateway.client import Wire, ask, head, rejected, response_on
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
    except OSError:  # TLS 1.3 reports a rejected certificate at the first read
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


async def test_plaintext_gets_no_response_from_a_tls_port(tmp_path: Path, log_lines: LogLines) -> None:
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
    context.set_ciphers("ALL:@SECLEVEL=0")  # so that it is the server that rejects
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
        assert (await asyncio.to_thread(response_on, old, "GET", "/v1/books")).status == 200
        first = await asyncio.to_thread(certificate_number, server)
        for _ in range(3):
            replacement = authority.server()
            replacement.write(tmp_path, "server")
            assert await asyncio.to_thread(certificate_number, server) == replacement.number != first
        assert (await asyncio.to_thread(response_on, old, "GET", "/v1/books")).status == 200
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
        response, session = await asyncio.to_thread(status, None)
        assert response == b"HTTP/1.1 200"
        write(ca, stranger.pem)
        try:
            response, _ = await asyncio.to_thread(status, session)
        except OSError:
            response = b""
        assert response == b""


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
        assert (await rejected(address, "POST", "/v1/books", BOOK, tls=reader)).reason == "SCOPE_MISSING"
        assert (await ask(address, "POST", "/v1/books", BOOK, tls=writer)).status == 201
        assert (await ask(address, "GET", "/v1/books", tls=by_number)).status == 200
        rejection = await rejected(address, "GET", "/v1/books", tls=unknown)
        assert (rejection.status, rejection.reason) == (401, "TOKEN_MISSING")
    callers = [line["caller"] for line in log_lines() if line["event"].startswith("call ")]
    assert callers == ["reader", "reader", "writer.example", "10.0.0.2", 'x","level":"error"\n\x1b[2J']


async def test_plaintext_to_other_machines_is_rejected_at_the_start(tmp_path: Path, log_lines: LogLines) -> None:
    with pytest.raises(StartupError, match=r"0\.0\.0\.0:0 can be reached from other machines"):
        async with http_server(tmp_path, http_listen="0.0.0.0:0"):
            pass
    async with http_server(tmp_path, http_listen="0.0.0.0:0", insecure=True) as server:
        assert (await ask(server.http_address, "GET", "/v1/books", host="any.example")).status == 200
    expected = [line["address"] for line in log_lines() if line["event"] == "serving in plaintext to other machines"]
    assert expected == ["0.0.0.0:0"]


@pytest.mark.parametrize(
    "address", ["nonsense", "127.0.0.1", "127.0.0.1:x", "unix:/tmp/socket", ":80", "127.0.0.1:99999"]
)
async def test_an_invalid_address_is_rejected_at_the_start(tmp_path: Path, address: str) -> None:
    with pytest.raises(StartupError, match="address"):
        async with http_server(tmp_path, http_listen=address):
            pass


async def test_a_port_in_use_is_rejected_at_the_start_and_no_other_port_stays_open(tmp_path: Path) -> None:
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
async def test_on_the_loopback_only_its_host_names_are_served(address: str, port: str) -> None:
    for host in OURS:
        assert (await ask(address, "GET", "/v1/books", host=f"{host}{port}")).status == 200
    for host in STRANGERS:
        for verb, path in (("GET", "/v1/books"), ("DELETE", "/v1/books/1"), ("GET", "/nowhere")):
            rejection = await rejected(address, verb, path, host=f"{host}{port}")
            assert (rejection.status, rejection.reason) == (403, "HOST_UNKNOWN")
            assert "--http-hosts" in rejection.message


async def test_configured_hosts_are_served_too(tmp_path: Path) -> None:
    async with http_server(tmp_path, http_hosts=("Books.Example", "10.0.0.1")) as server:
        for host in ("books.example", "BOOKS.example:443", "10.0.0.1", "localhost"):
            assert (await ask(server.http_address, "GET", "/v1/books", host=host)).status == 200
        assert (await rejected(server.http_address, "GET", "/v1/books", host="a.books.example")).status == 403


async def test_hosts_that_are_named_are_the_only_ones_on_an_address_that_others_reach(tmp_path: Path) -> None:
    settings = {"http_listen": "0.0.0.0:0", "insecure": True, "http_hosts": ("books.example",)}
    async with http_server(tmp_path, **settings) as server:
        assert (await ask(server.http_address, "GET", "/v1/books", host="books.example")).status == 200
        assert (await rejected(server.http_address, "GET", "/v1/books", host="evil.example")).status == 403


SHOP, EVIL = "https://shop.example", "https://evil.example"
PREFLIGHT = {"access_control_request_method": "PATCH", "access_control_request_headers": "content-type,if-match"}


def cors_headers(response: Any) -> set[str]:
    return {name for name in response.headers if name.startswith("access-control-")}


async def test_pages_of_other_origins_get_no_data_unless_they_are_configured(address: str) -> None:
    for verb in ("GET", "OPTIONS", "POST"):
        response = await ask(address, verb, "/v1/books", None, tls=None, origin=SHOP, **PREFLIGHT)
        assert not cors_headers(response)
        assert verb == "GET" or response.status >= 400


async def test_pages_of_named_origins_may_call_and_others_may_not(tmp_path: Path) -> None:
    async with http_server(tmp_path, http_origins=(SHOP, "http://localhost:3000")) as server:
        address = server.http_address
        for origin in (SHOP, "http://localhost:3000"):
            response = await ask(address, "GET", "/v1/books", origin=origin)
            assert response.headers["access-control-allow-origin"] == origin
            assert "Origin" in response.headers["vary"]
            assert "ETag" in response.headers["access-control-expose-headers"]
            assert "access-control-allow-credentials" not in response.headers
            preflight = await ask(address, "OPTIONS", "/v1/books/1", tls=None, origin=origin, **PREFLIGHT)
            assert (preflight.status, preflight.headers["access-control-allow-origin"]) == (200, origin)
            assert "PATCH" in preflight.headers["access-control-allow-methods"]
        for origin in (EVIL, "null", "https://shop.example.evil.example", "http://shop.example", f"{SHOP}:444"):
            response = await ask(address, "GET", "/v1/books", origin=origin)
            assert "access-control-allow-origin" not in response.headers
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
async def test_an_invalid_origin_is_rejected_at_the_start(tmp_path: Path, origin: str) -> None:
    with pytest.raises(StartupError, match="is not an origin"):
        async with http_server(tmp_path, http_origins=(origin,)):
            pass


@pytest.mark.parametrize("host", ["", "*", "books.example:443", "https://books.example", "[::1]", "a b", ".example"])
async def test_an_invalid_host_name_is_rejected_at_the_start(tmp_path: Path, host: str) -> None:
    with pytest.raises(StartupError, match="is not a host name"):
        async with http_server(tmp_path, http_hosts=(host,)):
            pass


@pytest.mark.parametrize(
    "content_type", ["text/plain", "application/x-www-form-urlencoded", "multipart/form-data; boundary=x"]
)
async def test_a_form_of_another_origin_writes_nothing(address: str, content_type: str) -> None:
    # What browsers send to other origins without asking first.
    body = b'{"name": "N", "author": "A", "releaseYear": 1}'
    for path in ("/v1/books", "/v1/books:batchCreate"):
        assert (await rejected(address, "POST", path, body, content_type=content_type, origin=EVIL)).status == 415
    assert (await ask(address, "GET", "/v1/books")).json == {}
