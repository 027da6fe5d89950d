"""The HTTP application: pages for people first, and everything else is a call."""

from collections.abc import Collection, Sequence
from typing import Any

from google.protobuf.descriptor import ServiceDescriptor
from starlette.applications import Starlette
from starlette.middleware import Middleware
from starlette.middleware.cors import CORSMiddleware

from bookstore_grpc.gateway.transcoder import Guard, JsonApi
from bookstore_grpc.net.asgi import Application
from bookstore_grpc.web.pages import page_routes

_VERBS = ["GET", "HEAD", "POST", "PUT", "PATCH", "DELETE"]
_ASKED_HEADERS = ["Authorization", "Content-Type", "If-Match", "If-None-Match", "X-Request-Id", "Traceparent"]
_TOLD_HEADERS = ["ETag", "Location", "Retry-After", "X-Request-Id"]


def http_application(
    servicer: Any,
    service: ServiceDescriptor,
    *,
    guard: Guard,
    max_request_bytes: int,
    origins: Sequence[str],
    hosts: Collection[str] | None,
    needs_token: bool = False,
) -> Application:
    """Build it. Pages of `origins` may call from browsers, and the docs say whether a call `needs_token`.

    For the others see `JsonApi`.
    """
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
        servicer, service, guard=guard, max_request_bytes=max_request_bytes, hosts=hosts
    )
    return application
