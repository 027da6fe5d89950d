"""The HTTP application: pages for people first, and everything else is a call."""

import re
from collections.abc import Collection, Sequence
from typing import Any

from google.protobuf.descriptor import ServiceDescriptor
from starlette.applications import Starlette
from starlette.middleware import Middleware
from starlette.middleware.cors import CORSMiddleware

from bookstore_grpc.calls.pipeline import CallPipeline
from bookstore_grpc.errors import StartupError
from bookstore_grpc.gateway.transcoder import JsonApi, Validate
from bookstore_grpc.net.asgi import Application
from bookstore_grpc.web.pages import page_routes

# As browsers send them: in lower case, and with a port only where it is not the scheme's own.
_ORIGIN = re.compile(r"(?=[^A-Z]*$)(http://(?!.*:80$)|https://(?!.*:443$))[^/?#@*\s]+")
_HOST = re.compile(r"[A-Za-z0-9-]+(\.[A-Za-z0-9-]+)*")
_VERBS = ["GET", "HEAD", "POST", "PUT", "PATCH", "DELETE"]
_ASKED_HEADERS = ["Authorization", "Content-Type", "If-Match", "If-None-Match", "X-Request-Id", "Traceparent"]
_TOLD_HEADERS = ["ETag", "Location", "Retry-After", "X-Request-Id"]


def http_application(
    servicer: Any,
    service: ServiceDescriptor,
    *,
    pipeline: CallPipeline,
    max_request_bytes: int,
    origins: Sequence[str],
    hosts: Collection[str] | None,
    validate: Validate | None = None,
    needs_token: bool = False,
) -> Application:
    """Build it. Pages of `origins` may call from browsers, and the docs say whether a call `needs_token`.

    For the others see `JsonApi`. Raises `StartupError`.
    """
    for origin in origins:
        if not _ORIGIN.fullmatch(origin):
            raise StartupError(
                f"--http-origins {origin!r} is not an origin as browsers send it, such as https://shop.example."
            )
    for host in hosts or ():
        if not _HOST.fullmatch(host):
            raise StartupError(f"--http-hosts {host!r} is not a host name such as books.example, without a port.")
    cors = Middleware(
        CORSMiddleware,
        allow_origins=origins,
        allow_methods=_VERBS,
        allow_headers=_ASKED_HEADERS,
        expose_headers=_TOLD_HEADERS,
    )
    application = Starlette(routes=page_routes(needs_token=needs_token), middleware=[cors] if origins else [])
    application.router.redirect_slashes = False
    application.router.default = JsonApi(
        servicer, service, pipeline=pipeline, max_request_bytes=max_request_bytes, validate=validate, hosts=hosts
    )
    return application
