"""TLS and mutual TLS: who can connect, by which versions, and that new files count without a restart."""

import asyncio
import os
import socket
import ssl
import time
import warnings
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager
from pathlib import Path
from typing import Any

import grpc
import pytest
from bookstore.v1 import books_pb2
from cryptography import x509

from bookstore_grpc.errors import StartupError
from bookstore_grpc.net.tls import CertificateReloader
from bookstore_grpc.rpc.server import Server
from bookstore_grpc.server.app import running_server
from tests.certificates import Authority, Certificate
from tests.conftest import LogLines, settings_for
from tests.rpc.calls import Stub, rejection
from tests.tokens import Issuer, bearer, token_settings

LISTED = books_pb2.ListBooksRequest()
WARNED = "certificate not valid: clients will reject it"
KEPT = "certificates not reloaded: old ones stay in use"

authority = Authority()
stranger = Authority("stranger")


@asynccontextmanager
async def serving(folder: Path, **settings: Any) -> AsyncIterator[Server]:
    cert, key = authority.server().write(folder, "server")
    values = {"tls_cert": cert, "tls_key": key, **settings}
    async with running_server(settings_for(f"sqlite+aiosqlite:///{folder}/bookstore.db", **values)) as server:
        yield server


def channel_to(server: Server, *, trusts: Authority = authority, shows: Certificate | None = None) -> grpc.aio.Channel:
    credentials = grpc.ssl_channel_credentials(
        trusts.pem, private_key=shows.key if shows else None, certificate_chain=shows.pem if shows else None
    )
    # A pool of their own, else channels alike would share a connection.
    return grpc.aio.secure_channel(server.addresses[0], credentials, options=[("grpc.use_local_subchannel_pool", 1)])


async def is_served(server: Server, **options: Any) -> bool:
    async with channel_to(server, **options) as channel:
        code = await Stub(channel).ListBooks(LISTED, timeout=30).code()
    assert code in (grpc.StatusCode.OK, grpc.StatusCode.UNAVAILABLE)
    return code is grpc.StatusCode.OK


def handshake(server: Server, *, most: ssl.TLSVersion, address: int = 0) -> tuple[str | None, str | None, int]:
    """Make a TLS handshake; return version, protocol and the certificate's serial number."""
    context = ssl.SSLContext(ssl.PROTOCOL_TLS_CLIENT)
    context.load_verify_locations(cadata=authority.pem.decode())
    context.set_alpn_protocols(["h2"])
    context.set_ciphers("ALL:@SECLEVEL=0")  # so that it is the server that rejects
    with warnings.catch_warnings():
        warnings.simplefilter("ignore", DeprecationWarning)
        context.minimum_version = ssl.TLSVersion.TLSv1
        context.maximum_version = most
    host, _, port = server.addresses[address].rpartition(":")
    with (
        socket.create_connection((host, int(port)), timeout=10) as plain,
        context.wrap_socket(plain, server_hostname=host) as encrypted,
    ):
        shown = x509.load_der_x509_certificate(encrypted.getpeercert(binary_form=True) or b"")
        return encrypted.version(), encrypted.selected_alpn_protocol(), shown.serial_number


def write(path: str, contents: bytes) -> None:
    Path(path).write_bytes(contents)


def certificate_number(server: Server, address: int = 0) -> int:
    return handshake(server, most=ssl.TLSVersion.TLSv1_3, address=address)[2]


async def test_calls_use_tls_and_certificates_of_others_are_rejected(tmp_path: Path) -> None:
    async with serving(tmp_path) as server:
        assert await is_served(server)
        assert not await is_served(server, trusts=stranger)
        async with grpc.aio.insecure_channel(server.addresses[0]) as channel:
            assert await Stub(channel).ListBooks(LISTED, timeout=30).code() is grpc.StatusCode.UNAVAILABLE


@pytest.mark.parametrize(
    ("version", "name"), [(ssl.TLSVersion.TLSv1_2, "TLSv1.2"), (ssl.TLSVersion.TLSv1_3, "TLSv1.3")]
)
async def test_tls_from_1_2_on_is_spoken(version: ssl.TLSVersion, name: str, tmp_path: Path) -> None:
    async with serving(tmp_path) as server:
        assert handshake(server, most=version)[:2] == (name, "h2")


async def test_tls_1_1_is_rejected(tmp_path: Path) -> None:
    async with serving(tmp_path) as server:
        with pytest.raises(ssl.SSLError):  # gRPC closes the connection without an alert
            handshake(server, most=ssl.TLSVersion.TLSv1_1)


async def test_with_mutual_tls_only_clients_that_the_authority_vouches_for_are_served(tmp_path: Path) -> None:
    async with serving(tmp_path, tls_client_ca=authority.write(tmp_path)) as server:
        assert await is_served(server, shows=authority.certificate("client"))
        assert not await is_served(server)
        assert not await is_served(server, shows=stranger.certificate("client"))
        assert not await is_served(server, shows=authority.certificate("client", days=-1))


async def test_new_handshakes_get_the_new_certificate_and_old_connections_live_on(tmp_path: Path) -> None:
    async with serving(tmp_path) as server, channel_to(server) as old:
        await Stub(old).ListBooks(LISTED, timeout=30)
        first = certificate_number(server)
        replacement = authority.server()
        replacement.write(tmp_path, "server")
        assert certificate_number(server) == replacement.number != first
        await Stub(old).ListBooks(LISTED, timeout=30)
        assert await is_served(server)


async def test_a_new_authority_for_clients_counts_without_a_restart(tmp_path: Path) -> None:
    ca = authority.write(tmp_path)
    ours, theirs = authority.certificate("client"), stranger.certificate("client")
    async with serving(tmp_path, tls_client_ca=ca) as server:
        assert not await is_served(server, shows=theirs)
        write(ca, authority.pem + stranger.pem)
        assert await is_served(server, shows=theirs)
        assert await is_served(server, shows=ours)
        write(ca, stranger.pem)
        assert not await is_served(server, shows=ours)


@pytest.mark.parametrize("broken", ["no PEM", "gone", "another's key", "authority", "expired", "too early"])
async def test_unusable_new_files_keep_the_old_ones_in_use_which_is_logged_once(
    broken: str, tmp_path: Path, log_lines: LogLines
) -> None:
    ca = authority.write(tmp_path)
    client = authority.certificate("client")
    async with serving(tmp_path, tls_client_ca=ca) as server:
        if broken == "no PEM":
            (tmp_path / "server.pem").write_text("nonsense")
        elif broken == "gone":
            (tmp_path / "server.pem").unlink()
        elif broken == "another's key":
            (tmp_path / "server.key").write_bytes(authority.server().key)
        elif broken == "expired":
            authority.server(days=-1).write(tmp_path, "server")
        elif broken == "too early":
            authority.server(days=2, from_day=1).write(tmp_path, "server")
        else:
            write(ca, b"nonsense")
        for _ in range(3):
            assert await is_served(server, shows=client)
        assert [line["event"] for line in log_lines()].count(KEPT) == 1
        authority.server().write(tmp_path, "server")
        write(ca, authority.pem)
        assert await is_served(server, shows=client)
        assert [line["event"] for line in log_lines()].count("certificates reloaded again") == 1
    (line,) = [line for line in log_lines() if line["event"] == KEPT]
    assert line["level"] == "error"
    assert str(tmp_path) in line["cause"]
    assert "PRIVATE" not in str(log_lines())


async def test_every_address_has_the_certificate_and_the_new_one_after_it(tmp_path: Path) -> None:
    async with serving(tmp_path, listen=("127.0.0.1:0", "127.0.0.1:0")) as server:
        assert certificate_number(server, 0) == certificate_number(server, 1)
        later = authority.server()
        later.write(tmp_path, "server")
        assert [certificate_number(server, address) for address in (0, 1, 0, 1)] == [later.number] * 4


def test_the_two_files_may_be_replaced_one_after_the_other(tmp_path: Path) -> None:
    first, second = authority.server(days=1), authority.server(days=9)
    cert, key = first.write(tmp_path, "server")
    certificates = CertificateReloader(cert=cert, key=key)
    expires_at = certificates.expires_at
    Path(cert).write_bytes(second.pem)
    certificates.refresh()
    assert (certificates.expires_at, certificates.refresh_failures) == (expires_at, 1)
    Path(key).write_bytes(second.key)
    certificates.refresh()
    assert certificates.expires_at - expires_at == pytest.approx(8 * 86_400, abs=120)
    assert certificates.refresh_failures == 1


@pytest.mark.parametrize(
    ("dates", "cause"),
    [({"days": -1}, "expired at"), ({"days": 2, "from_day": 1}, "is not valid before")],
    ids=["expired", "too early"],
)
async def test_a_certificate_whose_time_it_is_not_is_served_at_the_start_with_a_warning(
    dates: dict[str, int], cause: str, tmp_path: Path, log_lines: LogLines
) -> None:
    cert, key = authority.server(**dates).write(tmp_path, "given")
    async with serving(tmp_path, tls_cert=cert, tls_key=key) as server:
        assert not await is_served(server)
        (line,) = [line for line in log_lines() if line["event"] == WARNED]
        assert line["level"] == "warning"
        assert f"the certificate in {cert} {cause} 20" in line["cause"]
        authority.server().write(tmp_path, "given")
        assert await is_served(server)


def test_each_look_of_the_watcher_at_broken_files_is_counted_until_they_are_mended(
    tmp_path: Path, log_lines: LogLines
) -> None:
    cert, key = authority.server().write(tmp_path, "server")
    certificates = CertificateReloader(cert=cert, key=key)
    Path(cert).write_text("nonsense")
    for looks in (1, 2, 3):
        certificates.refresh()
        assert certificates.refresh_failures == looks
    authority.server().write(tmp_path, "server")
    for _ in range(3):
        certificates.refresh()
    assert certificates.refresh_failures == 3
    assert [line["event"] for line in log_lines()] == [KEPT, "certificates reloaded again"]


async def test_handshakes_count_no_failures_and_do_not_read_again_what_is_broken(
    tmp_path: Path, log_lines: LogLines
) -> None:
    first = authority.server()
    cert, key = first.write(tmp_path, "server")
    certificates = CertificateReloader(cert=cert, key=key)
    server = grpc.aio.server()
    port = server.add_secure_port("127.0.0.1:0", certificates.server_credentials())
    await server.start()
    for contents in (b"x" * len(first.pem), first.pem):  # alike to one who only looks at the file
        write(cert, contents)
        os.utime(cert, ns=(0, 0))
        for _ in range(3):
            credentials = grpc.ssl_channel_credentials(authority.pem)
            own_connection = [("grpc.use_local_subchannel_pool", 1)]
            async with grpc.aio.secure_channel(f"127.0.0.1:{port}", credentials, options=own_connection) as channel:
                await asyncio.wait_for(channel.channel_ready(), 30)
    assert certificates.refresh_failures == 0
    assert [line["event"] for line in log_lines()] == [KEPT]
    certificates.refresh()
    assert [line["event"] for line in log_lines()] == [KEPT, "certificates reloaded again"]
    await server.stop(0)


def test_a_certificate_is_used_as_soon_as_it_becomes_valid(tmp_path: Path) -> None:
    now = time.time()
    cert, key = authority.server(days=1).write(tmp_path, "server")
    certificates = CertificateReloader(cert=cert, key=key, clock=lambda: now)
    early = authority.server(days=9, from_day=1)
    early.write(tmp_path, "server")
    certificates.refresh()
    assert certificates.expires_at < now + 2 * 86_400
    now += 1.1 * 86_400
    certificates.refresh()
    assert certificates.expires_at > now + 7 * 86_400


def test_a_certificate_that_expires_in_use_is_logged_once(tmp_path: Path, log_lines: LogLines) -> None:
    cert, key = authority.server(days=1).write(tmp_path, "server")
    now = time.time()
    certificates = CertificateReloader(cert=cert, key=key, clock=lambda: now)
    assert not log_lines()
    now += 86_400
    for _ in range(3):
        certificates.refresh()
    assert [line["event"] for line in log_lines()] == [WARNED]
    assert certificates.refresh_failures == 0


# A key on the curve secp224k1, made for this.
KEY_OF_AN_UNKNOWN_KIND = (
    b"-----BEGIN EC PRIVATE KEY-----\n"
    b"MGkCAQEEHQD+FKRYUS2HvoUnrqfypdCxav8OGZn6xvIDRt+CoAcGBSuBBAAgoTwD\n"
    b"OgAEVbF75T4+3SGwpMaqKRkpdKQaOVEk1a53vaxhXHRhegg/0uKdoKa8GvGNimL9\n"
    b"zIWIprf3QAK6X58=\n"
    b"-----END EC PRIVATE KEY-----\n"
)


def test_a_key_of_a_kind_that_is_not_known_is_unusable_like_others(tmp_path: Path) -> None:
    cert, key = authority.server().write(tmp_path, "server")
    certificates = CertificateReloader(cert=cert, key=key)
    Path(key).write_bytes(KEY_OF_AN_UNKNOWN_KIND)
    certificates.refresh()
    assert certificates.refresh_failures == 1
    with pytest.raises(StartupError, match=r"Cannot serve with TLS: .+"):
        CertificateReloader(cert=cert, key=key)


@pytest.mark.parametrize(
    ("files", "sentence"),
    [
        ({"tls_key": ""}, "both --tls-cert and --tls-key"),
        ({"tls_cert": ""}, "both --tls-cert and --tls-key"),
        ({"tls_cert": "/nowhere.pem"}, r"/nowhere\.pem cannot be read"),
        ({"tls_cert": "{key}"}, "no certificate in PEM form"),
        ({"tls_key": "{cert}"}, "no unencrypted private key in PEM form"),
        ({"tls_key": "{other}"}, "does not belong to"),
        ({"tls_client_ca": "{key}"}, "no certificate in PEM form"),
        ({"tls_cert": "", "tls_key": "", "tls_client_ca": "{cert}"}, "--tls-client-ca is for TLS"),
        ({"insecure": True}, "contradict"),
    ],
    ids=str,
)
async def test_files_that_cannot_be_used_keep_the_server_from_starting(
    files: dict[str, Any], sentence: str, tmp_path: Path
) -> None:
    cert, key = authority.server().write(tmp_path, "server")
    _, other = authority.server().write(tmp_path, "other")
    named = {"cert": cert, "key": key, "other": other}
    with pytest.raises(StartupError, match=sentence):
        async with serving(
            tmp_path,
            **{name: value.format(**named) if isinstance(value, str) else value for name, value in files.items()},
        ):
            pass


async def test_names_in_certificates_have_the_scopes_that_they_are_given(tmp_path: Path, log_lines: LogLines) -> None:
    reader = authority.certificate("reader")
    by_host = authority.certificate("anything", hosts=["writer.example"])
    unknown = authority.certificate("unknown")
    spiteful = authority.certificate('x","level":"error"\n\x1b[2J')
    create = books_pb2.CreateBookRequest(book=books_pb2.Book(name="N", author="A", release_year=1))
    async with serving(
        tmp_path,
        tls_client_ca=authority.write(tmp_path),
        client_scopes=("reader=books.read", "writer.example=books.write,books.read"),
    ) as server:
        async with channel_to(server, shows=reader) as channel:
            await Stub(channel).ListBooks(LISTED)
            assert (await rejection(Stub(channel).CreateBook(create))).reason == "SCOPE_MISSING"
        async with channel_to(server, shows=by_host) as channel:
            await Stub(channel).CreateBook(create)
        for shown in (unknown, spiteful):
            async with channel_to(server, shows=shown) as channel:
                assert (await rejection(Stub(channel).ListBooks(LISTED))).reason == "TOKEN_MISSING"
    callers = [line["caller"] for line in log_lines() if line.get("reason") == "TOKEN_MISSING"]
    assert callers == ["unknown", 'x","level":"error"\n\x1b[2J']


async def test_a_token_adds_its_scopes_to_those_of_the_certificate(tmp_path: Path) -> None:
    issuer = Issuer()
    create = books_pb2.CreateBookRequest(book=books_pb2.Book(name="N", author="A", release_year=1))
    async with (
        serving(
            tmp_path,
            tls_client_ca=authority.write(tmp_path),
            client_scopes=("reader=books.read",),
            **token_settings(issuer.write_jwks(tmp_path / "jwks")),
        ) as server,
        channel_to(server, shows=authority.certificate("reader")) as channel,
    ):
        stub = Stub(channel)
        await stub.ListBooks(LISTED)
        writing = bearer(issuer.token(scope="books.write"))
        await stub.CreateBook(create, metadata=writing)
        await stub.ListBooks(LISTED, metadata=writing)
        assert (await rejection(stub.ListBooks(LISTED, metadata=bearer("garbage")))).reason == "TOKEN_INVALID"


async def test_a_unix_socket_is_guarded_by_the_file_system_and_not_by_tls(tmp_path: Path) -> None:
    address = f"unix:{tmp_path}/socket"
    async with serving(tmp_path, listen=(address, "127.0.0.1:0")), grpc.aio.insecure_channel(address) as channel:
        await Stub(channel).ListBooks(LISTED, timeout=30)
