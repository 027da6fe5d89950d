"""Adding, editing and deleting books on the catalogue page."""

import re
from importlib.util import find_spec
from typing import TYPE_CHECKING

from tests.browser.accessibility import violations
from tests.browser.catalogue import BAD_REQUEST, CONFLICT, ApiClient, cause_conflict, expect_titles, fill_book
from tests.browser.conftest import BrowserErrors

if TYPE_CHECKING or find_spec("playwright"):  # the fixture `browser` reports its absence
    from playwright.async_api import Page, Route, expect


async def test_an_empty_catalogue_offers_add_and_import(page: "Page", site: str) -> None:
    await page.goto(site)

    await expect(page.get_by_text("The catalogue is empty.")).to_be_visible()
    assert await violations(page) == []
    # The import is loaded on demand, which can take longer than the next key press.
    await page.get_by_role("button", name="Import a CSV file").click()
    await expect(page.get_by_role("dialog")).to_be_visible()
    assert await violations(page) == []
    await page.keyboard.press("Escape")
    await expect(page.get_by_role("dialog")).to_be_hidden()
    await page.get_by_role("button", name="Add the first book").click()
    await expect(page.get_by_role("dialog")).to_be_visible()
    assert await violations(page) == []


async def test_a_book_can_be_added_with_the_keyboard_only(page: "Page", site: str, api_client: ApiClient) -> None:
    await page.goto(site)
    await expect(page.get_by_text("The catalogue is empty.")).to_be_visible()

    await page.keyboard.press("Tab")
    await page.keyboard.press("Enter")
    await expect(page.locator("#results")).to_be_focused()
    await page.reload()
    for focused in ("Skip to the books", "API", "Import", "Add a book"):
        await page.keyboard.press("Tab")
        await expect(page.locator(":focus")).to_have_text(focused)
    await page.keyboard.press("Enter")
    for text in ("The Iliad", "Homer", "-750"):
        await page.keyboard.type(text)
        await page.keyboard.press("Tab")
    await page.keyboard.press("Tab")
    await page.keyboard.press("Enter")

    await expect_titles(page, "The Iliad")
    await expect(page.get_by_role("cell", name="750 BCE")).to_be_visible()
    await expect(page.get_by_role("status").filter(has_text="Added")).to_contain_text("The Iliad")
    await expect(page.locator(":focus")).to_have_text("Add a book")
    assert [book["releaseYear"] for book in await api_client.list()] == [-750]


async def test_each_violation_is_shown_at_its_field(page: "Page", site: str, browser_errors: BrowserErrors) -> None:
    browser_errors.expect(BAD_REQUEST)
    await page.goto(site)
    await page.get_by_role("button", name="Add a book").click()

    await fill_book(page, name=" ", author="x" * 1_001, year="10000")
    await page.get_by_role("button", name="Add", exact=True).click()

    for label, message in (
        ("Title", "Title is required"),
        ("Author", "Author has 1,001 code points, more than 1,000"),
        ("Year of the first release", "Year is 10000, not between -5000 and 9999"),
    ):
        field = page.get_by_label(label, exact=True)
        await expect(field).to_have_attribute("aria-invalid", "true")
        await expect(field).to_have_accessible_description(re.compile(re.escape(message)))
    await expect(page.get_by_label("Title", exact=True)).to_be_focused()
    assert await violations(page) == []


async def test_retrying_a_create_whose_response_was_lost_creates_one_book(
    page: "Page", site: str, api_client: ApiClient, browser_errors: BrowserErrors
) -> None:
    browser_errors.expect("failed: POST")
    browser_errors.expect("Failed to load resource")

    async def lose(route: "Route") -> None:
        await route.fetch()
        await route.abort("connectionreset")

    await page.route(re.compile("requestId="), lose, times=1)
    await page.goto(site)
    await page.get_by_role("button", name="Add a book").click()
    await fill_book(page, name="Emma", author="Jane Austen", year="1815")
    await page.get_by_role("button", name="Add", exact=True).click()
    await expect(page.get_by_role("alert")).to_contain_text("Could not connect to the server")

    await page.get_by_role("button", name="Add", exact=True).click()

    await expect_titles(page, "Emma")
    assert len(await api_client.list()) == 1


async def test_an_edit_sends_only_changed_fields_and_the_etag(page: "Page", site: str, api_client: ApiClient) -> None:
    book = await api_client.create("Dune", "Frank Herbert", 1964)
    await page.goto(site)
    await page.get_by_role("button", name="Edit Dune").click()
    await page.get_by_label("Year of the first release").fill("1965")

    async with page.expect_request("**/v1/books/*") as request:
        await page.get_by_role("button", name="Save").click()

    sent = await request.value
    assert (sent.method, sent.post_data_json) == ("PATCH", {"releaseYear": 1965})
    assert (await sent.all_headers())["if-match"] == f'"{book["etag"]}"'
    await expect(page.get_by_role("cell", name="1965")).to_be_visible()
    await expect(page.get_by_role("button", name="Edit Dune")).to_be_focused()


async def test_a_conflict_shows_both_versions_and_the_current_one_can_be_edited(
    page: "Page", site: str, api_client: ApiClient, browser_errors: BrowserErrors
) -> None:
    browser_errors.expect(CONFLICT)
    await cause_conflict(page, site, api_client, name="Theirs")

    cells = page.locator(".conflict .differs td")
    await expect(cells).to_have_text(["Theirs", "Mine"])
    assert await violations(page) == []
    await page.get_by_role("button", name="Edit the current version").click()
    await expect(page.get_by_label("Title", exact=True)).to_have_value("Theirs")
    await page.get_by_label("Title", exact=True).fill("Theirs and mine")
    await page.get_by_role("button", name="Save").click()

    await expect_titles(page, "Theirs and mine")


async def test_overwriting_keeps_fields_that_only_the_other_user_changed(
    page: "Page", site: str, api_client: ApiClient, browser_errors: BrowserErrors
) -> None:
    browser_errors.expect(CONFLICT)
    await cause_conflict(page, site, api_client, name="Theirs", author="Frank Herbert")

    await page.get_by_role("button", name="Overwrite with my change").click()

    await expect_titles(page, "Mine")
    (book,) = await api_client.list()
    assert (book["name"], book["author"]) == ("Mine", "Frank Herbert")


async def test_a_delete_is_confirmed_and_then_focuses_the_next_book(
    page: "Page", site: str, api_client: ApiClient
) -> None:
    for name in ("One", "Two", "Three"):
        await api_client.create(name)
    await page.goto(site)
    await page.get_by_role("button", name="Delete Two").click()
    dialog = page.get_by_role("alertdialog")
    await expect(dialog).to_have_accessible_description(re.compile("Two.* by Frank Herbert"))
    await expect(page.get_by_role("button", name="Keep it")).to_be_focused()
    assert await violations(page) == []
    await page.get_by_role("button", name="Keep it").click()
    await expect_titles(page, "Three", "Two", "One")

    await page.get_by_role("button", name="Delete Two").click()
    await page.get_by_role("button", name="Delete", exact=True).click()

    await expect_titles(page, "Three", "One")
    await expect(page.get_by_role("button", name="Edit One")).to_be_focused()


async def test_deleting_a_changed_book_asks_for_confirmation_again(
    page: "Page", site: str, api_client: ApiClient, browser_errors: BrowserErrors
) -> None:
    browser_errors.expect(CONFLICT)
    book = await api_client.create("Dune")
    await page.goto(site)
    await page.get_by_role("button", name="Delete Dune").click()
    await api_client.change(book, name="Dune Messiah")

    await page.get_by_role("button", name="Delete", exact=True).click()
    await expect(page.get_by_role("alertdialog")).to_contain_text("It is now Dune Messiah")
    assert len(await api_client.list()) == 1
    await page.get_by_role("button", name="Delete it anyway").click()

    await expect(page.get_by_text("The catalogue is empty.")).to_be_visible()


async def test_deleting_a_book_that_another_user_deleted_succeeds(
    page: "Page", site: str, api_client: ApiClient, browser_errors: BrowserErrors
) -> None:
    browser_errors.expect("status of 404")
    book = await api_client.create("Dune")
    await page.goto(site)
    await page.get_by_role("button", name="Delete Dune").click()
    await api_client.delete(book)

    await page.get_by_role("button", name="Delete", exact=True).click()

    await expect(page.get_by_text("The catalogue is empty.")).to_be_visible()
