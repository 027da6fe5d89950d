"""The page at /docs: every operation can be executed, also by keyboard, and the page is accessible."""

import json
from importlib.util import find_spec
from pathlib import Path
from typing import TYPE_CHECKING, Any

import pytest

from bookstore_grpc.gateway.openapi.document import openapi_document
from bookstore_grpc.server.app import running_server
from tests.browser.accessibility import violations
from tests.browser.catalogue import ApiClient
from tests.browser.conftest import BrowserErrors
from tests.conftest import settings_for
from tests.tokens import Issuer, token_settings

if TYPE_CHECKING or find_spec("playwright"):  # the fixture `browser` reports its absence
    from playwright.async_api import Locator, Page, expect

PHONE_WIDTH, PHONE_HEIGHT = 390, 844
# The rules of axe-core that look at colors.
COLOR_RULES = ("color-contrast", "link-in-text-block")


class Docs:
    """The page, and the steps of a user."""

    def __init__(self, page: "Page") -> None:
        self.page = page

    def operation(self, name: str) -> "Locator":
        return self.page.locator(f"#operations-BookService-{name}")

    async def open(self, name: str) -> "Locator":
        """Expand an operation and select "Try it out"."""
        operation = self.operation(name)
        await operation.locator(".opblock-summary-control").click()
        await operation.get_by_role("button", name="Try it out").click()
        return operation

    async def fill(self, name: str, **values: str) -> "Locator":
        """Open an operation and fill in parameters. Their names are in lower case, with underscores for hyphens."""
        operation = await self.open(name)
        for parameter, value in values.items():
            row = operation.locator(f'[data-param-name="{parameter.replace("_", "-")}" i]')
            await row.get_by_role("textbox").fill(value)
        return operation

    async def execute(self, operation: "Locator", *, status: int) -> str:
        """Execute an operation and return the text that shows its response."""
        await operation.get_by_role("button", name="Execute").click()
        shown = operation.locator(".live-responses-table")
        await expect(shown.locator("tbody .response-col_status")).to_contain_text(str(status))
        return await shown.inner_text()


@pytest.fixture
async def docs(page: "Page", site: str) -> Docs:
    return await _docs_at(page, site)


async def _docs_at(page: "Page", site: str) -> Docs:
    await page.goto(f"{site}/docs")
    await expect(page.locator(".opblock")).not_to_have_count(0)
    return Docs(page)


async def test_every_operation_is_shown_with_verb_path_and_summary(docs: Docs) -> None:
    paths = json.loads(openapi_document(needs_token=False))["paths"]
    operations = {
        operation["operationId"]: (verb.upper(), path, operation["summary"])
        for path, item in paths.items()
        for verb, operation in item.items()
    }
    await expect(docs.page.locator(".opblock")).to_have_count(len(operations))
    for name, texts in operations.items():
        for text in texts:
            await expect(docs.operation(name)).to_contain_text(text)


async def test_executing_operations_creates_lists_and_updates_books(docs: Docs, site: str) -> None:
    created = await docs.execute(await docs.open("CreateBook"), status=201)
    assert "The Left Hand of Darkness" in created
    assert "location: /v1/books/1" in created
    listed = await docs.execute(await docs.fill("ListBooks", filter='author:"le guin"', pagesize="5"), status=200)
    assert '"id": "1"' in listed
    assert '"id": "1"' in await docs.execute(await docs.open("BatchGetBooks"), status=200)
    (etag,) = [line.split('"')[3] for line in created.splitlines() if '"etag":' in line]

    update = await docs.fill("UpdateBook", id="1", if_match=f'"{etag}"')
    await update.get_by_role("textbox", name="Request body").fill('{"name": "The Dispossessed"}')
    assert '"name": "The Dispossessed"' in await docs.execute(update, status=200)
    response = await docs.page.request.get(f"{site}/v1/books/1")
    assert (await response.json())["name"] == "The Dispossessed"


async def test_executing_a_stream_shows_its_beginning(docs: Docs, api_client: ApiClient) -> None:
    await api_client.create("Dune")
    watch = await docs.fill("WatchBooks", filter="dune", checkpointinterval="1s")
    await watch.get_by_role("combobox", name="start").select_option("EXISTING")
    shown = await docs.execute(watch, status=200)
    assert '"name":"Dune"' in shown
    assert "content-type: text/event-stream" in shown


async def test_error_responses_are_shown(docs: Docs, browser_errors: BrowserErrors, api_client: ApiClient) -> None:
    browser_errors.expect("status of 400 .*/v1/books")
    browser_errors.expect("status of 409 .*/v1/books/1")
    invalid_filter = await docs.execute(await docs.fill("ListBooks", filter="name ="), status=400)
    assert "INVALID_FILTER" in invalid_filter
    await api_client.create()
    mismatch = await docs.execute(await docs.fill("UpdateBook", id="1", if_match='"old"'), status=409)
    assert "ETAG_MISMATCH" in mismatch


async def test_an_entered_token_is_sent(page: "Page", browser_errors: BrowserErrors, tmp_path: Path) -> None:
    browser_errors.expect("status of 401 .*/v1/books")
    issuer = Issuer()
    values: dict[str, Any] = {"http_listen": "127.0.0.1:0", **token_settings(issuer.write_jwks(tmp_path / "jwks.json"))}
    async with running_server(settings_for(f"sqlite+aiosqlite:///{tmp_path}/bookstore.db", **values)) as server:
        docs = await _docs_at(page, f"http://{server.http_address}")
        list_books = await docs.open("ListBooks")
        assert "TOKEN_MISSING" in await docs.execute(list_books, status=401)

        await page.locator(".scheme-container").get_by_role("button", name="Authorize").click()
        assert await violations(page) == []
        await page.get_by_role("textbox", name="Value").fill(issuer.token())
        await page.locator(".modal-ux").get_by_role("button", name="Authorize", exact=True).click()
        await expect(page.get_by_role("heading", name="Authorized", exact=True)).to_be_visible()
        assert await violations(page) == []
        await page.keyboard.press("Escape")
        await expect(page.locator(".modal-ux")).to_have_count(0)
        await docs.execute(list_books, status=200)


async def test_an_operation_can_be_executed_with_the_keyboard_only(docs: Docs) -> None:
    page = docs.page
    await _tab_to(page, docs.operation("CreateBook").locator(".opblock-summary-control"))
    await page.keyboard.press("Enter")
    await _tab_to(page, docs.operation("CreateBook").get_by_role("button", name="Try it out"))
    await page.keyboard.press("Enter")
    await _tab_to(page, docs.operation("CreateBook").get_by_role("button", name="Execute"))
    await page.keyboard.press("Enter")
    shown = docs.operation("CreateBook").locator(".live-responses-table tbody .response-col_status")
    await expect(shown).to_contain_text("201")


async def _tab_to(page: "Page", target: "Locator") -> None:
    for _ in range(40):
        await page.keyboard.press("Tab")
        if await target.count() and await target.evaluate("element => element === document.activeElement"):
            for scheme in ("light", "dark"):
                await _use_scheme(page, scheme)
                # The focus is visible.
                assert await target.evaluate("element => getComputedStyle(element).outlineStyle") == "solid"
            return
    pytest.fail(f"{target} is not reached by Tab")


async def _use_scheme(page: "Page", scheme: Any) -> None:
    await page.emulate_media(color_scheme=scheme)
    await expect(page.locator("html.dark-mode")).to_have_count(int(scheme == "dark"))


async def test_the_page_is_accessible_with_all_operations_open(docs: Docs, browser_errors: BrowserErrors) -> None:
    browser_errors.expect("status of 404 .*/v1/books/1")
    page = docs.page
    await _require_accessible(page)
    for name, status in {"ListBooks": 200, "GetBook": 404, "CreateBook": 201, "UpdateBook": 200}.items():
        await docs.execute(await docs.open(name), status=status)
    await _require_accessible(page)

    for name in (
        "UpdateBookByPut",
        "DeleteBook",
        "BatchGetBooks",
        "BatchCreateBooks",
        "BatchUpdateBooks",
        "BatchDeleteBooks",
        "PurgeBooks",
        "WatchBooks",
        "ListBookChanges",
    ):
        await docs.open(name)
    # One check of everything that is open takes as long as all others together.
    await page.set_viewport_size({"width": PHONE_WIDTH, "height": PHONE_HEIGHT})
    assert await violations(page) == []
    assert await page.evaluate("document.documentElement.scrollWidth") <= PHONE_WIDTH


async def test_the_schemas_are_accessible(docs: Docs) -> None:
    await docs.page.get_by_role("button", name="Schemas").click()
    for schema in await docs.page.locator(".models .json-schema-2020-12-accordion").all():
        await schema.click()
    await expect(docs.page.locator(".models .json-schema-2020-12-property")).not_to_have_count(0)
    await _require_accessible(docs.page)


async def _require_accessible(page: "Page") -> None:
    """Check every rule in the light scheme, and those about colors in the dark one too."""
    await _use_scheme(page, "dark")
    assert await violations(page, rules=COLOR_RULES) == []
    await _use_scheme(page, "light")
    assert await violations(page) == []


async def test_the_page_links_to_the_catalogue_and_the_openapi_document(docs: Docs, site: str) -> None:
    links = docs.page.get_by_role("navigation", name="Pages").get_by_role("link")
    addresses = [await link.evaluate("link => link.href") for link in await links.all()]
    assert addresses == [f"{site}/", f"{site}/openapi.json"]
