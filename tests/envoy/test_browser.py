"""A page of another origin calls the service by gRPC-Web: @connectrpc/connect-web in Chromium."""

import functools
import shutil
import subprocess
import threading
from collections.abc import AsyncIterator, Iterator
from http.server import SimpleHTTPRequestHandler, ThreadingHTTPServer
from pathlib import Path
from typing import TYPE_CHECKING, Any

import pytest

from deploy.envoy.descriptors import descriptor_set
from tests.browser.conftest import BrowserErrors, browser, browser_errors
from tests.conftest import require
from tests.envoy.edge import running_edge
from tests.executable import PATIENCE_SECONDS

if TYPE_CHECKING:
    from playwright.async_api import Browser, Page

__all__ = ["browser", "browser_errors"]

pytestmark = pytest.mark.timeout(300)

SOURCE = Path(__file__).parent / "browser"


class Files(SimpleHTTPRequestHandler):
    """Serves a folder, without a log."""

    def log_message(self, *_arguments: object) -> None:
        """Do not log."""


@pytest.fixture(scope="module")
def folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """The page, and from npm what it imports."""
    npm = shutil.which("npm")
    require(npm, "npm is not installed")
    assert npm is not None
    folder = tmp_path_factory.mktemp("page") / "site"
    shutil.copytree(SOURCE, folder, ignore=shutil.ignore_patterns("node_modules"))
    command = [npm, "ci", "--ignore-scripts", "--no-audit", "--no-fund"]
    done = subprocess.run(
        command, cwd=folder, capture_output=True, text=True, timeout=4 * PATIENCE_SECONDS, check=False
    )
    assert done.returncode == 0, done.stdout + done.stderr
    (folder / "bookstore.binpb").write_bytes(descriptor_set().SerializeToString())
    return folder


@pytest.fixture(scope="module")
def origins(folder: Path) -> Iterator[tuple[str, str]]:
    """Two origins that serve the page."""
    servers = [ThreadingHTTPServer(("127.0.0.1", 0), functools.partial(Files, directory=str(folder))) for _ in range(2)]
    threads = [threading.Thread(target=server.serve_forever) for server in servers]
    for thread in threads:
        thread.start()
    one, other = (f"http://127.0.0.1:{server.server_port}" for server in servers)
    yield one, other
    for server, thread in zip(servers, threads, strict=True):
        server.shutdown()
        thread.join()
        server.server_close()


@pytest.fixture(scope="module")
async def url(origins: tuple[str, str], tmp_path_factory: pytest.TempPathFactory) -> AsyncIterator[str]:
    """The address of an Envoy that allows calls of pages of the first origin."""
    folder = tmp_path_factory.mktemp("edge")
    async with running_edge(folder, f"sqlite+aiosqlite:///{folder}/bookstore.db", origin=origins[0]) as edge:
        yield f"https://{edge.envoy.address}"


@pytest.fixture
async def page(browser: "Browser", browser_errors: BrowserErrors) -> AsyncIterator["Page"]:
    """A page that accepts Envoy's certificate; any other problem fails the test, by `browser_errors`."""
    context = await browser.new_context(ignore_https_errors=True)
    context.set_default_timeout(10_000)
    browser_errors.watch(context)
    yield await context.new_page()
    await context.close()
    browser_errors.verify()


async def session(page: "Page", origin: str, url: str) -> Any:
    await page.goto(f"{origin}/index.html")
    await page.wait_for_function("() => 'session' in window")
    return await page.evaluate("url => session(url)", url)


async def test_a_page_creates_gets_and_lists_books_and_gets_error_details(
    page: "Page", origins: tuple[str, str], url: str
) -> None:
    result = await session(page, origins[0], url)

    created = result["created"]
    assert (created["name"], created["author"], created["releaseYear"]) == ("Año Nuevo 元旦", "A page", 0)
    assert result["read"] == created
    assert result["listed"]["books"] == [created]
    invalid = result["invalid"]
    assert (invalid["code"], invalid["requestId"]) == ("InvalidArgument", "from-a-page")
    info, request_info, bad_request = invalid["details"]
    assert (info["reason"], info["domain"]) == ("INVALID_FIELD", "bookstore.v1")
    assert request_info["requestId"] == "from-a-page"
    assert [each["field"] for each in bad_request["fieldViolations"]] == ["book.name", "book.release_year"]


async def test_a_page_of_an_origin_that_is_not_listed_is_blocked(
    page: "Page", origins: tuple[str, str], url: str, browser_errors: BrowserErrors
) -> None:
    from playwright.async_api import Error

    browser_errors.expect("blocked by CORS policy")
    browser_errors.expect("ERR_FAILED")
    with pytest.raises(Error, match="Failed to fetch"):
        await session(page, origins[1], url)
