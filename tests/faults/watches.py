"""What disturbs recorded watches: servers that are killed and stopped, and the figures of the histories."""

import asyncio
import os
import signal
from collections.abc import Awaitable, Callable, Sequence
from pathlib import Path

from tests.e2e.conftest import Start
from tests.history.recording import Recording
from tests.history.records import History, Outcome

STOPPED_SECONDS = 1.0
Fault = Callable[[], Awaitable[None]]


def figures_of(history: History) -> dict[str, int]:
    """Return how much a history has, in which the checker has found no gap and no double."""
    streams = [stream for watcher in history.watchers for stream in watcher.streams]
    outcomes = [write.outcome for write in history.writes]
    return {
        "calls": len(outcomes),
        "succeeded": outcomes.count(Outcome.OK),
        "unknown": outcomes.count(Outcome.UNKNOWN),
        "changes": max(change.number for stream in streams for each in stream.responses for change in each.changes),
        "received": sum(len(each.changes) for stream in streams for each in stream.responses),
        "watchers": len(history.watchers),
        "streams": len(streams),
        "gaps": 0,
        "doubles": 0,
    }


async def disturb(recorded: Recording, faults: Sequence[Fault], rounds: int) -> None:
    """Do one fault in each round, and kill the watchers: right after it, and while they receive a call in parts."""
    for number in range(rounds):
        await recorded.until_progress()
        await faults[number % len(faults)]()
        recorded.kill_watchers()
        recorded.watch_again()
        await recorded.until_progress()
        await recorded.writers.create_long_books()
        recorded.kill_watchers()
    await recorded.until_progress()


class Servers:
    """Two servers of one database, which can be killed and stopped."""

    def __init__(self, start: Start, database_url: str) -> None:
        self._start = start
        self._database_url = database_url
        self._servers = [start(database_url, "--migrate") for _ in range(2)]
        self.addresses = [server.address for server in self._servers]
        self._turn = 0

    async def kill_one(self) -> None:
        """Kill a server, and start it again."""
        which = self._next()
        self._servers[which].process.kill()
        await asyncio.to_thread(self._servers[which].wait)
        listen = "--listen", self.addresses[which]
        self._servers[which] = await asyncio.to_thread(self._start, self._database_url, *listen)

    async def stop_one(self) -> None:
        """Stop a server for a moment, so that it neither does anything nor closes a connection."""
        await stop(self._servers[self._next()].process.pid)

    def _next(self) -> int:
        self._turn += 1
        return self._turn % 2


async def stop(pid: int) -> None:
    os.kill(pid, signal.SIGSTOP)
    try:
        await asyncio.sleep(STOPPED_SECONDS)
    finally:
        os.kill(pid, signal.SIGCONT)


class Workers:
    """The two workers of one server, which it replaces."""

    def __init__(self, start: Start, database_url: str) -> None:
        self._start = start
        self._database_url = database_url
        self._server = start(database_url, "--workers", "2")
        self.address = self._server.address
        self._turn = 0

    async def kill_one(self) -> None:
        os.kill(self._next(), signal.SIGKILL)

    async def stop_one(self) -> None:
        await stop(self._next())

    async def restart(self) -> None:
        """Let the server and its workers end their calls, and start it again."""
        assert await asyncio.to_thread(self._server.stop) == 0
        again = "--workers", "2", "--listen", self.address
        self._server = await asyncio.to_thread(self._start, self._database_url, *again)

    def _next(self) -> int:
        """Return the process of a worker."""
        pid = self._server.process.pid
        workers = Path(f"/proc/{pid}/task/{pid}/children").read_text().split()
        self._turn += 1
        return int(workers[self._turn % len(workers)])
