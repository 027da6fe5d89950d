"""channelz: what gRPC's core knows of its servers, connections and calls, on an address of its own.

Imported only if it is enabled. It shows who is connected, so it is for this machine alone.
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
    ("grpc.enable_channelz", 0),  # it reports on the service, not on itself
)


@asynccontextmanager
async def serving_channelz(address: str) -> AsyncIterator[str]:
    """Serve on an address while the block runs, and yield it with its real port. Raises `StartupError`."""
    server = grpc.aio.server(options=_OPTIONS)
    channelz.add_channelz_servicer(server)
    reflection.enable_server_reflection((_SERVICE, reflection.SERVICE_NAME), server)
    bound = bind(server, address)
    await server.start()
    try:
        yield bound
    finally:
        await server.stop(0)
