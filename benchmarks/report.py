"""The report: the results as Markdown tables, aligned for terminals."""

import statistics
from collections.abc import Iterable, Iterator, Mapping, Sequence
from typing import NamedTuple

from benchmarks.measuring import Measurement, median
from benchmarks.operations import (
    BATCH_CREATE_500,
    CREATE,
    GET,
    LIST_50,
    LIST_50_LATE,
    LIST_1000,
    LIST_AUTHOR,
    OPERATIONS,
    UPDATE,
    Operation,
)
from benchmarks.results import Results
from benchmarks.sections import SIZE, MemoryPoint, Rounds
from benchmarks.servers import CONTENDERS

_NONE = "–"  # noqa: RUF001  an en dash stands for what a contender has not
_TITLES = {operation.key: operation.title for operation in OPERATIONS}


class Goal(NamedTuple):
    """A goal for ours: multiples of the tutorial's rate and of the floor's."""

    operation: Operation
    times_tutorial: float
    share_of_floor: float


_GOALS = (
    Goal(CREATE, 8, 0.40),
    Goal(GET, 5, 0.55),
    Goal(UPDATE, 6, 0.35),
    Goal(LIST_50, 8, 0.45),
    Goal(LIST_1000, 20, 0.15),
)
# Books per second, relative to the tutorial's single creates.
_BATCH_TIMES_TUTORIAL = 100
# CPU with all layers, relative to none.
_LAYERS_GOAL = 1.2
_GROWTH_GOALS = {
    GET.key: 1.3,
    LIST_50.key: 1.3,
    LIST_50_LATE.key: 1.3,
    LIST_AUTHOR.key: 1.5,
}


def markdown(results: Results) -> str:
    """Return the whole report."""
    parts = [
        "# Benchmarks",
        _machine(results),
        _goals(results),
        *(_comparison(name, found) for name, found in results.comparisons.items()),
        _growth(results.growth),
        _memory(results.memory),
        _start_up(results.start_up),
        _workers(results.workers),
        _layers(results.layers),
        *(f"## {section}\n\nSKIPPED: {reason}" for section, reason in results.skipped.items()),
    ]
    return "\n\n".join(part for part in parts if part) + "\n"


def _machine(results: Results) -> str:
    contenders = "\n".join(f"- **{contender.key}**: {contender.description}" for contender in CONTENDERS)
    return f"""{_table(("on", ""), results.machine.items())}

{_rounds(results)}

Every contender is one process on loopback under the same load: 64 calls in flight, on 8 HTTP/2 connections for gRPC
and on 64 connections for HTTP/1.1. Beside it run only the load generator and, for PostgreSQL, the database. CPU is the
server's, user's and system's time of all its processes. Every response is accounted for: its bytes, and what is stored
afterwards. To repeat it:

    make bench{_arguments(results)}

{contenders}"""


def _arguments(results: Results) -> str:
    return f" BENCH_ARGS='{results.arguments}'" if results.arguments else ""


def _rounds(results: Results) -> str:
    if results.rounds == 1:
        return f"One round of {results.seconds:g} s for each number."
    return (
        f"{results.rounds} rounds of {results.seconds:g} s for each number, the contenders in turn; the median counts."
    )


def _goals(results: Results) -> str:
    rows = [*_rate_goals(results.comparisons.get("SQLite", {})), *_growth_goals(results.growth)]
    rows += _layers_goal(results.layers)
    return f"## Goals, on SQLite\n\n{_table(('what', 'goal', 'measured', 'met'), rows)}" if rows else ""


def _rate_goals(found: Mapping[str, Rounds]) -> Iterator[Sequence[str]]:
    for goal in _GOALS:
        rates = _rates(found.get(goal.operation.key, {}))
        for peer, wanted in (("tutorial", goal.times_tutorial), ("floor", goal.share_of_floor)):
            if "ours" in rates and peer in rates:
                yield _goal(f"{goal.operation.title}: rate, by {peer}'s", wanted, rates["ours"] / rates[peer])
    for key, by_contender in found.items():
        rates = _rates(by_contender)
        if "json" in rates and "tutorial" in rates:
            yield _goal(f"{_TITLES[key]}, as JSON: rate, by tutorial's", 1, rates["json"] / rates["tutorial"])
    batch, single = _rates(found.get(BATCH_CREATE_500.key, {})), _rates(found.get(CREATE.key, {}))
    if "ours" in batch and "tutorial" in single:
        books = batch["ours"] * BATCH_CREATE_500.books_per_call
        what = f"{BATCH_CREATE_500.title}: books a second, by tutorial's one by one"
        yield _goal(what, _BATCH_TIMES_TUTORIAL, books / single["tutorial"])


def _goal(what: str, wanted: float, measured: float) -> Sequence[str]:
    return (what, f"≥ {wanted:g}", f"{measured:.2f}", "yes" if measured >= wanted else "no")


def _growth_goals(found: Mapping[str, Rounds]) -> Iterator[Sequence[str]]:
    for key, wanted in _GROWTH_GOALS.items():
        if key not in found:
            continue
        by_size = found[key]
        least, most = min(by_size, key=int), max(by_size, key=int)
        few, many = median(by_size[least]), median(by_size[most])
        what = f"{_TITLES[key]}: %s at {int(most):,} books, by that at {int(least):,}"
        for name, ratio in (("CPU", many.cpu_us / few.cpu_us), ("time", few.rate / many.rate)):
            yield (what % name, f"≤ {wanted:g}", f"{ratio:.2f}", "yes" if ratio <= wanted else "no")


def _layers_goal(found: Mapping[str, Rounds]) -> Iterator[Sequence[str]]:
    if GET.key in found:
        none, every = median(found[GET.key]["none"]), median(found[GET.key]["all"])
        ratio = every.cpu_us / none.cpu_us
        what = f"{GET.title}: CPU with tokens, metrics and logs, by that with none"
        yield (what, f"≤ {_LAYERS_GOAL:g}", f"{ratio:.2f}", "yes" if ratio <= _LAYERS_GOAL else "no")


def _comparison(database: str, found: Mapping[str, Rounds]) -> str:
    rows = []
    for key, by_contender in found.items():
        ours = _rates(by_contender).get("ours")
        for contender in CONTENDERS:
            if rounds := by_contender.get(contender.key):
                rows.append((_TITLES[key], contender.key, *_numbers(median(rounds), ours)))
            elif any(contender.key in other for other in found.values()):
                rows.append((_TITLES[key], contender.key, *[_NONE] * 5))
    headers = ("operation", "contender", "calls/s", "CPU µs/call", "p50 ms", "p99 ms", "ours ÷ it")
    return f"""## {database}, {SIZE:,} books

{_matrix(found)}

{_table(headers, rows)}"""


def _numbers(measured: Measurement, ours: float | None) -> Sequence[str]:
    ratio = f"{ours / measured.rate:.2f} ×" if ours else _NONE  # noqa: RUF001  the sign of multiplication
    return (
        f"{measured.rate:,.0f}",
        f"{measured.cpu_us:,.0f}",
        f"{measured.p50_ms:.1f}",
        f"{measured.p99_ms:.1f}",
        ratio,
    )


def _matrix(found: Mapping[str, Rounds]) -> str:
    present = [contender.key for contender in CONTENDERS if any(contender.key in each for each in found.values())]
    rows = []
    for key, by_contender in found.items():
        rates = _rates(by_contender)
        rows.append((_TITLES[key], *(f"{rates[name]:,.0f}" if name in rates else _NONE for name in present)))
    return _table(("calls/s", *present), rows)


def _growth(found: Mapping[str, Rounds]) -> str:
    rows = []
    for key, by_size in found.items():
        least = median(next(iter(by_size.values())))
        for size, rounds in by_size.items():
            measured = median(rounds)
            times = (f"{measured.cpu_us / least.cpu_us:.2f} ×", f"{least.rate / measured.rate:.2f} ×")  # noqa: RUF001
            numbers = (f"{measured.rate:,.0f}", f"{measured.cpu_us:,.0f}", f"{measured.p50_ms:.1f}")
            rows.append((_TITLES[key], f"{int(size):,}", *numbers, *times))
    headers = ("operation", "books", "calls/s", "CPU µs/call", "p50 ms", "CPU grows by", "time grows by")
    return f"## Growth: ours on SQLite, by the size of the catalogue\n\n{_table(headers, rows)}" if rows else ""


def _memory(points: Sequence[MemoryPoint]) -> str:
    rows = [(f"{point.calls:,}", f"{point.resident_bytes / 2**20:.1f}") for point in points]
    intro = "GetBook, and of a hundred calls three each of ListBooks, UpdateBook and CreateBook. Proportional set size."
    return f"## Memory of ours\n\n{intro}\n\n{_table(('calls so far', 'MiB'), rows)}" if rows else ""


def _start_up(found: Mapping[str, Sequence[float]]) -> str:
    rows = [(name, f"{statistics.median(times):.2f}", f"{max(times):.2f}") for name, times in found.items()]
    intro = "From the start of the process on an existing database to the first SERVING of the health service."
    return f"## Start-up\n\n{intro}\n\n{_table(('contender', 'median s', 'longest s'), rows)}" if rows else ""


def _workers(found: Mapping[str, Rounds]) -> str:
    rows = []
    for key, by_number in found.items():
        one = median(by_number["1"])
        for number, rounds in by_number.items():
            measured = median(rounds)
            numbers = (f"{measured.rate:,.0f}", f"{measured.cpu_us:,.0f}", f"{measured.p50_ms:.1f}")
            rows.append((_TITLES[key], number, *numbers, f"{measured.rate / one.rate:.2f} ×"))  # noqa: RUF001
    headers = ("operation", "workers", "calls/s", "CPU µs/call", "p50 ms", "of one worker's rate")
    intro = "Ours on SQLite, 64 calls in flight on 16 connections, on the cores that the load generator leaves."
    return f"## Workers\n\n{intro}\n\n{_table(headers, rows)}" if rows else ""


def _layers(found: Mapping[str, Rounds]) -> str:
    rows = []
    for key, by_name in found.items():
        none = median(by_name["none"])
        for name, rounds in by_name.items():
            measured = median(rounds)
            numbers = (f"{measured.rate:,.0f}", f"{measured.cpu_us:,.0f}", f"{measured.p50_ms:.1f}")
            rows.append((_TITLES[key], name, *numbers, f"{measured.cpu_us / none.cpu_us:.2f} ×"))  # noqa: RUF001
    headers = ("operation", "layers", "calls/s", "CPU µs/call", "p50 ms", "of the CPU with none")
    intro = (
        "Ours on SQLite. Logs: a line for each call. Metrics: kept for Prometheus. Tokens: RS256, one for all calls, "
        "as of a service that calls. Traces: a span for each call and one for what it makes the database do, sent to a "
        "collector that only counts them."
    )
    return f"## Cost of the layers around a call\n\n{intro}\n\n{_table(headers, rows)}" if rows else ""


def _rates(by_contender: Rounds) -> dict[str, float]:
    return {name: median(rounds).rate for name, rounds in by_contender.items()}


def _table(headers: Sequence[str], rows: Iterable[Sequence[str]]) -> str:
    """Return a Markdown table with columns of numbers aligned right."""
    lines = [tuple(row) for row in rows]
    widths = [max(len(row[index]) for row in (headers, *lines)) for index in range(len(headers))]
    is_number = [all(row[index][:1] in f"0123456789≥≤{_NONE}" for row in lines) for index in range(len(headers))]

    def line(cells: Sequence[str]) -> str:
        aligned = [
            cell.rjust(width) if right else cell.ljust(width)
            for cell, width, right in zip(cells, widths, is_number, strict=True)
        ]
        return f"| {' | '.join(aligned)} |"

    rule = ["-" * (width - 1) + ":" if right else "-" * width for width, right in zip(widths, is_number, strict=True)]
    return "\n".join([line(headers), line(rule), *map(line, lines)])
