"""Importing CSV files on the page for people."""

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
from tests.browser.catalogue import BAD_REQUEST, Others, csv_of, import_file, shows
from tests.browser.conftest import Trouble
from tests.conftest import settings_for
from tests.executable import run_bookstore

if TYPE_CHECKING or find_spec("playwright"):  # the fixture `browser` tells of its absence
    from playwright.async_api import Page, Route, expect


async def test_an_import_stores_good_rows_and_tells_of_the_others(
    page: "Page", site: str, others: Others, trouble: Trouble
) -> None:
    trouble.expect(BAD_REQUEST)
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
    refused = (await (await download.value).path()).read_text("utf-8")
    assert list(csv.reader(io.StringIO(refused)))[:3] == [
        ["line", "reason", "name", "author", "release_year"],
        ["4", "author: is required and must hold more than white space", "Nobody's", "", "1"],
        ["5", "release_year: is 'soon', not a whole number", "Y", "X", "soon"],
    ]
    await dialog.get_by_role("button", name="Close").click()
    assert [book["author"] for book in await others.list()] == ["Homer", "Zoë"]
    await shows(page, "Ω", 'The "Iliad", at last')


async def test_an_import_again_by_the_page_or_the_command_stores_nothing_twice(
    page: "Page", site: str, site_server: Server, others: Others, tmp_path: Path
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


async def test_an_import_shows_how_far_it_is_and_can_be_stopped_and_gone_on_with(
    page: "Page", site: str, others: Others
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


async def test_an_import_to_a_page_without_https_says_what_it_cannot_promise(page: "Page", site: str) -> None:
    # As browsers have it for pages that came over plain HTTP from another machine.
    await page.add_init_script("Object.defineProperty(Crypto.prototype, 'subtle', {value: undefined})")
    await page.goto(site)

    await import_file(page, csv_of([("Emma", "Jane Austen", 1815)]))

    await expect(page.get_by_role("dialog").get_by_role("status")).to_contain_text("would store its books again")
    await page.keyboard.press("Escape")
    await shows(page, "Emma")


async def test_an_import_that_fails_goes_on_where_it_was(
    page: "Page", site: str, others: Others, trouble: Trouble
) -> None:
    trouble.expect("failed: POST .*ERR_FAILED|Failed to load resource")
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
    assert len(await others.list(pageSize=1_000)) == 1_000


async def test_an_import_waits_when_the_server_says(page: "Page", trouble: Trouble, tmp_path: Path) -> None:
    trouble.expect("status of 429")
    url = f"sqlite+aiosqlite:///{tmp_path}/limited.db"
    # What the page asks for before the first batch uses up what a caller may do at once, however slow the machine is.
    settings = settings_for(url, http_listen="127.0.0.1:0", rate_limit_per_second=0.2, rate_limit_burst=2)
    async with running_server(settings) as server:
        await page.goto(f"http://{server.http_address}")
        await import_file(page, csv_of((f"Book {n}", "Anon", n) for n in range(10)))
        status = page.get_by_role("dialog").get_by_role("status")
        await expect(status).to_have_text(re.compile(r"The server is busy. Retrying in [1-5] seconds?\."))
        await expect(status).to_have_text("10 books stored, 10 of them new; 0 rows rejected.")


async def test_an_import_makes_its_batches_as_small_as_the_server_wants_them(
    page: "Page", trouble: Trouble, tmp_path: Path
) -> None:
    trouble.expect("status of 413")
    url = f"sqlite+aiosqlite:///{tmp_path}/small.db"
    async with running_server(settings_for(url, http_listen="127.0.0.1:0", max_message_bytes=20_000)) as server:
        await page.goto(f"http://{server.http_address}")
        await import_file(page, csv_of([*((f"Book {n}", "Anon", n) for n in range(600)), ("Long", "A" * 30_000, 1)]))
        dialog = page.get_by_role("dialog")
        await expect(dialog.get_by_role("status")).to_have_text("600 books stored, 600 of them new; 1 row rejected.")
        await expect(dialog.locator("tbody tr")).to_have_text(re.compile("^602"))


@pytest.mark.parametrize(
    ("text", "told"),
    [
        ("", "The first line must name the columns name, author, release_year"),
        ("name,author\nEmma,Jane Austen\n", "missing: release_year"),
    ],
)
async def test_a_file_without_its_header_is_refused(page: "Page", site: str, text: str, told: str) -> None:
    await page.goto(site)

    await import_file(page, text)

    await expect(page.get_by_role("alert")).to_contain_text(told)


async def test_csv_is_read_as_the_command_reads_it(page: "Page", site: str) -> None:
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
    """Rows with the lines they start at, as `bookstore import` has them."""
    reader = csv.reader(io.TextIOWrapper(io.BytesIO(text.encode()), encoding="utf-8", newline=""))
    rows: list[list[object]] = []
    line = 1
    for cells in reader:
        if cells:
            rows.append([line, cells])
        line = reader.line_num + 1
    return rows
