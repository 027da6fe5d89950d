"""What a server does with the default settings."""

import os
from pathlib import Path

import pytest

from bookstore_grpc.server.settings import Settings
from tests.conftest import require
from tests.executable import Serving, serving

pytestmark = pytest.mark.e2e

_LISTENING = "0A"
_LOOPBACK = {
    # As a kernel writes them on a little-endian machine: 127.0.0.1, the same for a socket of IPv6, and ::1.
    "0100007F",
    "0000000000000000FFFF00000100007F",
    "00000000000000000000000001000000",
}


def listening(server: Serving) -> set[tuple[str, int]]:
    """Return the addresses and ports of TCP, in the kernel's hexadecimal, on which a process listens."""
    descriptors = Path(f"/proc/{server.process.pid}/fd").iterdir()
    inodes = {os.readlink(each).removeprefix("socket:[").removesuffix("]") for each in descriptors if each.is_symlink()}
    found = set()
    for table in ("tcp", "tcp6"):
        for line in Path(f"/proc/{server.process.pid}/net/{table}").read_text().splitlines()[1:]:
            _, local, _, state, *rest = line.split()
            if state == _LISTENING and rest[5] in inodes:
                address, _, port = local.partition(":")
                found.add((address, int(port, 16)))
    return found


def test_the_default_address_is_the_loopback() -> None:
    assert Settings().listen == ("127.0.0.1:50051",)


def test_a_server_listens_on_its_address_only(tmp_path: Path) -> None:
    require(Path("/proc/self/net/tcp").exists(), "needs Linux's /proc")
    with serving(f"sqlite+aiosqlite:///{tmp_path}/bookstore.db", tmp_path / "log") as server:
        found = listening(server)
        port = int(server.address.rpartition(":")[2])

    assert port in {number for _, number in found}
    assert {address for address, _ in found} <= _LOOPBACK
    assert {number for _, number in found} == {port}
