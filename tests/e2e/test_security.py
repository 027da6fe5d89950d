"""TLS, tokens and client certificates, with the real command on both sides, the real grpcurl, and several workers."""

import json
import subprocess
from pathlib import Path
from typing import NamedTuple

import pytest

from tests.certificates import Authority
from tests.e2e.conftest import Start
from tests.executable import GRPCURL, Finished, Serving, environment, run_bookstore
from tests.tokens import AUDIENCE, ISSUER, Issuer

pytestmark = pytest.mark.e2e

issuer = Issuer()


class Guarded(NamedTuple):
    """A server that asks for certificate and token, and what it takes to come in."""

    server: Serving
    certificates: tuple[str, ...]
    token_file: Path

    def run(self, *arguments: str, **variables: str) -> Finished:
        return run_bookstore(*arguments, "--server", self.server.address, *self.certificates, variables=variables)


@pytest.fixture(params=["1", "2"])
def guarded(request: pytest.FixtureRequest, tmp_path: Path, sqlite_url: str, start: Start) -> Guarded:
    authority = Authority()
    ca = authority.write(tmp_path)
    cert, key = authority.server().write(tmp_path, "server")
    client_cert, client_key = authority.certificate("client").write(tmp_path, "client")
    token_file = tmp_path / "token"
    token_file.write_text(issuer.token())
    jwks = issuer.write_jwks(tmp_path / "jwks")
    server = start(
        sqlite_url,
        *("--workers", request.param, "--tls-cert", cert, "--tls-key", key, "--tls-client-ca", ca),
        *("--jwks-file", str(jwks), "--token-issuer", ISSUER, "--token-audience", AUDIENCE),
    )
    return Guarded(server, ("--ca", ca, "--cert", client_cert, "--key", client_key), token_file)


def test_the_verbs_come_in_with_certificate_and_token(guarded: Guarded) -> None:
    token = ("--token-file", str(guarded.token_file))
    create = ("create", "--name", "N", "--author", "A", "--release-year", "1")
    created = guarded.run(*create, *token)
    assert created.status == 0, created.errors
    by_variable = guarded.run("list", BOOKSTORE_TOKEN=issuer.token())
    assert by_variable.status == 0, by_variable.errors
    assert guarded.run("health").status == 0  # is open to whoever has a certificate


def test_who_has_no_token_is_told_how_to_give_one(guarded: Guarded) -> None:
    refused = guarded.run("list")
    assert refused.status == 1
    assert "TOKEN_MISSING" in refused.errors
    assert "--token-file" in refused.errors


def test_who_has_no_certificate_does_not_come_in_and_is_told_of_tls(guarded: Guarded) -> None:
    for certificates in ((), guarded.certificates[:2]):
        refused = run_bookstore("list", "--server", guarded.server.address, *certificates)
        assert refused.status == 1
        assert f"Could not connect to {guarded.server.address}: Socket closed. " in refused.errors
        assert "--tls" in refused.errors
        assert "--cert" in refused.errors


def test_who_is_refused_by_tls_is_told_why(tmp_path: Path, sqlite_url: str, start: Start) -> None:
    authority = Authority()
    ca, other_ca = authority.write(tmp_path), Authority("other").write(tmp_path, "other")
    for name, certificate, ca_of_client, cause in (
        ("expired", authority.server(days=-1), ca, "VERIFY_FAILED: certificate has expired. "),
        (
            "foreign",
            authority.server(),
            other_ca,
            "CERTIFICATE_VERIFY_FAILED: unable to get local issuer certificate. ",
        ),
        ("named", authority.certificate("x", hosts=["books.example"]), ca, "Hostname Verification Check failed. "),
    ):
        cert, key = certificate.write(tmp_path, name)
        server = start(sqlite_url, "--tls-cert", cert, "--tls-key", key)
        refused = run_bookstore("health", "--server", server.address, "--ca", ca_of_client)
        assert refused.status == 1
        assert refused.errors.startswith(f"Error: Could not connect to {server.address}: ")
        assert cause in refused.errors
        assert server.stop() == 0


def test_who_has_an_unknown_certificate_is_not_told_of_tokens_where_there_are_none(
    tmp_path: Path, sqlite_url: str, start: Start
) -> None:
    authority = Authority()
    ca = authority.write(tmp_path)
    cert, key = authority.server().write(tmp_path, "server")
    client_cert, client_key = authority.certificate("stranger").write(tmp_path, "client")
    scopes = ("--client-scopes", "importer=books.write")
    server = start(sqlite_url, "--tls-cert", cert, "--tls-key", key, "--tls-client-ca", ca, *scopes)
    client = ("--server", server.address, "--ca", ca, "--cert", client_cert, "--key", client_key)
    refused = run_bookstore("list", *client)
    assert refused.status == 1
    assert "The name in the caller's certificate is not known here. [TOKEN_MISSING]" in refused.errors
    assert server.wait_for_event("call refused")["caller"] == "stranger"


def test_no_token_and_no_key_stands_in_the_log(guarded: Guarded) -> None:
    guarded.run("list", BOOKSTORE_TOKEN=issuer.token())
    guarded.run("list", BOOKSTORE_TOKEN=issuer.token(exp=1))
    log = guarded.server.log_text()
    assert issuer.token().partition(".")[0] not in log
    assert "PRIVATE" not in log


def test_grpcurl_comes_in_too(guarded: Guarded) -> None:
    _, ca, _, cert, _, key = guarded.certificates
    done = subprocess.run(
        [
            *(GRPCURL, "-cacert", ca, "-cert", cert, "-key", key),
            *("-H", f"authorization: Bearer {issuer.token()}", "-d", "{}"),
            *(guarded.server.address, "bookstore.v1.BookService/ListBooks"),
        ],
        capture_output=True,
        text=True,
        env=environment(),
        timeout=60,
        check=False,
    )
    assert (done.returncode, json.loads(done.stdout or "0")) == (0, {}), done.stderr


@pytest.mark.parametrize(
    ("arguments", "sentence"),
    [
        (("--ca", "/nowhere.pem"), "/nowhere.pem cannot be read"),
        (("--token-file", "/nowhere"), "/nowhere: No such file"),
        (("--cert", "/nowhere.pem"), "a certificate needs its key"),
    ],
    ids=str,
)
def test_files_that_cannot_be_used_are_told_in_a_sentence(arguments: tuple[str, ...], sentence: str) -> None:
    refused = run_bookstore("list", *arguments)
    assert refused.status == 1
    assert sentence in refused.errors


def test_a_token_is_not_sent_to_another_machine_in_plaintext() -> None:
    refused = run_bookstore("list", "--server", "192.0.2.1:50051", variables={"BOOKSTORE_TOKEN": "t"})
    assert refused.status == 1
    assert "in plaintext" in refused.errors


def test_beyond_the_loopback_is_served_by_tls_alone(tmp_path: Path, sqlite_url: str, start: Start) -> None:
    cert, key = Authority().server().write(tmp_path, "server")
    server = start(sqlite_url, "--listen", "0.0.0.0:0", "--tls-cert", cert, "--tls-key", key)
    assert not [line for line in server.log_lines() if line["level"] == "warning"]
