"""Signals that the log may have new changes: commits of this process, and those of others as the database tells."""

import asyncio
import time
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager

from bookstore_grpc.dal.change_log import CHANNEL
from bookstore_grpc.dal.database import Database
from bookstore_grpc.dal.postgresql_listener import PostgresqlListener
from bookstore_grpc.dal.sqlite_reader import Version
from bookstore_grpc.errors import DatabaseUnavailable

# Polling is for the commits of other servers: those of this one, and of its other workers, are signalled at once.
# SQLite is asked whether anybody has committed, which takes microseconds; the others are asked for new changes.
_POLL_SECONDS_ON_SQLITE = 0.04
_POLL_SECONDS = 0.1
# Behind PostgreSQL's notifications, which may be lost with their connection.
_POLL_SECONDS_WHILE_NOTIFIED = 1
# Polls that found changes of which PostgreSQL has not notified this process. One may be just ahead of its notification.
_MISSED_MAX = 2
_LISTEN_AGAIN_SECONDS = 5


class ChangeSignals:
    """Waits for signals. Those that come while nobody waits are kept as one."""

    def __init__(self, database: Database) -> None:
        self._database = database
        self._version: Version | None = None
        self._woken = asyncio.Event()
        self._is_signalled = False
        self._timer: asyncio.TimerHandle | None = None
        self._listener = (
            PostgresqlListener(database, CHANNEL, self.changes_committed) if database.dialect == "postgresql" else None
        )
        self._listen_at = 0.0
        self._connecting: asyncio.Task[None] | None = None
        self._missed = 0

    def changes_committed(self) -> None:
        """Signal that there may be new changes."""
        self._is_signalled = True
        self._woken.set()

    @asynccontextmanager
    async def listening(self) -> AsyncIterator[None]:
        """Listen to PostgreSQL's notifications in the block."""
        try:
            yield
        finally:
            if self._connecting:
                self._connecting.cancel()
                await asyncio.wait([self._connecting])
            if self._listener:
                await self._listener.stop()

    async def wait(self) -> bool:
        """Wait for a signal, or until the log is to be read without one. Returns whether there was a signal."""
        if self._listener:
            self._listen(self._listener)
        self._poll_again()
        try:
            await self._woken.wait()
        finally:
            if self._timer:
                self._timer.cancel()
        was_signalled, self._is_signalled = self._is_signalled, False
        self._woken.clear()
        return was_signalled

    async def changes_missed(self) -> None:
        """Note that there were changes without a signal: after some of them, listen on a new connection."""
        self._missed += 1
        if self._listener and self._missed > _MISSED_MAX:
            self._missed = 0
            await self._listener.stop()

    def _poll_again(self) -> None:
        # A timer costs a third of a task that waits with a timeout.
        self._timer = asyncio.get_running_loop().call_later(self._poll_seconds(), self._poll)

    def _poll_seconds(self) -> float:
        if self._database.is_embedded:
            return _POLL_SECONDS_ON_SQLITE
        return _POLL_SECONDS_WHILE_NOTIFIED if self._listener and self._listener.is_listening else _POLL_SECONDS

    def _poll(self) -> None:
        if not self._database.is_embedded or self._is_other_version():
            self._woken.set()
        else:
            self._poll_again()

    def _is_other_version(self) -> bool:
        """Return whether anybody has committed to SQLite since the last time, or may have."""
        try:
            version = self._database.version()
        except DatabaseUnavailable:
            return True  # reading the log will raise it
        is_other = version is None or version != self._version
        self._version = version
        return is_other

    def _listen(self, listener: PostgresqlListener) -> None:
        """Connect in the background, because that may take long while the log can be read."""
        if listener.is_listening or listener.is_unsupported or time.monotonic() < self._listen_at:
            return
        if self._connecting is None or self._connecting.done():
            self._connecting = asyncio.create_task(self._connect(listener))

    async def _connect(self, listener: PostgresqlListener) -> None:
        await listener.start()
        self._listen_at = time.monotonic() + _LISTEN_AGAIN_SECONDS
        self.changes_committed()  # for the changes before it listened
