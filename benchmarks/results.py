"""What a run has found, all of it: `results.json` is this, and the tables and the plot are made of it."""

import dataclasses
import json
from dataclasses import dataclass, field
from pathlib import Path

from benchmarks.sections import MemoryPoint, Rounds


@dataclass
class Results:
    """The findings by section; a section that was not asked for is empty, one that could not run says why."""

    machine: dict[str, str]
    arguments: str
    rounds: int
    seconds: float
    comparisons: dict[str, dict[str, Rounds]] = field(default_factory=dict)  # by database, operation and contender
    growth: dict[str, Rounds] = field(default_factory=dict)  # by operation and size
    workers: dict[str, Rounds] = field(default_factory=dict)  # by operation and number of workers
    layers: dict[str, Rounds] = field(default_factory=dict)  # by operation and layers
    memory: list[MemoryPoint] = field(default_factory=list)
    start_up: dict[str, list[float]] = field(default_factory=dict)  # seconds by contender
    skipped: dict[str, str] = field(default_factory=dict)  # by section

    def write_json(self, path: Path) -> None:
        """Write everything, each round by itself."""
        path.write_text(json.dumps(dataclasses.asdict(self), indent=1) + "\n")
