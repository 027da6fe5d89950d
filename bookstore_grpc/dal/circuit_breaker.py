"""What the probe finds out about a database, for the calls that wait for it and for its connections."""

import asyncio
import math
import time
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager, suppress
from typing import Any

from sqlalchemy import ExceptionContext, event, exc
from sqlalchemy.ext.asyncio import AsyncEngine
from sqlalchemy.pool import ConnectionPoolEntry

from bookstore_grpc.dal.driver_errors import has_lost_connection
from bookstore_grpc.errors import DatabaseUnavailable

# What a call is given that comes while the database is away: enough to find out that it is back.
_TRY_SECONDS = 1
# A connection that has rested for so long is asked whether it is there before it is used: a firewall may have dropped
# it without a word. A busy service never asks, and a quiet one has the time.
_REST_SECONDS = 1
_PING_SECONDS = 1


class Outages:
    """Whether a database is away, as the one says who probes it.

    A database that is gone without a word, its host down or the network between cut, lets a call wait for ever. The
    probe is the first to know.
    """

    def __init__(self) -> None:
        self._is_away = False
        self._last_away = -math.inf
        self._waits: set[asyncio.Timeout] = set()

    def cut_connections(self, *, made_before: float | None = None) -> None:
        """Let no connection be used again that was there then, by `time.monotonic`, or is there now."""
        self._last_away = max(self._last_away, time.monotonic() if made_before is None else made_before)

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

    def watch_connections(self, engine: AsyncEngine) -> None:
        """Let an engine use no connection that was cut, nor one that has gone while it rested.

        One that is found dead cuts all that were there when it was taken: who ended it, or forgot it, did so with them.
        """

        @event.listens_for(engine.sync_engine, "connect")
        def remember(_connection: object, record: ConnectionPoolEntry) -> None:
            record.info["made"] = time.monotonic()

        @event.listens_for(engine.sync_engine, "checkin")
        def rest(_connection: object, record: ConnectionPoolEntry) -> None:
            record.info["rests_since"] = time.monotonic()

        @event.listens_for(engine.sync_engine, "checkout")
        def check(connection: Any, record: ConnectionPoolEntry, _proxy: object) -> None:
            taken = record.info["taken"] = time.monotonic()
            rests_since = record.info.get("rests_since")
            if rests_since is None:
                return  # it was made just now
            if record.info["made"] > self._last_away:
                if taken - rests_since < _REST_SECONDS:
                    return
                has_answered = connection.run_async(_answers)
                if has_answered:
                    return
                if has_answered is False:  # not where it is silent, for a pooler or a busy server may be slow
                    self.cut_connections(made_before=taken)
            if engine.dialect.name == "postgresql":
                # Else asyncpg would take leave first, and give a silent server two seconds to answer.
                connection.driver_connection.terminate()
            raise exc.DisconnectionError

        @event.listens_for(engine.sync_engine, "handle_error")
        def cut_if_lost(context: ExceptionContext) -> None:
            if context.connection is None or context.connection.invalidated:
                return
            if context.is_disconnect or has_lost_connection(context.original_exception, engine.dialect.name):
                context.is_disconnect = True
                if context.invalidate_pool_on_disconnect:  # not where a caller has left amidst its statement
                    context.invalidate_pool_on_disconnect = False
                    # The very first one, by which SQLAlchemy learns of the database, was never taken from a pool.
                    with suppress(NotImplementedError, KeyError):
                        self.cut_connections(made_before=context.connection.info["taken"])


async def _answers(driver_connection: Any) -> bool | None:
    """Tell whether a connection is there; None where it says nothing in time."""
    try:
        async with asyncio.timeout(_PING_SECONDS):
            if hasattr(driver_connection, "ping"):
                await driver_connection.ping(reconnect=False)
            else:
                await driver_connection.execute("")
    except TimeoutError as error:
        return None if error.errno is None else False  # the kernel gives up with a number
    except Exception:  # drivers have many, and each means that it does not
        return False
    return True
