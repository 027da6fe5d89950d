"""Importing CSV files on the catalogue page."""

import asyncio
import csv
import io
import itertools
import re
from importlib.util import find_spec
from pathlib import Path
from typing import TYPE_CHECKING

import pytest
from hypothesis import example, given
from hypothesis import strategies as st

from bookstore_grpc.rpc.server import Server
from bookstore_grpc.server.app import running_server
from tests.browser.accessibility import violations
from tests.browser.catalogue import BAD_REQUEST, ApiClient, csv_of, expect_titles, import_file
from tests.browser.conftest import BrowserErrors
from tests.conftest import settings_for
from tests.executable import run_bookstore

if TYPE_CHECKING or find_spec("playwright"):  # the fixture `browser` reports its absence
    from playwright.async_api import Page, Route, expect


async def test_an_import_stores_valid_rows_and_reports_the_others(
    page: "Page", site: str, api_client: ApiClient, browser_errors: BrowserErrors
) -> None:
    browser_errors.expect(BAD_REQUEST)
    await page.goto(site)
    rows = (
        'Author , NAME,release_year,more\nHomer,"The ""Iliad"", at last",-750,"of\nTroy"\n'
        ",Nobody's,1\nX,Y,soon\na,b,1,2,3\nZoë,Ω,5"
    )

    await import_file(page, "\ufeff" + rows)

    dialog = page.locator("#import-dialog")
    await expect(dialog.get_by_role("progressbar")).to_have_js_property("value", 1)
    await expect(dialog.get_by_role("status")).to_have_text("2 books stored, 2 of them new; 3 rows rejected.")
    await expect(dialog.locator("tbody tr")).to_have_text(
        [
            re.compile("^4 *author: is required"),
            re.compile("^5 *release_year: is 'soon', not a whole number"),
            re.compile("^6 *has 5 columns, more than the header's 4"),
        ]
    )
    assert await violations(page) == []
    async with page.expect_download() as download:
        await page.get_by_role("link", name="Download").click()
    rejected = (await (await download.value).path()).read_text("utf-8")
    assert list(csv.reader(io.StringIO(rejected)))[:3] == [
        ["line", "reason", "name", "author", "release_year"],
        ["4", "author: is required and must hold more than white space", "Nobody's", "", "1"],
        ["5", "release_year: is 'soon', not a whole number", "Y", "X", "soon"],
    ]
    await dialog.get_by_role("button", name="Close").click()
    assert [book["author"] for book in await api_client.list()] == ["Homer", "Zoë"]
    await expect_titles(page, "Ω", 'The "Iliad", at last')


async def test_repeating_an_import_on_the_page_or_by_the_command_stores_nothing_twice(
    page: "Page", site: str, site_server: Server, api_client: ApiClient, tmp_path: Path
) -> None:
    text = csv_of((f"Book {n}", "Anon", n) for n in range(1_200))
    path = tmp_path / "books.csv"
    path.write_text(text)
    await page.goto(site)

    await import_file(page, text)
    status = page.get_by_role("dialog").get_by_role("status")
    await expect(status).to_have_text("1,200 books stored, 1,200 of them new; 0 rows rejected.")
    await page.get_by_role("dialog").get_by_role("button", name="Import").click()
    await expect(status).to_have_text("1,200 books stored, 0 of them new; 0 rows rejected.")
    finished = await asyncio.to_thread(
        run_bookstore, "import", path, variables={"BOOKSTORE_SERVER": site_server.addresses[0]}
    )

    assert finished.errors == "1,200 books stored, 0 of them new; 0 rows rejected.\n"
    await page.get_by_role("dialog").get_by_role("button", name="Close").click()
    await expect(page.get_by_role("heading", name="Books 1 to 50")).to_be_attached()


async def test_an_import_shows_its_progress_and_can_be_stopped_and_continued(
    page: "Page", site: str, api_client: ApiClient
) -> None:
    batches = itertools.count(1)
    third = asyncio.Event()

    async def hold_third(route: "Route") -> None:
        if next(batches) == 3:
            await third.wait()
            await route.abort()
        else:
            await route.continue_()

    await page.route("**/v1/books:batchCreate", hold_third)
    await page.goto(site)

    await import_file(page, csv_of((f"Book {n}", "Anon", n) for n in range(1_600)))
    dialog = page.get_by_role("dialog")
    await expect(dialog.get_by_role("status")).to_have_text("1,000 books stored so far.")
    reached = await dialog.get_by_role("progressbar").evaluate("bar => bar.value")
    assert 0.5 < reached < 0.7
    assert await violations(page) == []
    await page.keyboard.press("Escape")
    await expect(dialog.get_by_role("status")).to_contain_text("Stopped. 1,000 books stored")
    third.set()
    await dialog.get_by_role("button", name="Import").click()

    await expect(dialog.get_by_role("status")).to_have_text("1,600 books stored, 600 of them new; 0 rows rejected.")


async def test_an_import_without_https_warns_that_repeating_it_stores_duplicates(page: "Page", site: str) -> None:
    # As in a page that was loaded over plain HTTP from another host.
    await page.add_init_script("Object.defineProperty(Crypto.prototype, 'subtle', {value: undefined})")
    await page.goto(site)

    await import_file(page, csv_of([("Emma", "Jane Austen", 1815)]))

    await expect(page.get_by_role("dialog").get_by_role("status")).to_contain_text("would store its books again")
    await page.keyboard.press("Escape")
    await expect_titles(page, "Emma")


async def test_a_failed_import_continues_where_it_stopped(
    page: "Page", site: str, api_client: ApiClient, browser_errors: BrowserErrors
) -> None:
    browser_errors.expect("failed: POST .*ERR_FAILED|Failed to load resource")
    batches = itertools.count(1)

    async def fail_second(route: "Route") -> None:
        await (route.abort() if next(batches) == 2 else route.continue_())

    await page.route("**/v1/books:batchCreate", fail_second)
    await page.goto(site)
    await import_file(page, csv_of((f"Book {n}", "Anon", n) for n in range(1_100)))
    dialog = page.get_by_role("dialog")
    await expect(dialog.get_by_role("alert")).to_contain_text("Could not connect to the server")
    await expect(dialog.get_by_role("status")).to_have_text("500 books stored, 500 of them new; 0 rows rejected.")

    await dialog.get_by_role("button", name="Try again").click()

    await expect(dialog.get_by_role("status")).to_have_text("1,100 books stored, 1,100 of them new; 0 rows rejected.")
    assert len(await api_client.list(pageSize=1_000)) == 1_000


async def test_a_rate_limited_import_retries_after_the_delay(
    page: "Page", browser_errors: BrowserErrors, tmp_path: Path
) -> None:
    browser_errors.expect("status of 429")
    url = f"sqlite+aiosqlite:///{tmp_path}/limited.db"
    settings = settings_for(url, http_listen="127.0.0.1:0", rate_limit_per_second=0.5, rate_limit_burst=3)

    async def exhaust_limit(route: "Route") -> None:
        while (await page.request.get(f"{site}/v1/books")).status != 429:
            pass
        await route.continue_()

    async with running_server(settings) as server:
        site = f"http://{server.http_address}"
        await page.route("**/v1/books:batchCreate", exhaust_limit, times=1)
        await page.goto(site)
        await import_file(page, csv_of((f"Book {n}", "Anon", n) for n in range(10)))
        status = page.get_by_role("dialog").get_by_role("status")
        await expect(status).to_have_text(re.compile(r"The server is busy. Retrying in [1-2] seconds?\."))
        await expect(status).to_have_text("10 books stored, 10 of them new; 0 rows rejected.")


async def test_an_import_halves_batches_that_are_too_large(
    page: "Page", browser_errors: BrowserErrors, tmp_path: Path
) -> None:
    browser_errors.expect("status of 413")
    url = f"sqlite+aiosqlite:///{tmp_path}/small.db"
    async with running_server(settings_for(url, http_listen="127.0.0.1:0", max_message_bytes=20_000)) as server:
        await page.goto(f"http://{server.http_address}")
        await import_file(page, csv_of([*((f"Book {n}", "Anon", n) for n in range(600)), ("Long", "A" * 30_000, 1)]))
        dialog = page.get_by_role("dialog")
        await expect(dialog.get_by_role("status")).to_have_text("600 books stored, 600 of them new; 1 row rejected.")
        await expect(dialog.locator("tbody tr")).to_have_text(re.compile("^602"))


@pytest.mark.parametrize(
    ("text", "message"),
    [
        ("", "The first line must name the columns name, author, release_year"),
        ("name,author\nEmma,Jane Austen\n", "missing: release_year"),
    ],
)
async def test_a_file_that_lacks_required_columns_is_rejected(page: "Page", site: str, text: str, message: str) -> None:
    await page.goto(site)

    await import_file(page, text)

    await expect(page.get_by_role("alert")).to_contain_text(message)


async def test_the_page_parses_csv_like_the_command(page: "Page", site: str) -> None:
    await page.goto(site)
    texts: list[str] = []

    @given(st.text(st.sampled_from('",\r\n a\u2028é𝄞'), max_size=24))
    @example('"a""b",c\r\n"d\ne",\r\r\n\n"","" \n"x"y,"open\n')
    def collect(text: str) -> None:
        texts.append(text)

    collect()
    read = await page.evaluate(
        """async (texts) => {
            const { readCsv } = await import("/assets/csv.js");
            return texts.map((text) => [...readCsv(text)].map(({ line, cells }) => [line, cells]));
        }""",
        texts,
    )

    for text, rows in zip(texts, read, strict=True):
        assert rows == rows_by_python(text), repr(text)


def rows_by_python(text: str) -> list[list[object]]:
    """Return rows with the lines they start at, as `bookstore import` reads them."""
    reader = csv.reader(io.TextIOWrapper(io.BytesIO(text.encode()), encoding="utf-8", newline=""))
    rows: list[list[object]] = []
    line = 1
    for cells in reader:
        if cells:
            rows.append([line, cells])
        line = reader.line_num + 1
    return rows
