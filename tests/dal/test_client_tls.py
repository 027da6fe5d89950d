"""TLS of connections to the database: which files are in use after they have been replaced."""

from pathlib import Path

import pytest
from cryptography import x509
from cryptography.x509.oid import NameOID

from bookstore_grpc.dal.client_tls import ClientTls, TlsFile
from bookstore_grpc.errors import StartupError
from tests.certificates import Authority
from tests.conftest import LogLines


def _common_name(tls: ClientTls) -> str:
    (certificate,) = tls.context().get_ca_certs(binary_form=True)
    (name,) = x509.load_der_x509_certificate(certificate).subject.get_attributes_for_oid(NameOID.COMMON_NAME)
    return str(name.value)


def test_replaced_files_apply_to_the_next_connection(tmp_path: Path, log_lines: LogLines) -> None:
    tls = ClientTls("verify-ca", ca=TlsFile("sslrootcert", Authority("old").write(tmp_path)))
    assert _common_name(tls) == "old"
    assert tls.context() is tls.context()
    Authority("new").write(tmp_path)
    assert _common_name(tls) == "new"
    (tmp_path / "ca.pem").write_text("broken")
    assert _common_name(tls) == "new"
    assert _common_name(tls) == "new"
    (line,) = log_lines()
    assert line["event"] == "certificates not reloaded: old ones stay in use"
    assert "the file of sslrootcert cannot be used" in line["cause"]
    Authority("newest").write(tmp_path)
    assert _common_name(tls) == "newest"


def test_files_that_do_not_match_are_an_error_at_the_start(tmp_path: Path) -> None:
    authority = Authority()
    cert, _ = authority.certificate("one").write(tmp_path, "one")
    _, key = authority.certificate("two").write(tmp_path, "two")
    with pytest.raises(StartupError, match="the file of ssl_cert or ssl_key cannot be used"):
        ClientTls("require", cert=TlsFile("ssl_cert", cert), key=TlsFile("ssl_key", key))
