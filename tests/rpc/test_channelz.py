"""channelz: served to this machine only, and only if configured."""

from collections.abc import AsyncIterator
from pathlib import Path

import grpc
import pytest
from bookstore.v1 import books_pb2
from grpc_channelz.v1 import channelz_pb2, channelz_pb2_grpc

from bookstore_grpc.errors import StartupError
from bookstore_grpc.rpc.channelz import serving_channelz
from bookstore_grpc.server.app import running_server
from tests.conftest import LogLines, settings_for
from tests.rpc.calls import Stub


@pytest.fixture
def url(tmp_path: Path) -> str:
    return f"sqlite+aiosqlite:///{tmp_path}/bookstore.db"


async def servers(address: str) -> "list[channelz_pb2.Server]":
    """The servers of this process that channelz knows of."""
    async with grpc.aio.insecure_channel(address) as channel:
        stub = channelz_pb2_grpc.ChannelzStub(channel)  # type: ignore[arg-type]  # its stubs know no aio
        return list((await stub.GetServers(channelz_pb2.GetServersRequest())).server)


async def call(address: str, times: int) -> None:
    async with grpc.aio.insecure_channel(address) as channel:
        for _ in range(times):
            await Stub(channel).ListBooks(books_pb2.ListBooksRequest())


@pytest.mark.parametrize("address", ["127.0.0.1:0", "[::1]:0", "unix:{folder}/channelz"])
async def test_it_counts_the_calls_of_our_server(url: str, tmp_path: Path, log_lines: LogLines, address: str) -> None:
    known = {server.ref.server_id async for server in _known()}
    settings = settings_for(url, channelz_listen=address.format(folder=tmp_path))
    async with running_server(settings) as server:
        await call(server.addresses[0], times=7)
        (line,) = [line for line in log_lines() if line["event"] == "serving"]
        found = [each for each in await servers(line["channelz"]) if each.ref.server_id not in known]
    assert [(each.data.calls_started, each.data.calls_succeeded) for each in found] == [(7, 7)]


async def test_it_is_not_on_the_addresses_of_the_service(url: str) -> None:
    async with running_server(settings_for(url, channelz_listen="127.0.0.1:0")) as server:
        with pytest.raises(grpc.aio.AioRpcError) as caught:
            await servers(server.addresses[0])
    assert caught.value.code() is grpc.StatusCode.UNIMPLEMENTED


async def test_without_it_no_account_is_kept(url: str) -> None:
    known = {server.ref.server_id async for server in _known()}
    async with running_server(settings_for(url)) as server:
        await call(server.addresses[0], times=1)
        assert {server.ref.server_id async for server in _known()} == known


@pytest.mark.parametrize(
    ("address", "settings", "expected"),
    [
        ("0.0.0.0:50052", {}, "can be reached from other machines"),
        ("[::]:0", {}, "can be reached from other machines"),
        ("example.org:50052", {"insecure": True}, "can be reached from other machines"),
        ("nonsense", {}, "is neither HOST:PORT nor unix:PATH"),
        ("127.0.0.1:50052", {"workers": 2}, "Several workers cannot share 127.0.0.1:50052"),
        ("unix:a:0", {"workers": 2}, "Several workers cannot share unix:a:0"),
    ],
)
async def test_an_unusable_address_is_rejected(
    url: str, address: str, settings: dict[str, object], expected: str
) -> None:
    with pytest.raises(StartupError, match=expected):
        async with running_server(settings_for(url, channelz_listen=address, **settings)):
            pass


async def test_an_address_in_use_is_rejected(url: str) -> None:
    async with running_server(settings_for(url)) as server:
        taken = server.addresses[0]
        with pytest.raises(StartupError, match=f"Cannot listen on {taken}"):
            async with running_server(settings_for(url, channelz_listen=taken)):
                pass


async def _known() -> "AsyncIterator[channelz_pb2.Server]":
    async with serving_channelz("127.0.0.1:0") as address:
        for server in await servers(address):
            yield server
