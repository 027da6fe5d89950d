"""Searching, sorting and paging on the catalogue page."""

import asyncio
import re
from importlib.util import find_spec
from typing import TYPE_CHECKING

from tests.browser.accessibility import violations
from tests.browser.catalogue import BAD_REQUEST, ApiClient, expect_titles
from tests.browser.conftest import BrowserErrors

if TYPE_CHECKING or find_spec("playwright"):  # the fixture `browser` reports its absence
    from playwright.async_api import Page, Route, expect

FIELDS = ("id", "name", "author", "release_year", "create_time", "update_time")


async def test_headers_sort_by_every_field_in_both_directions(page: "Page", site: str, api_client: ApiClient) -> None:
    for name, author, year in (("b", "B", -3), ("ä", "Ä", 7), ("a", "C", 0), ("B", "A", 12)):
        await api_client.create(name, author, year)
    await api_client.change((await api_client.list())[1], author="Z")
    await page.goto(site)
    await expect_titles(page, "B", "a", "ä", "b")

    for field in FIELDS:
        for direction in ("asc", "desc"):
            header = page.locator(f"th[data-field={field}]")
            await header.get_by_role("button").click()
            await expect(header).to_have_attribute("aria-sort", f"{direction}ending")
            await expect_titles(page, *(book["name"] for book in await api_client.list(orderBy=f"{field} {direction}")))
            await expect(page.locator("th[aria-sort]")).to_have_count(1)


async def test_a_search_runs_while_typing_and_back_undoes_it(page: "Page", site: str, api_client: ApiClient) -> None:
    for name, author, year in (("Emma", "Jane Austen", 1815), ("Middlemarch", "George Eliot", 1871)):
        await api_client.create(name, author, year)
    await page.goto(site)
    await expect_titles(page, "Middlemarch", "Emma")

    await page.get_by_label("Search").press_sequentially("AUSTEN", delay=5)
    await expect_titles(page, "Emma")
    assert page.url == f"{site}/?filter=AUSTEN"
    await page.get_by_label("Search").fill("release_year > 1850")
    await expect_titles(page, "Middlemarch")
    await page.get_by_label("Search").fill("nobody")
    await expect(page.get_by_text("No book matches this search.")).to_be_visible()

    await page.go_back()
    await expect_titles(page, "Middlemarch", "Emma")
    await expect(page.get_by_label("Search")).to_have_value("")


async def test_an_invalid_filter_is_reported_at_the_field_and_keeps_the_results(
    page: "Page", site: str, api_client: ApiClient, browser_errors: BrowserErrors
) -> None:
    browser_errors.expect(BAD_REQUEST)
    await api_client.create("Emma")
    await page.goto(site)
    await expect_titles(page, "Emma")
    field = page.get_by_label("Search")

    await field.fill("émile release_year = = 5")
    await field.press("Enter")

    await expect(field).to_have_attribute("aria-invalid", "true")
    await expect(field).to_have_accessible_description(re.compile(r"unexpected '=' \(column 22\)"))
    await expect(page.locator("#filter-error mark")).to_have_text("=")
    await expect(page.locator("#filter-error .where")).to_have_text("émile release_year = = 5")
    await expect_titles(page, "Emma")
    assert page.url == f"{site}/"
    assert await violations(page) == []

    await field.fill("emma")
    await expect(page.locator("#filter-error")).to_be_empty()
    await expect_titles(page, "Emma")


async def test_text_that_is_no_filter_can_be_searched_for_literally(
    page: "Page", site: str, api_client: ApiClient, browser_errors: BrowserErrors
) -> None:
    browser_errors.expect(BAD_REQUEST)
    await api_client.create("O'Brian's \"Map\" * (1\\2")
    await api_client.create("Obrians Map")
    await page.goto(site)
    await page.get_by_label("Search").fill("o'brian's \"map\" * (1\\2")

    await page.get_by_role("button", name="Search for this exact text").click()

    await expect_titles(page, "O'Brian's \"Map\" * (1\\2")
    await expect(page.locator("#filter-error")).to_be_empty()


async def test_every_example_of_the_help_is_a_valid_filter(page: "Page", site: str, api_client: ApiClient) -> None:
    await api_client.create()
    await page.goto(site)
    await page.get_by_text("How to search").click()
    examples = await page.locator("[data-filter]").all()
    assert len(examples) >= 8

    for each in examples:
        async with page.expect_response("**/v1/books?filter=*") as response:
            await each.click()
        assert (await response.value).status == 200
        await expect(page.get_by_label("Search")).to_have_value(await each.inner_text())
    assert await violations(page) == []


async def test_the_response_of_an_older_search_is_discarded(page: "Page", site: str, api_client: ApiClient) -> None:
    await api_client.create("Emma")
    await api_client.create("Ulysses")
    older, newer, finished = asyncio.Event(), asyncio.Event(), asyncio.Event()

    async def hold(route: "Route") -> None:
        is_older = "emma" in route.request.url
        await (older if is_older else newer).wait()
        await route.continue_()
        if is_older:
            finished.set()

    await page.route("**/v1/books?filter=*", hold)
    await page.goto(site)
    async with page.expect_request("**/v1/books?filter=emma*"):
        await page.get_by_label("Search").fill("emma")
    async with page.expect_event("requestfailed"):  # aborted, not only ignored
        await page.get_by_label("Search").fill("ulysses")
    await expect_titles(page, "Ulysses", "Emma")
    await expect(page.get_by_role("alert")).to_have_count(0)
    newer.set()
    await expect_titles(page, "Ulysses")
    older.set()
    await finished.wait()
    await expect_titles(page, "Ulysses")


async def test_sorting_keeps_a_search_that_was_just_typed(page: "Page", site: str, api_client: ApiClient) -> None:
    for name in ("Emma", "Ulysses", "Emma again"):
        await api_client.create(name)
    await page.goto(site)
    await expect_titles(page, "Emma again", "Ulysses", "Emma")

    await page.get_by_label("Search").fill("emma")
    await page.locator("th[data-field=name]").get_by_role("button").click()

    await expect_titles(page, "Emma", "Emma again")


async def test_paging_forward_and_back_shows_every_book_once(page: "Page", site: str, api_client: ApiClient) -> None:
    await api_client.create_many(230)
    await page.goto(f"{site}/?order=release_year&size=100")
    seen: list[str] = []
    for heading in ("Books 1 to 100", "Books 101 to 200", "Books 201 to 230"):
        await expect(page.get_by_role("heading", name=heading)).to_be_attached()
        seen += await page.locator("td.name").all_inner_texts()
        if len(seen) < 230:
            await page.get_by_role("button", name="Next").click()
    assert seen == [f"Book {n}" for n in range(1, 231)]

    await expect(page.get_by_role("button", name="Next")).to_have_attribute("aria-disabled", "true")
    await page.reload()
    await expect(page.get_by_role("heading", name="Books 201 to 230")).to_be_attached()
    for heading in ("Books 101 to 200", "Books 1 to 100"):
        await page.get_by_role("button", name="Previous").click()
        await expect(page.get_by_role("heading", name=heading)).to_be_attached()
    assert await page.locator("td.name").all_inner_texts() == seen[:100]
    await page.go_back()
    await expect(page.get_by_role("heading", name="Books 101 to 200")).to_be_attached()
    await page.get_by_role("button", name="First").click()
    await expect(page.get_by_role("heading", name="Books 1 to 100")).to_be_attached()
    await page.get_by_label("Per page").select_option("20")
    await expect(page.get_by_role("heading", name="Books 1 to 20")).to_be_attached()
    await expect(page.locator("tbody tr")).to_have_count(20)


async def test_a_url_reproduces_filter_order_and_page(page: "Page", site: str, api_client: ApiClient) -> None:
    await api_client.create_many(60)
    await page.goto(site)
    await page.get_by_label("Search").fill("release_year >= 10")
    await expect(page.locator("tbody tr")).to_have_count(50)
    await expect(page).to_have_url(re.compile("filter="))
    await page.locator("th[data-field=release_year]").get_by_role("button").click()
    await page.get_by_label("Per page").select_option("20")
    await expect(page.get_by_role("heading", name="Books 1 to 20")).to_be_attached()
    await page.get_by_role("button", name="Next").click()
    await expect(page.get_by_role("heading", name="Books 21 to 40")).to_be_attached()

    async with page.context.expect_page() as opened:
        await page.evaluate("window.open(location.href, '', 'noopener')")
    other = await opened.value

    await expect(other.locator("tbody tr td.name")).to_have_text([f"Book {n}" for n in range(30, 50)])
    await expect(other.get_by_label("Search")).to_have_value("release_year >= 10")
    await expect(other.locator("th[data-field=release_year]")).to_have_attribute("aria-sort", "ascending")


async def test_an_invalid_url_is_reported_with_a_link_to_the_catalogue(
    page: "Page", site: str, api_client: ApiClient, browser_errors: BrowserErrors
) -> None:
    browser_errors.expect(BAD_REQUEST)
    await api_client.create("Emma")
    await page.goto(f"{site}/?page=damaged")
    await expect(page.get_by_role("alert")).to_contain_text("page_token")

    await page.get_by_role("button", name="Show the whole catalogue").click()

    await expect_titles(page, "Emma")
