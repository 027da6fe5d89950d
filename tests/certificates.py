"""Certificates for tests: an authority, and what it vouches for."""

from collections.abc import Sequence
from datetime import UTC, datetime, timedelta
from ipaddress import ip_address
from pathlib import Path
from typing import NamedTuple

from cryptography import x509
from cryptography.hazmat.primitives import hashes
from cryptography.hazmat.primitives.asymmetric import ec, rsa
from cryptography.hazmat.primitives.serialization import Encoding, NoEncryption, PrivateFormat
from cryptography.x509.oid import NameOID

_PrivateKey = ec.EllipticCurvePrivateKey | rsa.RSAPrivateKey
_PublicKey = ec.EllipticCurvePublicKey | rsa.RSAPublicKey


class Certificate(NamedTuple):
    """A certificate and its key, as PEM."""

    pem: bytes
    key: bytes

    def write(self, folder: Path, name: str) -> tuple[str, str]:
        """Write both files and return their paths."""
        cert, key = folder / f"{name}.pem", folder / f"{name}.key"
        cert.write_bytes(self.pem)
        key.write_bytes(self.key)
        return str(cert), str(key)

    @property
    def number(self) -> int:
        return x509.load_pem_x509_certificate(self.pem).serial_number


class Authority:
    """One that vouches for certificates."""

    def __init__(self, name: str = "authority") -> None:
        self._key = ec.generate_private_key(ec.SECP256R1())
        self._name = _name(name)
        self.pem = _signed(self._name, self._name, self._key.public_key(), self._key, is_authority=True)

    def write(self, folder: Path, name: str = "ca") -> str:
        path = folder / f"{name}.pem"
        path.write_bytes(self.pem)
        return str(path)

    def certificate(
        self,
        name: str,
        *,
        hosts: Sequence[str] = (),
        days: int = 1,
        from_day: int = -2,
        key: _PrivateKey | None = None,
    ) -> Certificate:
        """Vouch for a server with hosts, or for a client with a name; with -1 days for one that has expired."""
        key = key or ec.generate_private_key(ec.SECP256R1())
        pem = _signed(_name(name), self._name, key.public_key(), self._key, hosts=hosts, days=days, from_day=from_day)
        return Certificate(pem, key.private_bytes(Encoding.PEM, PrivateFormat.PKCS8, NoEncryption()))

    def revocations(self, *certificates: Certificate) -> bytes:
        """Return a list of revoked certificates, as PEM."""
        now = datetime.now(UTC)
        builder = x509.CertificateRevocationListBuilder(self._name, now - timedelta(days=1), now + timedelta(days=1))
        for certificate in certificates:
            revoked = x509.RevokedCertificateBuilder(certificate.number, now - timedelta(days=1)).build()
            builder = builder.add_revoked_certificate(revoked)
        return builder.sign(self._key, hashes.SHA256()).public_bytes(Encoding.PEM)

    def server(self, *, days: int = 1, from_day: int = -2) -> Certificate:
        return self.certificate("server", hosts=["localhost", "127.0.0.1"], days=days, from_day=from_day)


def _name(name: str) -> x509.Name:
    return x509.Name([x509.NameAttribute(NameOID.COMMON_NAME, name)])


def _signed(
    subject: x509.Name,
    issuer: x509.Name,
    public_key: _PublicKey,
    key: ec.EllipticCurvePrivateKey,
    *,
    hosts: Sequence[str] = (),
    days: int = 1,
    from_day: int = -2,
    is_authority: bool = False,
) -> bytes:
    now = datetime.now(UTC)
    names: list[x509.GeneralName] = [
        x509.IPAddress(ip_address(host)) if host[0].isdigit() else x509.DNSName(host) for host in hosts
    ]
    builder = (
        x509.CertificateBuilder()
        .subject_name(subject)
        .issuer_name(issuer)
        .public_key(public_key)
        .serial_number(x509.random_serial_number())
        .not_valid_before(now + timedelta(days=from_day))
        .not_valid_after(now + timedelta(days=days))
        .add_extension(x509.BasicConstraints(ca=is_authority, path_length=None), critical=True)
    )
    if names:
        builder = builder.add_extension(x509.SubjectAlternativeName(names), critical=False)
    return builder.sign(key, hashes.SHA256()).public_bytes(Encoding.PEM)
