"""TLS, tokens and client certificates, with the installed command on both sides, grpcurl, and workers."""

import json
import subprocess
from collections.abc import Iterator
from pathlib import Path
from typing import NamedTuple

import pytest

from tests.certificates import Authority
from tests.e2e.conftest import Start
from tests.executable import GRPCURL, Finished, Serving, environment, run_bookstore, serving
from tests.tokens import AUDIENCE, ISSUER, Issuer

pytestmark = pytest.mark.e2e

issuer = Issuer()


class Secured(NamedTuple):
    """A server that requires a certificate and a token, and what a client needs for it."""

    server: Serving
    certificates: tuple[str, ...]
    token_file: Path

    def run(self, *arguments: str, **variables: str) -> Finished:
        return run_bookstore(*arguments, "--server", self.server.address, *self.certificates, variables=variables)


@pytest.fixture(scope="module", params=["1", "2"])
def secured(request: pytest.FixtureRequest, tmp_path_factory: pytest.TempPathFactory) -> Iterator[Secured]:
    folder = tmp_path_factory.mktemp("secured")
    authority = Authority()
    ca = authority.write(folder)
    cert, key = authority.server().write(folder, "server")
    client_cert, client_key = authority.certificate("client").write(folder, "client")
    token_file = folder / "token"
    token_file.write_text(issuer.token())
    jwks = issuer.write_jwks(folder / "jwks")
    arguments = (
        *("--workers", request.param, "--tls-cert", cert, "--tls-key", key, "--tls-client-ca", ca),
        *("--jwks-file", str(jwks), "--token-issuer", ISSUER, "--token-audience", AUDIENCE),
    )
    with serving(f"sqlite+aiosqlite:///{folder}/bookstore.db", folder / "log", *arguments) as server:
        yield Secured(server, ("--ca", ca, "--cert", client_cert, "--key", client_key), token_file)


def test_the_verbs_are_accepted_with_certificate_and_token(secured: Secured) -> None:
    token = ("--token-file", str(secured.token_file))
    create = ("create", "--name", "N", "--author", "A", "--release-year", "1")
    created = secured.run(*create, *token)
    assert created.status == 0, created.errors
    by_variable = secured.run("list", BOOKSTORE_TOKEN=issuer.token())
    assert by_variable.status == 0, by_variable.errors
    assert secured.run("health").status == 0  # needs a certificate only


def test_without_a_token_the_error_names_the_flag(secured: Secured) -> None:
    rejected = secured.run("list")
    assert rejected.status == 1
    assert "TOKEN_MISSING" in rejected.errors
    assert "--token-file" in rejected.errors


def test_without_a_certificate_the_connection_fails_and_the_error_names_the_flags(secured: Secured) -> None:
    for certificates in ((), secured.certificates[:2]):
        rejected = run_bookstore("list", "--server", secured.server.address, *certificates)
        assert rejected.status == 1
        assert f"Could not connect to {secured.server.address}: Socket closed. " in rejected.errors
        assert "--tls" in rejected.errors
        assert "--cert" in rejected.errors


def test_a_failed_handshake_is_reported_with_its_cause(tmp_path: Path, sqlite_url: str, start: Start) -> None:
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
        rejected = run_bookstore("health", "--server", server.address, "--ca", ca_of_client)
        assert rejected.status == 1
        assert rejected.errors.startswith(f"Error: Could not connect to {server.address}: ")
        assert cause in rejected.errors
        assert server.stop() == 0


def test_an_unknown_certificate_is_rejected_by_its_name_where_tokens_are_not_in_use(
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
    assert "The name in the caller's certificate is unknown. [TOKEN_MISSING]" in refused.errors
    assert server.wait_for_event("call rejected")["caller"] == "stranger"


def test_the_log_has_no_token_and_no_key(secured: Secured) -> None:
    secured.run("list", BOOKSTORE_TOKEN=issuer.token())
    secured.run("list", BOOKSTORE_TOKEN=issuer.token(exp=1))
    log = secured.server.log_text()
    assert issuer.token().partition(".")[0] not in log
    assert "PRIVATE" not in log


def test_grpcurl_is_accepted_with_certificate_and_token(secured: Secured) -> None:
    _, ca, _, cert, _, key = secured.certificates
    done = subprocess.run(
        [
            *(GRPCURL, "-cacert", ca, "-cert", cert, "-key", key),
            *("-H", f"authorization: Bearer {issuer.token()}", "-d", '{"filter": "name = \\"none\\""}'),
            *(secured.server.address, "bookstore.v1.BookService/ListBooks"),
        ],
        capture_output=True,
        text=True,
        env=environment(),
        timeout=60,
        check=False,
    )
    assert (done.returncode, json.loads(done.stdout or "0")) == (0, {}), done.stderr


@pytest.mark.parametrize(
    ("arguments", "error"),
    [
        (("--ca", "/nowhere.pem"), "/nowhere.pem cannot be read"),
        (("--token-file", "/nowhere"), "/nowhere: No such file"),
        (("--cert", "/nowhere.pem"), "a certificate needs its key"),
    ],
    ids=str,
)
def test_files_that_cannot_be_used_are_reported(arguments: tuple[str, ...], error: str) -> None:
    finished = run_bookstore("list", *arguments)
    assert finished.status == 1
    assert error in finished.errors


def test_a_token_is_not_sent_to_another_machine_in_plaintext() -> None:
    rejected = run_bookstore("list", "--server", "192.0.2.1:50051", variables={"BOOKSTORE_TOKEN": "t"})
    assert rejected.status == 1
    assert "in plaintext" in rejected.errors


def test_tls_on_all_interfaces_is_not_warned_of(tmp_path: Path, sqlite_url: str, start: Start) -> None:
    cert, key = Authority().server().write(tmp_path, "server")
    server = start(sqlite_url, "--listen", "0.0.0.0:0", "--tls-cert", cert, "--tls-key", key)
    assert not [line for line in server.log_lines() if line["level"] == "warning"]
