"""Serves the web pages, their static files, and the OpenAPI document.

They contain no books and need no token.
"""

import os
from collections.abc import Awaitable, Callable
from hashlib import sha256
from pathlib import Path
from typing import Any

from bookstore.v1.books_pb2 import Book
from starlette.middleware import Middleware
from starlette.middleware.gzip import GZipMiddleware
from starlette.requests import Request
from starlette.responses import FileResponse, Response
from starlette.routing import BaseRoute, Mount, Route
from starlette.staticfiles import NotModifiedResponse, StaticFiles
from swagger_ui_bundle import swagger_ui_path

from bookstore_grpc.dal.records import FIELDS
from bookstore_grpc.gateway.openapi.document import openapi_document
from bookstore_grpc.web.fields import fields_module

_Endpoint = Callable[[Request], Awaitable[Response]]

SITE = Path(__file__).parent / "site"
_SWAGGER_UI = ("swagger-ui-bundle.js", "swagger-ui.css")

# Load everything from this server only, and allow no inline scripts or styles.
_POLICY = "; ".join(
    [
        "default-src 'none'",
        "script-src 'self'",
        "style-src 'self'",
        "img-src 'self' data:",
        "connect-src 'self'",
        "base-uri 'none'",
        "form-action 'none'",
        "frame-ancestors 'none'",
    ]
)
_HEADERS = {
    "Content-Security-Policy": _POLICY,
    "X-Content-Type-Options": "nosniff",
    "Referrer-Policy": "no-referrer",
    "Cross-Origin-Opener-Policy": "same-origin",
    "Cross-Origin-Resource-Policy": "same-origin",
    "Cache-Control": "no-cache",
}
# Compression saves two thirds. The files are small: compressing each response is cheaper than a cache.
_COMPRESSED = [Middleware(GZipMiddleware, compresslevel=6)]


def page_routes(*, needs_token: bool) -> list[BaseRoute]:
    """Return the routes: the catalogue at /, the API documentation at /docs, and their files at /assets."""
    site = _Files(directory=SITE)
    fields = fields_module(FIELDS.values(), Book.DESCRIPTOR)
    return [
        Route("/", _file(SITE / "index.html"), middleware=_COMPRESSED),
        Route("/docs", _file(SITE / "docs.html"), middleware=_COMPRESSED),
        Route("/openapi.json", _openapi(needs_token=needs_token), middleware=_COMPRESSED),
        # Uncompressed: compressing 1.5 MB would block every other call.
        Mount("/assets/swagger-ui", _SwaggerUI(directory=swagger_ui_path)),
        Route("/assets/fields.js", _generated(fields, site), middleware=_COMPRESSED),
        Mount("/assets", site, middleware=_COMPRESSED),
    ]


def _openapi(*, needs_token: bool) -> _Endpoint:
    async def document(_request: Request) -> Response:
        return Response(openapi_document(needs_token=needs_token), headers=_HEADERS, media_type="application/json")

    return document


def _file(path: Path) -> _Endpoint:
    async def file(_request: Request) -> Response:
        return FileResponse(path, headers=_HEADERS)

    return file


def _generated(module: bytes, site: StaticFiles) -> _Endpoint:
    """Serve a generated ES module with the caching and the headers of the files of `site`."""
    headers = {**_HEADERS, "ETag": f'"{sha256(module).hexdigest()}"'}

    async def file(request: Request) -> Response:
        response = Response(module, headers=headers, media_type="text/javascript")
        is_known = site.is_not_modified(response.headers, request.headers)
        return NotModifiedResponse(response.headers) if is_known else response

    return file


class _Files(StaticFiles):
    """Static files with the security headers."""

    def file_response(self, *arguments: Any, **options: Any) -> Response:
        response = super().file_response(*arguments, **options)
        response.headers.update(_HEADERS)
        return response


class _SwaggerUI(_Files):
    """The files of Swagger UI that /docs uses. Its package has more."""

    def lookup_path(self, path: str) -> tuple[str, os.stat_result | None]:
        return super().lookup_path(path) if path in _SWAGGER_UI else ("", None)
