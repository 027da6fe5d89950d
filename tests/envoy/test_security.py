"""What Envoy accepts and forwards: TLS only, listed origins, tokens, request ids, and no headers of its own."""

import asyncio
import socket
import ssl
from collections.abc import AsyncIterator, Sequence
from pathlib import Path
from typing import Any

import grpc
import pytest
from bookstore.v1 import books_pb2, books_pb2_grpc

from tests.certificates import Authority
from tests.envoy.callers import (
    ask,
    framed,
    outcome_from_json,
    outcome_from_web,
    outcome_of,
    path_of,
    web_headers,
)
from tests.envoy.edge import ORIGIN, Edge, Envoy, running_edge
from tests.executable import serving, wait_until
from tests.gateway.client import Response
from tests.rpc.calls import REQUEST_ID_KEY
from tests.tokens import AUDIENCE, ISSUER, Issuer

FOREIGN = "https://app.example.evil.example"


def get(edge: Edge, target: str, **headers: str) -> Response:
    names = {name.replace("_", "-"): value for name, value in headers.items()}
    return ask(edge.envoy.address, edge.envoy.ca, "GET", target, headers=names)


def line_of(edge: Edge, request_id: str) -> dict[str, Any]:
    """Wait for a call's line in Envoy's log and return it."""

    def lines() -> list[dict[str, Any]]:
        return [line for line in edge.envoy.calls() if line["request_id"] == request_id]

    wait_until(lines, "the call's line is written")
    (line,) = lines()
    return line


def preflight(edge: Edge, target: str, origin: str, method: str) -> Response:
    headers = {
        "origin": origin,
        "access-control-request-method": method,
        "access-control-request-headers": "content-type,x-grpc-web",
    }
    return ask(edge.envoy.address, edge.envoy.ca, "OPTIONS", target, headers=headers)


def shaken(
    envoy: Envoy, *, alpn: Sequence[str] = (), ciphers: str = "DEFAULT", **options: ssl.TLSVersion
) -> tuple[str | None, str | None, bytes]:
    """Return TLS version, protocol (ALPN) and certificate of a handshake."""
    context = ssl.create_default_context(cafile=envoy.ca)
    context.set_ciphers(ciphers)
    context.set_alpn_protocols(alpn)
    for name, value in options.items():
        setattr(context, name, value)
    host, _, port = envoy.address.rpartition(":")
    with (
        socket.create_connection((host, int(port)), timeout=10) as plain,
        context.wrap_socket(plain, server_hostname=host) as connection,
    ):
        certificate = connection.getpeercert(binary_form=True)
        assert certificate is not None
        return connection.version(), connection.selected_alpn_protocol(), certificate


def test_plaintext_is_rejected(edge: Edge) -> None:
    host, _, port = edge.envoy.address.rpartition(":")
    with socket.create_connection((host, int(port)), timeout=10) as connection:
        connection.sendall(b"GET /v1/books HTTP/1.1\r\nHost: localhost\r\n\r\n")
        assert b"HTTP" not in connection.recv(1_000)


def test_http_2_is_preferred_and_http_1_1_is_accepted(edge: Edge) -> None:
    assert shaken(edge.envoy, alpn=["http/1.1", "h2"])[1] == "h2"
    assert shaken(edge.envoy, alpn=["http/1.1"])[1] == "http/1.1"


def test_tls_before_1_2_is_rejected(edge: Edge) -> None:
    assert shaken(edge.envoy)[0] == "TLSv1.3"
    assert shaken(edge.envoy, maximum_version=ssl.TLSVersion.TLSv1_2)[0] == "TLSv1.2"
    # This side's OpenSSL would offer no less either.
    old = ssl.TLSVersion.TLSv1_1
    with (
        pytest.warns(DeprecationWarning, match="TLSv1_1"),
        pytest.raises(ssl.SSLError, match="ALERT_PROTOCOL_VERSION"),
    ):
        shaken(edge.envoy, ciphers="ALL:@SECLEVEL=0", minimum_version=old, maximum_version=old)


def test_a_renewed_certificate_is_used_without_a_restart(edge: Edge) -> None:
    before = shaken(edge.envoy)[2]
    edge.envoy.renew_certificate()
    wait_until(lambda: shaken(edge.envoy)[2] != before, "the new certificate is used")


@pytest.mark.parametrize(("target", "method"), [(path_of("GetBook"), "POST"), ("/v1/books/1", "PATCH")])
def test_preflights_of_listed_origins_are_allowed(edge: Edge, target: str, method: str) -> None:
    response = preflight(edge, target, ORIGIN, method)
    assert response.status == 200
    assert response.headers["access-control-allow-origin"] == ORIGIN
    assert method in response.headers["access-control-allow-methods"].split(", ")
    assert {"content-type", "x-grpc-web", "authorization"} <= {
        *response.headers["access-control-allow-headers"].split(", ")
    }
    assert "access-control-allow-credentials" not in response.headers


@pytest.mark.parametrize("origin", [FOREIGN, "null", "http://app.example"])
def test_requests_of_other_origins_are_not_allowed(edge: Edge, origin: str) -> None:
    responses = [preflight(edge, path_of("GetBook"), origin, "POST"), get(edge, "/v1/books", origin=origin)]
    assert all("access-control-allow-origin" not in response.headers for response in responses)


def test_status_details_and_request_id_are_exposed_to_pages(edge: Edge) -> None:
    response = get(edge, "/v1/books/9223372036854775807", origin=ORIGIN)
    exposed = {*response.headers["access-control-expose-headers"].split(", ")}
    assert {"grpc-status", "grpc-message", "grpc-status-details-bin", REQUEST_ID_KEY} <= exposed


def test_writes_of_web_forms_are_rejected(edge: Edge) -> None:
    """A browser sends them without a preflight."""
    body = b'{"name": "N", "author": "A", "releaseYear": 1}'
    for headers in ({"content-type": "text/plain"}, {"content-type": "application/x-www-form-urlencoded"}, {}):
        response = ask(edge.envoy.address, edge.envoy.ca, "POST", "/v1/books", body, headers)
        assert response.status == 415
        assert response.json["message"] == "The body must be application/json."


def test_a_request_id_is_forwarded_or_generated(edge: Edge) -> None:
    for chosen in ("mine.1", "6f1e4c2a-58b1-4d0b-9c57-0e1f2a3b4c5d"):
        response = get(edge, "/v1/books/9223372036854775807", x_request_id=chosen)
        assert response.headers[REQUEST_ID_KEY] == chosen
        assert response.json["details"][1]["requestId"] == chosen
    response = get(edge, "/v1/books/9223372036854775807")
    assert response.json["details"][1]["requestId"] == response.headers[REQUEST_ID_KEY]


def test_responses_have_no_headers_of_envoy(edge: Edge) -> None:
    for target in ("/v1/books", "/nope", "/v1/books?nope=1"):
        assert not {name for name in get(edge, target).headers if name == "server" or name.startswith("x-envoy")}


def test_headers_for_envoy_from_clients_have_no_effect(edge: Edge) -> None:
    forged = {"x_envoy_upstream_rq_timeout_ms": "1", "x_envoy_expected_rq_timeout_ms": "1"}
    assert get(edge, "/v1/books", x_forwarded_for="10.0.0.1", x_request_id="a-forger", **forged).status == 200
    assert str(line_of(edge, "a-forger")["peer"]).startswith("127.0.0.1:")


def test_the_log_line_of_a_call_has_neither_token_nor_query(edge: Edge) -> None:
    secret, asked = "Bearer sunshine", "name:moonlight"
    get(edge, f"/v1/books?filter={asked}", authorization=secret, x_request_id="a-call-to-look-for")

    line = line_of(edge, "a-call-to-look-for")
    assert (line["method"], line["path"], line["grpc_status"]) == ("GET", path_of("ListBooks"), "OK")
    assert "moonlight" not in edge.envoy.log.read_text()
    assert "sunshine" not in edge.envoy.log.read_text()


@pytest.fixture(scope="module")
async def secured(_envoy: None, tmp_path_factory: pytest.TempPathFactory) -> AsyncIterator[tuple[Edge, Issuer]]:
    """Servers that require tokens and limit the rate of their callers, behind Envoy."""
    folder = tmp_path_factory.mktemp("secured")
    issuer = Issuer()
    arguments = {
        "--jwks-file": str(issuer.write_jwks(folder / "jwks.json")),
        "--token-issuer": ISSUER,
        "--token-audience": AUDIENCE,
        "--rate-limit-per-second": "0.01",
        "--rate-limit-burst": "12",
    }
    url = f"sqlite+aiosqlite:///{folder}/bookstore.db"
    async with running_edge(folder, url, *(word for pair in arguments.items() for word in pair)) as edge:
        yield edge, issuer


async def test_tokens_reach_the_servers_and_their_errors_the_callers(secured: tuple[Edge, Issuer]) -> None:
    edge, issuer = secured
    reads_only = issuer.token(sub="reader", scope="books.read")
    expected = {
        "": ("TOKEN_MISSING", 401),
        "no-token": ("TOKEN_INVALID", 401),
        issuer.token(sub="writer", scope="books.write"): ("SCOPE_MISSING", 403),
        reads_only: ("", 200),
    }
    request = books_pb2.ListBooksRequest()
    async with grpc.aio.insecure_channel(edge.servers[0].address) as direct, edge.envoy.channel() as through:
        for token, (reason, status) in expected.items():
            headers = {"authorization": f"Bearer {token}"} if token else {}
            outcome = await outcome_of(direct, "ListBooks", request, **headers)
            assert outcome.reason == reason
            assert await outcome_of(through, "ListBooks", request, **headers) == outcome
            response = await asyncio.to_thread(get, edge, "/v1/books", **headers)
            assert (response.status, outcome_from_json("ListBooks", response)) == (status, outcome)
            response = await asyncio.to_thread(
                ask,
                edge.envoy.address,
                edge.envoy.ca,
                "POST",
                path_of("ListBooks"),
                framed(request.SerializeToString()),
                web_headers(**headers),
            )
            assert outcome_from_web("ListBooks", response) == outcome


async def test_a_call_beyond_the_rate_limit_is_rejected_on_every_transport(secured: tuple[Edge, Issuer]) -> None:
    edge, issuer = secured
    headers = {"authorization": f"Bearer {issuer.token(sub='greedy')}"}
    request = framed(books_pb2.ListBooksRequest().SerializeToString())
    statuses = [(await asyncio.to_thread(get, edge, "/v1/books", **headers)).status for _ in range(30)]
    assert statuses.count(200) == 24  # the burst of each of two servers
    assert {*statuses} == {200, 429}
    response = await asyncio.to_thread(get, edge, "/v1/books", **headers)
    assert outcome_from_json("ListBooks", response).reason == "TOO_MANY_REQUESTS"
    assert any(detail["@type"].endswith("google.rpc.RetryInfo") for detail in response.json["details"])
    response = await asyncio.to_thread(
        ask, edge.envoy.address, edge.envoy.ca, "POST", path_of("ListBooks"), request, web_headers(**headers)
    )
    assert outcome_from_web("ListBooks", response).reason == "TOO_MANY_REQUESTS"


@pytest.mark.usefixtures("_envoy")
async def test_servers_on_other_machines_are_reached_by_tls(tmp_path: Path) -> None:
    """With the lines that the file has commented out for them."""
    authority = Authority("the servers'")
    cert, key = authority.certificate("server", hosts=["bookstore.example"]).write(tmp_path, "server")
    authority.write(tmp_path, "servers")
    with serving(
        f"sqlite+aiosqlite:///{tmp_path}/bookstore.db", tmp_path / "log", "--tls-cert", cert, "--tls-key", key
    ) as server:
        port = int(server.address.rpartition(":")[2])
        envoy = Envoy(tmp_path, (port, port), encrypts=True)
        try:
            await asyncio.to_thread(wait_until, envoy.healthy, "the server is healthy")
            async with envoy.channel() as channel:
                stub: books_pb2_grpc.BookServiceAsyncStub = books_pb2_grpc.BookServiceStub(channel)
                await stub.ListBooks(books_pb2.ListBooksRequest(), timeout=10)
        finally:
            envoy.end()
