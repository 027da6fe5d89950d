"""Pooled connections that may be dead: tested after a rest, and invalidated together with those lost with them."""

import asyncio
import math
import time
from contextlib import suppress
from typing import Any

from sqlalchemy import ExceptionContext, event, exc
from sqlalchemy.ext.asyncio import AsyncEngine
from sqlalchemy.pool import ConnectionPoolEntry

from bookstore_grpc.dal.driver_errors import has_lost_connection

# A connection idle for this long is pinged before use, because a firewall may have dropped it silently. A busy service
# never pings, and a quiet one has the time.
_IDLE_SECONDS = 1
_PING_SECONDS = 1


class PoolInvalidation:
    """Keeps the pools of a database from handing out dead connections.

    SQLAlchemy's `pool_pre_ping` pings at every checkout, and each pool discovers the loss by itself. Here one
    connection that is found dead invalidates all connections of all engines that were open at that moment, for whatever
    ended it did so with the others.
    """

    def __init__(self) -> None:
        self._invalid_until = -math.inf

    def invalidate(self, *, opened_before: float | None = None) -> None:
        """Discard, at their next checkout, connections opened before this `time.monotonic`, by default before now."""
        self._invalid_until = max(self._invalid_until, time.monotonic() if opened_before is None else opened_before)

    def watch(self, engine: AsyncEngine) -> None:
        """Test the connections of an engine at their checkout, and learn of losses from its errors."""

        @event.listens_for(engine.sync_engine, "connect")
        def note_opening(_connection: object, record: ConnectionPoolEntry) -> None:
            record.info["opened_at"] = time.monotonic()

        @event.listens_for(engine.sync_engine, "checkin")
        def note_rest(_connection: object, record: ConnectionPoolEntry) -> None:
            record.info["idle_since"] = time.monotonic()

        @event.listens_for(engine.sync_engine, "checkout")
        def test(connection: Any, record: ConnectionPoolEntry, _proxy: object) -> None:
            record.info["checked_out_at"] = time.monotonic()
            if not self._is_usable(connection, record):
                if engine.dialect.name == "postgresql":
                    # asyncpg would close gracefully, and give a silent server two seconds to respond.
                    connection.driver_connection.terminate()
                raise exc.DisconnectionError

        @event.listens_for(engine.sync_engine, "handle_error")
        def invalidate_if_lost(context: ExceptionContext) -> None:
            self._learn_from_error(context, engine.dialect.name)

    def _is_usable(self, connection: Any, record: ConnectionPoolEntry) -> bool:
        checked_out_at = record.info["checked_out_at"]
        idle_since = record.info.get("idle_since")
        if idle_since is None:
            return True  # it was opened just now
        if record.info["opened_at"] <= self._invalid_until:
            return False
        if checked_out_at - idle_since < _IDLE_SECONDS:
            return True
        is_alive = connection.run_async(_is_alive)
        if is_alive is False:  # not if it is silent, for a pooler or a busy server may be slow
            self.invalidate(opened_before=checked_out_at)
        return bool(is_alive)

    def _learn_from_error(self, context: ExceptionContext, dialect: str) -> None:
        if context.connection is None or context.connection.invalidated:
            return
        if context.is_disconnect or has_lost_connection(context.original_exception, dialect):
            context.is_disconnect = True
            if context.invalidate_pool_on_disconnect:  # not if a caller was cancelled amid its statement
                context.invalidate_pool_on_disconnect = False
                # The first connection, by which SQLAlchemy inspects the server, was never checked out.
                with suppress(NotImplementedError, KeyError):
                    self.invalidate(opened_before=context.connection.info["checked_out_at"])


async def _is_alive(driver_connection: Any) -> bool | None:
    """Return whether the server responds to a ping; None if nothing arrives in time."""
    try:
        async with asyncio.timeout(_PING_SECONDS):
            if hasattr(driver_connection, "ping"):
                await driver_connection.ping(reconnect=False)
            else:
                await driver_connection.execute("")
    except TimeoutError as error:
        return None if error.errno is None else False  # a timeout of the kernel has a number
    except Exception:  # drivers raise many kinds, and each means that the connection is dead
        return False
    return True
