"""The page for people as a whole: phones, the dark, tokens, a server that is away, what it weighs."""

import asyncio
import re
from importlib.util import find_spec
from pathlib import Path
from typing import TYPE_CHECKING

from bookstore_grpc.server.app import running_server
from tests.browser.accessibility import violations
from tests.browser.catalogue import BAD_REQUEST, CONFLICT, Others, csv_of, fill_book, import_file, meet_conflict, shows
from tests.browser.conftest import Trouble
from tests.conftest import settings_for
from tests.tokens import Issuer, token_settings

if TYPE_CHECKING or find_spec("playwright"):  # the fixture `browser` tells of its absence
    from playwright.async_api import Page, Route, expect

LONG = "A title that goes on and on " * 10 + "Donaudampfschifffahrtsgesellschaftskapitän" * 4


async def test_a_phone_shows_everything_without_scrolling_sideways(page: "Page", site: str, others: Others) -> None:
    await page.set_viewport_size({"width": 360, "height": 740})
    await others.create(LONG, "W" * 120, -4_999)
    await others.create("שיר השירים", "שלמה", -300)
    await others.create("孫子兵法", "孫武", 0)
    await page.goto(site)
    await shows(page, "孫子兵法", "שיר השירים", LONG)

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
    await shows(page, LONG, "שיר השירים", "孫子兵法")
    await page.get_by_role("button", name="Edit שיר השירים").click()
    assert await page.get_by_label("Title", exact=True).evaluate("field => field.matches(':dir(rtl)')")
    assert await fits()
    assert await violations(page) == []


async def test_the_dark_is_as_readable_as_the_light(page: "Page", site: str, others: Others, trouble: Trouble) -> None:
    trouble.expect(CONFLICT)
    trouble.expect(BAD_REQUEST)
    await page.emulate_media(color_scheme="dark")
    await page.goto(site)
    await expect(page.get_by_text("The catalogue is empty.")).to_be_visible()
    assert await page.evaluate("getComputedStyle(document.documentElement).backgroundColor") == "rgb(23, 23, 21)"
    assert await violations(page) == []
    await meet_conflict(page, site, others, name="Theirs")
    assert await violations(page) == []
    await page.keyboard.press("Escape")
    await page.get_by_label("Search").fill("(")
    await expect(page.locator("#filter-error mark")).to_be_attached()
    assert await violations(page) == []
    await import_file(page, csv_of([("", "Nobody", 1)]))
    await expect(page.get_by_role("dialog").get_by_role("heading", name="1 row rejected")).to_be_visible()
    assert await violations(page) == []


async def test_what_others_write_is_text_and_never_markup(page: "Page", site: str, others: Others) -> None:
    name = "<img src=x onerror=alert(1)><b>bold</b>&amp;"
    await others.create(name, "<script>alert(2)</script>")
    await page.goto(site)

    await shows(page, name)
    await page.get_by_role("button", name="Delete").click()
    await expect(page.get_by_role("alertdialog")).to_contain_text(name)


async def test_a_server_that_asks_for_tokens_is_given_one(page: "Page", trouble: Trouble, tmp_path: Path) -> None:
    trouble.expect("status of 401")
    trouble.expect("status of 403")
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


async def test_a_server_that_is_away_is_told_of_and_can_be_tried_again(
    page: "Page", trouble: Trouble, tmp_path: Path
) -> None:
    trouble.expect("ERR_CONNECTION_REFUSED|Failed to load resource")
    url = f"sqlite+aiosqlite:///{tmp_path}/bookstore.db"
    async with running_server(settings_for(url, http_listen="127.0.0.1:0")) as server:
        address = server.http_address
        await page.goto(f"http://{address}")
        await Others(page, f"http://{address}").create("Emma")
    await page.get_by_label("Search").fill("emma")
    await expect(page.get_by_role("alert")).to_contain_text("Could not connect to the server.")
    await expect(page.get_by_role("alert").locator("code")).to_have_text(re.compile("[0-9a-f-]{36}"))
    assert await violations(page) == []

    async with running_server(settings_for(url, http_listen=address)):
        await page.get_by_role("button", name="Try again").click()
        await shows(page, "Emma")


async def test_the_page_is_there_before_its_data_and_is_small(page: "Page", site: str) -> None:
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
    travelled = await page.evaluate(
        """Object.fromEntries(
            [...performance.getEntriesByType("navigation"), ...performance.getEntriesByType("resource")]
                .map(({ name, encodedBodySize }) => [name, encodedBodySize])
        )"""
    )
    assert len(travelled) == 8, travelled
    assert sum(travelled.values()) < 20_000, travelled
