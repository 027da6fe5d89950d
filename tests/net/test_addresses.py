"""Addresses that several processes are to share: held for them, and kept from everybody else."""

import os
import socket
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

import pytest

from bookstore_grpc.errors import StartupError
from bookstore_grpc.net.addresses import cannot_listen, check_addresses, reserved


@contextmanager
def listening(host: str, port: int, *, shares: bool) -> Iterator[int]:
    """Listen as gRPC does, and answer the port."""
    with socket.socket(socket.AF_INET6 if ":" in host else socket.AF_INET) as listener:
        listener.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEADDR, 1)
        listener.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEPORT, int(shares))
        listener.bind((host, port))
        listener.listen()
        yield int(listener.getsockname()[1])


def _port(address: str) -> int:
    return int(address.rpartition(":")[2])


def _told(*addresses: str) -> str:
    with pytest.raises(StartupError) as caught, reserved(addresses):
        pass
    return caught.value.message


@pytest.mark.parametrize("host", ["127.0.0.1", "localhost", "[::1]", "0.0.0.0", "[::]"])
def test_port_0_becomes_a_real_one(host: str) -> None:
    with reserved([f"{host}:0", f"{host}:0"]) as (one, other):
        assert one.startswith(f"{host}:")
        assert _port(one) > 0
        assert _port(one) != _port(other)


@pytest.mark.parametrize(("address", "host"), [("127.0.0.1:0", "127.0.0.1"), ("[::1]:0", "::1")])
def test_held_address_is_for_those_who_share_it_and_for_nobody_else(address: str, host: str) -> None:
    with reserved([address]) as (held,):
        for _ in range(2):
            with pytest.raises(OSError, match="in use"), listening(host, _port(held), shares=False):
                pass
            # Also after all who listened have gone.
            with listening(host, _port(held), shares=True), listening(host, _port(held), shares=True):
                pass
    with listening(host, _port(held), shares=False):
        pass


def test_connections_go_to_those_who_listen_and_not_to_the_reservation() -> None:
    with reserved(["127.0.0.1:0"]) as (held,), listening("127.0.0.1", _port(held), shares=True):
        for _ in range(50):
            socket.create_connection(("127.0.0.1", _port(held)), timeout=10).close()


@pytest.mark.parametrize("shares", [False, True])
@pytest.mark.parametrize(("listener", "host"), [("127.0.0.1", "127.0.0.1"), ("127.0.0.1", "0.0.0.0"), ("::1", "[::]")])
def test_address_where_somebody_listens_is_refused_though_they_would_share(
    listener: str, host: str, shares: bool
) -> None:
    with listening(listener, 0, shares=shares) as port:
        assert _told("127.0.0.1:0", f"{host}:{port}").startswith(f"Cannot listen on {host}:{port}: ")


def test_address_that_another_supervisor_holds_is_refused() -> None:
    with reserved(["127.0.0.1:0"]) as (held,):
        assert _told(held).startswith(f"Cannot listen on {held}: ")


@pytest.mark.parametrize(
    ("address", "cause"),
    [
        ("192.0.2.1:0", "the address is not this machine's"),
        ("no-such-host.invalid:0", "the name does not resolve"),
        (f"{'x' * 70}.example:0", "the name does not resolve"),
    ],
)
def test_address_of_another_machine_or_of_none_is_refused(address: str, cause: str) -> None:
    assert _told(address).startswith(f"Cannot listen on {address}: {cause}")
    assert cannot_listen(address).message.startswith(f"Cannot listen on {address}: {cause}")


def test_a_folder_where_this_user_may_not_write_is_told(tmp_path: Path) -> None:
    tmp_path.chmod(0)
    user = os.geteuid()
    try:
        if user == 0:
            os.seteuid(65_534)  # root may write everywhere
        message = cannot_listen(f"unix:{tmp_path}/socket").message
    finally:
        os.seteuid(user)
        tmp_path.chmod(0o700)
    assert message.startswith(f"Cannot listen on unix:{tmp_path}/socket: this user has not the right to. ")


def test_asking_why_leaves_nothing_behind(tmp_path: Path) -> None:
    assert "gRPC does not say why" in cannot_listen(f"unix:{tmp_path}/socket").message
    assert not list(tmp_path.iterdir())


@pytest.mark.parametrize("listed", ["127.0.0.1:1,127.0.0.1:2", "127.0.0.1:1,unix:/tmp/x", "127.0.0.1:1, 127.0.0.1:2"])
def test_commas_between_addresses_are_told(listed: str) -> None:
    with pytest.raises(StartupError, match="separated by blanks, not by commas"):
        check_addresses(listed.split(" "), encrypted=False, insecure=False)
    check_addresses(["unix:/tmp/a,b"], encrypted=False, insecure=False)


def test_unix_socket_is_refused_with_what_to_do() -> None:
    assert "--workers 1" in _told("unix:/tmp/x")


def test_connections_that_a_former_server_closed_do_not_keep_its_port() -> None:
    with socket.create_server(("127.0.0.1", 0)) as former, socket.create_connection(former.getsockname()) as client:
        port = former.getsockname()[1]
        former.accept()[0].close()
        assert client.recv(1) == b""
    with reserved([f"127.0.0.1:{port}"]) as (held,):
        assert _port(held) == port
