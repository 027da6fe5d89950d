"""The names of all metrics, and the metrics of a running server."""

import asyncio
import http.client
import re
from contextlib import AsyncExitStack

import grpc
from bookstore.v1 import books_pb2, books_pb2_grpc

from bookstore_grpc.calls.call import Call, Outcome
from bookstore_grpc.telemetry.metrics import Metrics
from tests.calls.context import PlainContext
from tests.executable import Serving


def metric_names() -> set[str]:
    """Return the names of all metrics, each with a sample."""
    metrics = Metrics()
    call = Call("/a/B", "r", (), PlainContext())
    metrics.call_began(call)
    metrics.call_ended(call, Outcome("OK", 0.1))
    metrics.sample(
        is_ready=True,
        is_writable=True,
        connections={"read": 1},
        wal_bytes=1,
        certificate_expires_at=1,
        refresh_failures={"keys": 1},
        connections_closed={"http": 1},
    )
    return set(re.findall(r"^# TYPE (\w+)", metrics.text().decode(), re.MULTILINE))


def metrics_address(server: Serving) -> str:
    return str(server.wait_for_event("serving")["metrics"])


def ask(server: Serving, path: str, method: str = "GET") -> tuple[int, str]:
    connection = http.client.HTTPConnection(metrics_address(server), timeout=30)
    try:
        connection.request(method, path)
        response = connection.getresponse()
        return response.status, response.read().decode()
    finally:
        connection.close()


def number(server: Serving, name: str, **labels: str) -> float:
    """The sum of a metric's samples that have these labels."""
    status, text = ask(server, "/metrics")
    assert status == 200
    found = re.findall(rf"^{name}(?:{{(.*)}})? (\S+)$", text, re.MULTILINE)
    wanted = [f'{label}="{value}"' for label, value in labels.items()]
    return sum(float(value) for given, value in found if all(each in given for each in wanted))


async def call_all_at_once(address: str, connections: int, calls: int) -> dict[str, int]:
    """Send many calls over several connections at once, and count the statuses."""
    statuses: dict[str, int] = {}

    async def one(stub: "books_pb2_grpc.BookServiceAsyncStub") -> None:
        code = await stub.GetBook(books_pb2.GetBookRequest(id=1), timeout=60).code()
        statuses[code.name] = statuses.get(code.name, 0) + 1

    async with AsyncExitStack() as stack:
        stubs: list[books_pb2_grpc.BookServiceAsyncStub] = []
        for _ in range(connections):
            options = [("grpc.use_local_subchannel_pool", 1)]
            channel = await stack.enter_async_context(grpc.aio.insecure_channel(address, options=options))
            await channel.channel_ready()
            stubs.append(books_pb2_grpc.BookServiceStub(channel))
        await asyncio.gather(*(one(stub) for stub in stubs for _ in range(calls)))
    return statuses
