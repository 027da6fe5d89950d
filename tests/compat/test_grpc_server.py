"""The server receives calls by internals of grpcio; where these differ it does not start."""

from collections.abc import AsyncIterator
from typing import Any

import grpc
import pytest
from grpc._cython import cygrpc

from bookstore_grpc.calls.admission import Admission
from bookstore_grpc.compat import grpc_server
from bookstore_grpc.errors import StartupError
from tests.rpc.obstacles import Waiting
from tests.rpc.servers import server_with


def test_the_installed_grpcio_is_the_one_that_was_tried() -> None:
    assert grpc.__version__ == grpc_server.TRIED_ON


@pytest.mark.parametrize(
    ("owner", "name"), [(grpc_server._AioServer, "_make_request_call_future"), (cygrpc, "_schedule_rpc_coro")]
)
async def test_a_server_whose_calls_could_not_be_held_back_does_not_start(
    monkeypatch: pytest.MonkeyPatch, owner: object, name: str
) -> None:
    monkeypatch.delattr(owner, name)
    with pytest.raises(StartupError, match=f"With grpcio {grpc.__version__} calls cannot be held back"):
        async with server_with(Waiting()):
            pass


async def test_methods_with_one_response_and_with_several_are_served_again_and_again() -> None:
    async def join(requests: AsyncIterator[bytes], _context: object) -> bytes:
        return b"".join([request async for request in requests])

    async def repeat(requests: AsyncIterator[bytes], _context: object) -> AsyncIterator[bytes]:
        async for request in requests:
            yield request

    handlers: dict[str, Any] = {
        "Join": grpc.stream_unary_rpc_method_handler(join),
        "Repeat": grpc.stream_stream_rpc_method_handler(repeat),
    }
    server = grpc_server.server(
        wrap=lambda _method, handler: handler, interceptors=[], options=[], backpressure=Admission()
    )
    server.add_registered_method_handlers("a.Service", handlers)
    port = server.add_insecure_port("127.0.0.1:0")
    await server.start()
    async with grpc.aio.insecure_channel(f"127.0.0.1:{port}") as channel:
        join_once: grpc.aio.StreamUnaryMultiCallable[bytes, bytes] = channel.stream_unary("/a.Service/Join")
        repeat_each: grpc.aio.StreamStreamMultiCallable[bytes, bytes] = channel.stream_stream("/a.Service/Repeat")
        for _ in range(3):
            assert await join_once(iter([b"a", b"b"])) == b"ab"
            assert [response async for response in repeat_each(iter([b"a", b"b"]))] == [b"a", b"b"]
    await server.stop(None)
