"""The report: the results as Markdown tables, aligned for terminals."""

import statistics
from collections.abc import Callable, Iterator, Mapping, Sequence
from typing import NamedTuple

from benchmarks.measuring import Measurement, median
from benchmarks.operations import (
    BATCH_CREATE_500,
    BATCH_CREATE_IN_FLIGHT,
    CREATE,
    GET,
    LIST_50,
    LIST_50_ANY,
    LIST_50_LATE,
    LIST_1000,
    LIST_1000_ANY,
    LIST_AUTHOR,
    LIST_AUTHOR_ANY,
    OPERATIONS,
    UPDATE,
    Operation,
)
from benchmarks.results import Results
from benchmarks.searches import SEARCHERS, SearchResults, p99
from benchmarks.sections import SIZE, WALK_SIZE, MemoryPoint, Rounds
from benchmarks.servers import CONTENDERS
from benchmarks.storage import PooledPostgreSQL, PostgreSQL, SQLite
from benchmarks.tables import NONE, ms, table
from benchmarks.watchers_report import watchers_section

_TITLES = {operation.key: operation.title for operation in OPERATIONS}


class Goal(NamedTuple):
    """A goal for ours: a multiple of the tutorial's rate on SQLite, and shares of the floor."""

    operation: Operation
    times_tutorial: float
    share_of_floor: float
    share_of_floor_on_servers: float


_GOALS = (
    Goal(CREATE, 8, 0.48, 0.40),
    Goal(GET, 5, 0.50, 0.45),
    Goal(UPDATE, 6, 0.50, 0.40),
    Goal(LIST_50, 8, 0.60, 0.35),
    Goal(LIST_1000, 20, 0.15, 0.35),
)
# Books per second, relative to the tutorial's single creates.
_BATCH_TIMES_TUTORIAL = 100
_WALK_SHARES_OF_FLOOR = {LIST_50_ANY.key: 0.55, LIST_AUTHOR_ANY.key: 0.40}
_WALK_TIMES_GO = 2
_BULK_BOOKS_PER_SECOND = 60_000
# CPU with all layers, relative to none.
_LAYERS_GOAL = 1.2
# Latency, relative to the textbook's.
_ALONE_GOAL = 1
# Calls per second, relative to those without it.
_PGBOUNCER_GOAL = 0.85
# The p50 in ms in the slowest order, with a million books on SQLite and PostgreSQL.
_SEARCH_GOALS = {"no match": 5, "one word": 10, "three words and a year": 15}
# The p99 of GetBook beside searches, relative to that without them.
_BESIDE_SEARCHES_GOAL = 2
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
        _on_sqlite(f"A walk over {WALK_SIZE:,} books", results.walk),
        _on_sqlite("Bulk in", results.bulk),
        _alone(results.alone),
        _pgbouncer(results.pgbouncer),
        *(_searches(name, found) for name, found in results.searches.items()),
        watchers_section(results.watchers),
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
    return f"""{table(("on", ""), results.machine.items())}

{_rounds(results)}

Every contender is one process on loopback under the same load: 64 calls in flight, on 8 HTTP/2 connections for gRPC
and on 64 connections for HTTP/1.1. Only the load generator and the database's server, if there is one, run at the same
time. CPU is the user and system time of all processes of the contender. Its share of the floor is the floor's CPU per
call divided by its own: 1.00 is as cheap as responding from memory. Every response is verified: its bytes, and the data
stored afterwards. To repeat it:

    make bench{_arguments(results)}

{contenders}"""


def _arguments(results: Results) -> str:
    return f" BENCH_ARGS='{results.arguments}'" if results.arguments else ""


def _rounds(results: Results) -> str:
    if results.rounds == 1:
        return f"Each figure is from one round of {results.seconds:g} s."
    return (
        f"Each figure is the median of {results.rounds} rounds of {results.seconds:g} s, in which contenders alternate."
    )


def _goals(results: Results) -> str:
    rows = [*_rate_goals(results.comparisons.get(SQLite.name, {}))]
    for database, found in results.comparisons.items():
        rows += _floor_goals(database, found)
    for database, found in results.alone.items():
        rows += _alone_goals(database, found)
    rows += _pgbouncer_goals(results.pgbouncer)
    for database, searches in results.searches.items():
        rows += _search_goals(database, searches)
    rows += [*_walk_goals(results.walk), *_bulk_goals(results.bulk)]
    rows += [*_growth_goals(results.growth), *_layers_goal(results.layers)]
    return f"## Goals\n\n{table(('on', 'what', 'goal', 'measured', 'met'), rows)}" if rows else ""


def _rate_goals(found: Mapping[str, Rounds]) -> Iterator[Sequence[str]]:
    for goal in _GOALS:
        rates = _rates(found.get(goal.operation.key, {}))
        if "ours" in rates and "tutorial" in rates:
            what = f"{goal.operation.title}: rate, by tutorial's"
            yield _at_least(SQLite.name, what, goal.times_tutorial, rates["ours"] / rates["tutorial"])
    for key, by_contender in found.items():
        rates = _rates(by_contender)
        if "json" in rates and "tutorial" in rates:
            what = f"{_TITLES[key]}, as JSON: rate, by tutorial's"
            yield _at_least(SQLite.name, what, 1, rates["json"] / rates["tutorial"])
    batch, single = _rates(found.get(BATCH_CREATE_500.key, {})), _rates(found.get(CREATE.key, {}))
    if "ours" in batch and "tutorial" in single:
        books = batch["ours"] * BATCH_CREATE_500.books_per_call
        what = f"{BATCH_CREATE_500.title}: books a second, by tutorial's one by one"
        yield _at_least(SQLite.name, what, _BATCH_TIMES_TUTORIAL, books / single["tutorial"])


def _floor_goals(database: str, found: Mapping[str, Rounds]) -> Iterator[Sequence[str]]:
    for goal in _GOALS:
        by_contender = found.get(goal.operation.key, {})
        if "ours" in by_contender and "floor" in by_contender:
            wanted = goal.share_of_floor if database == SQLite.name else goal.share_of_floor_on_servers
            share = median(by_contender["floor"]).cpu_us / median(by_contender["ours"]).cpu_us
            yield _at_least(database, f"{goal.operation.title}: share of floor", wanted, share)


def _alone_goals(database: str, found: Mapping[str, Rounds]) -> Iterator[Sequence[str]]:
    for key, by_contender in found.items():
        if "ours" in by_contender and "textbook" in by_contender:
            ours, textbook = median(by_contender["ours"]), median(by_contender["textbook"])
            what = f"{_TITLES[key]}, one in flight: p50, by textbook's"
            yield _at_most(database, what, _ALONE_GOAL, ours.p50_ms / textbook.p50_ms)


def _pgbouncer_goals(found: Mapping[str, Rounds]) -> Iterator[Sequence[str]]:
    for key, by_way in found.items():
        direct, pooled = (median(by_way[way.name]).rate for way in (PostgreSQL, PooledPostgreSQL))
        what = f"{_TITLES[key]}: rate through PgBouncer, by the direct one"
        yield _at_least(PostgreSQL.name, what, _PGBOUNCER_GOAL, pooled / direct)


def _search_goals(database: str, found: SearchResults) -> Iterator[Sequence[str]]:
    for kind, by_order in found.searches.items():
        slowest = max(statistics.median(latencies) for latencies in by_order.values())
        yield _at_most(database, f"search, {kind}: p50 in ms in the slowest order", _SEARCH_GOALS[kind], slowest)
    ratio = p99(found.get_beside) / p99(found.get_alone)
    what = f"GetBook beside {SEARCHERS} searchers: p99, by that alone"
    yield _at_most(database, what, _BESIDE_SEARCHES_GOAL, ratio)


def _walk_goals(found: Mapping[str, Rounds]) -> Iterator[Sequence[str]]:
    for key, wanted in _WALK_SHARES_OF_FLOOR.items():
        by_contender = found.get(key, {})
        if "ours" in by_contender and "floor" in by_contender:
            share = median(by_contender["floor"]).cpu_us / median(by_contender["ours"]).cpu_us
            yield _at_least(SQLite.name, f"{_TITLES[key]}, of {WALK_SIZE:,}: share of floor", wanted, share)
    rates = _rates(found.get(LIST_1000_ANY.key, {}))
    if "go" in rates:
        for ours in rates.keys() & {"ours", "ours-2"}:
            what = f"{LIST_1000_ANY.title}, of {WALK_SIZE:,}: rate of {ours}, by go's"
            yield _at_least(SQLite.name, what, _WALK_TIMES_GO, rates[ours] / rates["go"])


def _bulk_goals(found: Mapping[str, Rounds]) -> Iterator[Sequence[str]]:
    rates = _rates(found.get(BATCH_CREATE_IN_FLIGHT.key, {}))
    if "ours" in rates:
        books = rates["ours"] * BATCH_CREATE_IN_FLIGHT.books_per_call
        yield _at_least(SQLite.name, f"{BATCH_CREATE_IN_FLIGHT.title}: books a second", _BULK_BOOKS_PER_SECOND, books)


def _at_least(database: str, what: str, wanted: float, measured: float) -> Sequence[str]:
    return (database, what, f"≥ {wanted:,g}", f"{measured:,.2f}", "yes" if measured >= wanted else "no")


def _at_most(database: str, what: str, wanted: float, measured: float) -> Sequence[str]:
    return (database, what, f"≤ {wanted:g}", f"{measured:.2f}", "yes" if measured <= wanted else "no")


def _growth_goals(found: Mapping[str, Rounds]) -> Iterator[Sequence[str]]:
    for key, wanted in _GROWTH_GOALS.items():
        if key not in found:
            continue
        by_size = found[key]
        least, most = min(by_size, key=int), max(by_size, key=int)
        few, many = median(by_size[least]), median(by_size[most])
        what = f"{_TITLES[key]}: %s at {int(most):,} books, by that at {int(least):,}"
        for name, ratio in (("CPU", many.cpu_us / few.cpu_us), ("time", few.rate / many.rate)):
            yield _at_most(SQLite.name, what % name, wanted, ratio)


def _layers_goal(found: Mapping[str, Rounds]) -> Iterator[Sequence[str]]:
    if GET.key in found:
        none, every = median(found[GET.key]["none"]), median(found[GET.key]["all"])
        what = f"{GET.title}: CPU with tokens, metrics and logs, by that with none"
        yield _at_most(SQLite.name, what, _LAYERS_GOAL, every.cpu_us / none.cpu_us)


def _comparison(database: str, found: Mapping[str, Rounds]) -> str:
    return f"""## {database}, {SIZE:,} books

{_matrix(found)}

{_contenders(found)}"""


def _on_sqlite(title: str, found: Mapping[str, Rounds]) -> str:
    return f"## {title}\n\n{_matrix(found)}\n\n{_contenders(found)}" if found else ""


def _contenders(found: Mapping[str, Rounds]) -> str:
    rows = []
    for key, by_contender in found.items():
        medians = {name: median(rounds) for name, rounds in by_contender.items()}
        for contender in CONTENDERS:
            if measured := medians.get(contender.key):
                numbers = _numbers(measured, ours=medians.get("ours"), floor=medians.get("floor"))
                rows.append((_TITLES[key], contender.key, *numbers))
            elif any(contender.key in other for other in found.values()):
                rows.append((_TITLES[key], contender.key, *[NONE] * 6))
    headers = ("operation", "contender", "calls/s", "CPU µs/call", "share of floor", "p50 ms", "p99 ms", "ours ÷ it")
    return table(headers, rows)


def _numbers(measured: Measurement, *, ours: Measurement | None, floor: Measurement | None) -> Sequence[str]:
    return (
        f"{measured.rate:,.0f}",
        f"{measured.cpu_us:,.0f}",
        f"{floor.cpu_us / measured.cpu_us:.2f}" if floor else NONE,
        ms(measured.p50_ms),
        ms(measured.p99_ms),
        f"{ours.rate / measured.rate:.2f} ×" if ours else NONE,  # noqa: RUF001  the sign of multiplication
    )


def _matrix(found: Mapping[str, Rounds]) -> str:
    present = [contender.key for contender in CONTENDERS if any(contender.key in each for each in found.values())]
    rows = []
    for key, by_contender in found.items():
        rates = _rates(by_contender)
        rows.append((_TITLES[key], *(f"{rates[name]:,.0f}" if name in rates else NONE for name in present)))
    return table(("calls/s", *present), rows)


def _alone(found: Mapping[str, Mapping[str, Rounds]]) -> str:
    parts = [f"### {database}\n\n{_contenders(by_operation)}" for database, by_operation in found.items()]
    return "\n\n".join(["## One call in flight, on one connection", *parts]) if parts else ""


def _searches(database: str, found: SearchResults) -> str:
    rows = [
        (kind, order or "id", ms(statistics.median(latencies)), ms(p99(latencies)))
        for kind, by_order in found.searches.items()
        for order, latencies in by_order.items()
    ]
    gets = {"GetBook, alone": found.get_alone, f"GetBook beside {SEARCHERS} searchers": found.get_beside}
    rows += [(name, NONE, ms(statistics.median(each)), ms(p99(each))) for name, each in gets.items()]
    intro = "Ours, one search in flight, for words of random books, each search another."
    return f"## Searches on {database}\n\n{intro}\n\n{table(('search', 'order', 'p50 ms', 'p99 ms'), rows)}"


def _growth(found: Mapping[str, Rounds]) -> str:
    rows = []
    for key, by_size in found.items():
        least = median(next(iter(by_size.values())))
        for size, rounds in by_size.items():
            measured = median(rounds)
            times = (f"{measured.cpu_us / least.cpu_us:.2f} ×", f"{least.rate / measured.rate:.2f} ×")  # noqa: RUF001
            numbers = (f"{measured.rate:,.0f}", f"{measured.cpu_us:,.0f}", ms(measured.p50_ms))
            rows.append((_TITLES[key], f"{int(size):,}", *numbers, *times))
    headers = ("operation", "books", "calls/s", "CPU µs/call", "p50 ms", "CPU grows by", "time grows by")
    return f"## Growth: ours on SQLite, by the size of the catalogue\n\n{table(headers, rows)}" if rows else ""


def _memory(points: Sequence[MemoryPoint]) -> str:
    rows = [(f"{point.calls:,}", f"{point.resident_bytes / 2**20:.1f}") for point in points]
    intro = (
        "GetBook, and of a hundred calls three each of ListBooks, UpdateBook and CreateBook, after the warm-up. "
        "Proportional set size."
    )
    return f"## Memory of ours\n\n{intro}\n\n{table(('calls so far', 'MiB'), rows)}" if rows else ""


def _start_up(found: Mapping[str, Sequence[float]]) -> str:
    rows = [(name, f"{statistics.median(times):.2f}", f"{max(times):.2f}") for name, times in found.items()]
    intro = "From process start with an existing database to the first SERVING of the health service."
    return f"## Start-up\n\n{intro}\n\n{table(('contender', 'median s', 'longest s'), rows)}" if rows else ""


def _workers(found: Mapping[str, Rounds]) -> str:
    intro = "Ours on SQLite, 64 calls in flight on 16 connections, on the cores not used by the load generator."
    variants = _variants(found, "workers", "of one worker's rate", lambda measured: measured.rate)
    return f"## Workers\n\n{intro}\n\n{variants}" if found else ""


def _pgbouncer(found: Mapping[str, Rounds]) -> str:
    intro = "Ours, directly on PostgreSQL and through PgBouncer in transaction mode, on the same machine."
    variants = _variants(found, "through", "of the direct rate", lambda measured: measured.rate)
    return f"## PgBouncer\n\n{intro}\n\n{variants}" if found else ""


def _layers(found: Mapping[str, Rounds]) -> str:
    intro = (
        "Ours on SQLite. Logs: one line per call. Metrics: for Prometheus. Tokens: RS256, the same for all calls, as "
        "from a calling service. Traces: two spans per call, its own and that of its database work, sent to a "
        "collector that only counts them."
    )
    variants = _variants(found, "layers", "of the CPU with none", lambda measured: measured.cpu_us)
    return f"## Cost of the layers around a call\n\n{intro}\n\n{variants}" if found else ""


def _variants(found: Mapping[str, Rounds], variant: str, relative: str, figure: Callable[[Measurement], float]) -> str:
    """Return a table by operation and variant, whose last column relates a figure to that of the first variant."""
    rows = []
    for key, by_name in found.items():
        medians = {name: median(rounds) for name, rounds in by_name.items()}
        first = next(iter(medians.values()))
        for name, measured in medians.items():
            numbers = (f"{measured.rate:,.0f}", f"{measured.cpu_us:,.0f}", ms(measured.p50_ms))
            rows.append((_TITLES[key], name, *numbers, f"{figure(measured) / figure(first):.2f} ×"))  # noqa: RUF001
    return table(("operation", variant, "calls/s", "CPU µs/call", "p50 ms", relative), rows)


def _rates(by_contender: Rounds) -> dict[str, float]:
    return {name: median(rounds).rate for name, rounds in by_contender.items()}
