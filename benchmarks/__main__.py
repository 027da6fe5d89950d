"""The command: `python -m benchmarks`."""

import os
import shlex
import sys
import tempfile
from collections.abc import Callable, Iterator, Sequence
from contextlib import closing
from dataclasses import dataclass
from pathlib import Path

import click
from rich.console import Console
from rich.progress import BarColumn, MofNCompleteColumn, Progress, TextColumn, TimeElapsedColumn

from benchmarks import plot, report, sections
from benchmarks.errors import BenchmarkError
from benchmarks.load import require_h2load
from benchmarks.machine import describe_machine
from benchmarks.measuring import Bench
from benchmarks.operations import OPERATIONS
from benchmarks.results import Results
from benchmarks.servers import CONTENDERS, FLOOR
from benchmarks.storage import PostgreSQL, SQLite

_SECTIONS = ("main", "growth", "memory", "startup", "workers", "layers", "postgresql")
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


_FULL = Extent(rounds=3, seconds=2, growth_sizes=(1_000, 100_000, 1_000_000), memory_calls=1_000_000, starts=5)
_QUICK = Extent(rounds=1, seconds=0.6, growth_sizes=(1_000, 100_000), memory_calls=100_000, starts=3)


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


def _names_option(flag: str, known: Sequence[str], help: str) -> Callable[[Callable[..., None]], Callable[..., None]]:
    every = ", ".join(known)
    return click.option(flag, type=Names(known), default=every, help=f"{help}, separated by commas: {every}.")


@click.command()
@click.option("--quick", is_flag=True, help="One short round, smaller catalogues and fewer calls: minutes, and noisy.")
@click.option("--rounds", type=click.IntRange(1), help="How often each number is taken; the median counts.")
@click.option("--seconds", type=click.FloatRange(0.1), help="How long each load lasts.")
@_names_option("--only", [operation.key for operation in OPERATIONS], "Which operations to compare")
@_names_option("--contenders", [contender.key for contender in CONTENDERS], "Which contenders to compare")
@_names_option("--sections", _SECTIONS, "Which sections to run")
@click.option(
    "--postgresql-url",
    envvar="BOOKSTORE_TEST_POSTGRESQL_URL",
    help="A PostgreSQL server on which it may create databases (BOOKSTORE_TEST_POSTGRESQL_URL).",
)
@click.option(
    "--output",
    type=click.Path(file_okay=False, path_type=Path),
    default="build/bench",
    show_default=True,
    help="Where results.md, results.json and the plot go. The databases lie there too while it runs.",
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
        )
        text = ""
        try:
            # After each section, so that a failing section does not lose the previous ones.
            for results in run.sections(sections, postgresql_url):
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
    ) -> None:
        self._extent = extent
        self._bench = bench
        self._rounds = rounds
        self._operations = [operation for operation in OPERATIONS if operation.key in operations]
        self._contenders = [contender for contender in CONTENDERS if contender.key in contenders]
        self._sqlite = SQLite(bench.folder)
        self._progress = Progress(
            TextColumn("{task.description}"),
            BarColumn(),
            MofNCompleteColumn(),
            TimeElapsedColumn(),
            console=Console(stderr=True),
            auto_refresh=False,  # a thread that draws would hold up the one that rewrites bodies
        )

    def sections(self, wanted: Sequence[str], postgresql_url: str | None) -> Iterator[Results]:
        """Run the sections and yield the results so far after each. Raises `BenchmarkError`."""
        h2load = require_h2load()
        results = Results(
            machine=describe_machine(h2load=h2load),
            arguments=shlex.join(sys.argv[1:]),
            rounds=self._rounds,
            seconds=self._bench.seconds,
        )
        steps: dict[str, Callable[[Results], None]] = {
            "main": self._main,
            "growth": self._growth,
            "memory": self._memory,
            "startup": self._start_up,
            "workers": self._workers,
            "layers": self._layers,
            "postgresql": lambda results: self._postgresql(results, postgresql_url),
        }
        with self._progress:
            if os.getloadavg()[0] > _LOAD_MAX:
                self._warn("This machine is busy with other things; what is measured now means little.")
            for name in wanted:
                steps[name](results)
                yield results

    def _main(self, results: Results) -> None:
        results.comparisons[SQLite.name] = sections.compare(
            self._bench,
            self._sqlite,
            self._contenders,
            self._operations,
            rounds=self._rounds,
            progress=self._progress,
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

    def _postgresql(self, results: Results, url: str | None) -> None:
        if not url:
            self._skip(results, "PostgreSQL", "name a server in --postgresql-url or BOOKSTORE_TEST_POSTGRESQL_URL.")
            return
        with closing(PostgreSQL(url)) as databases:
            results.machine["PostgreSQL"] = databases.version()
            results.comparisons[databases.name] = sections.compare(
                self._bench,
                databases,
                [contender for contender in self._contenders if contender != FLOOR],
                self._operations,
                rounds=self._rounds,
                progress=self._progress,
            )

    def _skip(self, results: Results, section: str, reason: str) -> None:
        results.skipped[section] = reason
        self._warn(f"{section} SKIPPED: {reason}")

    def _warn(self, text: str) -> None:
        self._progress.console.print(text, style="bold yellow")


if __name__ == "__main__":
    main(prog_name="python -m benchmarks")
