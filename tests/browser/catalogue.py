"""Steps that the tests of the catalogue page share."""

from collections.abc import Iterable
from importlib.util import find_spec
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING or find_spec("playwright"):  # the fixture `browser` reports its absence
    from playwright.async_api import Page, expect

BAD_REQUEST, CONFLICT = r"status of 400 .*/v1/", r"status of 409 .*/v1/"


class ApiClient:
    """A client of the same catalogue, for the preparation of a test and for changes by another user."""

    def __init__(self, page: "Page", site: str) -> None:
        self._request = page.request
        self._books = f"{site}/v1/books"

    async def create(self, name: str = "Dune", author: str = "Frank Herbert", release_year: int = 1965) -> Any:
        return await self._send("post", "", {"name": name, "author": author, "releaseYear": release_year})

    async def create_many(self, count: int) -> None:
        requests = [{"book": {"name": f"Book {n}", "author": "Anon", "releaseYear": n}} for n in range(1, count + 1)]
        await self._send("post", ":batchCreate", {"requests": requests})

    async def change(self, book: Any, **fields: object) -> Any:
        return await self._send("patch", f"/{book['id']}", fields)

    async def delete(self, book: Any) -> None:
        await self._send("delete", f"/{book['id']}")

    async def list(self, **query: str | float | bool) -> list[Any]:
        response = await self._request.get(self._books, params=query)
        assert response.ok, await response.text()
        return (await response.json()).get("books", [])  # type: ignore[no-any-return]

    async def _send(self, verb: str, path: str, body: object = None) -> Any:
        response = await self._request.fetch(f"{self._books}{path}", method=verb, data=body)
        assert response.ok, await response.text()
        return await response.json()


def csv_file(text: str, name: str = "books.csv") -> Any:
    return {"name": name, "mimeType": "text/csv", "buffer": text.encode()}


def csv_of(rows: Iterable[tuple[object, ...]]) -> str:
    return "name,author,release_year\n" + "".join(f"{','.join(map(str, row))}\n" for row in rows)


async def expect_titles(page: "Page", *names: str) -> None:
    """Wait until exactly these titles are listed, in this order."""
    await expect(page.locator("tbody .name:visible")).to_have_text(list(names))


async def import_file(page: "Page", text: str) -> None:
    await page.get_by_role("button", name="Import", exact=True).click()
    await expect(page.get_by_role("dialog")).to_be_visible()
    await page.get_by_label("File", exact=True).set_input_files(csv_file(text))
    await page.get_by_role("dialog").get_by_role("button", name="Import").click()


async def fill_book(page: "Page", *, name: str = "", author: str = "", year: str = "") -> None:
    await page.get_by_label("Title", exact=True).fill(name)
    await page.get_by_label("Author", exact=True).fill(author)
    await page.get_by_label("Year of the first release").fill(year)


async def cause_conflict(page: "Page", site: str, api_client: ApiClient, **theirs: object) -> None:
    """Save a changed title of a book that another user has changed."""
    book = await api_client.create("Dune", "Herbert", 1965)
    await page.goto(site)
    await page.get_by_role("button", name="Edit Dune").click()
    await page.get_by_label("Title", exact=True).fill("Mine")
    await api_client.change(book, **theirs)
    await page.get_by_role("button", name="Save").click()
    await expect(page.get_by_role("group", name="Another user has changed this book")).to_be_focused()
