"""The pages and their files are served with security headers and ETags, and of Swagger UI only two files are."""

from collections.abc import AsyncIterator

import pytest

from bookstore_grpc.web.pages import SITE
from tests.gateway.client import ask
from tests.gateway.servers import http_server

PAGES = ("/", "/docs")
FILES = (
    *(f"/assets/{path.name}" for path in sorted(SITE.iterdir()) if path.suffix in {".js", ".css"}),
    "/assets/fields.js",
    "/assets/swagger-ui/swagger-ui-bundle.js",
    "/assets/swagger-ui/swagger-ui.css",
)


@pytest.fixture(scope="module")
async def site(tmp_path_factory: pytest.TempPathFactory) -> AsyncIterator[str]:
    async with http_server(tmp_path_factory.mktemp("docs")) as server:
        yield server.http_address


@pytest.mark.parametrize("path", [*PAGES, *FILES])
async def test_the_content_security_policy_allows_only_this_server(site: str, path: str) -> None:
    response = await ask(site, "GET", path)
    assert response.status == 200
    policy = response.headers["content-security-policy"]
    assert policy.startswith("default-src 'none'")
    assert "unsafe" not in policy
    assert response.headers["x-content-type-options"] == "nosniff"


@pytest.mark.parametrize("path", FILES)
async def test_an_unchanged_file_is_revalidated_by_its_etag(site: str, path: str) -> None:
    first = await ask(site, "GET", path)
    assert first.headers["cache-control"] == "no-cache"
    again = await ask(site, "GET", path, if_none_match=first.headers["etag"])
    assert (again.status, again.body) == (304, b"")
    other = await ask(site, "GET", path, if_none_match='"other"')
    assert (other.status, other.body) == (200, first.body)


async def test_the_module_of_fields_is_javascript_that_can_be_compressed(site: str) -> None:
    plain = await ask(site, "GET", "/assets/fields.js")
    compressed = await ask(site, "GET", "/assets/fields.js", accept_encoding="gzip")
    assert plain.headers["content-type"] == "text/javascript; charset=utf-8"
    assert compressed.headers["content-encoding"] == "gzip"
    assert len(compressed.body) < len(plain.body)


@pytest.mark.parametrize("name", ["index.j2", "swagger-initializer.js", "swagger-ui-bundle.js.map", "../__init__.py"])
async def test_no_other_file_of_swagger_ui_is_served(site: str, name: str) -> None:
    assert (await ask(site, "GET", f"/assets/swagger-ui/{name}")).status == 404
