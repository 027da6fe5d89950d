"""What axe-core finds wrong in a page for those who use it by keyboard, by screen reader or with little contrast."""

from importlib import resources
from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from playwright.async_api import Page


async def violations(page: "Page") -> list[str]:
    """Return a line for each element that breaks a rule of axe's, in the page as it is now."""
    if not await page.evaluate("'axe' in window"):
        # Through the debugger, which a Content-Security-Policy does not hold back.
        await page.evaluate((resources.files("axe_playwright_python") / "axe.min.js").read_text("utf-8"))
    # What only comes in is not yet what is read. What never stops is not waited for.
    await page.evaluate(
        """Promise.allSettled(document.getAnimations()
            .filter((each) => each.effect.getComputedTiming().endTime < Infinity)
            .map((each) => each.finished))"""
    )
    result = await page.evaluate("axe.run(document, {resultTypes: ['violations']})")
    return [
        f"{violation['id']} ({violation['impact']}): {node['html']}: {node['failureSummary']}"
        for violation in result["violations"]
        for node in violation["nodes"]
    ]
