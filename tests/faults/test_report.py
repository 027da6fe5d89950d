import json
from pathlib import Path

from tests.faults.report import page_with_table, table_from_lines

PAGE = Path(__file__).parents[2] / "docs/reliability.md"


def test_figures_become_the_table_of_the_page() -> None:
    figures = [
        {"scenario": "test_a_thing_breaks[paused]", "at": 1_795_000_000, "calls": 7, "lost": 1},
        {"scenario": "test_another", "at": 1_795_000_001, "calls": 12_345, "lost": 0, "rss_after_mb": 80},
        {"scenario": "test_a_thing_breaks[paused]", "at": 1_795_000_002, "calls": 8, "lost": 0},
    ]
    page = page_with_table(PAGE.read_text(), table_from_lines([json.dumps(line) for line in figures]))

    rows = [line for line in page.splitlines() if line.startswith(("| a thing", "| another"))]
    assert rows == [
        "| a thing breaks (paused) |  | 8 |  | 0 |  |  |  |  |",
        "| another |  | 12,345 |  | 0 |  |  |  | rss after mb 80 |",
    ]
    # It can be replaced again, and nothing else was touched.
    assert page_with_table(page, "") == page_with_table(PAGE.read_text(), "")
