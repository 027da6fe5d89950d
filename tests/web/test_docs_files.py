"""What /docs is made of comes from this server, with its headers, and only that of Swagger UI's package."""

from collections.abc import AsyncIterator

import pytest

from tests.gateway.client import ask
from tests.gateway.servers import http_server

FILES = (
    "/docs",
    "/assets/docs.js",
    "/assets/docs.css",
    "/assets/swagger-ui/swagger-ui-bundle.js",
    "/assets/swagger-ui/swagger-ui.css",
)


@pytest.fixture(scope="module")
async def site(tmp_path_factory: pytest.TempPathFactory) -> AsyncIterator[str]:
    async with http_server(tmp_path_factory.mktemp("docs")) as server:
        yield server.http_address


@pytest.mark.parametrize("path", FILES)
async def test_the_page_and_its_files_let_nothing_in_from_elsewhere(site: str, path: str) -> None:
    answer = await ask(site, "GET", path)
    assert answer.status == 200
    policy = answer.headers["content-security-policy"]
    assert policy.startswith("default-src 'none'")
    assert "unsafe" not in policy
    assert answer.headers["x-content-type-options"] == "nosniff"


@pytest.mark.parametrize("path", FILES[1:])
async def test_a_file_that_a_browser_has_is_not_sent_again(site: str, path: str) -> None:
    etag = (await ask(site, "GET", path)).headers["etag"]
    again = await ask(site, "GET", path, if_none_match=etag)
    assert (again.status, again.body) == (304, b"")


@pytest.mark.parametrize("name", ["index.j2", "swagger-initializer.js", "swagger-ui-bundle.js.map", "../__init__.py"])
async def test_nothing_else_of_swagger_ui_is_served(site: str, name: str) -> None:
    assert (await ask(site, "GET", f"/assets/swagger-ui/{name}")).status == 404
