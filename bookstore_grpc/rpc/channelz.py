"""channelz: the core's data about its servers, connections and calls, served on a separate address.

Imported only if enabled. It shows who is connected, so it is only for this machine.
"""

from collections.abc import AsyncIterator
from contextlib import asynccontextmanager

import grpc
from grpc_channelz.v1 import channelz, channelz_pb2
from grpc_reflection.v1alpha import reflection

from bookstore_grpc.rpc.ports import bind

_SERVICE = channelz_pb2.DESCRIPTOR.services_by_name["Channelz"].full_name
_OPTIONS = (
    ("grpc.so_reuseport", 0),
    ("grpc.enable_channelz", 0),  # this server itself is not included in the data
)


@asynccontextmanager
async def serving_channelz(address: str) -> AsyncIterator[str]:
    """Serve on an address while the block runs, and yield it with its actual port. Raises `StartupError`."""
    server = grpc.aio.server(options=_OPTIONS)
    channelz.add_channelz_servicer(server)
    reflection.enable_server_reflection((_SERVICE, reflection.SERVICE_NAME), server)
    bound = bind(server, address)
    await server.start()
    try:
        yield bound
    finally:
        await server.stop(0)
