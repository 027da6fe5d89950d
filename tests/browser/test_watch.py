"""The watch over pages: whatever goes wrong in one is found, and so is expected trouble that stays away."""

from collections.abc import Iterator
from functools import partial
from http.server import SimpleHTTPRequestHandler, ThreadingHTTPServer
from pathlib import Path
from threading import Thread
from typing import TYPE_CHECKING

import pytest

from tests.browser.accessibility import violations
from tests.browser.conftest import Trouble

if TYPE_CHECKING:
    from playwright.async_api import Page

SOUND = '<!doctype html><html lang="en"><title>Sound</title><link rel="icon" href="data:,"><main><h1>Sound</h1></main>'


class Quiet(SimpleHTTPRequestHandler):
    def log_message(self, format: str, *args: object) -> None:
        pass


@pytest.fixture
def address(tmp_path: Path) -> Iterator[str]:
    """The URL of a page in which all is well."""
    (tmp_path / "index.html").write_text(SOUND)
    with ThreadingHTTPServer(("127.0.0.1", 0), partial(Quiet, directory=tmp_path)) as server:
        thread = Thread(target=server.serve_forever)
        thread.start()
        yield f"http://127.0.0.1:{server.server_port}/"
        server.shutdown()
        thread.join()


async def test_a_sound_page_is_no_trouble(page: "Page", trouble: Trouble, address: str) -> None:
    await page.goto(address)

    assert await violations(page) == []
    trouble.verify()


@pytest.mark.parametrize(
    ("script", "told"),
    [
        ("console.error('oh')", "error: oh"),
        ("console.warn('oh')", "warning: oh"),
        ("setTimeout(() => { throw new Error('oh') })", "uncaught: .*oh"),
        ("Promise.reject(new Error('oh')) && null", "uncaught: .*oh"),
        ("fetch('missing')", "status of 404"),
        ("fetch('http://127.0.0.1:1/', {mode: 'no-cors'}).catch(() => {})", "failed: GET http://127.0.0.1:1/"),
        ("fetch('http://elsewhere.example/').catch(() => {})", "another host: http://elsewhere.example/"),
    ],
)
async def test_trouble_in_a_page_is_found(page: "Page", trouble: Trouble, address: str, script: str, told: str) -> None:
    await page.goto(address)
    await page.evaluate(f"{{{script}}}")
    await page.wait_for_timeout(100)

    with pytest.raises(AssertionError, match=told):
        trouble.verify()
    trouble.expect("oh|404|failed|another host|Failed to load")


async def test_expected_trouble_that_stays_away_is_found(page: "Page", trouble: Trouble, address: str) -> None:
    await page.goto(address)
    trouble.expect("status of 409")

    with pytest.raises(AssertionError, match="did not happen"):
        trouble.verify()
    await page.evaluate("console.error('status of 409')")


async def test_axe_finds_what_is_hard_to_read_or_has_no_name(page: "Page", address: str) -> None:
    await page.goto(address)
    await page.evaluate(
        """() => {
            document.querySelector("h1").style.color = "#eee";
            document.querySelector("main").append(document.createElement("input"));
        }"""
    )

    found = await violations(page)

    assert [line.split()[0] for line in found] == ["color-contrast", "label"]
