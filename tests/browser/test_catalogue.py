"""The page for people, in a real Chromium against a real server."""

import asyncio
import csv
import io
import itertools
import re
from collections.abc import Iterable
from importlib.util import find_spec
from pathlib import Path
from typing import TYPE_CHECKING, Any

import pytest
from hypothesis import example, given
from hypothesis import strategies as st

from bookstore_grpc.app import running_server
from bookstore_grpc.rpc.server import Server
from tests.browser.accessibility import violations
from tests.browser.conftest import Trouble
from tests.conftest import settings_for
from tests.executable import run_bookstore
from tests.tokens import Issuer, token_settings

if TYPE_CHECKING or find_spec("playwright"):  # the fixture `browser` tells of its absence
    from playwright.async_api import Page, Route, expect

EXAMPLES = Path(__file__).parents[2] / "examples"
FIELDS = ("id", "name", "author", "release_year", "create_time", "update_time")
BAD_REQUEST, CONFLICT = r"status of 400 .*/v1/", r"status of 409 .*/v1/"


class Others:
    """Those who use the same catalogue meanwhile, through the API."""

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
        answer = await self._request.get(self._books, params=query)
        assert answer.ok, await answer.text()
        return (await answer.json()).get("books", [])  # type: ignore[no-any-return]

    async def _send(self, verb: str, path: str, body: object = None) -> Any:
        answer = await self._request.fetch(f"{self._books}{path}", method=verb, data=body)
        assert answer.ok, await answer.text()
        return await answer.json()


@pytest.fixture
def others(page: "Page", site: str) -> Others:
    return Others(page, site)


def csv_file(text: str, name: str = "books.csv") -> Any:
    return {"name": name, "mimeType": "text/csv", "buffer": text.encode()}


def csv_of(rows: Iterable[tuple[object, ...]]) -> str:
    return "name,author,release_year\n" + "".join(f"{','.join(map(str, row))}\n" for row in rows)


async def shows(page: "Page", *names: str) -> None:
    """Wait until these titles are listed, in this order, and no others."""
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


async def test_an_empty_catalogue_offers_to_add_and_to_import(page: "Page", site: str) -> None:
    await page.goto(site)

    await expect(page.get_by_text("The catalogue is empty.")).to_be_visible()
    assert await violations(page) == []
    await page.get_by_role("button", name="Import a CSV file").click()
    assert await violations(page) == []
    await page.keyboard.press("Escape")
    await page.get_by_role("button", name="Add the first book").click()
    assert await violations(page) == []


async def test_a_book_is_added_by_keyboard_alone(page: "Page", site: str, others: Others) -> None:
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

    await shows(page, "The Iliad")
    await expect(page.get_by_role("cell", name="750 BCE")).to_be_visible()
    await expect(page.get_by_role("status").filter(has_text="Added")).to_contain_text("The Iliad")
    await expect(page.locator(":focus")).to_have_text("Add a book")
    assert [book["releaseYear"] for book in await others.list()] == [-750]


async def test_every_broken_rule_is_told_at_its_field(page: "Page", site: str, trouble: Trouble) -> None:
    trouble.expect(BAD_REQUEST)
    await page.goto(site)
    await page.get_by_role("button", name="Add a book").click()

    await fill_book(page, name=" ", author="x" * 1_001, year="10000")
    await page.get_by_role("button", name="Add", exact=True).click()

    for label, said in (
        ("Title", "Title is required"),
        ("Author", "Author has 1,001 code points, more than 1,000"),
        ("Year of the first release", "Year is 10000, not between -5000 and 9999"),
    ):
        field = page.get_by_label(label, exact=True)
        await expect(field).to_have_attribute("aria-invalid", "true")
        await expect(field).to_have_accessible_description(re.compile(re.escape(said)))
    await expect(page.get_by_label("Title", exact=True)).to_be_focused()
    assert await violations(page) == []


async def test_a_create_whose_answer_is_lost_makes_one_book(
    page: "Page", site: str, others: Others, trouble: Trouble
) -> None:
    trouble.expect("failed: POST")
    trouble.expect("Failed to load resource")

    async def lose(route: "Route") -> None:
        await route.fetch()
        await route.abort("connectionreset")

    await page.route(re.compile("requestId="), lose, times=1)
    await page.goto(site)
    await page.get_by_role("button", name="Add a book").click()
    await fill_book(page, name="Emma", author="Jane Austen", year="1815")
    await page.get_by_role("button", name="Add", exact=True).click()
    await expect(page.get_by_role("alert")).to_contain_text("cannot be reached")

    await page.get_by_role("button", name="Add", exact=True).click()

    await shows(page, "Emma")
    assert len(await others.list()) == 1


async def test_headers_sort_by_every_field_in_both_directions(page: "Page", site: str, others: Others) -> None:
    for name, author, year in (("b", "B", -3), ("ä", "Ä", 7), ("a", "C", 0), ("B", "A", 12)):
        await others.create(name, author, year)
    await others.change((await others.list())[1], author="Z")
    await page.goto(site)
    await shows(page, "B", "a", "ä", "b")

    for field in FIELDS:
        for direction in ("asc", "desc"):
            header = page.locator(f"th[data-field={field}]")
            await header.get_by_role("button").click()
            await expect(header).to_have_attribute("aria-sort", f"{direction}ending")
            await shows(page, *(book["name"] for book in await others.list(orderBy=f"{field} {direction}")))
            await expect(page.locator("th[aria-sort]")).to_have_count(1)


async def test_a_search_finds_while_it_is_typed_and_back_undoes_it(page: "Page", site: str, others: Others) -> None:
    for name, author, year in (("Emma", "Jane Austen", 1815), ("Middlemarch", "George Eliot", 1871)):
        await others.create(name, author, year)
    await page.goto(site)
    await shows(page, "Middlemarch", "Emma")

    await page.get_by_label("Search").press_sequentially("AUSTEN", delay=5)
    await shows(page, "Emma")
    assert page.url == f"{site}/?filter=AUSTEN"
    await page.get_by_label("Search").fill("release_year > 1850")
    await shows(page, "Middlemarch")
    await page.get_by_label("Search").fill("nobody")
    await expect(page.get_by_text("No book matches this search.")).to_be_visible()

    await page.go_back()
    await shows(page, "Middlemarch", "Emma")
    await expect(page.get_by_label("Search")).to_have_value("")


async def test_a_wrong_filter_is_told_beside_the_field_and_what_was_found_stays(
    page: "Page", site: str, others: Others, trouble: Trouble
) -> None:
    trouble.expect(BAD_REQUEST)
    await others.create("Emma")
    await page.goto(site)
    await shows(page, "Emma")
    field = page.get_by_label("Search")

    await field.fill("émile release_year = = 5")
    await field.press("Enter")

    await expect(field).to_have_attribute("aria-invalid", "true")
    await expect(field).to_have_accessible_description(re.compile(r"unexpected '=' \(column 22\)"))
    await expect(page.locator("#filter-error mark")).to_have_text("=")
    await expect(page.locator("#filter-error .where")).to_have_text("émile release_year = = 5")
    await shows(page, "Emma")
    assert page.url == f"{site}/"
    assert await violations(page) == []

    await field.fill("emma")
    await expect(page.locator("#filter-error")).to_be_empty()
    await shows(page, "Emma")


async def test_text_that_is_no_filter_can_be_searched_for_as_it_stands(
    page: "Page", site: str, others: Others, trouble: Trouble
) -> None:
    trouble.expect(BAD_REQUEST)
    await others.create("O'Brian's \"Map\" * (1\\2")
    await others.create("Obrians Map")
    await page.goto(site)
    await page.get_by_label("Search").fill("o'brian's \"map\" * (1\\2")

    await page.get_by_role("button", name="Search for this text as it stands").click()

    await shows(page, "O'Brian's \"Map\" * (1\\2")
    await expect(page.locator("#filter-error")).to_be_empty()


async def test_every_example_of_the_help_is_a_right_filter(page: "Page", site: str, others: Others) -> None:
    await others.create()
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


async def test_an_older_search_never_replaces_a_newer_one(page: "Page", site: str, others: Others) -> None:
    await others.create("Emma")
    await others.create("Ulysses")
    older, newer = asyncio.Event(), asyncio.Event()

    async def hold(route: "Route") -> None:
        await (older if "emma" in route.request.url else newer).wait()
        await route.continue_()

    await page.route("**/v1/books?filter=*", hold)
    await page.goto(site)
    async with page.expect_request("**/v1/books?filter=emma*"):
        await page.get_by_label("Search").fill("emma")
    async with page.expect_event("requestfailed"):  # given up, not only left aside
        await page.get_by_label("Search").fill("ulysses")
    await shows(page, "Ulysses", "Emma")
    await expect(page.get_by_role("alert")).to_have_count(0)
    newer.set()
    await shows(page, "Ulysses")
    older.set()

    await page.wait_for_timeout(100)
    await shows(page, "Ulysses")


async def test_a_search_just_typed_is_not_lost_to_another_choice(page: "Page", site: str, others: Others) -> None:
    for name in ("Emma", "Ulysses", "Emma again"):
        await others.create(name)
    await page.goto(site)
    await shows(page, "Emma again", "Ulysses", "Emma")

    await page.get_by_label("Search").fill("emma")
    await page.locator("th[data-field=name]").get_by_role("button").click()

    await shows(page, "Emma", "Emma again")


async def test_an_edit_sends_what_has_changed_and_the_etag(page: "Page", site: str, others: Others) -> None:
    book = await others.create("Dune", "Frank Herbert", 1964)
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


async def meet_conflict(page: "Page", site: str, others: Others, **theirs: object) -> None:
    """Change the title of a book that somebody else changes meanwhile."""
    book = await others.create("Dune", "Herbert", 1965)
    await page.goto(site)
    await page.get_by_role("button", name="Edit Dune").click()
    await page.get_by_label("Title", exact=True).fill("Mine")
    await others.change(book, **theirs)
    await page.get_by_role("button", name="Save").click()
    await expect(page.get_by_role("group", name="Somebody has changed this book meanwhile")).to_be_focused()


async def test_a_conflict_shows_both_and_theirs_can_be_edited_on(
    page: "Page", site: str, others: Others, trouble: Trouble
) -> None:
    trouble.expect(CONFLICT)
    await meet_conflict(page, site, others, name="Theirs")

    cells = page.locator(".conflict .differs td")
    await expect(cells).to_have_text(["Theirs", "Mine"])
    assert await violations(page) == []
    await page.get_by_role("button", name="Edit what is stored now").click()
    await expect(page.get_by_label("Title", exact=True)).to_have_value("Theirs")
    await page.get_by_label("Title", exact=True).fill("Theirs and mine")
    await page.get_by_role("button", name="Save").click()

    await shows(page, "Theirs and mine")


async def test_a_conflict_can_be_overwritten_and_what_only_they_have_changed_stays(
    page: "Page", site: str, others: Others, trouble: Trouble
) -> None:
    trouble.expect(CONFLICT)
    await meet_conflict(page, site, others, name="Theirs", author="Frank Herbert")

    await page.get_by_role("button", name="Overwrite with my change").click()

    await shows(page, "Mine")
    (book,) = await others.list()
    assert (book["name"], book["author"]) == ("Mine", "Frank Herbert")


async def test_a_delete_asks_first_and_then_the_next_book_has_the_focus(
    page: "Page", site: str, others: Others
) -> None:
    for name in ("One", "Two", "Three"):
        await others.create(name)
    await page.goto(site)
    await page.get_by_role("button", name="Delete Two").click()
    dialog = page.get_by_role("alertdialog")
    await expect(dialog).to_have_accessible_description(re.compile("Two.* by Frank Herbert"))
    await expect(page.get_by_role("button", name="Keep it")).to_be_focused()
    assert await violations(page) == []
    await page.get_by_role("button", name="Keep it").click()
    await shows(page, "Three", "Two", "One")

    await page.get_by_role("button", name="Delete Two").click()
    await page.get_by_role("button", name="Delete", exact=True).click()

    await shows(page, "Three", "One")
    await expect(page.get_by_role("button", name="Edit One")).to_be_focused()


async def test_a_book_that_somebody_has_changed_is_deleted_only_when_asked_again(
    page: "Page", site: str, others: Others, trouble: Trouble
) -> None:
    trouble.expect(CONFLICT)
    book = await others.create("Dune")
    await page.goto(site)
    await page.get_by_role("button", name="Delete Dune").click()
    await others.change(book, name="Dune Messiah")

    await page.get_by_role("button", name="Delete", exact=True).click()
    await expect(page.get_by_role("alertdialog")).to_contain_text("It is now Dune Messiah")
    assert len(await others.list()) == 1
    await page.get_by_role("button", name="Delete it all the same").click()

    await expect(page.get_by_text("The catalogue is empty.")).to_be_visible()


async def test_a_book_that_is_gone_already_counts_as_deleted(
    page: "Page", site: str, others: Others, trouble: Trouble
) -> None:
    trouble.expect("status of 404")
    book = await others.create("Dune")
    await page.goto(site)
    await page.get_by_role("button", name="Delete Dune").click()
    await others.delete(book)

    await page.get_by_role("button", name="Delete", exact=True).click()

    await expect(page.get_by_text("The catalogue is empty.")).to_be_visible()


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
    await expect(dialog.get_by_role("status")).to_have_text("2 books stored, 2 of them new; 3 rows refused.")
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
    await expect(status).to_have_text("1,200 books stored, 1,200 of them new; 0 rows refused.")
    await page.get_by_role("dialog").get_by_role("button", name="Import").click()
    await expect(status).to_have_text("1,200 books stored, 0 of them new; 0 rows refused.")
    finished = await asyncio.to_thread(
        run_bookstore, "import", path, variables={"BOOKSTORE_SERVER": site_server.addresses[0]}
    )

    assert finished.errors == "1,200 books stored, 0 of them new; 0 rows refused.\n"
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

    await expect(dialog.get_by_role("status")).to_have_text("1,600 books stored, 600 of them new; 0 rows refused.")


async def test_an_import_to_a_page_without_https_says_what_it_cannot_promise(page: "Page", site: str) -> None:
    # As browsers have it for pages that came over plain HTTP from another machine.
    await page.add_init_script("Object.defineProperty(Crypto.prototype, 'subtle', {value: undefined})")
    await page.goto(site)

    await import_file(page, csv_of([("Emma", "Jane Austen", 1815)]))

    await expect(page.get_by_role("dialog").get_by_role("status")).to_contain_text(
        "the same file again would be stored again"
    )
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
    await expect(dialog.get_by_role("alert")).to_contain_text("cannot be reached")
    await expect(dialog.get_by_role("status")).to_have_text("500 books stored, 500 of them new; 0 rows refused.")

    await dialog.get_by_role("button", name="Try again").click()

    await expect(dialog.get_by_role("status")).to_have_text("1,100 books stored, 1,100 of them new; 0 rows refused.")
    assert len(await others.list(pageSize=1_000)) == 1_000


async def test_an_import_waits_when_the_server_says(page: "Page", trouble: Trouble, tmp_path: Path) -> None:
    trouble.expect("status of 429")
    url = f"sqlite+aiosqlite:///{tmp_path}/limited.db"
    settings = settings_for(url, http_listen="127.0.0.1:0", rate_limit_per_second=2.0, rate_limit_burst=3)
    async with running_server(settings) as server:
        await page.goto(f"http://{server.http_address}")
        await import_file(page, csv_of((f"Book {n}", "Anon", n) for n in range(1_600)))
        status = page.get_by_role("dialog").get_by_role("status")
        await expect(status).to_have_text("The server asks for a pause of 1 second.")
        await expect(status).to_have_text("1,600 books stored, 1,600 of them new; 0 rows refused.")


async def test_an_import_makes_its_batches_as_small_as_the_server_wants_them(
    page: "Page", trouble: Trouble, tmp_path: Path
) -> None:
    trouble.expect("status of 413")
    url = f"sqlite+aiosqlite:///{tmp_path}/small.db"
    async with running_server(settings_for(url, http_listen="127.0.0.1:0", max_message_bytes=20_000)) as server:
        await page.goto(f"http://{server.http_address}")
        await import_file(page, csv_of([*((f"Book {n}", "Anon", n) for n in range(600)), ("Long", "A" * 30_000, 1)]))
        dialog = page.get_by_role("dialog")
        await expect(dialog.get_by_role("status")).to_have_text("600 books stored, 600 of them new; 1 row refused.")
        await expect(dialog.locator("tbody tr")).to_have_text(re.compile("^602"))


@pytest.mark.parametrize(
    ("text", "told"),
    [
        ("", "The first line must name the columns name, author, release_year"),
        ("name,author\nEmma,Jane Austen\n", "it lacks release_year"),
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


async def test_pages_are_walked_forth_and_back_without_gap_or_repeat(page: "Page", site: str, others: Others) -> None:
    await others.create_many(230)
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


async def test_an_address_can_be_shared(page: "Page", site: str, others: Others) -> None:
    await others.create_many(60)
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


async def test_an_address_that_is_wrong_says_so_and_leads_on(
    page: "Page", site: str, others: Others, trouble: Trouble
) -> None:
    trouble.expect(BAD_REQUEST)
    await others.create("Emma")
    await page.goto(f"{site}/?page=damaged")
    await expect(page.get_by_role("alert")).to_contain_text("page_token")

    await page.get_by_role("button", name="Show the whole catalogue").click()

    await shows(page, "Emma")


LONG = "A title that goes on and on " * 10 + "Donaudampfschifffahrtsgesellschaftskapitän" * 4


async def test_a_phone_shows_everything_without_scrolling_sideways(page: "Page", site: str, others: Others) -> None:
    await page.set_viewport_size({"width": 360, "height": 740})
    await others.create(LONG, "W" * 120, -4_999)
    await others.create("שיר השירים", "שלמה", -300)
    await others.create("孫子兵法", "孫武", 0)
    await page.goto(site)
    await shows(page, "孫子兵法", "שיר השירים", LONG)

    async def fits() -> bool:
        return await page.evaluate("document.documentElement.scrollWidth <= innerWidth")  # type: ignore[no-any-return]

    assert await fits()
    await page.get_by_text("How to search").click()
    assert await fits()
    assert await violations(page) == []
    small = await page.evaluate(
        """[...document.querySelectorAll("button, a, input, select, summary")]
            .filter((each) => each.checkVisibility() && !each.matches(".skip"))
            .map((each) => [each.outerHTML, each.getBoundingClientRect()])
            .filter(([, { width, height }]) => width < 24 || height < 24)"""
    )
    assert small == []
    await page.get_by_label("Order").select_option("Year, earliest first")
    await shows(page, LONG, "שיר השירים", "孫子兵法")
    await page.get_by_role("button", name="Edit שיר השירים").click()
    assert await page.get_by_label("Title", exact=True).evaluate("field => field.matches(':dir(rtl)')")
    assert await fits()
    assert await violations(page) == []


async def test_the_dark_is_as_readable_as_the_light(page: "Page", site: str, others: Others, trouble: Trouble) -> None:
    trouble.expect(CONFLICT)
    trouble.expect(BAD_REQUEST)
    await page.emulate_media(color_scheme="dark")
    await page.goto(site)
    await expect(page.get_by_text("The catalogue is empty.")).to_be_visible()
    assert await page.evaluate("getComputedStyle(document.documentElement).backgroundColor") == "rgb(23, 23, 21)"
    assert await violations(page) == []
    await meet_conflict(page, site, others, name="Theirs")
    assert await violations(page) == []
    await page.keyboard.press("Escape")
    await page.get_by_label("Search").fill("(")
    await expect(page.locator("#filter-error mark")).to_be_attached()
    assert await violations(page) == []
    await import_file(page, csv_of([("", "Nobody", 1)]))
    await expect(page.get_by_role("dialog").get_by_role("heading", name="1 row refused")).to_be_visible()
    assert await violations(page) == []


async def test_what_others_write_is_text_and_never_markup(page: "Page", site: str, others: Others) -> None:
    name = "<img src=x onerror=alert(1)><b>bold</b>&amp;"
    await others.create(name, "<script>alert(2)</script>")
    await page.goto(site)

    await shows(page, name)
    await page.get_by_role("button", name="Delete").click()
    await expect(page.get_by_role("alertdialog")).to_contain_text(name)


async def test_a_server_that_asks_for_tokens_is_given_one(page: "Page", trouble: Trouble, tmp_path: Path) -> None:
    trouble.expect("status of 401")
    trouble.expect("status of 403")
    issuer = Issuer()
    settings = settings_for(
        f"sqlite+aiosqlite:///{tmp_path}/tokens.db",
        http_listen="127.0.0.1:0",
        **token_settings(issuer.write_jwks(tmp_path / "jwks.json")),
    )
    async with running_server(settings) as server:
        await page.goto(f"http://{server.http_address}")
        field = page.get_by_label("Access token")
        await expect(field).to_be_focused()
        assert await violations(page) == []
        await field.fill("nonsense")
        await field.press("Enter")
        await expect(field).to_have_value("")
        await expect(page.get_by_role("dialog").get_by_role("status")).to_contain_text("token")
        await field.fill(issuer.token(scope="books.read"))
        await page.get_by_role("button", name="Use this token").click()
        await expect(page.get_by_text("The catalogue is empty.")).to_be_visible()

        await page.get_by_role("button", name="Add a book").click()
        await fill_book(page, name="Emma", author="Jane Austen", year="1815")
        await page.get_by_role("button", name="Add", exact=True).click()
        await expect(page.get_by_role("alert")).to_contain_text("books.write")
        await page.keyboard.press("Escape")
        await page.get_by_role("button", name="Forget the token").click()
        await expect(field).to_be_focused()
        assert await page.evaluate("sessionStorage.length + localStorage.length + document.cookie.length") == 0
        await page.keyboard.press("Escape")
        await expect(page.get_by_role("alert")).to_be_visible()


async def test_a_server_that_is_away_is_told_of_and_can_be_tried_again(
    page: "Page", trouble: Trouble, tmp_path: Path
) -> None:
    trouble.expect("ERR_CONNECTION_REFUSED|Failed to load resource")
    url = f"sqlite+aiosqlite:///{tmp_path}/bookstore.db"
    async with running_server(settings_for(url, http_listen="127.0.0.1:0")) as server:
        address = server.http_address
        await page.goto(f"http://{address}")
        await Others(page, f"http://{address}").create("Emma")
    await page.get_by_label("Search").fill("emma")
    await expect(page.get_by_role("alert")).to_contain_text("The server cannot be reached.")
    await expect(page.get_by_role("alert").locator("code")).to_have_text(re.compile("[0-9a-f-]{36}"))
    assert await violations(page) == []

    async with running_server(settings_for(url, http_listen=address)):
        await page.get_by_role("button", name="Try again").click()
        await shows(page, "Emma")


async def test_the_page_is_there_before_its_data_and_is_small(page: "Page", site: str) -> None:
    held = asyncio.Event()

    async def hold(route: "Route") -> None:
        await held.wait()
        await route.continue_()

    await page.route("**/v1/books?*", hold)
    await page.goto(site)
    await expect(page.get_by_label("Search")).to_be_visible()
    await expect(page.get_by_role("button", name="Add a book")).to_be_visible()
    held.set()
    await expect(page.get_by_text("The catalogue is empty.")).to_be_visible()
    travelled = await page.evaluate(
        """Object.fromEntries(
            [...performance.getEntriesByType("navigation"), ...performance.getEntriesByType("resource")]
                .map(({ name, encodedBodySize }) => [name, encodedBodySize])
        )"""
    )
    assert len(travelled) == 8, travelled
    assert sum(travelled.values()) < 20_000, travelled
