"""The credentials of the client: which servers it trusts, and how it authenticates."""

import re
import socket
from collections.abc import Callable
from pathlib import Path

import pytest
from cryptography.hazmat.primitives.asymmetric import rsa
from cryptography.hazmat.primitives.serialization import (
    BestAvailableEncryption,
    Encoding,
    PrivateFormat,
    load_pem_private_key,
)

from bookstore_grpc.client import TLS, BookstoreClient, TokenFile
from bookstore_grpc.errors import ScopeMissing, TokenInvalid, TokenMissing, Unauthenticated, Unavailable
from bookstore_grpc.rpc.server import Server
from bookstore_grpc.server.app import running_server
from tests.certificates import Authority
from tests.conftest import settings_for
from tests.tokens import Issuer, token_settings


async def test_a_client_with_certificate_and_token_is_served(tmp_path: Path) -> None:
    authority, issuer = Authority(), Issuer()
    ca = authority.write(tmp_path)
    cert, key = authority.server().write(tmp_path, "server")
    client_cert, client_key = authority.certificate("client").write(tmp_path, "client")
    token_file = tmp_path / "token"
    token_file.write_text(issuer.token() + "\n")
    settings = settings_for(
        f"sqlite+aiosqlite:///{tmp_path}/bookstore.db",
        tls_cert=cert,
        tls_key=key,
        tls_client_ca=ca,
        **token_settings(issuer.write_jwks(tmp_path / "jwks")),
    )
    async with running_server(settings) as server:
        tls = TLS(ca=ca, cert=client_cert, key=client_key)
        async with BookstoreClient(server.addresses[0], tls=tls, token=TokenFile(str(token_file))) as client:
            book = await client.create_book(name="N", author="A", release_year=1)
            assert await client.get_book(book.id) == book
        for other in (None, TLS(ca=ca), TLS()):
            async with BookstoreClient(server.addresses[0], tls=other, wait_for_ready=False) as client:
                with pytest.raises(Unavailable):
                    await client.get_book(book.id)


async def test_errors_of_tokens_have_their_own_classes(tmp_path: Path) -> None:
    issuer = Issuer()
    settings = settings_for(
        f"sqlite+aiosqlite:///{tmp_path}/bookstore.db", **token_settings(issuer.write_jwks(tmp_path / "jwks"))
    )
    async with running_server(settings) as server:
        address = server.addresses[0]
        for token, error in (("", TokenMissing), ("a.b.c", TokenInvalid), (issuer.token(scope=""), ScopeMissing)):
            async with BookstoreClient(address, token=token) as client:
                with pytest.raises(error) as caught:
                    await client.get_book(1)
                assert isinstance(caught.value, Unauthenticated) == (error is not ScopeMissing)


async def test_a_token_file_is_read_again_when_it_changes_and_outlives_its_absence(tmp_path: Path) -> None:
    path = tmp_path / "token"
    path.write_text("first\n")
    token = TokenFile(str(path))
    assert token() == "first"
    path.unlink()
    assert token() == "first"
    path.write_text("second\n")
    assert token() == "second"


@pytest.mark.parametrize(
    "spoil",
    [
        pytest.param(lambda path: path.write_bytes(b""), id="emptied"),
        pytest.param(lambda path: path.write_bytes(b"two words"), id="no token"),
        pytest.param(lambda path: path.write_bytes(b"\xff\xfe\x00"), id="no text"),
        pytest.param(lambda path: (path.unlink(), path.mkdir()), id="a folder"),
        pytest.param(lambda path: (path.unlink(), path.symlink_to(path)), id="a link to itself"),
    ],
)
async def test_a_token_outlives_whatever_becomes_of_its_file(
    sqlite_server: Server, spoil: Callable[[Path], object], tmp_path: Path
) -> None:
    path = tmp_path / "token"
    path.write_text("first")
    token = TokenFile(str(path))
    async with BookstoreClient(sqlite_server.addresses[0], token=token) as client:
        spoil(path)
        await client.list_page()
        assert token() == "first"
    if path.is_dir():
        path.rmdir()
    else:
        path.unlink()
    path.write_text("second")
    assert token() == "second"


@pytest.mark.parametrize("content", [b"", b" \n", b"two words", "émile".encode(), b"a\nb", b"\xff\xfe\x00"])
def test_a_file_without_a_token_is_rejected(content: bytes, tmp_path: Path) -> None:
    path = tmp_path / "token"
    path.write_bytes(content)
    with pytest.raises(ValueError, match="is not a token"):
        TokenFile(str(path))


@pytest.mark.parametrize("server", ["books.example:443", "192.0.2.1:50051", "dns:///books.example:443"])
async def test_a_token_does_not_travel_in_plaintext_to_another_machine_unasked(server: str) -> None:
    with pytest.raises(ValueError, match="in plaintext"):
        BookstoreClient(server, token="t")
    for options in ({"insecure": True}, {"tls": TLS()}):
        await BookstoreClient(server, token="t", **options).close()


@pytest.mark.parametrize("server", ["127.0.0.1:1", "localhost:1", "[::1]:1", "unix:/tmp/socket"])
async def test_a_token_may_travel_in_plaintext_on_this_machine(server: str) -> None:
    await BookstoreClient(server, token="t").close()


@pytest.mark.parametrize(
    ("tls", "sentence"),
    [
        (TLS(ca="/nowhere.pem"), r"/nowhere\.pem cannot be read"),
        (TLS(cert="a.pem"), "needs its key"),
        (TLS(key="a.key"), "its certificate"),
    ],
    ids=repr,
)
def test_unusable_files_are_an_error(tls: TLS, sentence: str) -> None:
    with pytest.raises(ValueError, match=sentence):
        BookstoreClient(tls=tls)


def test_files_with_other_content_are_an_error_that_names_them(tmp_path: Path) -> None:
    authority = Authority()
    ca = authority.write(tmp_path)
    cert, key = authority.certificate("client").write(tmp_path, "client")
    other_cert, other_key = authority.certificate("other").write(tmp_path, "other")
    junk, locked = tmp_path / "junk", tmp_path / "locked.key"
    junk.write_text("hello\n")
    private_key = load_pem_private_key(Path(key).read_bytes(), password=None)
    locked.write_bytes(private_key.private_bytes(Encoding.PEM, PrivateFormat.PKCS8, BestAvailableEncryption(b"x")))
    for tls, sentence in (
        (TLS(ca=str(junk)), f"{junk} holds no certificate in PEM format"),
        (TLS(ca=key), f"{key} holds no certificate in PEM format"),
        (TLS(ca=ca, cert=str(junk), key=key), f"{junk} holds no certificate in PEM format"),
        (TLS(ca=ca, cert=cert, key=str(junk)), f"{junk} holds no unencrypted private key in PEM format"),
        (TLS(ca=ca, cert=cert, key=str(locked)), f"{locked} holds no unencrypted private key in PEM format"),
        (TLS(ca=ca, cert=cert, key=other_key), f"the key in {other_key} does not belong to the certificate in {cert}"),
        (TLS(ca=ca, cert=other_cert, key=key), f"the key in {key} does not belong to the certificate in {other_cert}"),
    ):
        with pytest.raises(ValueError, match=re.escape(sentence)):
            BookstoreClient(tls=tls)


async def test_certificates_with_remarks_between_them_and_weak_keys_are_left_to_the_server(tmp_path: Path) -> None:
    authority = Authority()
    ca = tmp_path / "ca.pem"
    ca.write_bytes("# Authorité\n".encode() + authority.pem + b"\n# another\n" + Authority("other").pem)
    key = rsa.generate_private_key(public_exponent=65_537, key_size=1_024)
    cert_file, key_file = authority.certificate("weak", key=key).write(tmp_path, "weak")
    await BookstoreClient(tls=TLS(ca=str(ca), cert=cert_file, key=key_file)).close()


async def test_a_token_for_this_machine_does_not_travel_by_way_of_a_proxy(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    with socket.socket() as proxy:
        proxy.bind(("127.0.0.1", 0))
        proxy.listen()
        for name in ("http_proxy", "grpc_proxy"):
            monkeypatch.setenv(name, f"http://127.0.0.1:{proxy.getsockname()[1]}")
        settings = settings_for(f"sqlite+aiosqlite:///{tmp_path}/bookstore.db")
        async with (
            running_server(settings) as server,
            BookstoreClient(server.addresses[0], token="t", timeout_seconds=5) as client,
        ):
            await client.list_page()
        proxy.setblocking(False)
        with pytest.raises(BlockingIOError):  # no connection was made
            proxy.accept()
