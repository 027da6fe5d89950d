"""The part of the report about watchers of changes."""

from collections.abc import Mapping, Sequence

from benchmarks.servers import FLOOR
from benchmarks.tables import NONE, ms, table
from benchmarks.watchers import IDLE_SECONDS, NO_FILTER, PAUSE_SECONDS, WatchMeasurement, WatchRounds, median_watch

_HEADERS = (
    "watchers",
    "contender",
    "filter",
    "KiB/watcher",
    "CPU µs/change and watcher",
    "share of floor",
    "idle CPU %",
    "CPU µs/change",
    "create p50 ms",
    "p50 ms",
    "p99 ms",
)
# Of fewer, the part of each cannot be told from noise.
_LEAST_FOR_A_PART = 100
_INTRO = f"""\
Ours on SQLite, in one process. Books are created one at a time, each {PAUSE_SECONDS * 1e3:.0f} ms after all watchers
have received the previous one. p50 and p99 are the times from the start of a create to its change at a watcher. CPU per
change includes the create. The part of a watcher is what the watchers add to a change that nobody watches, divided by
their number, and the share of the floor compares it. Idle CPU is that of {IDLE_SECONDS} s without changes, in percent
of one core: ours sends a checkpoint to each watcher, and the floor nothing. Memory is the growth of the proportional
set size when the watches were opened. The load generator is an HTTP/2 client in the benchmark's own process, which
takes a few µs for a response."""


def watchers_section(found: Mapping[str, WatchRounds]) -> str:
    """Return the section, or "" without results."""
    rows = [
        (f"{int(number):,}", contender, name or NONE, *_numbers(median_watch(rounds), int(number), by_contender))
        for number, by_contender in found.items()
        for contender, by_filter in by_contender.items()
        for name, rounds in by_filter.items()
    ]
    return f"## Watchers\n\n{_INTRO}\n\n{table(_HEADERS, rows)}" if rows else ""


def _numbers(measured: WatchMeasurement, number: int, by_contender: WatchRounds) -> Sequence[str]:
    return (
        *_parts(measured, floor=median_watch(by_contender[FLOOR.key][NO_FILTER]), is_shown=number >= _LEAST_FOR_A_PART),
        NONE if measured.idle_percent is None else f"{measured.idle_percent:.1f}",
        f"{measured.change_us:,.0f}",
        ms(measured.create_p50_ms),
        NONE if measured.p50_ms is None else ms(measured.p50_ms),
        NONE if measured.p99_ms is None else ms(measured.p99_ms),
    )


def _parts(measured: WatchMeasurement, *, floor: WatchMeasurement, is_shown: bool) -> Sequence[str]:
    """Return the memory and the CPU of one of several watchers, and the latter's share of the floor."""
    if not is_shown or measured.watcher_us is None or floor.watcher_us is None:
        return [NONE] * 3
    is_sent = measured.p50_ms is not None
    return (
        NONE if measured.watcher_bytes is None else f"{measured.watcher_bytes / 2**10:,.0f}",
        f"{measured.watcher_us:,.1f}",
        f"{floor.watcher_us / measured.watcher_us:.2f}" if is_sent else NONE,
    )
