"""The screenshots in docs/images: `.venv/bin/python -m tests.browser.screenshots` recreates them."""

import asyncio
import csv
import tempfile
from pathlib import Path
from typing import TYPE_CHECKING

from bookstore_grpc.server.app import running_server
from tests.browser.conftest import CHROMIUM, FLAGS
from tests.conftest import settings_for

if TYPE_CHECKING:
    from playwright.async_api import Page

ROOT = Path(__file__).parents[2]
IMAGES = ROOT / "docs" / "images"
# Years whose titles are in scripts for which every machine has fonts.
CATALOGUE = "?filter=release_year+>%3D+1810+release_year+<+1930&order=release_year"


async def take_catalogue(page: "Page", site: str) -> None:
    await page.goto(f"{site}/{CATALOGUE}")
    await page.locator("tbody tr").first.wait_for()
    await page.screenshot(path=IMAGES / "catalogue-page.png")


async def take_docs(page: "Page", site: str) -> None:
    await page.set_viewport_size({"width": 1760, "height": 1100})  # room for a request and its response
    await page.goto(f"{site}/docs#/BookService/GetBook")
    operation = page.locator("#operations-BookService-GetBook")
    await operation.get_by_role("button", name="Try it out").click()
    await operation.get_by_role("button", name="Execute").click()
    await operation.locator(".live-responses-table").wait_for()
    await operation.evaluate("operation => operation.scrollIntoView()")
    await page.screenshot(path=IMAGES / "docs-page.png")


TAKERS = (take_catalogue, take_docs)


async def store_classics(page: "Page", site: str) -> None:
    with (ROOT / "examples" / "classics.csv").open(encoding="utf-8", newline="") as file:
        rows = list(csv.DictReader(file))
    requests = [
        {"book": {"name": row["name"], "author": row["author"], "releaseYear": int(row["release_year"])}}
        for row in rows
    ]
    response = await page.request.post(f"{site}/v1/books:batchCreate", data={"requests": requests})
    assert response.ok, await response.text()


async def take_all() -> None:
    """Start a server with the example books, and take every screenshot."""
    from playwright.async_api import async_playwright

    IMAGES.mkdir(exist_ok=True)
    with tempfile.TemporaryDirectory() as folder:
        settings = settings_for(f"sqlite+aiosqlite:///{folder}/bookstore.db", http_listen="127.0.0.1:0")
        async with running_server(settings) as server, async_playwright() as playwright:
            site = f"http://{server.http_address}"
            browser = await playwright.chromium.launch(executable_path=CHROMIUM, args=FLAGS)
            page = await browser.new_page(viewport={"width": 1280, "height": 800}, locale="en-GB")
            await store_classics(page, site)
            for take in TAKERS:
                await take(page, site)
            await browser.close()


if __name__ == "__main__":
    asyncio.run(take_all())
