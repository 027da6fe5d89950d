"""The HTTP application: routes of the web pages; every other request is transcoded into a call."""

from collections.abc import Collection, Sequence
from typing import Any

from google.protobuf.descriptor import ServiceDescriptor
from starlette.applications import Starlette
from starlette.middleware import Middleware
from starlette.middleware.cors import CORSMiddleware

from bookstore_grpc.calls.pipeline import CallPipeline
from bookstore_grpc.gateway.event_stream import KEEP_ALIVE_SECONDS
from bookstore_grpc.gateway.transcoder import JsonApi, Validate
from bookstore_grpc.net.asgi import Application
from bookstore_grpc.web.pages import page_routes

_VERBS = ["GET", "HEAD", "POST", "PUT", "PATCH", "DELETE"]
_REQUEST_HEADERS = [
    "Authorization",
    "Content-Type",
    "If-Match",
    "If-None-Match",
    "Last-Event-ID",
    "X-Request-Id",
    "Traceparent",
]
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
    keep_alive_seconds: float = KEEP_ALIVE_SECONDS,
) -> Application:
    """Return the ASGI application.

    Web pages of `origins` may call it from browsers (CORS). `needs_token` is shown in the API documentation. The other
    arguments are those of `JsonApi`.
    """
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
        servicer,
        service,
        pipeline=pipeline,
        max_request_bytes=max_request_bytes,
        validate=validate,
        hosts=hosts,
        keep_alive_seconds=keep_alive_seconds,
    )
    return application
