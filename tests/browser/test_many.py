"""The catalogue page with many books: how many there are, and deleting several at once."""

import re
from importlib.util import find_spec
from typing import TYPE_CHECKING

import pytest

from tests.browser.accessibility import violations
from tests.browser.catalogue import CONFLICT, ApiClient, expect_titles
from tests.browser.conftest import BrowserErrors

if TYPE_CHECKING or find_spec("playwright"):  # the fixture `browser` reports its absence
    from playwright.async_api import Page, Route, expect


async def test_the_number_of_all_books_is_shown_and_where_the_page_is(
    page: "Page", site: str, api_client: ApiClient
) -> None:
    await api_client.create_many(120)
    await page.goto(site)
    shown = page.locator("#range")
    await expect(shown).to_have_text("Books 1 to 50 of 120, page 1 of 3")
    await expect(page.get_by_role("heading", name="Books 1 to 50 of 120, page 1 of 3")).to_be_attached()

    async with page.expect_request("**/v1/books?*") as request:
        await page.get_by_role("button", name="Next").click()
    assert "includeTotal" not in (await request.value).url  # it is known
    await expect(shown).to_have_text("Books 51 to 100 of 120, page 2 of 3")
    await page.get_by_role("button", name="Next").click()
    await expect(shown).to_have_text("Books 101 to 120 of 120, page 3 of 3")

    await page.get_by_label("Search").fill("release_year <= 70")
    await expect(shown).to_have_text("Books 1 to 50 of 70, page 1 of 2")
    await page.get_by_label("Search").fill("release_year <= 7")
    await expect(shown).to_have_text("7 books")
    await page.get_by_label("Search").fill("release_year = 7")
    await expect(shown).to_have_text("1 book")


async def test_a_shared_link_to_a_page_shows_the_number_of_all_books(
    page: "Page", site: str, api_client: ApiClient
) -> None:
    await api_client.create_many(120)
    await page.goto(site)
    await page.get_by_role("button", name="Next").click()
    await expect(page).to_have_url(re.compile("page="))

    async with page.context.expect_page() as opened:
        await page.evaluate("window.open(location.href, '', 'noopener')")

    await expect((await opened.value).locator("#range")).to_have_text("120 books")


@pytest.mark.parametrize(
    ("total", "first", "second"),
    [
        (
            {"totalSize": 10_000, "totalSizeExceeded": True},
            "Books 1 to 50 of more than 10,000, page 1",
            "Books 51 to 100 of more than 10,000, page 2",
        ),
        (
            {"totalSize": 1_234_567},
            "Books 1 to 50 of 1,234,567, page 1 of 24,692",
            "Books 51 to 100 of 1,234,567, page 2 of 24,692",
        ),
        # Added since they were counted.
        ({"totalSize": 60}, "Books 1 to 50 of 60, page 1 of 2", "Books 51 to 100 of 100, page 2 of 2"),
    ],
)
async def test_more_books_than_are_counted(
    page: "Page", site: str, api_client: ApiClient, total: dict[str, object], first: str, second: str
) -> None:
    async def count_otherwise(route: "Route") -> None:
        response = await route.fetch()
        json = await response.json()
        if "totalSize" in json:
            json |= total
        await route.fulfill(response=response, json=json)

    await api_client.create_many(120)
    await page.route("**/v1/books?*", count_otherwise)
    await page.goto(site)
    await expect(page.locator("#range")).to_have_text(first)
    await page.get_by_role("button", name="Next").click()
    await expect(page.locator("#range")).to_have_text(second)


async def select(page: "Page", *names: str) -> None:
    for name in names:
        await page.get_by_role("checkbox", name=f"Select {name}", exact=True).check()


async def test_selected_books_are_deleted_in_one_call_with_their_etags(
    page: "Page", site: str, api_client: ApiClient
) -> None:
    books = {name: await api_client.create(name) for name in ("One", "Two", "Three", "Four")}
    await page.goto(site)
    bar = page.get_by_role("group", name="Selection")
    await expect(bar.get_by_role("button")).to_have_count(0)
    await select(page, "Two", "Four")
    await expect(bar.get_by_role("status")).to_have_text("2 books selected")
    assert await violations(page) == []

    await page.get_by_role("button", name="Delete selected").click()
    dialog = page.get_by_role("alertdialog", name="Delete 2 books?")
    await expect(dialog).to_have_accessible_description("Four, Two. This cannot be undone.")
    await expect(page.get_by_role("button", name="Keep them")).to_be_focused()
    assert await violations(page) == []
    await page.get_by_role("button", name="Keep them").click()
    await expect(bar.get_by_role("status")).to_have_text("2 books selected")

    await page.get_by_role("button", name="Delete selected").click()
    async with page.expect_request("**/v1/books:batchDelete") as request:
        await dialog.get_by_role("button", name="Delete").click()
    assert (await request.value).post_data_json == {
        "requests": [{"id": books[name]["id"], "etag": books[name]["etag"]} for name in ("Four", "Two")]
    }
    await expect_titles(page, "Three", "One")
    await expect(page.get_by_text("Deleted 2 books.")).to_be_visible()
    await expect(bar.get_by_role("button")).to_have_count(0)
    await expect(page.locator("#range")).to_have_text("2 books")

    # The dialog of a single book is as it was.
    await page.get_by_role("button", name="Delete One").click()
    await expect(page.get_by_role("alertdialog", name="Delete this book?")).to_be_visible()
    await expect(page.get_by_role("button", name="Keep it")).to_be_focused()


async def test_all_books_of_the_page_can_be_selected_with_the_keyboard(
    page: "Page", site: str, api_client: ApiClient
) -> None:
    await api_client.create_many(60)
    await page.goto(f"{site}/?order=release_year")
    everything = page.get_by_label("Select all books of this page")
    status = page.get_by_role("group", name="Selection").get_by_role("status")
    await expect(page.locator("tbody tr")).to_have_count(50)
    await everything.focus()
    await page.keyboard.press("Space")
    await expect(status).to_have_text("50 books selected")
    await page.get_by_role("checkbox", name="Select Book 3", exact=True).focus()
    await page.keyboard.press("Space")
    await expect(status).to_have_text("49 books selected")
    assert await everything.evaluate("box => box.indeterminate && !box.checked")
    await page.get_by_role("button", name="Clear the selection").focus()
    await page.keyboard.press("Enter")
    await expect(status).to_have_text("")
    await expect(page.locator("#results")).to_be_focused()

    await everything.check()
    await page.get_by_role("button", name="Next").click()
    await expect(page.locator("tbody tr")).to_have_count(10)
    await expect(status).to_have_text("")  # a selection is of the page on the screen
    await expect(everything).not_to_be_checked()
    await page.get_by_role("button", name="Previous").click()
    await everything.check()
    await page.get_by_role("button", name="Delete selected").click()
    dialog = page.get_by_role("alertdialog", name="Delete 50 books?")
    await expect(dialog).to_contain_text("and 45 more")
    await page.keyboard.press("Tab")
    await page.keyboard.press("Enter")
    await expect_titles(page, *(f"Book {number}" for number in range(51, 61)))
    await expect(page.locator("#results")).to_be_focused()


async def test_changed_books_are_deleted_after_another_confirmation_and_missing_ones_count_as_deleted(
    page: "Page", site: str, api_client: ApiClient, browser_errors: BrowserErrors
) -> None:
    browser_errors.expect(CONFLICT)
    browser_errors.expect("status of 404")
    books = [await api_client.create(name) for name in ("One", "Two", "Three", "Four")]
    await page.goto(site)
    await select(page, "One", "Two", "Three")
    await page.get_by_role("button", name="Delete selected").click()
    dialog = page.get_by_role("alertdialog")
    await expect(dialog).to_be_visible()  # with the books as they were
    await api_client.delete(books[0])
    await api_client.change(books[1], name="Two and a half")

    await dialog.get_by_role("button", name="Delete").click()
    await expect(dialog).to_contain_text("Another user has changed Two and a half.")
    assert len(await api_client.list()) == 3
    await dialog.get_by_role("button", name="Delete anyway").click()

    await expect_titles(page, "Four")
    await expect(page.get_by_text("Deleted 3 books.")).to_be_visible()


async def test_a_failed_delete_is_reported_in_the_dialog_and_can_be_repeated(
    page: "Page", site: str, api_client: ApiClient, browser_errors: BrowserErrors
) -> None:
    browser_errors.expect("failed: POST")
    browser_errors.expect("Failed to load resource")
    await api_client.create_many(3)
    await page.goto(site)
    await page.get_by_label("Select all books of this page").check()
    await page.route("**/v1/books:batchDelete", lambda route: route.abort("connectionreset"), times=1)
    await page.get_by_role("button", name="Delete selected").click()
    await page.get_by_role("alertdialog").get_by_role("button", name="Delete").click()
    await expect(page.get_by_role("alert")).to_contain_text("Could not connect to the server")
    assert await violations(page) == []

    await page.get_by_role("alertdialog").get_by_role("button", name="Delete").click()

    await expect(page.get_by_text("The catalogue is empty.")).to_be_visible()
