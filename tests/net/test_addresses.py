"""Addresses that several processes are to share: held for them, and kept from everybody else."""

import os
import socket
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

import pytest

from bookstore_grpc.errors import StartupError
from bookstore_grpc.net.address import Address, is_local
from bookstore_grpc.net.listening import bound_socket, cannot_listen, reserved


@contextmanager
def listening(host: str, port: int, *, shares: bool) -> Iterator[int]:
    """Listen as gRPC does, and return the port."""
    with socket.socket(socket.AF_INET6 if ":" in host else socket.AF_INET) as listener:
        listener.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEADDR, 1)
        listener.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEPORT, int(shares))
        listener.bind((host, port))
        listener.listen()
        yield int(listener.getsockname()[1])


@contextmanager
def reserving(*addresses: str) -> Iterator[tuple[Address, ...]]:
    with reserved([Address.parse(address) for address in addresses]) as held:
        yield held


def _told(*addresses: str) -> str:
    with pytest.raises(StartupError) as caught, reserving(*addresses):
        pass
    return caught.value.message


@pytest.mark.parametrize(
    ("text", "address", "is_reachable_by_this_machine_alone"),
    [
        ("127.0.0.1:50051", Address("127.0.0.1", 50051), True),
        ("localhost:0", Address("localhost", 0), True),
        ("books.example:65535", Address("books.example", 65_535), False),
        ("[::1]:443", Address("::1", 443, is_bracketed=True), True),
        ("[2001:db8::1]:443", Address("2001:db8::1", 443, is_bracketed=True), False),
        (":::0", Address("::", 0), False),
        ("unix:/run/a,b", Address(path="/run/a,b"), True),
        ("unix:a:0", Address(path="a:0"), True),
    ],
)
def test_an_address_is_parsed_and_written_as_it_was(
    text: str, address: Address, is_reachable_by_this_machine_alone: bool
) -> None:
    parsed = Address.parse(text)
    assert parsed == address
    assert str(parsed) == text
    assert parsed.is_unix is bool(address.path)
    assert parsed.is_local is is_local(text) is is_reachable_by_this_machine_alone


def test_text_that_is_not_an_address_is_not_local() -> None:
    assert not is_local("localhost")
    assert not is_local("dns:///localhost")


def test_a_socket_for_http_has_a_free_port() -> None:
    with bound_socket(Address("::1", is_bracketed=True)) as bound:
        assert bound.getsockname()[1] > 0


@pytest.mark.parametrize("host", ["127.0.0.1", "localhost", "[::1]", "0.0.0.0", "[::]"])
def test_port_0_becomes_a_real_one(host: str) -> None:
    with reserving(f"{host}:0", f"{host}:0") as (one, other):
        assert str(one) == f"{host}:{one.port}"
        assert one.port > 0
        assert one.port != other.port


@pytest.mark.parametrize(("address", "host"), [("127.0.0.1:0", "127.0.0.1"), ("[::1]:0", "::1")])
def test_reserved_address_can_be_used_only_by_sockets_that_share_it(address: str, host: str) -> None:
    with reserving(address) as (held,):
        for _ in range(2):
            with pytest.raises(OSError, match="in use"), listening(host, held.port, shares=False):
                pass
            # Also after all who listened have gone.
            with listening(host, held.port, shares=True), listening(host, held.port, shares=True):
                pass
    with listening(host, held.port, shares=False):
        pass


def test_connections_go_to_listening_sockets_and_not_to_the_reservation() -> None:
    with reserving("127.0.0.1:0") as (held,), listening("127.0.0.1", held.port, shares=True):
        for _ in range(50):
            socket.create_connection(("127.0.0.1", held.port), timeout=10).close()


@pytest.mark.parametrize("shares", [False, True])
@pytest.mark.parametrize(("listener", "host"), [("127.0.0.1", "127.0.0.1"), ("127.0.0.1", "0.0.0.0"), ("::1", "[::]")])
def test_address_with_a_listener_is_rejected_even_if_it_would_share(listener: str, host: str, shares: bool) -> None:
    with listening(listener, 0, shares=shares) as port:
        assert _told("127.0.0.1:0", f"{host}:{port}").startswith(f"Cannot listen on {host}:{port}: ")


def test_address_reserved_by_another_supervisor_is_rejected() -> None:
    with reserving("127.0.0.1:0") as (held,):
        assert _told(str(held)).startswith(f"Cannot listen on {held}: ")


@pytest.mark.parametrize(
    ("address", "cause"),
    [
        ("192.0.2.1:0", "the address is not this machine's"),
        ("no-such-host.invalid:0", "the name does not resolve"),
        (f"{'x' * 70}.example:0", "the name does not resolve"),
    ],
)
def test_address_of_another_machine_or_of_none_is_rejected(address: str, cause: str) -> None:
    assert _told(address).startswith(f"Cannot listen on {address}: {cause}")
    assert cannot_listen(Address.parse(address)).message.startswith(f"Cannot listen on {address}: {cause}")


def test_a_folder_without_write_permission_is_an_error(tmp_path: Path) -> None:
    tmp_path.chmod(0)
    user = os.geteuid()
    try:
        if user == 0:
            os.seteuid(65_534)  # root may write everywhere
        message = cannot_listen(Address(path=f"{tmp_path}/socket")).message
    finally:
        os.seteuid(user)
        tmp_path.chmod(0o700)
    assert message.startswith(f"Cannot listen on unix:{tmp_path}/socket: this user lacks the permission. ")


def test_asking_why_leaves_nothing_behind(tmp_path: Path) -> None:
    assert "gRPC reports no cause" in cannot_listen(Address(path=f"{tmp_path}/socket")).message
    assert not list(tmp_path.iterdir())


@pytest.mark.parametrize("listed", ["127.0.0.1:1,127.0.0.1:2", "127.0.0.1:1,unix:/tmp/x", "127.0.0.1:1, 127.0.0.1:2"])
def test_commas_between_addresses_are_an_error(listed: str) -> None:
    with pytest.raises(ValueError, match="Separate addresses by spaces, not by commas"):
        Address.parse(listed.split(" ", maxsplit=1)[0])


def test_connections_that_a_former_server_closed_do_not_keep_its_port() -> None:
    with socket.create_server(("127.0.0.1", 0)) as former, socket.create_connection(former.getsockname()) as client:
        port = former.getsockname()[1]
        former.accept()[0].close()
        assert client.recv(1) == b""
    with reserving(f"127.0.0.1:{port}") as (held,):
        assert held.port == port
