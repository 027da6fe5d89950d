"""Fixtures: Debian's Chromium, a page in it whose errors fail the test, and a real server."""

import importlib.util
import re
import shutil
from collections.abc import AsyncIterator
from pathlib import Path
from typing import TYPE_CHECKING
from urllib.parse import urlsplit

import pytest

from bookstore_grpc.rpc.server import Server
from bookstore_grpc.server.app import running_server
from tests.browser.catalogue import ApiClient
from tests.conftest import require, reset_sqlite, settings_for

if TYPE_CHECKING:
    from playwright.async_api import Browser, BrowserContext, ConsoleMessage, Page, Request

# The headless shell takes half of the CPU of the browser with its own pages.
CHROMIUM = "/usr/bin/chromium-headless-shell"
FLAGS = (
    "--no-sandbox",  # tests may run as root, which Chromium does not sandbox
    "--disable-gpu",
    "--disable-quic",
    "--no-first-run",
    "--disable-background-networking",
    "--disable-component-update",
    "--disable-sync",
    "--host-resolver-rules=MAP * ~NOTFOUND, EXCLUDE 127.0.0.1",
)
TIMEOUT_SECONDS = 10.0


class BrowserErrors:
    """The errors, warnings and failed requests of a test's pages."""

    def __init__(self) -> None:
        self._found: list[str] = []
        self._expected: list[str] = []

    def expect(self, pattern: str) -> None:
        """Require an error that this regular expression finds, such as "status of 409", and allow all that it finds."""
        self._expected.append(pattern)

    def watch(self, context: "BrowserContext") -> None:
        """Record the errors of all pages of the context."""
        context.on("console", self._add_message)
        context.on("weberror", lambda error: self._found.append(f"uncaught: {error.error}"))
        context.on("request", self._add_request)
        context.on("requestfailed", self._add_failure)

    def matching(self, pattern: str) -> list[str]:
        """Return the errors so far that this regular expression finds."""
        return [line for line in self._found if re.search(pattern, line)]

    def verify(self) -> None:
        """Fail on unexpected errors, and on expected ones that did not occur."""
        unexpected = [line for line in self._found if not any(re.search(each, line) for each in self._expected)]
        assert not unexpected, "\n".join(unexpected)
        missing = [each for each in self._expected if not self.matching(each)]
        assert not missing, f"expected errors that did not occur: {missing}"

    def _add_message(self, message: "ConsoleMessage") -> None:
        if message.type in {"error", "warning"}:
            self._found.append(f"{message.type}: {message.text} ({message.location['url']})")

    def _add_request(self, request: "Request") -> None:
        address = urlsplit(request.url)
        if address.scheme not in {"blob", "data"} and address.hostname != "127.0.0.1":
            self._found.append(f"a request to another host: {request.url}")

    def _add_failure(self, request: "Request") -> None:
        # The page aborts requests whose responses it no longer needs.
        if request.failure != "net::ERR_ABORTED":
            self._found.append(f"failed: {request.method} {request.url} {request.failure}")


@pytest.fixture(scope="session")
async def browser() -> AsyncIterator["Browser"]:
    """One Chromium for all tests of a process."""
    require(importlib.util.find_spec("playwright"), "playwright is missing (`make check` installs it)")
    require(shutil.which(CHROMIUM), f"{CHROMIUM} is missing (Debian's package chromium-headless-shell)")
    from playwright.async_api import async_playwright, expect

    expect.set_options(timeout=TIMEOUT_SECONDS * 1_000)
    async with async_playwright() as playwright:
        browser = await playwright.chromium.launch(executable_path=CHROMIUM, args=FLAGS)
        yield browser
        await browser.close()


@pytest.fixture
def browser_errors() -> BrowserErrors:
    return BrowserErrors()


@pytest.fixture
async def page(browser: "Browser", browser_errors: BrowserErrors) -> AsyncIterator["Page"]:
    """A page in a new context. The test fails at the end on errors, warnings and requests to other hosts."""
    context = await browser.new_context(viewport={"width": 1280, "height": 800}, locale="en-GB")
    context.set_default_timeout(TIMEOUT_SECONDS * 1_000)
    browser_errors.watch(context)
    yield await context.new_page()
    await context.close()
    browser_errors.verify()


@pytest.fixture(scope="session")
async def shared_server(tmp_path_factory: pytest.TempPathFactory) -> AsyncIterator[tuple[Server, Path]]:
    """A server that the tests of a process share, and the file of its database."""
    path = tmp_path_factory.mktemp("site") / "bookstore.db"
    async with running_server(settings_for(f"sqlite+aiosqlite:///{path}", http_listen="127.0.0.1:0")) as server:
        yield server, path


@pytest.fixture
def site_server(shared_server: tuple[Server, Path]) -> Server:
    """A real server with JSON over HTTP. It has no books, and the next one gets the id 1."""
    server, path = shared_server
    reset_sqlite(path)
    return server


@pytest.fixture
def site(site_server: Server) -> str:
    """The URL of the server, such as "http://127.0.0.1:8080"."""
    return f"http://{site_server.http_address}"


@pytest.fixture
def api_client(page: "Page", site: str) -> ApiClient:
    return ApiClient(page, site)
