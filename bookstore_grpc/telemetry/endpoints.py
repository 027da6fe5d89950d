"""The HTTP endpoints for operators, on a separate port: /metrics, /livez (liveness) and /readyz (readiness).

Imported only if enabled.
"""

from collections.abc import Callable
from typing import Any, NamedTuple

import structlog

from bookstore_grpc.net.address import Address
from bookstore_grpc.net.connection_limit import ConnectionLimit
from bookstore_grpc.net.http_server import HttpServer

_log = structlog.stdlib.get_logger("bookstore_grpc.telemetry.endpoints")

_TEXT = "text/plain; charset=utf-8"
_PROMETHEUS = "text/plain; version=0.0.4; charset=utf-8"


class Endpoints(NamedTuple):
    """The sources of the responses.

    `metrics` returns the text of /metrics. `why_not_ready` returns the reason for 503 of /readyz, or "" if the service
    is ready; the body is then what `when_ready` returns.
    """

    metrics: Callable[[], bytes]
    why_not_ready: Callable[[], str]
    when_ready: Callable[[], str] = lambda: "ok"


def endpoints_server(address: str, endpoints: Endpoints, *, limit: ConnectionLimit) -> HttpServer:
    """Return an HTTP server of the endpoints on HOST:PORT."""
    parsed = Address.parse(address)
    if not parsed.is_local:
        _log.warning("serving metrics to other machines", address=address)
    return HttpServer(_application(endpoints), parsed, limit=limit)


def _application(endpoints: Endpoints) -> Callable[..., Any]:
    def livez() -> tuple[int, str, bytes]:
        return 200, _TEXT, b"ok\n"  # the response itself shows that the event loop runs

    def readyz() -> tuple[int, str, bytes]:
        reason = endpoints.why_not_ready()
        return (503 if reason else 200), _TEXT, f"{reason or endpoints.when_ready()}\n".encode()

    def metrics() -> tuple[int, str, bytes]:
        return 200, _PROMETHEUS, endpoints.metrics()

    pages = {"/livez": livez, "/readyz": readyz, "/metrics": metrics}

    async def respond(scope: Any, _receive: Any, send: Any) -> None:
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

    return respond
