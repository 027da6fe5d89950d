"""The HTTP application: routes of the web pages; every other request is transcoded into a call."""

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

# As browsers send the Origin header: lower case, with a port only if it is not the scheme's default.
_ORIGIN = re.compile(r"(?=[^A-Z]*$)(http://(?!.*:80$)|https://(?!.*:443$))[^/?#@*\s]+")
_HOST = re.compile(r"[A-Za-z0-9-]+(\.[A-Za-z0-9-]+)*")
_VERBS = ["GET", "HEAD", "POST", "PUT", "PATCH", "DELETE"]
_REQUEST_HEADERS = ["Authorization", "Content-Type", "If-Match", "If-None-Match", "X-Request-Id", "Traceparent"]
_RESPONSE_HEADERS = ["ETag", "Location", "Retry-After", "X-Request-Id"]


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
    """Return the ASGI application.

    Web pages of `origins` may call it from browsers (CORS). `needs_token` is shown in the API documentation. The other
    arguments are those of `JsonApi`. Raises `StartupError` for an invalid origin or host.
    """
    for origin in origins:
        if not _ORIGIN.fullmatch(origin):
            raise StartupError(
                f"--http-origins {origin!r} is not an origin as sent by browsers, such as https://shop.example."
            )
    for host in hosts or ():
        if not _HOST.fullmatch(host):
            raise StartupError(f"--http-hosts {host!r} is not a host name such as books.example, without a port.")
    cors = Middleware(
        CORSMiddleware,
        allow_origins=origins,
        allow_methods=_VERBS,
        allow_headers=_REQUEST_HEADERS,
        expose_headers=_RESPONSE_HEADERS,
    )
    application = Starlette(routes=page_routes(needs_token=needs_token), middleware=[cors] if origins else [])
    application.router.redirect_slashes = False
    application.router.default = JsonApi(
        servicer, service, pipeline=pipeline, max_request_bytes=max_request_bytes, validate=validate, hosts=hosts
    )
    return application
