"""A field that only the server's table of fields has is in the table, the form and the import of the catalogue page."""

import csv
import io
import re
from importlib.util import find_spec
from typing import TYPE_CHECKING, Any
from urllib.parse import parse_qs, urlsplit

import pytest

from tests.browser.accessibility import violations
from tests.browser.catalogue import fill_book, import_file
from tests.web.added_field import fields_module_with

if TYPE_CHECKING or find_spec("playwright"):  # the fixture `browser` reports its absence
    from playwright.async_api import Page, Request, Route, expect

TIME = "2026-01-31T00:00:00Z"


class BooksWithIsbn:
    """An API whose books have the optional field `isbn`, in place of the server's."""

    def __init__(self) -> None:
        self.books: list[dict[str, Any]] = []
        self.updates: list[tuple[str, Any]] = []  # the mask and the body

    async def route(self, route: "Route") -> None:
        await route.fulfill(json=self._response(route.request))

    def _response(self, request: "Request") -> dict[str, Any]:
        url = urlsplit(request.url)
        body: Any = request.post_data_json
        if request.method == "GET":
            return {"books": self.books[::-1]}
        if request.method == "PATCH":
            self.updates.append((parse_qs(url.query)["updateMask"][0], body))
            return self._changed(int(url.path.split("/")[-1]), body)
        if url.path.endswith(":batchCreate"):
            return {"books": [self._created(each["book"]) for each in body["requests"]]}
        return self._created(body)

    def _created(self, fields: dict[str, Any]) -> dict[str, Any]:
        self.books.append({"id": str(len(self.books) + 1), "createTime": TIME, "updateTime": TIME})
        return self._changed(len(self.books), fields)

    def _changed(self, book_id: int, fields: dict[str, Any]) -> dict[str, Any]:
        book = self.books[book_id - 1] | fields | {"etag": str(len(self.updates))}
        # Proto3's JSON omits empty text.
        self.books[book_id - 1] = {name: value for name, value in book.items() if value != ""}
        return self.books[book_id - 1]


@pytest.fixture
async def fake_api(page: "Page", site: str) -> BooksWithIsbn:
    """Open the page of a server whose books have an ISBN."""
    api = BooksWithIsbn()
    module = fields_module_with("isbn")
    await page.route("**/assets/fields.js", lambda route: route.fulfill(body=module, content_type="text/javascript"))
    await page.route("**/v1/books**", api.route)
    await page.goto(site)
    await expect(page.get_by_text("The catalogue is empty.")).to_be_visible()
    return api


async def add_book(page: "Page", *, isbn: str) -> None:
    await page.get_by_role("button", name="Add a book").click()
    await fill_book(page, name="Emma", author="Jane Austen", year="1815")
    await page.get_by_label("Isbn", exact=True).fill(isbn)
    await page.get_by_role("button", name="Add", exact=True).click()


async def test_an_added_field_has_a_column(page: "Page", fake_api: BooksWithIsbn) -> None:
    await add_book(page, isbn="978-X")
    await expect(page.locator("td.isbn")).to_have_text(["978-X"])
    await add_book(page, isbn="")
    await expect(page.locator("td.isbn")).to_have_text(["", "978-X"])

    header = page.get_by_role("columnheader", name="Isbn")
    await header.get_by_role("button").click()
    await expect(header).to_have_attribute("aria-sort", "ascending")
    await expect(page.locator("#order option[value='isbn desc']")).to_have_text("Isbn Z–A")
    await page.get_by_text("How to search").click()
    await expect(page.get_by_text("title, author or isbn")).to_be_visible()
    await expect(page.locator("#filter-fields")).to_have_text(re.compile(r"update_time, isbn$"))
    assert await violations(page) == []
    await page.set_viewport_size({"width": 360, "height": 740})
    assert await page.evaluate("document.documentElement.scrollWidth <= innerWidth")
    assert await violations(page) == []


async def test_an_added_optional_field_can_be_entered_and_cleared(page: "Page", fake_api: BooksWithIsbn) -> None:
    await page.get_by_role("button", name="Add a book").click()
    field = page.get_by_label("Isbn", exact=True)
    await expect(field).to_have_accessible_description("Optional.")
    await expect(field).to_have_js_property("required", False)
    assert await violations(page) == []
    await page.keyboard.press("Escape")
    await add_book(page, isbn="978-X")
    await expect(page.locator("td.isbn")).to_have_text(["978-X"])
    assert fake_api.books[0]["isbn"] == "978-X"

    await page.get_by_role("button", name="Edit Emma").click()
    await expect(field).to_have_value("978-X")
    await field.fill("")
    await page.get_by_role("button", name="Save").click()
    await expect(page.locator("td.isbn")).to_have_text([""])
    assert fake_api.updates == [("isbn", {"isbn": ""})]


async def test_an_added_optional_field_can_be_imported(page: "Page", fake_api: BooksWithIsbn) -> None:
    await import_file(page, "name,author,release_year\nEmma,Jane Austen,1815\n")
    dialog = page.get_by_role("dialog")
    await expect(dialog.get_by_role("status")).to_have_text("1 book stored, 1 of them new; 0 rows rejected.")
    await expect(dialog.get_by_text("name, author and release_year, and optionally isbn, in any order")).to_be_visible()
    await dialog.get_by_role("button", name="Close").click()

    await import_file(page, "isbn,release_year,author,name\n978-X,1871,George Eliot,Middlemarch\n979-Y,soon,a,b\n")
    await expect(dialog.get_by_role("status")).to_have_text("1 book stored, 1 of them new; 1 row rejected.")
    async with page.expect_download() as download:
        await page.get_by_role("link", name="Download").click()
    rejected = (await (await download.value).path()).read_text("utf-8")

    assert list(csv.reader(io.StringIO(rejected))) == [
        ["line", "reason", "name", "author", "release_year", "isbn"],
        ["3", "release_year: is 'soon', not a whole number", "b", "a", "soon", "979-Y"],
    ]
    assert [book.get("isbn") for book in fake_api.books] == [None, "978-X"]
