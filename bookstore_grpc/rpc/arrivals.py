"""How many calls have reached gRPC's core, by its own count (channelz): those it turns away no handler ever sees.

Imported only where metrics are wanted.
"""

from collections.abc import Iterator

from grpc_channelz.v1 import channelz, channelz_pb2


class Arrivals:
    """Counts the calls to the gRPC server that was made last in this process."""

    def __init__(self) -> None:
        self._server_id = max(server.ref.server_id for server in _servers(from_id=0))
        self._count = 0

    def count(self) -> int:
        """Answer how many calls have come, whatever became of them. It takes a third of a millisecond."""
        server = next(_servers(from_id=self._server_id), None)
        if server is not None and server.ref.server_id == self._server_id:  # after its end it is there no more
            self._count = server.data.calls_started
        return self._count


def _servers(*, from_id: int) -> Iterator[channelz_pb2.Server]:
    is_end = False
    while not is_end:
        request = channelz_pb2.GetServersRequest(start_server_id=from_id)
        page = channelz.ChannelzServicer.GetServers(request, None)  # type: ignore[arg-type]  # it sets no status
        yield from page.server
        is_end = page.end or not page.server
        if not is_end:
            from_id = page.server[-1].ref.server_id + 1
