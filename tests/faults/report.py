"""The figures of a long run as a table: `python -m tests.faults.report` prints it, with `--write PAGE` into a page."""

import argparse
import json
import platform
import re
from collections.abc import Mapping
from datetime import UTC, datetime
from os import cpu_count
from pathlib import Path

FIGURES = Path(__file__).parents[2] / "build/faults/figures.jsonl"
MARKED = re.compile(r"(?<=<!-- figures: python -m tests.faults.report -->\n).*(?=<!-- end of figures -->)", re.DOTALL)

# The columns and their figures. Figures without a column are in the last one.
COLUMNS = {
    "rounds": "rounds",
    "calls": "calls",
    "succeeded": "succeeded",
    "lost": "lost",
    "stored twice": "doubled",
    "recovery, s": "recovery_seconds",
    "slowest call, s": "slowest_seconds",
}
_ELSEWHERE = {"scenario", "at", "database", *COLUMNS.values()}

Figures = Mapping[str, str | float]


def table_from_lines(lines: list[str]) -> str:
    """Make a Markdown table of lines of JSON, the last one of each scenario, with a sentence on where it was run."""
    scenarios: dict[str, Figures] = {}
    for line in lines:
        figures: Figures = json.loads(line)
        scenarios[str(figures["scenario"])] = figures
    last = max(float(figures["at"]) for figures in scenarios.values())
    rows = [["scenario", *COLUMNS, "details"], ["---", *(["--:"] * len(COLUMNS)), "---"]]
    rows += [_row(figures) for figures in scenarios.values()]
    day = datetime.fromtimestamp(last, UTC).date()
    where = f"Run on {day} with {cpu_count()} cores, {platform.system()} and Python {platform.python_version()}."
    return "\n".join([where, "", *(f"| {' | '.join(row)} |" for row in rows)])


def page_with_table(page: str, table: str) -> str:
    """Put a table into a page, between its marks."""
    written, count = MARKED.subn(lambda _: f"\n{table}\n\n", page)
    if count != 1:
        raise SystemExit("The page has no marks for the figures.")
    return written


def _row(figures: Figures) -> list[str]:
    name, _, case = str(figures["scenario"]).removeprefix("test_").partition("[")
    words = name.replace("_", " ") + (f" ({case.removesuffix(']')})" if case else "")
    details = ", ".join(
        f"{name.replace('_', ' ')} {_number(figures[name])}" for name in figures if name not in _ELSEWHERE
    )
    return [words, *(_number(figures.get(name, "")) for name in COLUMNS.values()), details]


def _number(value: str | float) -> str:
    return value if isinstance(value, str) else f"{value:,}"


def main() -> None:
    """Print the table, or write it into a page."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--write", type=Path, metavar="PAGE")
    page = parser.parse_args().write
    if not FIGURES.exists():
        raise SystemExit("There are no figures: run `make test-faults` first.")
    table = table_from_lines(FIGURES.read_text().splitlines())
    if page:
        page.write_text(page_with_table(page.read_text(), table))
    else:
        print(table)


if __name__ == "__main__":
    main()
