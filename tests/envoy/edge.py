"""The service behind the Envoy of deploy/: servers on one database, and their state by its admin page."""

import asyncio
import http.client
import json
import subprocess
from collections.abc import AsyncIterator, Sequence
from contextlib import asynccontextmanager
from pathlib import Path
from typing import Any

import grpc

from deploy.envoy.edge import Ports, envoy_command, write_configuration
from tests.certificates import Authority
from tests.executable import Serving, wait_until

ORIGIN = "https://app.example"


class Envoy:
    """A real Envoy with the configuration of deploy/, on free ports of the loopback.

    With `encrypts` it speaks TLS to the servers, by the lines that are commented out for it.
    """

    def __init__(
        self, folder: Path, server_ports: tuple[int, int], *, origin: str = ORIGIN, encrypts: bool = False
    ) -> None:
        self._authority = Authority()
        self._folder = folder
        self.ca = self._authority.write(folder)
        (folder / "tls").mkdir()
        self.renew_certificate()
        configuration = write_configuration(folder, Ports(0, server_ports, 0), origin=origin)
        if encrypts:
            configuration.write_text(_uncommented(configuration.read_text()))
        admin = folder / "admin"
        self.log = folder / "envoy.log"
        with self.log.open("wb") as log:
            options = ["--concurrency", "2", "--file-flush-interval-msec", "100", "--admin-address-path", str(admin)]
            command = [*envoy_command(configuration), *options]
            self.process = subprocess.Popen(command, stdin=subprocess.DEVNULL, stdout=log, stderr=log)
        try:
            wait_until(lambda: self._has_ended() or (admin.exists() and admin.read_text()), "Envoy has started")
            self.admin = admin.read_text()
            wait_until(self._is_ready, "Envoy is ready")
            (listener,) = self.ask("/listeners?format=json")["listener_statuses"]
            self.address = f"127.0.0.1:{listener['local_address']['socket_address']['port_value']}"
        except BaseException:
            self.end()
            raise

    def renew_certificate(self) -> None:
        """Replace the certificate atomically, as tools that renew them do."""
        certificate = self._authority.server()
        for name, data in (("tls.crt", certificate.pem), ("tls.key", certificate.key)):
            new = self._folder / f"{name}.new"
            new.write_bytes(data)
            new.rename(self._folder / "tls" / name)

    def ask(self, path: str) -> Any:
        """Return a page of the admin interface, which is JSON."""
        return json.loads(self._get(path)[1])

    def healthy(self) -> set[str]:
        """Return the addresses of the servers that get calls."""
        (cluster,) = (each for each in self.ask("/clusters?format=json")["cluster_statuses"] if each["host_statuses"])
        return {
            f"127.0.0.1:{host['address']['socket_address']['port_value']}"
            for host in cluster["host_statuses"]
            if host["health_status"] == {"eds_health_status": "HEALTHY"}
        }

    def statistic(self, name: str) -> int:
        """Return a counter or gauge of the cluster."""
        found = self.ask(f"/stats?format=json&filter=^cluster.bookstore.{name}$")["stats"]
        return int(found[0]["value"]) if found else 0

    def calls(self) -> list[dict[str, Any]]:
        """Return the lines of the access log."""
        return [json.loads(line) for line in self.log.read_text().splitlines() if line.startswith("{")]

    def channel(self) -> grpc.aio.Channel:
        """Open a connection of its own, as gRPC does."""
        credentials = grpc.ssl_channel_credentials(Path(self.ca).read_bytes())
        return grpc.aio.secure_channel(self.address, credentials, options=[("grpc.use_local_subchannel_pool", 1)])

    def end(self) -> None:
        """Leave nothing running."""
        if not self._has_ended():
            self.process.kill()
        self.process.wait()

    def _get(self, path: str) -> tuple[int, bytes]:
        connection = http.client.HTTPConnection(self.admin, timeout=10)
        try:
            connection.request("GET", path)
            response = connection.getresponse()
            return response.status, response.read()
        finally:
            connection.close()

    def _has_ended(self) -> bool:
        return self.process.poll() is not None

    def _is_ready(self) -> bool:
        assert not self._has_ended(), self.log.read_text()
        return self._get("/ready")[0] == 200


class Edge:
    """Two servers on one database behind an Envoy."""

    def __init__(self, folder: Path, database_url: str, arguments: Sequence[str], origin: str) -> None:
        self._folder = folder
        self._database_url = database_url
        self._arguments = arguments
        self._starts = 0
        self._started: list[Serving] = []
        self.servers = [self._serve("127.0.0.1:0"), self._serve("127.0.0.1:0")]
        one, other = (int(server.address.rpartition(":")[2]) for server in self.servers)
        try:
            self.envoy = Envoy(folder, (one, other), origin=origin)
        except BaseException:
            self.end()
            raise
        wait_until(lambda: len(self.envoy.healthy()) == 2, "both servers are healthy")

    def restart(self, number: int) -> Serving:
        """Start a server that has ended once more, where it was."""
        self.servers[number] = self._serve(self.servers[number].address)
        return self.servers[number]

    def end(self) -> None:
        """Leave nothing running."""
        for server in self._started:
            server.end()
        if hasattr(self, "envoy"):
            self.envoy.end()

    def _serve(self, address: str) -> Serving:
        self._starts += 1
        log = self._folder / f"server-{self._starts}.log"
        server = Serving(self._database_url, log, "--listen", address, "--migrate", *self._arguments)
        self._started.append(server)
        return server


@asynccontextmanager
async def running_edge(folder: Path, database_url: str, *arguments: str, origin: str = ORIGIN) -> AsyncIterator[Edge]:
    """Run it all while a block runs; the arguments are those of the servers."""
    edge = await asyncio.to_thread(Edge, folder, database_url, arguments, origin)
    try:
        yield edge
    finally:
        await asyncio.to_thread(edge.end)


def _uncommented(text: str) -> str:
    begin = text.index("    # transport_socket:")
    end = text.index("\n\n", begin)
    return text[:begin] + text[begin:end].replace("    # ", "    ") + text[end:]
