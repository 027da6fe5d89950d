"""What Envoy lets in and hands on: TLS alone, origins of a list, tokens, request ids, and nothing that is its own."""

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
from tests.gateway.client import Answer
from tests.rpc.calls import REQUEST_ID_KEY
from tests.tokens import AUDIENCE, ISSUER, Issuer

FOREIGN = "https://app.example.evil.example"


def get(edge: Edge, target: str, **headers: str) -> Answer:
    names = {name.replace("_", "-"): value for name, value in headers.items()}
    return ask(edge.envoy.address, edge.envoy.ca, "GET", target, headers=names)


def line_of(edge: Edge, request_id: str) -> dict[str, Any]:
    """Wait for a call's line in Envoy's log and answer it."""

    def lines() -> list[dict[str, Any]]:
        return [line for line in edge.envoy.calls() if line["request_id"] == request_id]

    wait_until(lines, "the call's line is written")
    (line,) = lines()
    return line


def preflight(edge: Edge, target: str, origin: str, method: str) -> Answer:
    headers = {
        "origin": origin,
        "access-control-request-method": method,
        "access-control-request-headers": "content-type,x-grpc-web",
    }
    return ask(edge.envoy.address, edge.envoy.ca, "OPTIONS", target, headers=headers)


def shaken(
    envoy: Envoy, *, alpn: Sequence[str] = (), ciphers: str = "DEFAULT", **options: ssl.TLSVersion
) -> tuple[str | None, str | None, bytes]:
    """Return TLS version, the protocol on it, and the certificate that a handshake came to."""
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


def test_plaintext_is_refused(edge: Edge) -> None:
    host, _, port = edge.envoy.address.rpartition(":")
    with socket.create_connection((host, int(port)), timeout=10) as connection:
        connection.sendall(b"GET /v1/books HTTP/1.1\r\nHost: localhost\r\n\r\n")
        assert b"HTTP" not in connection.recv(1_000)


def test_http_2_is_preferred_and_http_1_1_is_spoken(edge: Edge) -> None:
    assert shaken(edge.envoy, alpn=["http/1.1", "h2"])[1] == "h2"
    assert shaken(edge.envoy, alpn=["http/1.1"])[1] == "http/1.1"


def test_tls_1_2_is_the_least(edge: Edge) -> None:
    assert shaken(edge.envoy)[0] == "TLSv1.3"
    assert shaken(edge.envoy, maximum_version=ssl.TLSVersion.TLSv1_2)[0] == "TLSv1.2"
    # This side's OpenSSL would offer no less either.
    old = ssl.TLSVersion.TLSv1_1
    with (
        pytest.warns(DeprecationWarning, match="TLSv1_1"),
        pytest.raises(ssl.SSLError, match="ALERT_PROTOCOL_VERSION"),
    ):
        shaken(edge.envoy, ciphers="ALL:@SECLEVEL=0", minimum_version=old, maximum_version=old)


def test_a_renewed_certificate_is_taken_without_a_restart(edge: Edge) -> None:
    before = shaken(edge.envoy)[2]
    edge.envoy.renew_certificate()
    wait_until(lambda: shaken(edge.envoy)[2] != before, "the new certificate is shown")


@pytest.mark.parametrize(("target", "method"), [(path_of("GetBook"), "POST"), ("/v1/books/1", "PATCH")])
def test_browsers_learn_that_a_page_of_the_list_may_call(edge: Edge, target: str, method: str) -> None:
    answer = preflight(edge, target, ORIGIN, method)
    assert answer.status == 200
    assert answer.headers["access-control-allow-origin"] == ORIGIN
    assert method in answer.headers["access-control-allow-methods"].split(", ")
    assert {"content-type", "x-grpc-web", "authorization"} <= {
        *answer.headers["access-control-allow-headers"].split(", ")
    }
    assert "access-control-allow-credentials" not in answer.headers


@pytest.mark.parametrize("origin", [FOREIGN, "null", "http://app.example"])
def test_browsers_learn_of_no_other_page_that_it_may_call(edge: Edge, origin: str) -> None:
    answers = [preflight(edge, path_of("GetBook"), origin, "POST"), get(edge, "/v1/books", origin=origin)]
    assert all("access-control-allow-origin" not in answer.headers for answer in answers)


def test_a_page_may_read_status_details_and_request_id(edge: Edge) -> None:
    answer = get(edge, "/v1/books/9223372036854775807", origin=ORIGIN)
    exposed = {*answer.headers["access-control-expose-headers"].split(", ")}
    assert {"grpc-status", "grpc-message", "grpc-status-details-bin", REQUEST_ID_KEY} <= exposed


def test_a_form_of_any_web_page_can_write_nothing(edge: Edge) -> None:
    """What a browser sends without asking first: text/plain."""
    body = b'{"name": "N", "author": "A", "releaseYear": 1}'
    for headers in ({"content-type": "text/plain"}, {"content-type": "application/x-www-form-urlencoded"}, {}):
        answer = ask(edge.envoy.address, edge.envoy.ca, "POST", "/v1/books", body, headers)
        assert answer.status == 415
        assert answer.json["message"] == "The body has to be application/json."


def test_a_callers_request_id_stays_and_one_is_made_where_there_is_none(edge: Edge) -> None:
    for chosen in ("mine.1", "6f1e4c2a-58b1-4d0b-9c57-0e1f2a3b4c5d"):
        answer = get(edge, "/v1/books/9223372036854775807", x_request_id=chosen)
        assert answer.headers[REQUEST_ID_KEY] == chosen
        assert answer.json["details"][1]["requestId"] == chosen
    answer = get(edge, "/v1/books/9223372036854775807")
    assert answer.json["details"][1]["requestId"] == answer.headers[REQUEST_ID_KEY]


def test_envoy_tells_nothing_of_itself(edge: Edge) -> None:
    for target in ("/v1/books", "/nope", "/v1/books?nope=1"):
        assert not {name for name in get(edge, target).headers if name == "server" or name.startswith("x-envoy")}


def test_what_callers_say_to_envoy_is_not_heard(edge: Edge) -> None:
    forged = {"x_envoy_upstream_rq_timeout_ms": "1", "x_envoy_expected_rq_timeout_ms": "1"}
    assert get(edge, "/v1/books", x_forwarded_for="10.0.0.1", x_request_id="a-forger", **forged).status == 200
    assert str(line_of(edge, "a-forger")["peer"]).startswith("127.0.0.1:")


def test_a_line_for_each_call_holds_no_token_and_nothing_that_was_asked_for(edge: Edge) -> None:
    secret, asked = "Bearer sunshine", "name:moonlight"
    get(edge, f"/v1/books?filter={asked}", authorization=secret, x_request_id="a-call-to-look-for")

    line = line_of(edge, "a-call-to-look-for")
    assert (line["method"], line["path"], line["grpc_status"]) == ("GET", path_of("ListBooks"), "OK")
    assert "moonlight" not in edge.envoy.log.read_text()
    assert "sunshine" not in edge.envoy.log.read_text()


@pytest.fixture(scope="module")
async def guarded(_envoy: None, tmp_path_factory: pytest.TempPathFactory) -> AsyncIterator[tuple[Edge, Issuer]]:
    """Servers that ask for tokens and bound their callers, behind Envoy."""
    folder = tmp_path_factory.mktemp("guarded")
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


async def test_tokens_reach_the_servers_and_their_refusals_the_callers(guarded: tuple[Edge, Issuer]) -> None:
    edge, issuer = guarded
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
            answer = await asyncio.to_thread(get, edge, "/v1/books", **headers)
            assert (answer.status, outcome_from_json("ListBooks", answer)) == (status, outcome)
            answer = await asyncio.to_thread(
                ask,
                edge.envoy.address,
                edge.envoy.ca,
                "POST",
                path_of("ListBooks"),
                framed(request.SerializeToString()),
                web_headers(**headers),
            )
            assert outcome_from_web("ListBooks", answer) == outcome


async def test_a_caller_beyond_its_limit_is_told_by_every_way(guarded: tuple[Edge, Issuer]) -> None:
    edge, issuer = guarded
    headers = {"authorization": f"Bearer {issuer.token(sub='greedy')}"}
    request = framed(books_pb2.ListBooksRequest().SerializeToString())
    statuses = [(await asyncio.to_thread(get, edge, "/v1/books", **headers)).status for _ in range(30)]
    assert statuses.count(200) == 24  # the burst of each of two servers
    assert {*statuses} == {200, 429}
    answer = await asyncio.to_thread(get, edge, "/v1/books", **headers)
    assert outcome_from_json("ListBooks", answer).reason == "TOO_MANY_REQUESTS"
    assert any(detail["@type"].endswith("google.rpc.RetryInfo") for detail in answer.json["details"])
    answer = await asyncio.to_thread(
        ask, edge.envoy.address, edge.envoy.ca, "POST", path_of("ListBooks"), request, web_headers(**headers)
    )
    assert outcome_from_web("ListBooks", answer).reason == "TOO_MANY_REQUESTS"


@pytest.mark.usefixtures("_envoy")
async def test_servers_on_other_machines_are_reached_by_tls(tmp_path: Path) -> None:
    """With what the file has commented out for them."""
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
