"""`BrowserErrors` reports every error in a page, and every expected error that does not occur."""

import asyncio
from typing import TYPE_CHECKING

import pytest

from tests.browser.accessibility import violations
from tests.browser.conftest import TIMEOUT_SECONDS, BrowserErrors

if TYPE_CHECKING:
    from playwright.async_api import Page, Route

ADDRESS = "http://127.0.0.1:9/"
HTML = '<!doctype html><html lang="en"><title>Page</title><link rel="icon" href="data:,"><main><h1>Page</h1></main>'


@pytest.fixture
async def plain_page(page: "Page") -> "Page":
    """A page without errors."""

    async def respond(route: "Route") -> None:
        if route.request.url == ADDRESS:
            await route.fulfill(body=HTML, content_type="text/html")
        else:
            await route.fulfill(status=404)

    await page.route(f"{ADDRESS}**", respond)
    await page.goto(ADDRESS)
    return page


async def test_a_page_without_errors_passes(plain_page: "Page", browser_errors: BrowserErrors) -> None:
    assert await violations(plain_page) == []
    browser_errors.verify()


@pytest.mark.parametrize(
    ("script", "message"),
    [
        ("console.error('oh')", "error: oh"),
        ("console.warn('oh')", "warning: oh"),
        ("setTimeout(() => { throw new Error('oh') })", "uncaught: .*oh"),
        ("Promise.reject(new Error('oh')) && null", "uncaught: .*oh"),
        ("fetch('missing')", "status of 404"),
        ("fetch('http://127.0.0.1:1/', {mode: 'no-cors'}).catch(() => {})", "failed: GET http://127.0.0.1:1/"),
        ("fetch('http://elsewhere.example/').catch(() => {})", "another host: http://elsewhere.example/"),
    ],
)
async def test_an_error_in_a_page_is_reported(
    plain_page: "Page", browser_errors: BrowserErrors, script: str, message: str
) -> None:
    await plain_page.evaluate(f"{{{script}}}")
    async with asyncio.timeout(TIMEOUT_SECONDS):
        while not browser_errors.matching(message):  # noqa: ASYNC110  Playwright reports errors to callbacks
            await asyncio.sleep(0.01)

    with pytest.raises(AssertionError, match=message):
        browser_errors.verify()
    browser_errors.expect("oh|404|failed|another host|Failed to load")


async def test_an_expected_error_that_does_not_occur_is_reported(
    plain_page: "Page", browser_errors: BrowserErrors
) -> None:
    browser_errors.expect("status of 409")

    with pytest.raises(AssertionError, match="did not occur"):
        browser_errors.verify()
    await plain_page.evaluate("console.error('status of 409')")


async def test_axe_finds_low_contrast_and_a_missing_label(plain_page: "Page") -> None:
    await plain_page.evaluate(
        """() => {
            document.querySelector("h1").style.color = "#eee";
            document.querySelector("main").append(document.createElement("input"));
        }"""
    )

    found = await violations(plain_page)

    assert [line.split()[0] for line in found] == ["color-contrast", "label"]
    assert [line.split()[0] for line in await violations(plain_page, rules=["color-contrast"])] == ["color-contrast"]
