"""The plot: every contender's rate relative to the tutorial's, one group of bars per operation."""

from collections.abc import Mapping
from pathlib import Path

from matplotlib.figure import Figure
from matplotlib.ticker import FuncFormatter

from benchmarks.measuring import median
from benchmarks.operations import OPERATIONS
from benchmarks.sections import Rounds
from benchmarks.servers import CONTENDERS

# Okabe and Ito's colors, distinguishable with color blindness.
_COLOURS = {
    "ours": "#D55E00",
    "json": "#CC79A7",
    "floor": "#999999",
    "tutorial": "#0072B2",
    "textbook": "#009E73",
    "threads": "#E69F00",
}
_BAR = 0.8


def draw(found: Mapping[str, Rounds], path: Path, *, title: str) -> None:
    """Draw the comparison on one database, in the format of `path`'s suffix."""
    groups = [operation for operation in OPERATIONS if found.get(operation.key)]
    present = [contender.key for contender in CONTENDERS if any(contender.key in found[each.key] for each in groups)]
    figure = Figure(
        figsize=(9, 1.2 + len(groups) * (0.19 * len(present) + 0.2)), layout="constrained", facecolor="white"
    )
    axes = figure.subplots()
    place = 0.0
    ticks: list[tuple[float, str]] = []
    most = least = 1.0
    for operation in groups:
        rates = {name: median(rounds).rate for name, rounds in found[operation.key].items()}
        reference = next((name for name in ("tutorial", "textbook", "ours") if name in rates), present[0])
        first = place
        for name in present:
            if name not in rates:
                continue
            times = rates[name] / rates[reference]
            most, least = max(most, times), min(least, times)
            axes.barh(place, times, _BAR, color=_COLOURS[name], edgecolor="#333333", linewidth=0.4)
            label = f" {times:.3g} ×  ({rates[name]:,.0f}/s)"  # noqa: RUF001  the sign of multiplication
            axes.text(max(times, 1), place, label, va="center", fontsize=7, color="#222222")
            place += 1
        note = "" if reference == "tutorial" else f"\n(relative to {reference})"
        ticks.append(((first + place - 1) / 2, operation.title + note))
        place += 0.8
    axes.set_xscale("log")
    axes.set_xlim(least * 0.8, most * 4)
    axes.axvline(1, color="#333333", linewidth=0.8)
    axes.xaxis.set_major_formatter(FuncFormatter(lambda value, _position: f"{value:g} ×"))  # noqa: RUF001
    axes.set_yticks([middle for middle, _ in ticks], [label for _, label in ticks], fontsize=8)
    axes.tick_params(axis="y", length=0)
    axes.invert_yaxis()
    axes.margins(y=0.01)
    axes.grid(visible=True, axis="x", color="#dddddd", linewidth=0.6)
    axes.set_axisbelow(True)
    for side in ("top", "right", "left"):
        axes.spines[side].set_visible(False)
    axes.set_xlabel("calls per second, as multiples of the tutorial's (logarithmic)", fontsize=8)
    handles = [
        axes.barh(0, 0, color=_COLOURS[name], edgecolor="#333333", linewidth=0.4, label=name) for name in present
    ]
    figure.legend(handles=handles, loc="outside upper center", ncols=len(present), frameon=False, fontsize=9)
    axes.set_title(title, fontsize=10)
    figure.savefig(path)
