"""The sections of a run. Each alternates its candidates round by round, so that noise of the machine affects all."""

from collections.abc import Callable, Mapping, Sequence
from contextlib import AbstractContextManager, ExitStack, closing
from functools import partial
from typing import NamedTuple, TypeVar

from rich.progress import Progress

from benchmarks.layers import layers
from benchmarks.load import run_load
from benchmarks.measuring import Bench, Measurement, Running
from benchmarks.operations import (
    CREATE,
    GET,
    LIST_50,
    LIST_50_ANY,
    LIST_50_LATE,
    LIST_AUTHOR,
    UPDATE,
    Operation,
)
from benchmarks.servers import FLOOR, OURS, TEXTBOOK, Contender, Server
from benchmarks.span_sink import sinking_spans
from benchmarks.storage import Databases, DatabaseStorage, PooledPostgreSQL, SQLite

T = TypeVar("T")

SIZE = 10_000
WALK_SIZE = 200_000
GROWTH_OPERATIONS = (GET, LIST_50, LIST_50_LATE, LIST_50_ANY, LIST_AUTHOR)
WORKERS_OPERATIONS = (GET, LIST_50, LIST_50_ANY)
LAYERS_OPERATIONS = (GET, CREATE)

# The number of calls of each kind among a hundred calls of the memory section.
_MIX = ((GET, 91), (LIST_50, 3), (UPDATE, 3), (CREATE, 3))
_PORTION = 10_000
_ALONE = (OURS, FLOOR, TEXTBOOK)
_STARTED = (OURS, TEXTBOOK, FLOOR)
_WORKERS = ("1", "2")
# More than in other sections, because a connection stays with one worker.
_WORKERS_CONNECTIONS = 16

Rounds = dict[str, list[Measurement]]  # by contender, size, number of workers or layers


class MemoryPoint(NamedTuple):
    """The memory of a server after a number of calls."""

    calls: int
    resident_bytes: int


def compare(
    bench: Bench,
    databases: Databases,
    contenders: Sequence[Contender],
    operations: Sequence[Operation],
    *,
    rounds: int,
    progress: Progress,
    title: str = "",
    size: int = SIZE,
) -> dict[str, Rounds]:
    """Measure every operation of every contender. Returns the figures by operation and contender."""
    variants = {contender.key: partial(bench.contender, contender, databases, size) for contender in contenders}
    return _alternate(bench, title or databases.name, variants, operations, rounds=rounds, progress=progress)


def compare_alone(
    bench: Bench,
    databases: Databases,
    contenders: Sequence[Contender],
    operations: Sequence[Operation],
    *,
    rounds: int,
    progress: Progress,
) -> dict[str, Rounds]:
    """Measure one call in flight, on one connection. Returns the figures by operation and contender."""
    return compare(
        bench,
        databases,
        [contender for contender in contenders if contender in _ALONE],
        [operation._replace(in_flight=1) for operation in operations],
        rounds=rounds,
        progress=progress,
        title=f"{databases.name}, alone",
    )


def grow(bench: Bench, sqlite: SQLite, sizes: Sequence[int], *, rounds: int, progress: Progress) -> dict[str, Rounds]:
    """Measure ours on catalogues of several sizes. Returns the figures by operation and size."""
    results: dict[str, Rounds] = {operation.key: {} for operation in GROWTH_OPERATIONS}
    with ExitStack() as stack:
        targets: list[Running] = []
        for size in sizes:
            storage = stack.enter_context(closing(_stored(sqlite, size, progress)))
            targets.append(stack.enter_context(bench.serving(OURS, storage, size)))
        task = progress.add_task("Growth", total=rounds * len(sizes) * len(GROWTH_OPERATIONS))
        for number in range(rounds):
            for operation in GROWTH_OPERATIONS:
                for target in _alternately(targets, number):
                    measured = bench.measure(target, operation)
                    if measured is not None:
                        results[operation.key].setdefault(str(target.size), []).append(measured)
                    progress.update(task, advance=1, refresh=True)
    return results


def _stored(sqlite: SQLite, size: int, progress: Progress) -> DatabaseStorage:
    task = progress.add_task(f"Growth: storing {size:,} books", total=size)
    storage = sqlite.filled("bookstore", size, advance=lambda rows: progress.update(task, advance=rows, refresh=True))
    progress.update(task, completed=size)
    return storage


def observe_memory(
    bench: Bench, databases: Databases, *, calls: int, step: int, progress: Progress
) -> list[MemoryPoint]:
    """Measure the memory of ours during calls of several kinds."""
    task = progress.add_task("Memory", total=calls)
    with bench.contender(OURS, databases, SIZE) as target:
        loads = [(target.calls.prepare(operation, run=0), share) for operation, share in _MIX]
        points = [MemoryPoint(0, target.server.resident_bytes())]
        while points[-1].calls < calls:
            completed = 0
            while completed < step:
                for prepared, share in loads:
                    if prepared is not None:
                        completed += run_load(prepared.load, calls=_PORTION * share // 100, folder=bench.folder).calls
            points.append(MemoryPoint(points[-1].calls + completed, target.server.resident_bytes()))
            progress.update(task, advance=completed, refresh=True)
    return points


def start_up(bench: Bench, databases: Databases, *, times: int, progress: Progress) -> dict[str, list[float]]:
    """Measure the seconds from the start of a process to its first SERVING."""
    results: dict[str, list[float]] = {contender.key: [] for contender in _STARTED}
    task = progress.add_task("Start-up", total=times * len(_STARTED))
    with databases.copy(OURS.tables, SIZE) as storage:
        for number in range(times):
            for contender in _alternately(_STARTED, number):
                server = Server(contender, database_url=storage.url, log=bench.folder / f"{contender.key}.log")
                try:
                    results[contender.key].append(server.wait_until_healthy())
                finally:
                    server.stop()
                progress.update(task, advance=1, refresh=True)
    return results


def compare_workers(bench: Bench, databases: Databases, *, rounds: int, progress: Progress) -> dict[str, Rounds]:
    """Measure ours with one worker and with two. Returns the figures by operation and number."""
    with databases.copy(OURS.tables, SIZE) as storage:
        variants = {
            workers: partial(
                bench.serving, OURS, storage, SIZE, arguments=["--workers", workers], connections=_WORKERS_CONNECTIONS
            )
            for workers in _WORKERS
        }
        return _alternate(bench, "Workers", variants, WORKERS_OPERATIONS, rounds=rounds, progress=progress)


def compare_layers(bench: Bench, databases: Databases, *, rounds: int, progress: Progress) -> dict[str, Rounds]:
    """Measure ours with combinations of the layers around a call. Returns the figures by operation and layers."""
    with sinking_spans() as sink:
        variants = {
            each.name: partial(bench.contender, OURS, databases, SIZE, arguments=each.arguments, token=each.token)
            for each in layers(bench.folder, trace_endpoint=sink.endpoint)
        }
        return _alternate(bench, "Layers", variants, LAYERS_OPERATIONS, rounds=rounds, progress=progress)


def compare_pgbouncer(
    bench: Bench,
    postgresql: Databases,
    operations: Sequence[Operation],
    *,
    program: str,
    rounds: int,
    progress: Progress,
) -> dict[str, Rounds]:
    """Measure ours on PostgreSQL and through PgBouncer. Returns the figures by operation and name of the databases."""
    ways = (postgresql, PooledPostgreSQL(postgresql, program=program))
    variants = {databases.name: partial(bench.contender, OURS, databases, SIZE) for databases in ways}
    return _alternate(bench, "PgBouncer", variants, operations, rounds=rounds, progress=progress)


def _alternate(
    bench: Bench,
    title: str,
    variants: Mapping[str, Callable[[], AbstractContextManager[Running]]],
    operations: Sequence[Operation],
    *,
    rounds: int,
    progress: Progress,
) -> dict[str, Rounds]:
    """Run the variants in turn, and measure every operation. Returns the figures by operation and variant."""
    results: dict[str, Rounds] = {operation.key: {} for operation in operations}
    task = progress.add_task(title, total=rounds * len(variants) * len(operations))
    for number in range(rounds):
        for name in _alternately([*variants], number):
            progress.update(task, description=f"{title}: {name}, round {number + 1}", refresh=True)
            with variants[name]() as target:
                for operation in operations:
                    measured = bench.measure(target, operation)
                    if measured is not None:
                        results[operation.key].setdefault(name, []).append(measured)
                    progress.update(task, advance=1, refresh=True)
    return results


def _alternately(things: Sequence[T], number: int) -> Sequence[T]:
    return things if number % 2 == 0 else things[::-1]
