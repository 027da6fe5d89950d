"""Fixtures: Debian's Chromium, a page in it that tells of whatever goes wrong, and a real server for it to visit."""

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
from tests.browser.catalogue import Others
from tests.conftest import require, settings_for

if TYPE_CHECKING:
    from playwright.async_api import Browser, BrowserContext, ConsoleMessage, Page, Request

CHROMIUM = "/usr/bin/chromium"
FLAGS = (
    "--headless=new",
    "--no-sandbox",  # tests may run as root, which Chromium does not sandbox
    "--disable-gpu",
    "--disable-quic",
    "--no-first-run",
    "--disable-background-networking",
    "--disable-component-update",
    "--disable-sync",
    "--host-resolver-rules=MAP * ~NOTFOUND, EXCLUDE 127.0.0.1",
)
PATIENCE_SECONDS = 10.0


class Trouble:
    """What went wrong in a page. A test that means to make trouble says so with `expect`."""

    def __init__(self) -> None:
        self._found: list[str] = []
        self._expected: list[str] = []

    def expect(self, pattern: str) -> None:
        """Let pass, and demand, what this regular expression finds: "status of 409" is how Chromium tells of one."""
        self._expected.append(pattern)

    def watch(self, context: "BrowserContext") -> None:
        """Take down what Chromium tells of any page of the context."""
        context.on("console", self._take_message)
        context.on("weberror", lambda error: self._found.append(f"uncaught: {error.error}"))
        context.on("request", self._take_request)
        context.on("requestfailed", self._take_failure)

    def verify(self) -> None:
        """Fail for what was not expected, and for what was and did not come."""
        unexpected = [line for line in self._found if not any(re.search(each, line) for each in self._expected)]
        assert not unexpected, "\n".join(unexpected)
        missing = [each for each in self._expected if not any(re.search(each, line) for line in self._found)]
        assert not missing, f"expected, and did not happen: {missing}"

    def _take_message(self, message: "ConsoleMessage") -> None:
        if message.type in {"error", "warning"}:
            self._found.append(f"{message.type}: {message.text} ({message.location['url']})")

    def _take_request(self, request: "Request") -> None:
        address = urlsplit(request.url)
        if address.scheme not in {"blob", "data"} and address.hostname != "127.0.0.1":
            self._found.append(f"a request to another host: {request.url}")

    def _take_failure(self, request: "Request") -> None:
        # A page gives up requests whose answers it no longer wants.
        if request.failure != "net::ERR_ABORTED":
            self._found.append(f"failed: {request.method} {request.url} {request.failure}")


@pytest.fixture(scope="session")
async def browser() -> AsyncIterator["Browser"]:
    """One Chromium for all tests of a process; each has a context of its own in it."""
    require(importlib.util.find_spec("playwright"), "playwright is missing (`make check` installs it)")
    require(shutil.which(CHROMIUM), f"{CHROMIUM} is missing (Debian's package chromium)")
    from playwright.async_api import async_playwright, expect

    expect.set_options(timeout=PATIENCE_SECONDS * 1_000)
    async with async_playwright() as playwright:
        browser = await playwright.chromium.launch(executable_path=CHROMIUM, args=FLAGS)
        yield browser
        await browser.close()


@pytest.fixture
def trouble() -> Trouble:
    return Trouble()


@pytest.fixture
async def page(browser: "Browser", trouble: Trouble) -> AsyncIterator["Page"]:
    """A page in a fresh context. The test fails at the end on errors, warnings and requests to other hosts."""
    context = await browser.new_context(viewport={"width": 1280, "height": 800}, locale="en-GB")
    context.set_default_timeout(PATIENCE_SECONDS * 1_000)
    trouble.watch(context)
    yield await context.new_page()
    await context.close()
    trouble.verify()


@pytest.fixture
async def site_server(tmp_path: Path) -> AsyncIterator[Server]:
    """A real server without books, which answers over HTTP too."""
    url = f"sqlite+aiosqlite:///{tmp_path}/bookstore.db"
    async with running_server(settings_for(url, http_listen="127.0.0.1:0")) as server:
        yield server


@pytest.fixture
def site(site_server: Server) -> str:
    """Its URL, as in "http://127.0.0.1:8080"."""
    return f"http://{site_server.http_address}"


@pytest.fixture
def others(page: "Page", site: str) -> Others:
    return Others(page, site)
