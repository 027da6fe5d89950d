"""All results of a run: the content of `results.json`, and the source of tables and plot."""

import dataclasses
import json
from dataclasses import dataclass, field
from pathlib import Path

from benchmarks.searches import SearchResults
from benchmarks.sections import MemoryPoint, Rounds
from benchmarks.watchers import WatchRounds


@dataclass
class Results:
    """The results by section. A section that was not selected is empty; one that could not run says why."""

    machine: dict[str, str]
    arguments: str
    rounds: int
    seconds: float
    comparisons: dict[str, dict[str, Rounds]] = field(default_factory=dict)  # by database, operation and contender
    walk: dict[str, Rounds] = field(default_factory=dict)  # by operation and contender
    bulk: dict[str, Rounds] = field(default_factory=dict)  # by the same
    alone: dict[str, dict[str, Rounds]] = field(default_factory=dict)  # one call in flight, by the same
    growth: dict[str, Rounds] = field(default_factory=dict)  # by operation and size
    pgbouncer: dict[str, Rounds] = field(default_factory=dict)  # by operation and name of the databases
    searches: dict[str, SearchResults] = field(default_factory=dict)  # by database
    workers: dict[str, Rounds] = field(default_factory=dict)  # by operation and number of workers
    layers: dict[str, Rounds] = field(default_factory=dict)  # by operation and layers
    memory: list[MemoryPoint] = field(default_factory=list)
    start_up: dict[str, list[float]] = field(default_factory=dict)  # seconds by contender
    watchers: dict[str, WatchRounds] = field(default_factory=dict)  # by number, contender and filter
    skipped: dict[str, str] = field(default_factory=dict)  # by section

    def write_json(self, path: Path) -> None:
        """Write all results, with each round separately."""
        path.write_text(json.dumps(dataclasses.asdict(self), indent=1) + "\n")
