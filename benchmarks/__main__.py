"""The command: `python -m benchmarks`."""

import os
import shlex
import sys
import tempfile
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import ExitStack, closing
from dataclasses import dataclass
from functools import partial
from pathlib import Path

import click
from rich.console import Console
from rich.progress import BarColumn, MofNCompleteColumn, Progress, TextColumn, TimeElapsedColumn

from benchmarks import plot, report, sections
from benchmarks.errors import BenchmarkError
from benchmarks.go_program import build_go_program, go_version, missing_for_go
from benchmarks.load import require_h2load
from benchmarks.machine import describe_machine
from benchmarks.measuring import Bench
from benchmarks.operations import (
    BASIC_OPERATIONS,
    BATCH_CREATE_IN_FLIGHT,
    OPERATIONS,
    SERVER_OPERATIONS,
    WALK_OPERATIONS,
    Operation,
)
from benchmarks.pgbouncer import find_pgbouncer, pgbouncer_version
from benchmarks.results import Results
from benchmarks.searches import measure_searches
from benchmarks.sections import SIZE, WALK_SIZE, Rounds
from benchmarks.servers import CONTENDERS, FLOOR, GO, OURS, OURS_2, THREADS, Contender
from benchmarks.storage import Databases, MariaDB, PostgreSQL, ServerDatabases, SQLite
from benchmarks.watchers import measure_watchers

_SECTIONS = (
    "main",
    "walk",
    "bulk",
    "growth",
    "memory",
    "startup",
    "workers",
    "layers",
    "postgresql",
    "mariadb",
    "alone",
    "pgbouncer",
    "searches",
    "watchers",
)
# Those whose load is not h2load's.
_WITHOUT_H2LOAD = {"watchers"}
_MEMORY_STEP = 100_000
# Load average below which the machine counts as idle.
_LOAD_MAX = 0.5


@dataclass(frozen=True)
class Extent:
    """The extent of a run."""

    rounds: int
    seconds: float
    growth_sizes: Sequence[int]
    memory_calls: int
    starts: int
    searched_size: int
    searches: int
    watchers: Sequence[int]


_FULL = Extent(
    rounds=3,
    seconds=2,
    growth_sizes=(1_000, 100_000, 1_000_000),
    memory_calls=1_000_000,
    starts=5,
    searched_size=1_000_000,
    searches=40,
    watchers=(0, 1, 100, 1_000),
)
_QUICK = Extent(
    rounds=1,
    seconds=0.6,
    growth_sizes=(1_000, 100_000),
    memory_calls=100_000,
    starts=3,
    searched_size=100_000,
    searches=10,
    watchers=(0, 1, 100),
)


class Names(click.ParamType[Sequence[str]]):
    """Names of a known set, separated by commas and kept in the set's order."""

    name = "names"

    def __init__(self, known: Sequence[str]) -> None:
        self._known = known

    def convert(self, value: object, param: click.Parameter | None, ctx: click.Context | None) -> Sequence[str]:
        """Return the names, or fail with a list of the known ones."""
        wanted = str(value).replace(",", " ").split()
        if unknown := [name for name in wanted if name not in self._known]:
            self.fail(f"{unknown[0]!r} is not one of {', '.join(self._known)}.", param, ctx)
        return [name for name in self._known if name in wanted]


def _names_option(
    flag: str, known: Sequence[str], help: str, *, default: str | None = None
) -> Callable[[Callable[..., None]], Callable[..., None]]:
    every = ", ".join(known)
    default = every if default is None else default
    return click.option(flag, type=Names(known), default=default, help=f"{help}, separated by commas: {every}.")


def _url_option(kind: type[ServerDatabases]) -> Callable[[Callable[..., None]], Callable[..., None]]:
    variable = f"BOOKSTORE_TEST_{kind.name.upper()}_URL"
    help = f"A {kind.name} server on which it may create databases ({variable})."
    return click.option(f"--{kind.name.lower()}-url", envvar=variable, help=help)


@click.command()
@click.option("--quick", is_flag=True, help="One short round, smaller catalogues and fewer calls: minutes, and noisy.")
@click.option("--rounds", type=click.IntRange(1), help="How often each figure is measured; the report has the median.")
@click.option("--seconds", type=click.FloatRange(0.1), help="How long each load lasts.")
@_names_option(
    "--only",
    [operation.key for operation in OPERATIONS],
    "Which operations to compare, instead of the usual ones of each section",
    default="",
)
@_names_option("--contenders", [contender.key for contender in CONTENDERS], "Which contenders to compare")
@_names_option("--sections", _SECTIONS, "Which sections to run")
@_url_option(PostgreSQL)
@_url_option(MariaDB)
@click.option(
    "--output",
    type=click.Path(file_okay=False, path_type=Path),
    default="build/bench",
    show_default=True,
    help="The directory for results.md, results.json and the plot, and for the databases during the run.",
)
def main(
    *,
    quick: bool,
    rounds: int | None,
    seconds: float | None,
    only: Sequence[str],
    contenders: Sequence[str],
    sections: Sequence[str],
    postgresql_url: str | None,
    mariadb_url: str | None,
    output: Path,
) -> None:
    """Compare bookstore with alternatives under the same load, and verify every response."""
    extent = _QUICK if quick else _FULL
    output.mkdir(parents=True, exist_ok=True)
    with tempfile.TemporaryDirectory(dir=output.resolve(), prefix="run-") as folder:
        run = Run(
            extent,
            Bench(Path(folder), seconds=seconds or extent.seconds),
            rounds=rounds or extent.rounds,
            operations=only,
            contenders=contenders,
            urls={PostgreSQL: postgresql_url, MariaDB: mariadb_url},
        )
        text = ""
        try:
            # After each section, so that a failing section does not lose the previous ones.
            for results in run.sections(sections):
                text = report.markdown(results)
                _write(results, text, output)
        except BenchmarkError as error:
            raise click.ClickException("\n".join([str(error), *getattr(error, "__notes__", [])])) from error
    click.echo(text)


def _write(results: Results, text: str, output: Path) -> None:
    results.write_json(output / "results.json")
    (output / "results.md").write_text(text)
    for name, found in results.comparisons.items():
        suffix = "" if name == SQLite.name else f"-{name.lower()}"
        plot.draw(found, output / f"plot{suffix}.svg", title=f"{name}, 64 calls in flight")


class Run:
    """One run of the selected sections, in order."""

    def __init__(
        self,
        extent: Extent,
        bench: Bench,
        *,
        rounds: int,
        operations: Sequence[str],
        contenders: Sequence[str],
        urls: Mapping[type[ServerDatabases], str | None],
    ) -> None:
        self._extent = extent
        self._bench = bench
        self._rounds = rounds
        self._only = [operation for operation in OPERATIONS if operation.key in operations]
        self._contenders = [contender for contender in CONTENDERS if contender.key in contenders]
        self._sqlite = SQLite(bench.folder)
        self._urls = urls
        self._servers: dict[type[ServerDatabases], ServerDatabases] = {}
        self._opened = ExitStack()
        self._progress = Progress(
            TextColumn("{task.description}"),
            BarColumn(),
            MofNCompleteColumn(),
            TimeElapsedColumn(),
            console=Console(stderr=True),
            auto_refresh=False,  # a thread for drawing would delay the thread that rewrites bodies
        )

    def sections(self, wanted: Sequence[str]) -> Iterator[Results]:
        """Run the sections and yield the results so far after each. Raises `BenchmarkError`."""
        load_generator = "of the benchmark itself" if _WITHOUT_H2LOAD.issuperset(wanted) else require_h2load()
        results = Results(
            machine=describe_machine(load_generator=load_generator),
            arguments=shlex.join(sys.argv[1:]),
            rounds=self._rounds,
            seconds=self._bench.seconds,
        )
        steps: dict[str, Callable[[Results], None]] = {
            "main": self._main,
            "walk": self._walk,
            "bulk": self._bulk,
            "growth": self._growth,
            "memory": self._memory,
            "startup": self._start_up,
            "workers": self._workers,
            "layers": self._layers,
            "postgresql": partial(self._on_server, PostgreSQL),
            "mariadb": partial(self._on_server, MariaDB),
            "alone": self._alone,
            "pgbouncer": self._pgbouncer,
            "searches": self._searches,
            "watchers": self._watchers,
        }
        with self._progress, self._opened:
            if os.getloadavg()[0] > _LOAD_MAX:
                self._warn("This machine is busy, so the figures are not reliable.")
            for name in wanted:
                steps[name](results)
                yield results

    def _main(self, results: Results) -> None:
        self._compare(self._sqlite, [each for each in OPERATIONS if each is not BATCH_CREATE_IN_FLIGHT], results)

    def _on_server(self, kind: type[ServerDatabases], results: Results) -> None:
        if server := self._server(kind, results, section=kind.name):
            self._compare(server, SERVER_OPERATIONS, results)

    def _compare(self, databases: Databases, usual: Sequence[Operation], results: Results) -> None:
        results.comparisons[databases.name] = sections.compare(
            self._bench,
            databases,
            [contender for contender in self._contenders if contender not in (OURS_2, GO)],
            self._only or usual,
            rounds=self._rounds,
            progress=self._progress,
        )

    def _walk(self, results: Results) -> None:
        results.walk = self._compare_with_go(results, (OURS, OURS_2, FLOOR, GO), WALK_OPERATIONS, size=WALK_SIZE)

    def _bulk(self, results: Results) -> None:
        results.bulk = self._compare_with_go(results, (OURS, FLOOR, THREADS, GO), (BATCH_CREATE_IN_FLIGHT,), size=SIZE)

    def _compare_with_go(
        self, results: Results, contenders: Sequence[Contender], usual: Sequence[Operation], *, size: int
    ) -> dict[str, Rounds]:
        chosen = [contender for contender in contenders if contender in self._contenders]
        if GO in chosen and not self._has_go(results):
            chosen.remove(GO)
        return sections.compare(
            self._bench,
            self._sqlite,
            chosen,
            self._only or usual,
            rounds=self._rounds,
            progress=self._progress,
            title=f"{size:,} books",
            size=size,
        )

    def _has_go(self, results: Results) -> bool:
        """Build the Go contender, or say why there is none."""
        if "Go" in results.machine:
            return True
        if missing := missing_for_go():
            self._skip(results, "Go", missing)
            return False
        build_go_program()
        results.machine["Go"] = go_version()
        return True

    def _alone(self, results: Results) -> None:
        self._compare_alone(self._sqlite, results)
        for kind in self._urls:
            if server := self._server(kind, results, section=f"One call in flight on {kind.name}"):
                self._compare_alone(server, results)

    def _compare_alone(self, databases: Databases, results: Results) -> None:
        results.alone[databases.name] = sections.compare_alone(
            self._bench,
            databases,
            self._contenders,
            self._only or BASIC_OPERATIONS,
            rounds=self._rounds,
            progress=self._progress,
        )

    def _pgbouncer(self, results: Results) -> None:
        program = find_pgbouncer()
        if program is None:
            self._skip(results, "PgBouncer", "it is not installed: apt install pgbouncer")
        elif server := self._server(PostgreSQL, results, section="PgBouncer"):
            results.machine["PgBouncer"] = pgbouncer_version(program)
            results.pgbouncer = sections.compare_pgbouncer(
                self._bench,
                server,
                self._only or BASIC_OPERATIONS,
                program=program,
                rounds=self._rounds,
                progress=self._progress,
            )

    def _searches(self, results: Results) -> None:
        databases: list[Databases] = [self._sqlite]
        databases += [
            server for kind in self._urls if (server := self._server(kind, results, section=f"Searches on {kind.name}"))
        ]
        for each in databases:
            # MariaDB, which has no search index, takes seconds for each.
            count = self._extent.searches // (10 if each.name == "MariaDB" else 1)
            results.searches[each.name] = measure_searches(
                self._bench, each, self._extent.searched_size, count=count, progress=self._progress
            )

    def _watchers(self, results: Results) -> None:
        results.watchers = measure_watchers(
            self._bench, self._sqlite, self._extent.watchers, rounds=self._rounds, progress=self._progress
        )

    def _growth(self, results: Results) -> None:
        sizes = self._extent.growth_sizes
        results.growth = sections.grow(self._bench, self._sqlite, sizes, rounds=self._rounds, progress=self._progress)

    def _memory(self, results: Results) -> None:
        results.memory = sections.observe_memory(
            self._bench, self._sqlite, calls=self._extent.memory_calls, step=_MEMORY_STEP, progress=self._progress
        )

    def _start_up(self, results: Results) -> None:
        results.start_up = sections.start_up(
            self._bench, self._sqlite, times=self._extent.starts, progress=self._progress
        )

    def _workers(self, results: Results) -> None:
        results.workers = sections.compare_workers(
            self._bench, self._sqlite, rounds=self._rounds, progress=self._progress
        )

    def _layers(self, results: Results) -> None:
        results.layers = sections.compare_layers(
            self._bench, self._sqlite, rounds=self._rounds, progress=self._progress
        )

    def _server(self, kind: type[ServerDatabases], results: Results, *, section: str) -> ServerDatabases | None:
        """Return the databases of a server, or skip the section if none is named."""
        if not (url := self._urls[kind]):
            name = kind.name
            self._skip(results, section, f"name a server in --{name.lower()}-url or BOOKSTORE_TEST_{name.upper()}_URL.")
            return None
        if kind not in self._servers:
            self._servers[kind] = self._opened.enter_context(closing(kind(url)))
            results.machine[kind.name] = self._servers[kind].version()
        return self._servers[kind]

    def _skip(self, results: Results, section: str, reason: str) -> None:
        results.skipped[section] = reason
        self._warn(f"{section} SKIPPED: {reason}")

    def _warn(self, text: str) -> None:
        self._progress.console.print(text, style="bold yellow")


if __name__ == "__main__":
    main(prog_name="python -m benchmarks")
