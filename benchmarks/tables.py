"""Markdown tables, aligned for terminals, and the numbers in them."""

from collections.abc import Iterable, Sequence

NONE = "–"  # noqa: RUF001  an en dash, for what was not measured
_ONE_DECIMAL_MS = 10  # shorter times have two decimals


def ms(value: float) -> str:
    """Return milliseconds as a number without unit."""
    return f"{value:.1f}" if value >= _ONE_DECIMAL_MS else f"{value:.2f}"


def table(headers: Sequence[str], rows: Iterable[Sequence[str]]) -> str:
    """Return a Markdown table with columns of numbers aligned right."""
    lines = [tuple(row) for row in rows]
    widths = [max(len(row[index]) for row in (headers, *lines)) for index in range(len(headers))]
    is_number = [all(row[index][:1] in f"0123456789≥≤{NONE}" for row in lines) for index in range(len(headers))]

    def line(cells: Sequence[str]) -> str:
        aligned = [
            cell.rjust(width) if right else cell.ljust(width)
            for cell, width, right in zip(cells, widths, is_number, strict=True)
        ]
        return f"| {' | '.join(aligned)} |"

    rule = ["-" * (width - 1) + ":" if right else "-" * width for width, right in zip(widths, is_number, strict=True)]
    return "\n".join([line(headers), line(rule), *map(line, lines)])
