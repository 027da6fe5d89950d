"""LISTEN: PostgreSQL's notifications, on a connection of their own."""

from collections.abc import Callable
from typing import Any

import structlog
from sqlalchemy.util import greenlet_spawn

from bookstore_grpc.dal.database import Database
from bookstore_grpc.dal.driver_errors import translated_errors
from bookstore_grpc.errors import DatabaseUnavailable

_log = structlog.stdlib.get_logger("bookstore_grpc.dal.postgresql_listener")


class PostgresqlListener:
    """Calls `on_notified` for each notification on a channel.

    It `is_unsupported` behind a pooler, which would give the session that listens to other clients.
    """

    def __init__(self, database: Database, channel: str, on_notified: Callable[[], None]) -> None:
        self._database = database
        self._channel = channel
        self._on_notified = on_notified
        self._pooled: Any = None
        self.is_unsupported = False
        self.is_listening = False

    async def start(self) -> None:
        """Connect and listen. A failure is logged, and leaves `is_listening` False."""
        await self.stop()
        try:
            with translated_errors("postgresql"):
                self._pooled = await self._database.listening_connection()
                connection = self._pooled.driver_connection
                if connection.is_pooled:
                    self.is_unsupported = True
                    await self.stop()
                    return
                connection.add_termination_listener(self._on_terminated)
                await connection.add_listener(self._channel, self._on_notification)
        except DatabaseUnavailable as error:
            _log.warning("listening for changes failed", cause=repr(error.__cause__ or error), action="polling instead")
            await self.stop()
            return
        self.is_listening = True

    async def stop(self) -> None:
        """Close the connection."""
        self.is_listening = False
        pooled, self._pooled = self._pooled, None
        if pooled is not None:
            await greenlet_spawn(pooled.invalidate)

    def _on_notification(self, *_: object) -> None:
        self._on_notified()

    def _on_terminated(self, _connection: object) -> None:
        self.is_listening = False
        self._on_notified()
