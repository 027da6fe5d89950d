"""Watchers of changes: the memory of each, the CPU while nothing changes and for each change, and when they have it."""

import asyncio
import gc
import statistics
import time
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass, fields
from typing import NamedTuple

import uvloop
from rich.progress import Progress

from benchmarks.measuring import Bench
from benchmarks.sections import SIZE
from benchmarks.servers import FLOOR, OURS, Contender, Server, running
from benchmarks.storage import Databases
from benchmarks.watch_calls import MATCHES_ALL, MATCHES_NONE, Creator, Seen, Watches, creating, watching

NO_FILTER = ""
_FILTERS = {NO_FILTER: "", "all match": MATCHES_ALL, "none match": MATCHES_NONE}
# The interval of checkpoints, so that each watcher gets one.
IDLE_SECONDS = 10
# Between two changes, so that each is read by itself.
PAUSE_SECONDS = 0.01
_WARM_UP_CHANGES = 50


@dataclass(frozen=True, kw_only=True)
class WatchMeasurement:
    """The figures of a number of watchers with the same filter. What was not measured is None."""

    changes: int
    watcher_bytes: float | None  # the growth of the server's memory, for each watcher
    idle_percent: float | None  # the server's CPU while nothing changes, of one core
    change_us: float  # the server's CPU for a change, with its create and all watchers
    watcher_us: float | None  # the part of it for each watcher
    create_p50_ms: float  # from the start of a create to its response
    p50_ms: float | None  # from the start of a create to its change at a watcher
    p99_ms: float | None


WatchRounds = dict[str, dict[str, list[WatchMeasurement]]]  # by contender and filter


def median_watch(rounds: Sequence[WatchMeasurement]) -> WatchMeasurement:
    """Return the median of each figure."""

    def figure(name: str) -> float | None:
        measured = [value for each in rounds if (value := getattr(each, name)) is not None]
        return statistics.median(measured) if measured else None

    return WatchMeasurement(**{each.name: figure(each.name) for each in fields(WatchMeasurement)})  # type: ignore[arg-type]


def measure_watchers(
    bench: Bench, databases: Databases, numbers: Sequence[int], *, rounds: int, progress: Progress
) -> dict[str, WatchRounds]:
    """Measure ours and the floor. Returns the figures by number of watchers, contender and filter."""
    contenders = (OURS, FLOOR)
    results: dict[str, WatchRounds] = {
        str(number): {contender.key: {} for contender in contenders} for number in numbers
    }
    task = progress.add_task("Watchers", total=rounds * len(numbers) * len(contenders))
    gc.freeze()  # so that garbage collections, which delay responses, leave out what exists by now
    for index in range(rounds):
        for number in numbers:
            for contender in contenders if index % 2 == 0 else contenders[::-1]:
                with _serving(bench, databases, contender, number) as server:
                    measured = uvloop.run(_measure(server, number, seconds=bench.seconds))
                for name, figures in measured.items():
                    results[str(number)][contender.key].setdefault(name, []).append(figures)
                progress.update(task, advance=1, refresh=True)
    return results


@contextmanager
def _serving(bench: Bench, databases: Databases, contender: Contender, number: int) -> Iterator[Server]:
    """Run a contender that admits a number of watchers, and that many again whose connections were just closed."""
    if contender is FLOOR:
        with running(contender, database_url="", folder=bench.folder, arguments=["--size", str(SIZE)]) as server:
            yield server
        return
    most = str(max(1, 2 * number))
    arguments = ["--max-watchers", most, "--max-watchers-per-caller", most]
    with (
        databases.copy(contender.tables, SIZE) as storage,
        running(contender, database_url=storage.url, folder=bench.folder, arguments=arguments) as server,
    ):
        yield server


async def _measure(server: Server, number: int, *, seconds: float) -> dict[str, WatchMeasurement]:
    """Measure a server by filter. The floor has none, and without watchers there is nothing to filter."""
    filters = _FILTERS if number and server.contender is not FLOOR else {NO_FILTER: ""}
    results: dict[str, WatchMeasurement] = {}
    async with creating(server.address) as creator:
        async with watching(server.address, 0) as nobody:
            for _ in range(_WARM_UP_CHANGES):
                await nobody.see(creator)
            unwatched = await _changes(server, creator, nobody, seconds=seconds)
        for name, filter in filters.items():
            bytes_before = server.resident_bytes()
            async with watching(server.address, number, filter=filter) as watches:
                await asyncio.to_thread(server.wait_until_idle)
                growth_bytes = server.resident_bytes() - bytes_before
                # A filter affects neither memory nor idle CPU, and later watchers reuse the memory of the first ones.
                is_first = not results
                idle_percent = await _idle_percent(server) if is_first else None
                load = await _changes(server, creator, watches, seconds=seconds)
            results[name] = WatchMeasurement(
                changes=len(load.seen),
                watcher_bytes=growth_bytes / number if number and is_first else None,
                idle_percent=idle_percent,
                change_us=load.change_us,
                watcher_us=(load.change_us - unwatched.change_us) / number if number else None,
                create_p50_ms=statistics.median(seen.response_seconds for seen in load.seen) * 1e3,
                p50_ms=load.percentile_ms(50),
                p99_ms=load.percentile_ms(99),
            )
    return results


class _Load(NamedTuple):
    """Changes one after the other, and the server's CPU time for each."""

    seen: list[Seen]
    change_us: float

    def percentile_ms(self, percent: int) -> float | None:
        """Return a percentile of the times at which the watchers had the changes, or None if none had any."""
        latencies = sorted(seconds for seen in self.seen for seconds in seen.watcher_seconds)
        return latencies[len(latencies) * percent // 100] * 1e3 if latencies else None


async def _changes(server: Server, creator: Creator, watches: Watches, *, seconds: float) -> _Load:
    """Make changes for some seconds, the next one when all watchers have the last one and a pause has passed."""
    seen: list[Seen] = []
    cpu_before, until = server.cpu_seconds(), time.perf_counter() + seconds
    while not seen or time.perf_counter() < until:
        seen.append(await watches.see(creator))
        await asyncio.sleep(PAUSE_SECONDS)
    return _Load(seen, (server.cpu_seconds() - cpu_before) / len(seen) * 1e6)


async def _idle_percent(server: Server) -> float:
    """Return the CPU of a server while nothing changes, in percent of one core."""
    cpu_before = server.cpu_seconds()
    await asyncio.sleep(IDLE_SECONDS)
    return (server.cpu_seconds() - cpu_before) / IDLE_SECONDS * 100
