"""Signals that the log may have new changes: commits of this process, and those of others as the database tells."""

import asyncio
import time
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager, suppress

from bookstore_grpc.dal.change_log import CHANNEL
from bookstore_grpc.dal.database import Database
from bookstore_grpc.dal.postgresql_listener import PostgresqlListener

# SQLite is asked whether anybody has committed, which takes microseconds, MariaDB for new changes.
_POLL_SECONDS = 0.025
# Behind PostgreSQL's notifications, which may be lost with their connection.
_POLL_SECONDS_WHILE_NOTIFIED = 1
# Polls that found changes of which PostgreSQL has not notified this process. One may be just ahead of its notification.
_MISSED_MAX = 2
_LISTEN_AGAIN_SECONDS = 5


class ChangeSignals:
    """Waits for signals. Those that come while nobody waits are kept as one."""

    def __init__(self, database: Database) -> None:
        self._database = database
        self._version = None if not database.is_embedded else object()
        self._signalled = asyncio.Event()
        self._listener = (
            PostgresqlListener(database, CHANNEL, self.changes_committed) if database.dialect == "postgresql" else None
        )
        self._listen_at = 0.0
        self._missed = 0

    def changes_committed(self) -> None:
        """Signal that there may be new changes."""
        self._signalled.set()

    @asynccontextmanager
    async def listening(self) -> AsyncIterator[None]:
        """Listen to PostgreSQL's notifications in the block."""
        try:
            yield
        finally:
            if self._listener:
                await self._listener.stop()

    async def wait(self) -> bool:
        """Wait for a signal, or until the log is to be read without one. Returns whether there was a signal."""
        if self._listener:
            await self._listen(self._listener)
        is_notified = self._listener is not None and self._listener.is_listening
        while not self._signalled.is_set():
            if self._database.is_embedded and self._is_other_version():
                break
            with suppress(TimeoutError):
                async with asyncio.timeout(_POLL_SECONDS_WHILE_NOTIFIED if is_notified else _POLL_SECONDS):
                    await self._signalled.wait()
            if not self._database.is_embedded:
                break
        was_signalled = self._signalled.is_set()
        self._signalled.clear()
        return was_signalled

    async def changes_missed(self) -> None:
        """Note that there were changes without a signal: after some of them, listen on a new connection."""
        self._missed += 1
        if self._listener and self._missed > _MISSED_MAX:
            self._missed = 0
            await self._listener.stop()

    def _is_other_version(self) -> bool:
        """Return whether anybody has committed to SQLite since the last time, or may have."""
        version = self._database.version()
        is_other = version is None or version != self._version
        self._version = version
        return is_other

    async def _listen(self, listener: PostgresqlListener) -> None:
        if listener.is_listening or listener.is_unsupported or time.monotonic() < self._listen_at:
            return
        self._listen_at = time.monotonic() + _LISTEN_AGAIN_SECONDS
        await listener.start()
        self._signalled.set()  # for the changes before it listened
