"""The catalogue page shows what others change as it happens, and a browser's EventSource follows the same stream."""

import json
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager
from importlib.util import find_spec
from typing import TYPE_CHECKING, Any

import pytest

from tests.browser.accessibility import violations
from tests.browser.catalogue import ApiClient, expect_titles, fill_book
from tests.browser.conftest import BrowserErrors
from tests.rpc.obstacles import Network

if TYPE_CHECKING or find_spec("playwright"):  # the fixture `browser` reports its absence
    from playwright.async_api import Locator, Page, Route, expect

CHANGED, STALE, DELETED = "tr.changed", "tr.stale", "tr.deleted"


async def follow(page: "Page", address: str) -> None:
    """Open the page, and wait until it follows the changes of the list that is shown."""
    async with page.expect_response("**/v1/books:watch*"):
        await page.goto(address)


async def follow_one_change(page: "Page", address: str, api_client: ApiClient) -> Any:
    """Create a book, open the page, and return the book after a change that has come, so that the page can resume."""
    book = await api_client.create("Dune")
    await follow(page, address)
    changed = await api_client.change(book, name="Before")
    await expect_titles(page, "Before")
    return changed


def new_books(page: "Page") -> "Locator":
    return page.get_by_role("complementary", name="Changes by others")


async def tops(page: "Page") -> list[float]:
    """Return where each row begins, in pixels."""
    rows = await page.locator("tbody tr").all()
    return [await row.evaluate("row => row.getBoundingClientRect().top") for row in rows]


async def set_hidden(page: "Page", *, is_hidden: bool) -> None:
    """Behave as if another tab were shown, or this one again."""
    await page.evaluate(
        """(isHidden) => {
            Object.defineProperty(document, "hidden", { value: isHidden, configurable: true });
            document.dispatchEvent(new Event("visibilitychange"));
        }""",
        is_hidden,
    )


async def test_a_changed_book_gets_its_new_values_where_it_is(page: "Page", site: str, api_client: ApiClient) -> None:
    await api_client.create("Emma", "Jane Austen", 1815)
    book = await api_client.create("Dune", "Herbert", 1960)
    await follow(page, f"{site}/?order=name")
    await page.get_by_label("Select Dune").check()
    before = await tops(page)
    changed = await api_client.change(book, name="Zen", author="Frank Herbert", releaseYear=1965)

    await expect_titles(page, "Zen", "Emma")
    await expect(page.locator(CHANGED).locator(".author, .release_year")).to_have_text(["Frank Herbert", "1965"])
    assert await tops(page) == before
    await expect(page.get_by_label("Select Zen")).to_be_checked()
    assert await violations(page) == []
    # The new version is the one that is edited, so that there is no conflict.
    await page.get_by_role("button", name="Edit Zen").click()
    await page.get_by_label("Title", exact=True).fill("Dune")
    await page.get_by_role("button", name="Save").click()
    await expect_titles(page, "Dune", "Emma")
    await expect(page.locator(CHANGED)).to_have_count(0)
    assert changed["etag"] != book["etag"]


async def test_a_deleted_book_is_marked_where_it_is(
    page: "Page", site: str, api_client: ApiClient, browser_errors: BrowserErrors
) -> None:
    browser_errors.expect("status of 404 .*batchDelete")  # of both, one is gone
    book = await api_client.create("Dune")
    await api_client.create("Emma")
    await follow(page, site)
    await page.get_by_label("Select Dune").check()
    before = await tops(page)
    await api_client.delete(book)

    await expect(page.locator(f"{DELETED} .name")).to_have_text("Dune")
    line = await page.locator(f"{DELETED} .name bdi").evaluate("each => getComputedStyle(each).textDecorationLine")
    assert line == "line-through"
    assert await tops(page) == before
    for name in ("Edit Dune (deleted)", "Delete Dune (deleted)"):
        await expect(page.get_by_role("button", name=name)).to_be_disabled()
        await page.get_by_role("button", name=name).click(force=True)
        await expect(page.get_by_role("dialog")).to_have_count(0)
    assert await violations(page) == []
    await page.get_by_label("Select Emma").check()
    await page.get_by_role("button", name="Delete selected").click()
    await page.get_by_role("alertdialog").get_by_role("button", name="Delete").click()
    await expect(page.get_by_text("The catalogue is empty.")).to_be_visible()


async def test_new_books_are_announced_and_shown_on_demand(page: "Page", site: str, api_client: ApiClient) -> None:
    await api_client.create("Emma")
    await follow(page, site)
    await api_client.create_many(2)
    await expect(new_books(page)).to_contain_text("2 new books")
    await expect_titles(page, "Emma")
    deleted = await api_client.create("Short-lived")
    await expect(new_books(page)).to_contain_text("3 new books")
    await api_client.delete(deleted)
    await expect(new_books(page)).to_contain_text("2 new books")
    await expect(page.get_by_role("status").filter(has_text="By others: 2 new books.")).to_be_attached()
    assert await violations(page) == []
    await new_books(page).get_by_role("button", name="Show").click()
    await expect_titles(page, "Book 2", "Book 1", "Emma")
    await expect(new_books(page)).to_be_hidden()
    await expect(page.locator("#results")).to_be_focused()


async def test_the_line_of_new_books_can_be_hidden(page: "Page", site: str, api_client: ApiClient) -> None:
    await follow(page, site)
    await api_client.create("Dune")
    await new_books(page).get_by_role("button", name="Hide the changes").click()
    await expect(new_books(page)).to_be_hidden()
    await expect(page.locator("#results")).to_be_focused()
    await api_client.create("Emma")
    await expect(new_books(page)).to_contain_text("1 new book")


async def test_only_what_a_search_finds_is_announced(page: "Page", site: str, api_client: ApiClient) -> None:
    await api_client.create("Emma", "Jane Austen", 1815)
    await api_client.create("Dune")
    await follow(page, site)
    async with page.expect_response("**/v1/books:watch?filter=austen"):
        await page.get_by_label("Search").fill("austen")
    await expect_titles(page, "Emma")
    await api_client.create("Ubik", "Philip K. Dick", 1969)
    await api_client.create("Persuasion", "Jane Austen", 1817)
    await expect(new_books(page)).to_contain_text("1 new book")


async def test_own_changes_are_not_those_of_others(page: "Page", site: str, api_client: ApiClient) -> None:
    await api_client.create("Emma")
    await follow(page, f"{site}/?order=name")
    await page.get_by_role("button", name="Add a book").click()
    await fill_book(page, name="Ubik", author="Philip K. Dick", year="1969")
    await page.get_by_role("button", name="Add", exact=True).click()
    await expect_titles(page, "Emma", "Ubik")
    await page.get_by_role("button", name="Edit Ubik").click()
    await page.get_by_label("Title", exact=True).fill("Valis")
    await page.get_by_role("button", name="Save").click()
    await expect_titles(page, "Emma", "Valis")
    await page.get_by_role("button", name="Delete Emma").click()
    await page.get_by_role("alertdialog").get_by_role("button", name="Delete").click()
    await expect_titles(page, "Valis")
    # What comes after them has been received too.
    await api_client.create("Dune")
    await expect(new_books(page)).to_contain_text("1 new book")
    await expect(page.locator(f"{CHANGED}, {STALE}, {DELETED}")).to_have_count(0)


async def test_a_book_that_is_being_edited_is_only_marked(page: "Page", site: str, api_client: ApiClient) -> None:
    book = await api_client.create("Dune")
    await follow(page, site)
    await page.get_by_role("button", name="Edit Dune").click()
    await page.get_by_label("Title", exact=True).fill("Mine")
    await api_client.change(book, name="Theirs")
    await expect(page.locator(f"{STALE} .name")).to_have_text("Dune")
    await expect(page.get_by_label("Title", exact=True)).to_have_value("Mine")
    await page.keyboard.press("Escape")
    await expect_titles(page, "Theirs")
    await expect(page.locator(STALE)).to_have_count(0)
    await expect(page.get_by_role("button", name="Edit Theirs")).to_be_focused()


async def test_selected_text_is_not_replaced(page: "Page", site: str, api_client: ApiClient) -> None:
    book = await api_client.create("Dune")
    await follow(page, site)
    await page.get_by_text("Dune").select_text()
    await api_client.change(book, name="Theirs")
    await expect(page.locator(f"{STALE} .name")).to_have_text("Dune")
    assert await page.evaluate("String(getSelection()).trim()") == "Dune"
    await page.evaluate("getSelection().removeAllRanges()")
    await expect_titles(page, "Theirs")


@pytest.mark.parametrize("scheme", ["light", "dark"])
async def test_the_marks_fit_on_a_phone(page: "Page", site: str, api_client: ApiClient, scheme: Any) -> None:
    await page.set_viewport_size({"width": 360, "height": 740})
    await page.emulate_media(color_scheme=scheme)
    changed, deleted = await api_client.create("Dune"), await api_client.create("Emma")
    await follow(page, site)
    await api_client.change(changed, author="W" * 120)
    await api_client.delete(deleted)
    await api_client.create("Ubik")
    await expect(new_books(page)).to_be_visible()
    await expect(page.locator(CHANGED)).to_have_count(1)
    await expect(page.locator(DELETED)).to_have_count(1)
    assert await page.evaluate("document.documentElement.scrollWidth <= innerWidth")
    assert await violations(page) == []


async def test_a_hidden_page_follows_nothing_and_catches_up(page: "Page", site: str, api_client: ApiClient) -> None:
    book = await follow_one_change(page, site, api_client)
    async with page.expect_event("requestfailed", lambda request: "books:watch" in request.url):
        await set_hidden(page, is_hidden=True)
    await api_client.change(book, name="Theirs")
    async with page.expect_request("**/v1/books:watch*") as resumed:
        await set_hidden(page, is_hidden=False)
    await expect_titles(page, "Theirs")
    assert (await (await resumed.value).all_headers())["last-event-id"]


async def test_a_page_that_is_opened_in_the_background_follows_once_it_is_shown(
    page: "Page", site: str, api_client: ApiClient
) -> None:
    await page.add_init_script("Object.defineProperty(document, 'hidden', { value: true, configurable: true })")
    requests: list[str] = []
    page.on("request", lambda request: requests.append(request.url))
    book = await api_client.create("Dune")
    await page.goto(site)
    await expect_titles(page, "Dune")
    assert not [url for url in requests if "books:watch" in url]
    async with page.expect_response("**/v1/books:watch*"):
        await set_hidden(page, is_hidden=False)
    await api_client.change(book, name="Theirs")
    await expect_titles(page, "Theirs")


@pytest.mark.parametrize("status", [404, 429, 501])
async def test_without_a_stream_the_page_works_as_before(
    page: "Page", site: str, api_client: ApiClient, browser_errors: BrowserErrors, status: int
) -> None:
    browser_errors.expect(f"status of {status} .*books:watch")
    await page.route("**/v1/books:watch*", lambda route: route.fulfill(status=status, json={"message": "No."}))
    await api_client.create("Dune")
    await follow(page, site)
    await page.get_by_label("Search").fill("du")
    await expect_titles(page, "Dune")
    await api_client.create("Dust")
    await page.get_by_label("Search").fill("dus")
    await expect_titles(page, "Dust")
    await expect(page.get_by_role("alert")).to_have_count(0)
    await expect(new_books(page)).to_be_hidden()


async def test_after_changes_are_lost_the_page_says_so(
    page: "Page", site: str, api_client: ApiClient, browser_errors: BrowserErrors
) -> None:
    browser_errors.expect("status of 410 .*books:watch")
    await follow_one_change(page, site, api_client)

    async def reject_token(route: "Route") -> None:
        is_resumed = "last-event-id" in await route.request.all_headers()
        await (route.fulfill(status=410, json={}) if is_resumed else route.continue_())

    await page.route("**/v1/books:watch*", reject_token)
    await set_hidden(page, is_hidden=True)
    await api_client.create("Emma")
    await set_hidden(page, is_hidden=False)
    await expect(new_books(page)).to_contain_text("This list may have changed")
    await new_books(page).get_by_role("button", name="Show").click()
    await expect_titles(page, "Emma", "Before")


@asynccontextmanager
async def network_to(site: str) -> AsyncIterator[tuple[Network, str]]:
    """Yield a way to a server that can be cut, and the address of the server on it."""
    host, _, port = site.removeprefix("http://").rpartition(":")
    network = Network(host, int(port))
    await network.restore()
    try:
        yield network, f"http://127.0.0.1:{network.port}"
    finally:
        await network.cut()


async def test_the_page_resumes_after_its_connection_is_cut(
    page: "Page", site: str, api_client: ApiClient, browser_errors: BrowserErrors
) -> None:
    browser_errors.expect("net::ERR_")
    async with network_to(site) as (network, address):
        book = await follow_one_change(page, address, api_client)
        await network.cut()
        await api_client.change(book, name="Theirs")
        await network.restore()
        await expect_titles(page, "Theirs")


async def test_an_event_source_resumes_after_its_connection_is_cut(
    page: "Page", site: str, api_client: ApiClient, browser_errors: BrowserErrors
) -> None:
    browser_errors.expect("net::ERR_")
    async with network_to(site) as (network, address):
        await page.goto(f"{address}/openapi.json")  # a page without a stream of its own
        await page.evaluate(
            """() => {
                window.events = [];
                window.source = new EventSource("/v1/books:watch?checkpointInterval=1s");
                source.onmessage = ({ data, lastEventId }) => events.push({ ...JSON.parse(data), lastEventId });
                return new Promise((resolve) => source.addEventListener("message", resolve, { once: true }));
            }"""
        )
        names = [f"Book {number}" for number in range(6)]
        for number, name in enumerate(names):
            if number == 2:
                await network.cut()
            await api_client.create(name)
            if number == 3:
                await network.restore()
        received = await page.wait_for_function(
            """(count) => {
                const changes = events.flatMap(({ changes = [] }) => changes);
                return changes.length >= count && changes;
            }""",
            arg=len(names),
        )
        changes = await received.json_value()
        assert [(change["type"], change["book"]["name"]) for change in changes] == [("CREATED", name) for name in names]
        assert await page.evaluate("events.every(({ resumeToken, lastEventId }) => resumeToken === lastEventId)")
        await page.evaluate("source.close()")


async def test_an_event_source_can_tell_the_error_of_the_server_from_a_lost_connection(page: "Page", site: str) -> None:
    await page.goto(f"{site}/openapi.json")

    async def broken(route: "Route") -> None:
        body = 'id: token\ndata: {}\n\nevent: status\ndata: {"code": 14, "message": "The server shuts down."}\n\n'
        await route.fulfill(status=200, content_type="text/event-stream", body=body)

    await page.route("**/v1/books:watch", broken)
    data = await page.evaluate(
        """() => new Promise((resolve) => {
            const source = new EventSource("/v1/books:watch");
            source.addEventListener("status", (event) => (source.close(), resolve(event.data)));
        })"""
    )
    assert json.loads(data)["message"] == "The server shuts down."
