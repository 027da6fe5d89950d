"""What the probe finds out about a database, for the calls that wait for it and for its connections."""

import asyncio
import math
import time
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager
from typing import Any

from sqlalchemy import event, exc
from sqlalchemy.ext.asyncio import AsyncEngine
from sqlalchemy.pool import ConnectionPoolEntry

from bookstore_grpc.errors import DatabaseUnavailable

# What a call is given that comes while the database is away: enough to find out that it is back.
_TRY_SECONDS = 1


class Outages:
    """Whether a database is away, as the one says who probes it.

    A database that is gone without a word, its host down or the network between cut, lets a call wait for ever. The
    probe is the first to know.
    """

    def __init__(self) -> None:
        self._is_away = False
        self._last_away = -math.inf
        self._waits: set[asyncio.Timeout] = set()

    def cut_connections(self) -> None:
        """Let no connection be used again that is there now."""
        self._last_away = time.monotonic()

    def began(self) -> None:
        """End every wait, let those that come be short, and cut the connections."""
        self._is_away = True
        self.cut_connections()
        for wait in self._waits:
            if not wait.expired():
                wait.reschedule(0)

    def ended(self) -> None:
        """Let calls wait as long as they like again."""
        self._is_away = False

    @asynccontextmanager
    async def waiting(self) -> AsyncIterator[None]:
        """Surround a wait for the database. Raises `DatabaseUnavailable` in it when that is found to be away."""
        try:
            async with asyncio.timeout(_TRY_SECONDS if self._is_away else None) as wait:
                self._waits.add(wait)
                try:
                    yield
                finally:
                    self._waits.discard(wait)
        except TimeoutError:
            late = TimeoutError("it did not answer in time")  # asyncio's own says nothing
            raise DatabaseUnavailable("The database does not answer; try again.") from late

    def replace_connections_of_before(self, engine: AsyncEngine) -> None:
        """Let an engine use no connection that was cut, which may be dead or, worse, silent."""

        @event.listens_for(engine.sync_engine, "connect")
        def remember(_connection: object, record: ConnectionPoolEntry) -> None:
            record.info["made"] = time.monotonic()

        @event.listens_for(engine.sync_engine, "checkout")
        def check(connection: Any, record: ConnectionPoolEntry, _proxy: object) -> None:
            if record.info["made"] > self._last_away:
                return
            if engine.dialect.name == "postgresql":
                # Else asyncpg would take leave first, and give a silent server two seconds to answer.
                connection.driver_connection.terminate()
            raise exc.DisconnectionError
