"""A read of a request goes on to its end although the call is cancelled, for only there gRPC frees what it holds."""

import asyncio
from typing import Any

import grpc

from bookstore_grpc.compat.grpc_server import read_message

METHOD = "/a.Service/Method"


class Recording:
    """A context that notes how its reads end."""

    def __init__(self, context: Any) -> None:
        self._context = context
        self.has_begun = asyncio.Event()
        self.has_ended = asyncio.Event()

    async def read(self) -> Any:
        self.has_begun.set()
        data = await self._context.read()  # a cancellation in its midst would not come past it
        self.has_ended.set()
        return data


async def test_a_read_whose_call_is_cancelled_goes_on_to_its_end() -> None:
    begun: asyncio.Queue[tuple[Recording, asyncio.Task[Any]]] = asyncio.Queue()
    was_cancelled = asyncio.Event()

    async def handle(_requests: Any, context: Any) -> Any:
        recording = Recording(context)
        task = asyncio.current_task()
        assert task is not None
        begun.put_nowait((recording, task))
        try:
            return await read_message(recording)
        except asyncio.CancelledError:
            was_cancelled.set()
            raise

    server = grpc.aio.server()
    handlers: dict[str, Any] = {"Method": grpc.stream_unary_rpc_method_handler(handle)}
    server.add_generic_rpc_handlers([grpc.method_handlers_generic_handler("a.Service", handlers)])
    port = server.add_insecure_port("127.0.0.1:0")
    await server.start()
    async with grpc.aio.insecure_channel(f"127.0.0.1:{port}") as channel:
        send: grpc.aio.StreamUnaryMultiCallable[bytes, bytes] = channel.stream_unary(METHOD)
        assert await send(iter([b"x"])) == b"x"
        await begun.get()

        given_up = send()
        await given_up.wait_for_connection()
        recording, task = await begun.get()
        await recording.has_begun.wait()
        task.cancel()  # as gRPC does when a caller leaves
        async with asyncio.timeout(10):
            await was_cancelled.wait()
        assert not recording.has_ended.is_set()
        given_up.cancel()
        async with asyncio.timeout(10):
            await recording.has_ended.wait()
    await server.stop(None)
