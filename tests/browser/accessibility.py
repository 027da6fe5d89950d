"""Checks the accessibility of a page with axe-core."""

from collections.abc import Sequence
from importlib import resources
from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from playwright.async_api import Page


async def violations(page: "Page", *, rules: Sequence[str] = ()) -> list[str]:
    """Return a line for each element of the page that violates a rule of axe-core; `rules` limits them."""
    if not await page.evaluate("'axe' in window"):
        # The Content-Security-Policy does not apply to scripts of the debugger.
        await page.evaluate((resources.files("axe_playwright_python") / "axe.min.js").read_text("utf-8"))
    # Wait for finite animations: contrast is lower during a transition.
    await page.evaluate(
        """Promise.allSettled(document.getAnimations()
            .filter((each) => each.effect.getComputedTiming().endTime < Infinity)
            .map((each) => each.finished))"""
    )
    options = {"resultTypes": ["violations"], **({"runOnly": list(rules)} if rules else {})}
    result = await page.evaluate("options => axe.run(document, options)", options)
    return [
        f"{violation['id']} ({violation['impact']}): {node['html']}: {node['failureSummary']}"
        for violation in result["violations"]
        for node in violation["nodes"]
    ]
