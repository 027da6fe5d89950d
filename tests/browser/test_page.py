"""The catalogue page as a whole: phones, dark color scheme, tokens, an unreachable server, size."""

import asyncio
import re
from importlib.util import find_spec
from pathlib import Path
from typing import TYPE_CHECKING

from bookstore_grpc.server.app import running_server
from tests.browser.accessibility import violations
from tests.browser.catalogue import (
    BAD_REQUEST,
    CONFLICT,
    ApiClient,
    cause_conflict,
    csv_of,
    expect_titles,
    fill_book,
    import_file,
)
from tests.browser.conftest import BrowserErrors
from tests.conftest import settings_for
from tests.tokens import Issuer, token_settings

if TYPE_CHECKING or find_spec("playwright"):  # the fixture `browser` reports its absence
    from playwright.async_api import Page, Route, expect

LONG = "A title that goes on and on " * 10 + "Donaudampfschifffahrtsgesellschaftskapitän" * 4


async def test_a_phone_needs_no_horizontal_scrolling(page: "Page", site: str, api_client: ApiClient) -> None:
    await page.set_viewport_size({"width": 360, "height": 740})
    await api_client.create(LONG, "W" * 120, -4_999)
    await api_client.create("שיר השירים", "שלמה", -300)
    await api_client.create("孫子兵法", "孫武", 0)
    await page.goto(site)
    await expect_titles(page, "孫子兵法", "שיר השירים", LONG)

    async def fits() -> bool:
        return await page.evaluate("document.documentElement.scrollWidth <= innerWidth")  # type: ignore[no-any-return]

    assert await fits()
    await page.get_by_text("How to search").click()
    assert await fits()
    assert await violations(page) == []
    small = await page.evaluate(
        """[...document.querySelectorAll("button, a, input, select, summary")]
            .filter((each) => each.checkVisibility() && !each.matches(".skip"))
            .map((each) => [each.outerHTML, each.getBoundingClientRect()])
            .filter(([, { width, height }]) => width < 24 || height < 24)"""
    )
    assert small == []
    await page.get_by_label("Order").select_option("Year, earliest first")
    await expect_titles(page, LONG, "שיר השירים", "孫子兵法")
    await page.get_by_role("button", name="Edit שיר השירים").click()
    assert await page.get_by_label("Title", exact=True).evaluate("field => field.matches(':dir(rtl)')")
    assert await fits()
    assert await violations(page) == []


async def test_the_dark_scheme_is_accessible(
    page: "Page", site: str, api_client: ApiClient, browser_errors: BrowserErrors
) -> None:
    browser_errors.expect(CONFLICT)
    browser_errors.expect(BAD_REQUEST)
    await page.emulate_media(color_scheme="dark")
    await page.goto(site)
    await expect(page.get_by_text("The catalogue is empty.")).to_be_visible()
    assert await page.evaluate("getComputedStyle(document.documentElement).backgroundColor") == "rgb(23, 23, 21)"
    assert await violations(page) == []
    await cause_conflict(page, site, api_client, name="Theirs")
    assert await violations(page) == []
    await page.keyboard.press("Escape")
    await page.get_by_label("Search").fill("(")
    await expect(page.locator("#filter-error mark")).to_be_attached()
    assert await violations(page) == []
    await import_file(page, csv_of([("", "Nobody", 1)]))
    await expect(page.get_by_role("dialog").get_by_role("heading", name="1 row rejected")).to_be_visible()
    assert await violations(page) == []


async def test_stored_markup_is_shown_as_text(page: "Page", site: str, api_client: ApiClient) -> None:
    name = "<img src=x onerror=alert(1)><b>bold</b>&amp;"
    await api_client.create(name, "<script>alert(2)</script>")
    await page.goto(site)

    await expect_titles(page, name)
    await page.get_by_role("button", name="Delete").click()
    await expect(page.get_by_role("alertdialog")).to_contain_text(name)


async def test_the_page_asks_for_a_token(page: "Page", browser_errors: BrowserErrors, tmp_path: Path) -> None:
    browser_errors.expect("status of 401")
    browser_errors.expect("status of 403")
    issuer = Issuer()
    settings = settings_for(
        f"sqlite+aiosqlite:///{tmp_path}/tokens.db",
        http_listen="127.0.0.1:0",
        **token_settings(issuer.write_jwks(tmp_path / "jwks.json")),
    )
    async with running_server(settings) as server:
        await page.goto(f"http://{server.http_address}")
        field = page.get_by_label("Access token")
        await expect(field).to_be_focused()
        assert await violations(page) == []
        await field.fill("nonsense")
        await field.press("Enter")
        await expect(field).to_have_value("")
        await expect(page.get_by_role("dialog").get_by_role("status")).to_contain_text("token")
        await field.fill(issuer.token(scope="books.read"))
        await page.get_by_role("button", name="Use this token").click()
        await expect(page.get_by_text("The catalogue is empty.")).to_be_visible()

        await page.get_by_role("button", name="Add a book").click()
        await fill_book(page, name="Emma", author="Jane Austen", year="1815")
        await page.get_by_role("button", name="Add", exact=True).click()
        await expect(page.get_by_role("alert")).to_contain_text("books.write")
        await page.keyboard.press("Escape")
        await page.get_by_role("button", name="Forget the token").click()
        await expect(field).to_be_focused()
        assert await page.evaluate("sessionStorage.length + localStorage.length + document.cookie.length") == 0
        await page.keyboard.press("Escape")
        await expect(page.get_by_role("alert")).to_be_visible()


async def test_an_unreachable_server_is_reported_and_the_call_can_be_retried(
    page: "Page", browser_errors: BrowserErrors, tmp_path: Path
) -> None:
    browser_errors.expect("ERR_CONNECTION_REFUSED|Failed to load resource")
    url = f"sqlite+aiosqlite:///{tmp_path}/bookstore.db"
    async with running_server(settings_for(url, http_listen="127.0.0.1:0")) as server:
        address = server.http_address
        await page.goto(f"http://{address}")
        await ApiClient(page, f"http://{address}").create("Emma")
    await page.get_by_label("Search").fill("emma")
    await expect(page.get_by_role("alert")).to_contain_text("Could not connect to the server.")
    await expect(page.get_by_role("alert").locator("code")).to_have_text(re.compile("[0-9a-f-]{36}"))
    assert await violations(page) == []

    async with running_server(settings_for(url, http_listen=address)):
        await page.get_by_role("button", name="Try again").click()
        await expect_titles(page, "Emma")


async def test_the_page_is_usable_before_its_data_is_loaded_and_is_small(page: "Page", site: str) -> None:
    held = asyncio.Event()

    async def hold(route: "Route") -> None:
        await held.wait()
        await route.continue_()

    await page.route("**/v1/books?*", hold)
    await page.goto(site)
    await expect(page.get_by_label("Search")).to_be_visible()
    await expect(page.get_by_role("button", name="Add a book")).to_be_visible()
    held.set()
    await expect(page.get_by_text("The catalogue is empty.")).to_be_visible()
    sizes = await page.evaluate(
        """Object.fromEntries(
            [...performance.getEntriesByType("navigation"), ...performance.getEntriesByType("resource")]
                .map(({ name, encodedBodySize }) => [name, encodedBodySize])
        )"""
    )
    assert len(sizes) == 13, sizes
    assert sum(sizes.values()) < 25_000, sizes
