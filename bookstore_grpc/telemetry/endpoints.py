"""What an operator's tools ask over HTTP: /metrics, /livez and /readyz, on a port of their own.

Imported only where that is wanted.
"""

from collections.abc import AsyncIterator, Callable
from contextlib import asynccontextmanager
from typing import Any, NamedTuple

import structlog

from bookstore_grpc.net.address import Address
from bookstore_grpc.net.connection_limit import Room
from bookstore_grpc.net.http_server import serving_http
from bookstore_grpc.net.listening import bound_socket

_log = structlog.stdlib.get_logger("bookstore_grpc.telemetry.endpoints")

_TEXT = "text/plain; charset=utf-8"
_PROMETHEUS = "text/plain; version=0.0.4; charset=utf-8"


class Probes(NamedTuple):
    """What there is to tell: the metrics as text, and why the service is not ready, or "" and a word where it is."""

    metrics: Callable[[], bytes]
    why_not_ready: Callable[[], str]
    when_ready: Callable[[], str] = lambda: "ok"


@asynccontextmanager
async def serving_probes(address: str, probes: Probes, *, room: Room) -> AsyncIterator[str]:
    """Answer on HOST:PORT while the block runs, and tell the address with its real port. Raises `StartupError`."""
    parsed = Address.parse(address)
    bound = bound_socket(parsed)
    if not parsed.is_local:
        _log.warning("metrics can be read by other machines", address=address)
    async with serving_http(_application(probes), bound, room=room):
        yield str(parsed.with_port(bound.getsockname()[1]))


def _application(probes: Probes) -> Callable[..., Any]:
    def livez() -> tuple[int, str, bytes]:
        return 200, _TEXT, b"ok\n"  # that the event loop turns is what is asked

    def readyz() -> tuple[int, str, bytes]:
        reason = probes.why_not_ready()
        return (503 if reason else 200), _TEXT, f"{reason or probes.when_ready()}\n".encode()

    def metrics() -> tuple[int, str, bytes]:
        return 200, _PROMETHEUS, probes.metrics()

    pages = {"/livez": livez, "/readyz": readyz, "/metrics": metrics}

    async def answer(scope: Any, _receive: Any, send: Any) -> None:
        page = pages.get(scope["path"])
        headers = []
        if page is None:
            status, kind, body = 404, _TEXT, f"There are {', '.join(pages)}.\n".encode()
        elif scope["method"] not in ("GET", "HEAD"):
            status, kind, body = 405, _TEXT, b"Only GET and HEAD.\n"
            headers.append((b"allow", b"GET, HEAD"))
        else:
            status, kind, body = page()
        headers += [(b"content-type", kind.encode()), (b"content-length", str(len(body)).encode())]
        await send({"type": "http.response.start", "status": status, "headers": headers})
        await send({"type": "http.response.body", "body": b"" if scope["method"] == "HEAD" else body})

    return answer
